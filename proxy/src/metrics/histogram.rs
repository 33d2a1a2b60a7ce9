//! A histogram of microseconds with a bounded relative error, small enough to live in shared memory.
//!
//! Log-linear buckets as in HdrHistogram: each power of two is divided into 16, so a value is known to 1/16.

const SUB_BITS: u32 = 4;
const SUB: u64 = 1 << SUB_BITS;
const POWERS: u32 = 32;

/// Number of buckets; the last takes everything above about an hour.
pub const BUCKETS: usize = (1 << SUB_BITS) * (POWERS - SUB_BITS + 1) as usize;

/// The bucket that counts `value`, in microseconds.
#[inline]
pub fn bucket_of(value: u64) -> usize {
    if value < SUB {
        return usize::try_from(value).unwrap_or(BUCKETS - 1);
    }
    let power = 63 - value.leading_zeros();
    let shift = power - SUB_BITS;
    let index = (u64::from(shift) + 1) * SUB + ((value >> shift) - SUB);
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The largest value that `bucket` counts.
pub fn bucket_value_max(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let shift = bucket / SUB - 1;
    ((bucket % SUB + SUB + 1) << shift) - 1
}

/// A histogram as read at one time, or the difference of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS] }
    }
}

impl Histogram {
    /// Takes the counts of [`BUCKETS`] buckets; missing ones count zero.
    pub fn from_counts(counts: &[u64]) -> Self {
        let mut all = counts.to_vec();
        all.resize(BUCKETS, 0);
        Self { counts: all }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (mine, others) in self.counts.iter_mut().zip(&other.counts) {
            *mine += others;
        }
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let counts =
            self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then)).collect();
        Self { counts }
    }

    /// The count of each bucket.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value that `quantile` (0 to 1) of all values do not exceed, in microseconds; `None` without values.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        bucket_at(&self.counts, quantile).map(bucket_value_max)
    }
}

/// The bucket at which `quantile` (0 to 1) of all values have been counted, from the first on; `None` without values.
pub(super) fn bucket_at(counts: &[u64], quantile: f64) -> Option<usize> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank between 1 and total")]
    let rank = ((total as f64 * quantile).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_to_a_sixteenth() {
        let mut value = 0u64;
        while value < 1 << 31 {
            let bucket = bucket_of(value);
            let upper = bucket_value_max(bucket);
            assert!(value <= upper, "{value} above {upper}");
            assert!(upper - value <= value / 16 + 1, "{value} in a bucket up to {upper}");
            assert!(bucket == 0 || bucket_value_max(bucket - 1) < value);
            value = value + value / 37 + 1;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_known_values() {
        let mut counts = vec![0; BUCKETS];
        for value in 1..=100u64 {
            counts[bucket_of(value)] += 1;
        }
        let histogram = Histogram::from_counts(&counts);
        assert_eq!(histogram.total(), 100);
        let median = histogram.quantile(0.5).expect("has values");
        assert!((50..=53).contains(&median), "{median}");
        assert_eq!(histogram.since(&histogram).quantile(0.5), None);
    }
}
