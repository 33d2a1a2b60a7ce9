//! What holds for the ledger of any chunked body, valid or not. The fuzz target uses it too.

use crate::forward::{Ledger, Part, TrailerLimits};
use crate::http1::{Framing, Reason};

/// Bounds that small input can reach.
pub(crate) const TRAILERS: TrailerLimits = TrailerLimits { size_max: 128, count_max: 4 };

/// How one body was taken.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    content: Vec<u8>,
    /// Bytes of the input that belong to the body and whether it is complete, or why it was refused.
    end: Result<(usize, bool), Reason>,
}

/// Checks `input` read at once, byte by byte, and in reads of the sizes given (repeated; 0 counts as 1).
pub(crate) fn chunked(input: &[u8], reads: &[u8]) {
    let whole = run(input, &[], false);
    assert_eq!(run(input, &[], true), whole, "content moved by the kernel");
    assert_eq!(run(input, &[1], false), whole, "byte by byte");
    assert_eq!(run(input, reads, false), whole, "reads of {reads:?}");
    assert_eq!(run(input, reads, true), whole, "reads of {reads:?}, content moved by the kernel");
    if let Ok((size, true)) = whole.end {
        // What follows the body changes nothing.
        assert_eq!(run(&input[..size], &[], false), whole, "cut at its end");
        assert_eq!(oracle(input), Some((size, whole.content)), "httparse reads the same chunks");
    }
}

fn run(input: &[u8], reads: &[u8], kernel: bool) -> Outcome {
    let mut ledger = Ledger::new(Framing::Chunked, TRAILERS);
    let mut content = Vec::new();
    let mut at = 0;
    let mut read = 0;
    let mut reads = reads.iter().cycle();
    loop {
        assert_eq!(ledger.content(), content.len() as u64);
        let left = usize::try_from(ledger.data_left()).unwrap_or(usize::MAX).min(read - at);
        let part = if kernel && left > 0 {
            ledger.debit(left as u64);
            Ok(Part::Data(left))
        } else {
            ledger.scan(&input[at..read])
        };
        match part {
            Ok(Part::Data(size)) => {
                assert!(0 < size && size <= read - at);
                content.extend_from_slice(&input[at..at + size]);
                at += size;
            }
            Ok(Part::Framing(size)) => {
                assert!(0 < size && size <= read - at);
                at += size;
            }
            Ok(Part::End) => {
                assert!(ledger.is_settled() && ledger.data_left() == 0);
                assert_eq!(ledger.close(), Ok(()));
                return Outcome { content, end: Ok((at, true)) };
            }
            Ok(Part::More) if at < input.len() => {
                assert_eq!(at, read, "all input was taken");
                read = match reads.next() {
                    Some(size) => input.len().min(at + usize::from(*size).max(1)),
                    None => input.len(),
                };
            }
            Ok(Part::More) => {
                assert!(!ledger.is_settled());
                assert_eq!(ledger.close(), Err(Reason::BodyTruncated));
                return Outcome { content, end: Ok((at, false)) };
            }
            Err(reason) => return Outcome { content, end: Err(reason) },
        }
    }
}

/// The same body by httparse: its size and content; none if it is refused or not complete. It is laxer: any byte may
/// stand in an extension, and any field in a trailer section, where it also takes bare line feeds.
fn oracle(input: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut content = Vec::new();
    let mut at = 0;
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(&input[at..]) else {
            return None;
        };
        at += line;
        if size == 0 {
            break;
        }
        let end = at + usize::try_from(size).ok()?;
        content.extend_from_slice(input.get(at..end)?);
        if input.get(end..end + 2)? != b"\r\n" {
            return None;
        }
        at = end + 2;
    }
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS.count_max as usize];
    match httparse::parse_headers(&input[at..], &mut fields) {
        Ok(httparse::Status::Complete((size, _))) => Some((at + size, content)),
        _ => None,
    }
}
