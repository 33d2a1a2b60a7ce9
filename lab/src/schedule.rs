//! When operations begin: fixed in advance, whatever the server does.
#![deny(clippy::disallowed_methods)]

use std::time::Duration;

/// The times at which operations come due, ascending, relative to the beginning.
///
/// The gaps are drawn from an exponential distribution (a Poisson process), as those of many independent clients
/// are. The same seed gives the same times, so that contenders get the same load.
#[derive(Clone, Debug)]
pub struct Schedule {
    gap_mean_s: f64,
    next_s: f64,
    random: u64,
}

impl Schedule {
    /// Arrivals at a mean rate.
    ///
    /// # Panics
    /// The rate is not a positive number.
    pub fn new(per_s: f64, seed: u64) -> Self {
        assert!(per_s.is_finite() && per_s > 0.0, "rate {per_s}");
        let mut schedule = Self { gap_mean_s: 1.0 / per_s, next_s: 0.0, random: seed };
        schedule.advance();
        schedule
    }

    /// When the next operation is due.
    pub fn peek(&self) -> Duration {
        // A rate is bounded from below by the arguments of the tools: the sum stays far from what a Duration holds.
        Duration::try_from_secs_f64(self.next_s).unwrap_or(Duration::MAX)
    }

    /// Takes the next operation if it is due.
    pub fn take_due(&mut self, now: Duration) -> Option<Duration> {
        let due = self.peek();
        if due > now {
            return None;
        }
        self.advance();
        Some(due)
    }

    fn advance(&mut self) {
        // splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        // In (0, 1]: the logarithm of 0 does not exist.
        let uniform = ((word >> 11) + 1) as f64 / (1u64 << 53) as f64;
        self.next_s += -uniform.ln() * self.gap_mean_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(mut schedule: Schedule, until: Duration) -> Vec<Duration> {
        std::iter::from_fn(|| schedule.take_due(until)).collect()
    }

    #[test]
    fn the_mean_rate_is_kept() {
        let count = times(Schedule::new(1000.0, 1), Duration::from_secs(100)).len();
        // A Poisson count of mean 100,000 has a standard deviation of 316; the seed is fixed.
        assert!((98_500..101_500).contains(&count), "{count}");
    }

    #[test]
    fn gaps_are_those_of_independent_clients() {
        let times = times(Schedule::new(1.0, 7), Duration::from_secs(20_000));
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let share = |bound: f64| gaps.iter().filter(|&&gap| gap > bound).count() as f64 / gaps.len() as f64;
        // P(gap > x) = exp(-x)
        for bound in [0.1, 1.0, 3.0] {
            assert!((share(bound) - (-bound).exp()).abs() < 0.01, "{bound}: {}", share(bound));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_times() {
        let run = |seed| times(Schedule::new(50.0, seed), Duration::from_secs(1));
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
        assert!(run(3).is_sorted());
    }

    #[test]
    fn nothing_is_due_before_its_time_and_everything_after_a_stall() {
        let mut schedule = Schedule::new(100.0, 5);
        let first = schedule.peek();
        assert_eq!(schedule.take_due(first - Duration::from_nanos(1)), None);
        assert_eq!(schedule.take_due(first), Some(first));
        // A second in which nobody looked.
        let late: Vec<_> = std::iter::from_fn(|| schedule.take_due(first + Duration::from_secs(1))).collect();
        assert!(late.len() > 50, "{}", late.len());
        assert!(late.iter().all(|due| *due > first && *due <= first + Duration::from_secs(1)));
    }
}
