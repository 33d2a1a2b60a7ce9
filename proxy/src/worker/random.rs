//! Names for requests: unique, not secret.

use crate::balance::SplitMix64;

/// Draws them.
#[derive(Clone, Debug)]
pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// 128 bits in hexadecimal.
    pub(super) fn request_id(&mut self) -> RequestName {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        let mut text = [0; 32];
        for (index, digit) in text.iter_mut().enumerate() {
            *digit = DIGITS[(bits >> (4 * index) & 15) as usize];
        }
        RequestName::new(&text)
    }
}

/// The id of a request: one made here, or the client's, cut to what fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestName {
    bytes: [u8; Self::SIZE_MAX],
    length: u8,
}

impl RequestName {
    /// As long as the longest forms in use: a UUID has 36 bytes, a W3C trace parent 55.
    const SIZE_MAX: usize = 64;

    pub(super) fn none() -> Self {
        Self { bytes: [0; Self::SIZE_MAX], length: 0 }
    }

    pub(super) fn new(text: &[u8]) -> Self {
        let mut name = Self::none();
        let n = text.len().min(Self::SIZE_MAX);
        name.bytes[..n].copy_from_slice(&text[..n]);
        name.length = u8::try_from(n).unwrap_or(0);
        name
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}
