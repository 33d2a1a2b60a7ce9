//! The bytes of handshake messages, out of the records that carry them: RFC 8446 section 5.1.

use super::Fault;

/// RFC 8446 section 5.1.
const HANDSHAKE: u8 = 22;
/// All versions since SSL 3.0 write 3 first (RFC 8446 section 5.1, `legacy_record_version`).
const MAJOR_VERSION: u8 = 3;
/// RFC 8446 section 5.1: "The length MUST NOT exceed 2^14 bytes."
const FRAGMENT_SIZE_MAX: u16 = 1 << 14;

/// Why reading stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The input ends here; more may come.
    More,
    /// There is no going on.
    Fault(Fault),
}

/// A reader of what handshake records hold, as if it were in one piece.
pub(super) struct Records<'a> {
    input: &'a [u8],
    /// Bytes of the current record that were not read.
    left: u16,
    /// A record has begun as it must, so this is TLS.
    begun: bool,
}

impl<'a> Records<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, left: 0, begun: false }
    }

    pub(super) fn byte(&mut self) -> Result<u8, Stop> {
        self.open()?;
        let (&byte, rest) = self.input.split_first().ok_or(Stop::More)?;
        self.input = rest;
        self.left -= 1;
        Ok(byte)
    }

    pub(super) fn u24(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_be_bytes([0, self.byte()?, self.byte()?, self.byte()?]))
    }

    pub(super) fn skip(&mut self, mut size: u32) -> Result<(), Stop> {
        while size > 0 {
            self.open()?;
            let here = size.min(u32::from(self.left));
            self.input = self.input.get(here as usize..).ok_or(Stop::More)?;
            size -= here;
            #[allow(clippy::cast_possible_truncation, reason = "at most what is left of the record")]
            let here = here as u16;
            self.left -= here;
        }
        Ok(())
    }

    /// Reads the header of the next record, if the current one is at its end.
    fn open(&mut self) -> Result<(), Stop> {
        if self.left > 0 {
            return Ok(());
        }
        // What is wrong with a byte is wrong as soon as it is there. Anything but a handshake at the very start is not TLS.
        let fault = if self.begun { Fault::Malformed } else { Fault::Missing };
        let expected = [HANDSHAKE, MAJOR_VERSION];
        if self.input.iter().zip(expected).any(|(byte, expected)| *byte != expected) {
            return Err(Stop::Fault(fault));
        }
        let (header, rest) = self.input.split_first_chunk::<5>().ok_or(Stop::More)?;
        self.left = u16::from_be_bytes([header[3], header[4]]);
        // "Implementations MUST NOT send zero-length fragments of Handshake types".
        if self.left == 0 || self.left > FRAGMENT_SIZE_MAX {
            return Err(Stop::Fault(fault));
        }
        self.input = rest;
        self.begun = true;
        Ok(())
    }
}
