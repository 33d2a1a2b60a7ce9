//! What holds for any bytes that are read as a TLS ClientHello, valid or not. The fuzz target uses it too.

use crate::tls_hello::{Fault, parse};

/// Up to this size every prefix is tried.
const PREFIXES_SIZE_MAX: usize = 4096;

/// Checks `input`: however few bytes have come, the answer is none or the one for all of them.
pub(crate) fn hello(input: &[u8]) {
    let whole = parse(input);
    let mut answered = false;
    for end in 0..=input.len().min(PREFIXES_SIZE_MAX) {
        let part = parse(&input[..end]);
        if part == Ok(None) {
            assert!(!answered, "an answer was taken back at {end}");
            continue;
        }
        answered = true;
        assert_eq!(part, whole, "at {end} of {}", input.len());
    }
    match whole {
        Ok(Some(hello)) => {
            let Some(name) = hello.server_name else { return };
            let name = name.as_bytes();
            assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
            // The records end between any two bytes, so in pieces the name may stand nowhere; its bytes do, in this order.
            let mut rest = input.iter();
            assert!(name.iter().all(|byte| rest.any(|other| other == byte)), "a name that nobody sent");
        }
        Ok(None) => {}
        Err(Fault::Missing) => assert!(!input.is_empty()),
        Err(Fault::Malformed) => assert!(input.len() > 5),
    }
}

/// The handshake messages of `input`'s records, spread over records of at most `size` bytes each. None if `input` is not
/// whole handshake records.
pub(crate) fn refragmented(input: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut messages = Vec::new();
    let mut rest = input;
    while let Some((header, after)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != 22 || header[1] != 3 || length == 0 || length > 1 << 14 {
            return None;
        }
        messages.extend_from_slice(after.get(..length)?);
        rest = &after[length..];
    }
    if !rest.is_empty() {
        return None;
    }
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[22, 3, 1][..], &length, piece].concat()
    };
    Some(messages.chunks(size.clamp(1, 1 << 14)).flat_map(record).collect())
}

/// Checks that it does not matter how a hello is spread over records.
pub(crate) fn fragments(input: &[u8], size: usize) {
    if let (Ok(Some(hello)), Some(other)) = (parse(input), refragmented(input, size)) {
        assert_eq!(parse(&other), Ok(Some(hello)), "records of {size} bytes");
    }
}
