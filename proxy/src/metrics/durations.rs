//! Histograms of durations that are kept for each cluster and backend, so they must be small.
//!
//! Buckets end at round decimal values (1, 2.5, 5 ms), so what is published as `le="0.0025"` is exactly what was
//! counted, and percentiles are known to a quarter.

use super::histogram::bucket_at;

/// Buckets of a [`Scale`] at most.
pub(super) const SCALE_BUCKETS_MAX: usize = 96;

/// The ends of a histogram's buckets.
#[derive(Debug)]
pub struct Scale {
    /// The largest value that each bucket counts, in microseconds, ascending. One more bucket takes what is above.
    bounds_us: &'static [u64],
    /// For each number of significant bits, the first bucket that a value of so many bits can belong to.
    first: [u8; 65],
}

impl Scale {
    const fn new(bounds_us: &'static [u64]) -> Self {
        assert!(bounds_us.len() < SCALE_BUCKETS_MAX && bounds_us.len() < u8::MAX as usize);
        let mut first = [0u8; 65];
        let mut bits = 1;
        while bits <= 64 {
            let least = 1u64 << (bits - 1);
            let mut bucket = 0;
            while (bucket as usize) < bounds_us.len() && bounds_us[bucket as usize] < least {
                bucket += 1;
            }
            first[bits] = bucket;
            bits += 1;
        }
        Self { bounds_us, first }
    }

    /// The bucket that counts a value.
    #[inline]
    pub fn bucket_of(&self, value_us: u64) -> usize {
        let bits = u64::BITS - value_us.leading_zeros();
        let mut bucket = usize::from(self.first[bits as usize]);
        while self.bounds_us.get(bucket).is_some_and(|bound| *bound < value_us) {
            bucket += 1;
        }
        bucket
    }

    /// The largest value that each bucket counts but the last, which has no end.
    pub fn bounds_us(&self) -> &'static [u64] {
        self.bounds_us
    }

    /// Number of buckets.
    pub const fn buckets(&self) -> usize {
        self.bounds_us.len() + 1
    }
}

/// 13 buckets for each power of ten, from 5 us to 100 s: for what percentiles are wanted of.
pub static FINE: Scale = Scale::new(&FINE_BOUNDS);
/// Three buckets for each power of ten, from 10 us to 100 s.
pub static COARSE: Scale = Scale::new(&COARSE_BOUNDS);

/// Buckets of [`FINE`].
pub(super) const FINE_BUCKETS: usize = FINE_BOUNDS.len() + 1;
/// Buckets of [`COARSE`].
pub(super) const COARSE_BUCKETS: usize = COARSE_BOUNDS.len() + 1;

const FINE_BELOW_100_US: [u64; 10] = [5, 10, 20, 30, 40, 50, 60, 70, 80, 90];
/// Hundredths of a power of ten.
const FINE_STEPS: [u64; 13] = [100, 125, 150, 175, 200, 250, 300, 350, 400, 500, 600, 700, 800];
const DECADES_FROM_100_US: usize = 6;
const FINE_BOUNDS: [u64; FINE_BELOW_100_US.len() + DECADES_FROM_100_US * FINE_STEPS.len() + 1] = {
    let mut bounds = [0; FINE_BELOW_100_US.len() + DECADES_FROM_100_US * FINE_STEPS.len() + 1];
    let mut at = 0;
    while at < FINE_BELOW_100_US.len() {
        bounds[at] = FINE_BELOW_100_US[at];
        at += 1;
    }
    let mut unit = 1;
    while at < bounds.len() - 1 {
        let step = (at - FINE_BELOW_100_US.len()) % FINE_STEPS.len();
        bounds[at] = FINE_STEPS[step] * unit;
        if step == FINE_STEPS.len() - 1 {
            unit *= 10;
        }
        at += 1;
    }
    bounds[at] = 100 * unit;
    bounds
};
const COARSE_BOUNDS: [u64; 22] = [
    10,
    20,
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

/// A histogram as read at one time, or the sum or difference of several.
#[derive(Clone, Debug)]
pub struct Durations {
    scale: &'static Scale,
    pub(super) sum_us: u64,
    pub(super) counts: [u64; SCALE_BUCKETS_MAX],
}

impl PartialEq for Durations {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.scale, other.scale) && self.sum_us == other.sum_us && self.counts == other.counts
    }
}

