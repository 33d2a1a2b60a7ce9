//! Tests of the framing ledger.

pub(crate) mod invariants;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;

use super::{CHUNK_LINE_SIZE_MAX, Ledger, Part, TrailerLimits};
use crate::http1::{Framing, Reason};
use invariants::TRAILERS;

fn ledger(framing: Framing) -> Ledger {
    Ledger::new(framing, TRAILERS)
}

/// Takes all of a chunked body: how many bytes belong to it, whether it is complete, and how much is content.
fn take(input: impl AsRef<[u8]>) -> Result<(usize, bool, u64), Reason> {
    let mut ledger = ledger(Framing::Chunked);
    let taken = ledger.take(input.as_ref())?;
    Ok((taken, ledger.is_settled(), ledger.content()))
}

#[test]
fn no_body_is_settled_from_the_start() {
    for framing in [Framing::None, Framing::Length(0)] {
        let mut ledger = ledger(framing);
        assert!(ledger.is_settled());
        assert_eq!(ledger.data_left(), 0);
        assert_eq!(ledger.scan(b"next message"), Ok(Part::End));
        assert_eq!(ledger.close(), Ok(()));
    }
    assert!(Ledger::settled().is_settled());
}

#[test]
fn a_length_is_counted_down() {
    let mut ledger = ledger(Framing::Length(10));
    assert_eq!(ledger.scan(b""), Ok(Part::More));
    assert_eq!(ledger.scan(b"abc"), Ok(Part::Data(3)));
    assert_eq!(ledger.data_left(), 7);
    ledger.debit(2);
    ledger.debit(0);
    assert_eq!((ledger.data_left(), ledger.is_settled()), (5, false));
    assert_eq!(ledger.clone().close(), Err(Reason::BodyTruncated));
    assert_eq!(ledger.scan(b"12345next"), Ok(Part::Data(5)));
    assert_eq!((ledger.content(), ledger.is_settled()), (10, true));
    assert_eq!(ledger.scan(b"next"), Ok(Part::End));
    assert_eq!(ledger.close(), Ok(()));
}

#[test]
fn until_close_only_the_close_ends_it() {
    let mut ledger = ledger(Framing::UntilClose);
    assert_eq!(ledger.scan(b"abc"), Ok(Part::Data(3)));
    assert_eq!(ledger.data_left(), u64::MAX);
    ledger.debit(1 << 40);
    assert!(!ledger.is_settled());
    assert_eq!(ledger.close(), Ok(()));
    assert_eq!((ledger.content(), ledger.is_settled()), (3 + (1 << 40), true));
}

#[test]
#[should_panic(expected = "moved 11 bytes of 10 allowed")]
fn a_debit_beyond_the_length_is_a_broken_forwarder() {
    ledger(Framing::Length(10)).debit(11);
}

#[test]
#[should_panic(expected = "moved 1 bytes of 0 allowed")]
fn a_debit_of_framing_is_a_broken_forwarder() {
    ledger(Framing::Chunked).debit(1);
}

#[test]
fn parts_of_a_chunked_body() {
    let input = b"4;a=b\r\nWiki\r\n0\r\nX: y\r\n\r\nnext";
    let mut ledger = ledger(Framing::Chunked);
    let mut at = 0;
    let mut parts = Vec::new();
    loop {
        let part = ledger.scan(&input[at..]).unwrap();
        parts.push(part);
        match part {
            Part::Data(size) | Part::Framing(size) => at += size,
            Part::End | Part::More => break,
        }
    }
    // The line end after the data, the last chunk and the trailers are one part.
    assert_eq!(parts, [Part::Framing(7), Part::Data(4), Part::Framing(13), Part::End]);
    assert_eq!(&input[at..], b"next");
}

#[test]
fn chunk_data_may_be_moved_unseen() {
    let mut ledger = ledger(Framing::Chunked);
    assert_eq!(ledger.scan(b"ffffffff\r\n"), Ok(Part::Framing(10)));
    assert_eq!(ledger.data_left(), 0xffff_ffff);
    ledger.debit(0xffff_fffe);
    assert_eq!(ledger.data_left(), 1);
    assert_eq!(ledger.scan(b"x\r\n0\r\n\r\n"), Ok(Part::Data(1)));
    assert_eq!(ledger.data_left(), 0);
    assert_eq!(ledger.take(b"\r\n0\r\n\r\nnext"), Ok(7));
    assert_eq!((ledger.content(), ledger.is_settled()), (0xffff_ffff, true));
}

