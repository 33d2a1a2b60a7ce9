//! Where a message's body ends: RFC 9112 section 6.3.

use super::fields::{Fields, list_members};
use super::{Known, Reason, Version};

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Everything until the connection closes; only in responses.
    UntilClose,
}

/// What the framing fields of a head say, before the rules for requests or responses are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FramingFields {
    /// `Content-Length`, if given.
    pub(super) length: Option<u64>,
    /// Whether `Transfer-Encoding: chunked` is given.
    pub(super) chunked: bool,
}

/// Reads `Content-Length` and `Transfer-Encoding`, and refuses every combination that two recipients could take
/// differently.
pub(super) fn framing_fields(
    buffer: &[u8],
    fields: &Fields,
    version: Version,
) -> Result<FramingFields, Reason> {
    let mut length = None;
    for value in fields.values(buffer, Known::ContentLength) {
        content_length(value, &mut length)?;
    }
    let mut codings = Codings::default();
    for value in fields.values(buffer, Known::TransferEncoding) {
        codings.read(value)?;
    }
    if !codings.seen {
        return Ok(FramingFields { length, chunked: false });
    }
    // RFC 9112 section 6.1: Transfer-Encoding in an HTTP/1.0 message means that its framing is faulty.
    if version == Version::Http10 {
        return Err(Reason::TransferEncodingOldVersion);
    }
    // RFC 9112 section 6.3, rule 3: both fields together "ought to be handled as an error".
    if length.is_some() {
        return Err(Reason::LengthAndEncoding);
    }
    codings.finish()?;
    Ok(FramingFields { length: None, chunked: true })
}

/// Reads one `Content-Length` value. RFC 9110 section 8.6: a list of identical numbers may be taken for one of them.
fn content_length(value: &[u8], length: &mut Option<u64>) -> Result<(), Reason> {
    for member in value.split(|&byte| byte == b',').map(super::fields::trim) {
        if member.is_empty() || !member.iter().all(u8::is_ascii_digit) {
            return Err(Reason::ContentLengthMalformed);
        }
        let mut number = 0u64;
        for digit in member {
            let next = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0')));
            // RFC 9110 section 8.6: a recipient must anticipate large numbers. Beyond i64::MAX many wrap around.
            number = next.filter(|n| i64::try_from(*n).is_ok()).ok_or(Reason::ContentLengthMalformed)?;
        }
        if length.is_some_and(|earlier| earlier != number) {
            return Err(Reason::ContentLengthDiffers);
        }
        *length = Some(number);
    }
    Ok(())
}

/// The transfer codings seen so far, over all lines.
#[derive(Default)]
struct Codings {
    seen: bool,
    chunked_last: bool,
    chunked_twice: bool,
    unknown: bool,
}

impl Codings {
    fn read(&mut self, value: &[u8]) -> Result<(), Reason> {
        self.seen = true;
        for member in list_members(value) {
            if !member.iter().all(|&byte| super::chars::is_token(byte)) {
                return Err(Reason::TransferEncodingMalformed);
            }
            if self.chunked_last {
                // RFC 9112 section 6.1: chunked is applied once, and last.
                self.chunked_twice = true;
            }
            self.chunked_last = member.eq_ignore_ascii_case(b"chunked");
            self.unknown |= !self.chunked_last;
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), Reason> {
        // RFC 9112 section 6.3, rule 4: without chunked at the end the length cannot be told.
        if !self.chunked_last || self.chunked_twice {
            return Err(Reason::TransferEncodingMalformed);
        }
        // RFC 9112 section 6.1: a coding that is not understood is answered 501.
        if self.unknown { Err(Reason::TransferEncodingUnknown) } else { Ok(()) }
    }
}