impl Durations {
    /// One that has counted nothing.
    pub fn new(scale: &'static Scale) -> Self {
        Self { scale, sum_us: 0, counts: [0; SCALE_BUCKETS_MAX] }
    }

    /// Counts a value.
    pub fn count(&mut self, value_us: u64) {
        self.counts[self.scale.bucket_of(value_us)] += 1;
        self.sum_us = self.sum_us.wrapping_add(value_us);
    }

    /// Adds another's counts, which must have the same scale.
    pub fn add(&mut self, other: &Self) {
        debug_assert!(std::ptr::eq(self.scale, other.scale));
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
        for (mine, others) in self.counts.iter_mut().zip(&other.counts) {
            *mine += others;
        }
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        difference.sum_us = self.sum_us.saturating_sub(earlier.sum_us);
        for (now, then) in difference.counts.iter_mut().zip(&earlier.counts) {
            *now = now.saturating_sub(*then);
        }
        difference
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The buckets that have counted something: the largest value of each, and how many. What is above the last bound has
    /// `u64::MAX`.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let bounds = self.scale.bounds_us.iter().copied().chain([u64::MAX]);
        bounds.zip(self.counts).filter(|(_, count)| *count > 0)
    }

    /// How many values were not above `bound_us`, which must be one of the scale's bounds.
    pub fn up_to(&self, bound_us: u64) -> u64 {
        let bucket = self.scale.bucket_of(bound_us);
        debug_assert_eq!(self.scale.bounds_us.get(bucket), Some(&bound_us), "not the end of a bucket");
        self.counts[..=bucket].iter().sum()
    }

    /// The bound that `quantile` (0 to 1) of all values do not exceed, in microseconds; `None` without values. What is above
    /// the last bound counts as that bound.
    pub fn quantile_us(&self, quantile: f64) -> Option<u64> {
        let bucket = bucket_at(&self.counts, quantile)?;
        let bounds = self.scale.bounds_us;
        bounds.get(bucket).or(bounds.last()).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales() -> [&'static Scale; 2] {
        [&FINE, &COARSE]
    }

    #[test]
    fn bounds_rise_and_each_value_lies_between_those_of_its_bucket() {
        for scale in scales() {
            assert!(scale.bounds_us().is_sorted_by(|a, b| a < b), "{:?}", scale.bounds_us());
            let edges = scale.bounds_us().iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
            for value in edges.chain([0, 1, u64::MAX]) {
                let bucket = scale.bucket_of(value);
                assert!(bucket < scale.buckets());
                assert!(scale.bounds_us().get(bucket).is_none_or(|bound| value <= *bound), "{value}");
                assert!(bucket == 0 || scale.bounds_us()[bucket - 1] < value, "{value}");
            }
        }
    }

    #[test]
    fn the_fine_scale_knows_a_value_to_a_quarter_from_20_us_to_100_s() {
        let bounds = FINE.bounds_us();
        assert_eq!((bounds[0], bounds[bounds.len() - 1]), (5, 100_000_000));
        for pair in bounds.windows(2).filter(|pair| pair[0] >= 100) {
            assert!(pair[1] * 4 <= pair[0] * 5, "{pair:?}");
        }
    }

    #[test]
    fn quantiles_and_counts_of_known_values() {
        let mut durations = Durations::new(&FINE);
        assert_eq!(durations.quantile_us(0.5), None);
        (1..=100).for_each(|n| durations.count(n * 1000));
        assert_eq!((durations.total(), durations.sum_us()), (100, 5_050_000));
        assert_eq!(durations.up_to(25_000), 25);
        assert_eq!((durations.quantile_us(0.5), durations.quantile_us(1.0)), (Some(50_000), Some(100_000)));
        let mut twice = durations.clone();
        twice.add(&durations);
        assert_eq!(twice.since(&durations), durations);
    }

    #[test]
    fn what_is_above_the_last_bound_is_counted_and_told_as_that_bound() {
        let mut durations = Durations::new(&COARSE);
        durations.count(u64::MAX);
        assert_eq!((durations.total(), durations.up_to(100_000_000)), (1, 0));
        assert_eq!(durations.quantile_us(0.5), Some(100_000_000));
        assert_eq!(durations.buckets().collect::<Vec<_>>(), [(u64::MAX, 1)]);
    }
}