#[test]
fn chunked_bodies_that_are_accepted() {
    for (body, content) in [
        ("0\r\n\r\n", 0),
        ("4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n", 9),
        ("000\r\n\r\n", 0),
        ("0000000000000004\r\nWiki\r\n0000000000000000\r\n\r\n", 4),
        ("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", 20),
        ("2\r\n\r\n\r\n0\r\n\r\n", 2),
        // RFC 9112 section 7.1.1: extensions, with the white space that the grammar calls bad.
        ("1;a\r\nx\r\n0;b\r\n\r\n", 1),
        ("1;a=b;c=\"d\"\r\nx\r\n0\r\n\r\n", 1),
        ("1 \t;\t a \t=\t b \t;c\r\nx\r\n0\r\n\r\n", 1),
        ("1;a=\"\"\r\nx\r\n0\r\n\r\n", 1),
        ("1;a=\";=\\\"\\\\ \t\u{e4}\" ;b\r\nx\r\n0\r\n\r\n", 1),
        // Trailers.
        ("0\r\nX:\r\n\r\n", 0),
        ("0\r\nX: y\r\nZ: \tz \u{e4}\r\n\r\n", 0),
        ("0\r\nContent-Length-X: y\r\nHos: t\r\nHosts: t\r\n\r\n", 0),
        ("0\r\nGrpc-Status: 0\r\nServer-Timing: a\r\n\r\n", 0),
    ] {
        for tail in ["", "0\r\n\r\n", "GET / HTTP/1.1\r\n", "\r\n"] {
            assert_eq!(take(format!("{body}{tail}")), Ok((body.len(), true, content)), "{body:?}");
        }
        for end in 0..body.len() {
            let cut = take(&body.as_bytes()[..end]).map(|(taken, settled, _)| (taken, settled));
            assert_eq!(cut, Ok((end, false)), "{body:?} cut at {end}");
        }
        invariants::chunked(body.as_bytes(), &[2, 3]);
    }
}

#[test]
fn the_largest_sizes() {
    let (taken, settled, _) = take("7fffffffffffffff\r\n").unwrap();
    assert_eq!((taken, settled), (18, false));
    for size in ["8000000000000000", "ffffffffffffffff", "10000000000000000", "00000000000000001"] {
        assert_eq!(take(size), Err(Reason::ChunkSizeOverflow), "{size}");
    }
}

