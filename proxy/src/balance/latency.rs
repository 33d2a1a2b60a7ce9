//! How long a backend takes to answer, for the policy `peak-ewma`.

/// After so long an observation counts 1/e of what it did.
const DECAY_US: f64 = 10_000_000.0;
/// What a failure counts as, at least: a backend that refuses at once must not look fast.
pub const FAILURE_US: u64 = 1_000_000;

/// A moving average that follows peaks at once and forgets them slowly.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    average_us: f64,
    observed_us: u64,
}

impl Latency {
    /// Enters how long one answer took, in microseconds.
    #[allow(clippy::cast_precision_loss, reason = "52 bits of microseconds are 142 years")]
    pub fn observe(&mut self, took_us: u64, now_us: u64) {
        let took = took_us.max(1) as f64;
        let kept = self.kept(now_us);
        self.average_us =
            if took > self.average_us * kept { took } else { self.average_us * kept + took * (1.0 - kept) };
        self.observed_us = now_us;
    }

    /// What is expected now; 0 for a backend that has not answered yet. An old average fades, so that a backend that once
    /// was slow is tried again.
    pub fn at(&self, now_us: u64) -> f64 {
        self.average_us * self.kept(now_us)
    }

    #[allow(clippy::cast_precision_loss, reason = "52 bits of microseconds are 142 years")]
    fn kept(&self, now_us: u64) -> f64 {
        (-(now_us.saturating_sub(self.observed_us) as f64) / DECAY_US).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_fade() {
        let mut latency = Latency::default();
        assert_eq!(latency.at(5), 0.0);
        latency.observe(100, 1000);
        assert_eq!(latency.at(1000), 100.0);
        latency.observe(9000, 2000);
        assert_eq!(latency.at(2000), 9000.0);
        latency.observe(100, 1_002_000);
        let soon = latency.at(1_002_000);
        assert!((8000.0..9000.0).contains(&soon), "{soon}");
        let later = latency.at(60_000_000);
        assert!(later > 0.0 && later < 100.0, "{later}");
    }
}
