//! Values of clients in lines of text and of JSON.

/// How values are written so that they stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Escape {
    /// As nginx: quotes, backslashes, control characters and what is not ASCII as `\xXX`. Outside of quotes spaces, too.
    Text,
    /// As the inside of a JSON string (RFC 8259 section 7). What is not ASCII is taken for Latin-1, so that it is valid
    /// whatever it was.
    Json,
}

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Writes as much of a value as fits into `room` bytes, and no part of an escape. `quoted` tells that it stands in quotes.
pub(crate) fn write_escaped(out: &mut Vec<u8>, value: &[u8], escape: Escape, quoted: bool, room: usize) {
    let end = out.len() + room;
    for &byte in value {
        let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
        let long;
        let written: &[u8] = match (byte, escape) {
            (b'"' | b'\\', Escape::Json) => {
                long = [b'\\', byte, 0, 0, 0, 0];
                &long[..2]
            }
            (b' ', Escape::Text) if !quoted => b"\\x20",
            (b' '..=b'~', Escape::Json) => std::slice::from_ref(&byte),
            (b' '..=b'~', Escape::Text) if byte != b'"' && byte != b'\\' => std::slice::from_ref(&byte),
            (_, Escape::Text) => {
                long = [b'\\', b'x', high, low, 0, 0];
                &long[..4]
            }
            (_, Escape::Json) => {
                long = [b'\\', b'u', b'0', b'0', high, low];
                &long
            }
        };
        if out.len() + written.len() > end {
            return;
        }
        out.extend_from_slice(written);
    }
}
