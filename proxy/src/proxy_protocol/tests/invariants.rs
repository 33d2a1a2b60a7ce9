//! What holds for any bytes that are read as a PROXY protocol header, valid or not. The fuzz target uses it too.

use underpass_command::state::SendProxy;

use crate::proxy_protocol::{Fault, Header, Received, WRITTEN_SIZE_MAX, parse};

/// A bound that small input can reach.
const SIZE_MAX: usize = 512;

/// Checks `input`.
pub(crate) fn header(input: &[u8]) {
    let whole = parse(input, SIZE_MAX);
    splits(input, &whole);
    match whole {
        Ok(Some(received)) => {
            assert!(received.size <= input.len().min(SIZE_MAX));
            assert!(received.size > 12, "shorter than any header");
            again(&received);
        }
        // Whatever is waited for must come within the bound.
        Ok(None) => assert!(input.len() < SIZE_MAX),
        Err(Fault::Missing | Fault::Malformed | Fault::TooLong) => {}
    }
}

/// However few bytes have come, the answer is none or the one for all of them; and none means that it could still be yes.
fn splits(input: &[u8], whole: &Result<Option<Received>, Fault>) {
    let mut answered = false;
    for end in 0..=input.len().min(2 * SIZE_MAX) {
        let part = parse(&input[..end], SIZE_MAX);
        if part == Ok(None) {
            assert!(!answered, "an answer was taken back at {end}");
            continue;
        }
        answered = true;
        assert_eq!(part, *whole, "at {end} of {}", input.len());
    }
}

/// A header that tells the same addresses, in either version, is read as it was meant.
fn again(received: &Received) {
    let Some(addresses) = received.addresses else { return };
    for version in [SendProxy::V1, SendProxy::V2] {
        let header = Header::new(version, addresses).expect("a version");
        let bytes = header.as_bytes();
        assert!(bytes.len() <= WRITTEN_SIZE_MAX);
        let read = parse(bytes, SIZE_MAX).expect("a valid header").expect("all of it");
        assert_eq!(read.size, bytes.len());
        let read = read.addresses.expect("addresses");
        for (read, meant) in [(read.source, addresses.source), (read.destination, addresses.destination)] {
            assert_eq!(read.ip().to_canonical(), meant.ip().to_canonical());
            assert_eq!(read.port(), meant.port());
        }
    }
}