/// Every reason to refuse a body, by the smallest input that has it.
const REFUSED: &[(Reason, &str)] = &[
    (Reason::ChunkSizeMalformed, "\r"),
    (Reason::ChunkSizeMalformed, " "),
    (Reason::ChunkSizeMalformed, ";"),
    (Reason::ChunkSizeMalformed, "g"),
    (Reason::ChunkSizeMalformed, "-"),
    (Reason::ChunkSizeMalformed, "+"),
    (Reason::ChunkSizeMalformed, "0x"),
    (Reason::ChunkSizeMalformed, "1_"),
    (Reason::ChunkSizeMalformed, "1\0"),
    (Reason::ChunkSizeMalformed, "1 1"),
    (Reason::ChunkSizeMalformed, "1 \r"),
    (Reason::ChunkSizeMalformed, "1,"),
    (Reason::ChunkSizeMalformed, "1\r\nx\r\n\r"),
    (Reason::ChunkSizeOverflow, "8000000000000000"),
    (Reason::ChunkSizeOverflow, "00000000000000000"),
    (Reason::ChunkExtensionMalformed, "1;\r"),
    (Reason::ChunkExtensionMalformed, "1;;"),
    (Reason::ChunkExtensionMalformed, "1; \r"),
    (Reason::ChunkExtensionMalformed, "1;="),
    (Reason::ChunkExtensionMalformed, "1;a=\r"),
    (Reason::ChunkExtensionMalformed, "1;a=;"),
    (Reason::ChunkExtensionMalformed, "1;a \r"),
    (Reason::ChunkExtensionMalformed, "1;a b"),
    (Reason::ChunkExtensionMalformed, "1;a=b \r"),
    (Reason::ChunkExtensionMalformed, "1;a=b c"),
    (Reason::ChunkExtensionMalformed, "1;a=b\""),
    (Reason::ChunkExtensionMalformed, "1;\""),
    (Reason::ChunkExtensionMalformed, "1;a=\"b\"c"),
    (Reason::ChunkExtensionMalformed, "1;a=\"\r"),
    (Reason::ChunkExtensionMalformed, "1;a=\"\\\r"),
    (Reason::ChunkExtensionMalformed, "1;a=\"\0"),
    (Reason::ChunkExtensionMalformed, "1;\0"),
    (Reason::ChunkExtensionMalformed, "1;a\u{7f}"),
    (Reason::BareLf, "\n"),
    (Reason::BareLf, "1\n"),
    (Reason::BareLf, "1 \n"),
    (Reason::BareLf, "1;a\n"),
    (Reason::BareLf, "1;a=\"\n"),
    (Reason::BareLf, "0\r\n\n"),
    (Reason::BareLf, "0\r\nX\n"),
    (Reason::BareLf, "0\r\nX: y\n"),
    (Reason::BareCr, "1\rx"),
    (Reason::BareCr, "1\r\r"),
    (Reason::BareCr, "1;a\rx"),
    (Reason::BareCr, "0\r\n\rx"),
    (Reason::BareCr, "0\r\nX: y\rx"),
    (Reason::ChunkEndMissing, "1\r\nxx"),
    (Reason::ChunkEndMissing, "1\r\nx\n"),
    (Reason::ChunkEndMissing, "1\r\nx\rx"),
    (Reason::ChunkEndMissing, "1\r\nx0"),
    (Reason::ObsFold, "0\r\n "),
    (Reason::ObsFold, "0\r\nX: y\r\n\t"),
    (Reason::SpaceBeforeColon, "0\r\nX "),
    (Reason::FieldNameEmpty, "0\r\n:"),
    (Reason::FieldNameInvalid, "0\r\nX\r"),
    (Reason::FieldNameInvalid, "0\r\nX\0"),
    (Reason::FieldNameInvalid, "0\r\n\0"),
    (Reason::FieldNameInvalid, "0\r\n\""),
    (Reason::FieldValueInvalid, "0\r\nX: \0"),
    (Reason::FieldValueInvalid, "0\r\nX: \u{7f}"),
];

#[test]
fn bodies_that_are_refused() {
    for &(reason, body) in REFUSED {
        assert_eq!(take(body), Err(reason), "{body:?}");
        assert_eq!(reason.status(), 400, "{}", reason.name());
        let before = &body.as_bytes()[..body.len() - 1];
        assert!(take(before).is_ok(), "{body:?} is refused by its last byte");
        invariants::chunked(body.as_bytes(), &[2, 1]);
    }
}

/// A recipient that merges trailers into the head would frame, route or attribute the message by them.
#[test]
fn trailers_that_belong_into_the_head() {
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Upgrade",
        "Expect",
        "Via",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Request-Id",
    ] {
        for name in [name.to_owned(), name.to_lowercase(), name.to_uppercase()] {
            assert_eq!(take(format!("0\r\nX: y\r\n{name}:")), Err(Reason::TrailerForbidden), "{name}");
            assert!(take(format!("0\r\nX{name}: y\r\n{name}X: y\r\n\r\n")).is_ok(), "{name}");
        }
    }
    // A name far longer than any that is known.
    let long = "x".repeat(300);
    let mut ledger = Ledger::new(Framing::Chunked, TrailerLimits { size_max: 400, count_max: 1 });
    assert!(ledger.take(format!("0\r\n{long}: y\r\n\r\n").as_bytes()).is_ok() && ledger.is_settled());
}

#[test]
fn lines_and_sections_at_and_beyond_their_bound() {
    let line = |size: usize| format!("1;a={}\r\nx\r\n0\r\n\r\n", "b".repeat(size - 4));
    let max = CHUNK_LINE_SIZE_MAX as usize;
    assert!(take(line(max)).is_ok_and(|taken| taken.1));
    assert_eq!(take(line(max + 1)), Err(Reason::ChunkExtensionMalformed));
    // White space counts too.
    assert_eq!(take(format!("1{}", " ".repeat(max))), Err(Reason::ChunkExtensionMalformed));

    let section = |size: usize| format!("0\r\nX: {}\r\n\r\n", "y".repeat(size - 7));
    let max = TRAILERS.size_max as usize;
    assert!(take(section(max)).is_ok_and(|taken| taken.1));
    assert_eq!(take(section(max + 1)), Err(Reason::HeadTooLarge));

    let fields = |count: u16| format!("0\r\n{}\r\n", "X:\r\n".repeat(usize::from(count)));
    assert!(take(fields(TRAILERS.count_max)).is_ok_and(|taken| taken.1));
    assert_eq!(take(fields(TRAILERS.count_max + 1)), Err(Reason::TooManyFields));
}

