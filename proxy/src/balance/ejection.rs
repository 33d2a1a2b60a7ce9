//! When a backend that fails is taken out, and for how long.

use underpass_command::state::Cluster;

/// What has become of the requests to one backend, as far as it matters for its ejection.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// Failures since the last success.
    failures: u32,
    /// Ejections that are not forgiven.
    ejections: u32,
    /// When the last one ended, and how long it took.
    until_ms: u64,
    length_ms: u64,
}

impl Outcomes {
    /// A request was answered, with anything but a status of class 5xx.
    #[inline]
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// A connection could not be made or was lost, or the answer was of class 5xx. True if the backend should be ejected now:
    /// then [`Self::eject`] says for how long.
    #[inline]
    pub fn failed(&mut self, cluster: &Cluster) -> bool {
        self.failures = self.failures.saturating_add(1);
        cluster.eject_failures > 0 && self.failures >= cluster.eject_failures
    }

    /// Until when it is ejected. Each time it takes longer, unless the backend has been in use since for as long as it was
    /// out the last time.
    pub fn eject(&mut self, cluster: &Cluster, now_ms: u64) -> u64 {
        if now_ms >= self.until_ms.saturating_add(self.length_ms) {
            self.ejections = 0;
        }
        self.ejections = self.ejections.saturating_add(1);
        self.failures = 0;
        self.length_ms = cluster.eject_ms.saturating_mul(u64::from(self.ejections)).min(cluster.eject_ms_max);
        self.until_ms = now_ms + self.length_ms;
        self.until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        Cluster { eject_failures: 3, eject_ms: 100, eject_ms_max: 250, ..Cluster::new("app") }
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let mut outcomes = Outcomes::default();
        let failed: Vec<bool> = (0..3).map(|_| outcomes.failed(&cluster())).collect();
        assert_eq!(failed, [false, false, true]);
        outcomes.succeeded();
        assert!(!outcomes.failed(&cluster()) && !outcomes.failed(&cluster()));
        let never = Cluster { eject_failures: 0, ..cluster() };
        assert!((0..100).all(|_| !outcomes.failed(&never)));
    }

    #[test]
    fn each_ejection_is_longer_until_it_has_behaved() {
        let mut outcomes = Outcomes::default();
        assert_eq!(outcomes.eject(&cluster(), 1000), 1100);
        assert_eq!(outcomes.eject(&cluster(), 1150), 1350, "twice as long");
        assert_eq!(outcomes.eject(&cluster(), 1400), 1650, "bounded");
        // Out for 250 ms until 1650, and good for 250 ms: forgiven.
        assert_eq!(outcomes.eject(&cluster(), 1900), 2000);
    }
}
