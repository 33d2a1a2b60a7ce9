//! Latency: a histogram with a bounded error, and its percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::accounting::nanoseconds;

/// Latencies up to this, with three significant digits.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Latencies of many operations.
#[derive(Clone, Debug)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    /// None yet.
    ///
    /// # Errors
    /// Never for the bounds used here.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { histogram: Histogram::new_with_max(LATENCY_NS_MAX, 3)? })
    }

    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.histogram.saturating_record(nanoseconds(latency));
    }

    /// The percentiles of those that were added.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.histogram.value_at_quantile(quantile);
        Percentiles {
            count: self.histogram.len(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            p9999_ns: at(0.9999),
            max_ns: self.histogram.max(),
        }
    }
}

/// Percentiles in nanoseconds, with three significant digits; all zero where there was nothing.
///
/// Of N operations the slowest is what stands for every percentile above 1 - 1/N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many operations there were.
    pub count: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90 of 100 took at most this.
    pub p90_ns: u64,
    /// 99 of 100 took at most this.
    pub p99_ns: u64,
    /// 999 of 1,000 took at most this.
    pub p999_ns: u64,
    /// 9,999 of 10,000 took at most this.
    pub p9999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_three_digits() -> anyhow::Result<()> {
        let mut latencies = Latencies::new()?;
        for us in 1..=100_000 {
            latencies.record(Duration::from_micros(us));
        }
        let percentiles = latencies.percentiles();
        assert_eq!(percentiles.count, 100_000);
        for (found_ns, us) in [
            (percentiles.p50_ns, 50_000),
            (percentiles.p90_ns, 90_000),
            (percentiles.p99_ns, 99_000),
            (percentiles.p999_ns, 99_900),
            (percentiles.p9999_ns, 99_990),
            (percentiles.max_ns, 100_000),
        ] {
            let error = (found_ns as f64 / (us as f64 * 1e3) - 1.0).abs();
            assert!(error < 1e-3, "{found_ns} ns for {us} us");
        }
        Ok(())
    }

    #[test]
    fn what_is_too_long_counts_as_the_longest() -> anyhow::Result<()> {
        let mut latencies = Latencies::new()?;
        latencies.record(Duration::from_secs(10_000));
        assert!(latencies.percentiles().max_ns >= LATENCY_NS_MAX);
        assert_eq!(Latencies::new()?.percentiles(), Percentiles::default());
        Ok(())
    }
}
