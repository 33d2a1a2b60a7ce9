//! Numbers by lot.

/// SplitMix64 (Steele, Lea and Flood, 2014): fast, good enough to balance by, no secret.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        let drawn = super::hash::mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        drawn
    }

    /// A number below `bound`, which is not 0. Its bias, below bound / 2^32, is of no account here.
    #[inline]
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        let high = (self.next() >> 32) * u64::from(bound);
        #[allow(clippy::cast_possible_truncation, reason = "below a u32")]
        let number = (high >> 32) as u32;
        number
    }
}