/// Bytes that mean something to a decoder.
fn telling_byte() -> impl Strategy<Value = u8> {
    prop_oneof![4 => select(&b"\r\n\0;: \t\"\\=,0aF"[..]), 1 => any::<u8>()]
}

/// A chunked body as a sender may write it, and its content.
fn valid() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let extension = select(vec!["", "", ";a", ";a=b", " ; a = \"b;\\\"\" ;c"]);
    let chunk = (vec(any::<u8>(), 1..40), 0..4_usize, extension.clone());
    let trailer = select(vec!["X: y\r\n", "Digest:\r\n", "Long-Name-Of-A-Trailer:\tz \r\n"]);
    (vec(chunk, 0..4), extension, vec(trailer, 0..3)).prop_map(|(chunks, last, trailers)| {
        let (mut body, mut content) = (Vec::new(), Vec::new());
        for (data, zeros, extension) in chunks {
            body.extend(format!("{}{:x}{extension}\r\n", "0".repeat(zeros), data.len()).into_bytes());
            body.extend(&data);
            body.extend(b"\r\n");
            content.extend(data);
        }
        body.extend(format!("0{last}\r\n{}\r\n", trailers.concat()).into_bytes());
        (body, content)
    })
}

fn config(cases: u32) -> ProptestConfig {
    // The same bodies in every run.
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn valid_bodies_are_taken_whole_and_not_beyond(
        (body, content) in valid(),
        tail in vec(telling_byte(), 0..20),
        reads in vec(any::<u8>(), 1..8),
    ) {
        let input = [body.as_slice(), &tail].concat();
        prop_assert_eq!(take(&input), Ok((body.len(), true, content.len() as u64)));
        invariants::chunked(&input, &reads);
    }

    #[test]
    fn mutated_bodies_are_taken_alike_however_they_are_read(
        (mut body, _) in valid(),
        edits in vec((any::<Index>(), 0..3_u8, telling_byte()), 1..4),
        reads in vec(any::<u8>(), 1..8),
    ) {
        for (index, kind, byte) in edits {
            let at = index.index(body.len());
            match kind {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ if body.len() > 1 => drop(body.remove(at)),
                _ => {}
            }
        }
        invariants::chunked(&body, &reads);
    }

    #[test]
    fn any_bytes_are_taken_alike_however_they_are_read(
        body in vec(telling_byte(), 0..60),
        reads in vec(any::<u8>(), 1..8),
    ) {
        invariants::chunked(&body, &reads);
    }

    #[test]
    fn a_length_is_never_exceeded(length in 0..200_u64, reads in vec((any::<bool>(), 0..80_usize), 0..8)) {
        let mut ledger = ledger(Framing::Length(length));
        let mut left = length;
        for (kernel, size) in reads {
            prop_assert_eq!(ledger.data_left(), left);
            let taken = left.min(size as u64);
            if kernel {
                ledger.debit(taken);
            } else {
                prop_assert_eq!(ledger.take(&vec![b'x'; size]), Ok(usize::try_from(taken).unwrap()));
            }
            left -= taken;
            prop_assert_eq!(ledger.is_settled(), left == 0);
            prop_assert_eq!(ledger.content(), length - left);
        }
    }
}

#[test]
fn a_chunk_that_would_cross_the_bound_is_refused_by_its_header() {
    let mut ledger =
        Ledger::new(Framing::Chunked, TrailerLimits { size_max: 100, count_max: 10 }).with_content_max(10);
    assert_eq!(ledger.take(b"5\r\nhello\r\n"), Ok(10));
    assert_eq!(ledger.clone().take(b"5\r\nworld\r\n0\r\n\r\n"), Ok(15));
    assert_eq!(ledger.take(b"6\r\n"), Err(Reason::BodyTooLarge));
}
