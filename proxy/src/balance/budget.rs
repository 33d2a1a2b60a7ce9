//! How many retries are allowed.

use underpass_command::state::Cluster;

/// Requests whose credit can be saved up.
const SAVED_REQUESTS: u64 = 1000;

/// The retries that a cluster may make: some for each hundred requests, and a few in each second whatever comes.
#[derive(Clone, Debug, Default)]
pub struct RetryBudget {
    /// In hundredths of a retry.
    credit: u64,
    /// The second that `used` counts in.
    second: u64,
    used: u32,
}

impl RetryBudget {
    /// A request has come.
    #[inline]
    pub fn earn(&mut self, cluster: &Cluster) {
        let percent = u64::from(cluster.retry_budget_percent);
        self.credit = (self.credit + percent).min(percent * SAVED_REQUESTS);
    }

    /// Takes one retry; false if none is left.
    pub fn spend(&mut self, cluster: &Cluster, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            (self.second, self.used) = (now_ms / 1000, 0);
        }
        if self.used < cluster.retry_floor {
            self.used += 1;
            return true;
        }
        let enough = self.credit >= 100;
        if enough {
            self.credit -= 100;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cluster(percent: u16, floor: u32) -> Cluster {
        Cluster { retry_budget_percent: percent, retry_floor: floor, ..Cluster::new("app") }
    }

    #[test]
    fn without_credit_the_floor_is_all() {
        let mut budget = RetryBudget::default();
        let none = cluster(0, 2);
        budget.earn(&none);
        let spent = |budget: &mut RetryBudget, now| (0..5).filter(|_| budget.spend(&none, now)).count();
        assert_eq!(spent(&mut budget, 10), 2);
        assert_eq!(spent(&mut budget, 999), 0);
        assert_eq!(spent(&mut budget, 1000), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn retries_keep_to_the_budget(
            percent in 0..=300_u16,
            floor in 0..5_u32,
            steps in prop::collection::vec((any::<bool>(), 0..50_u64), 1..500),
        ) {
            let cluster = cluster(percent, floor);
            let mut budget = RetryBudget::default();
            let (mut now, mut requests, mut retries) = (0, 0, 0);
            for (request, pass) in steps {
                now += pass;
                if request {
                    budget.earn(&cluster);
                    requests += 1;
                } else if budget.spend(&cluster, now) {
                    retries += 1;
                }
            }
            let most = requests * u64::from(percent) / 100 + u64::from(floor) * (now / 1000 + 1);
            prop_assert!(retries <= most, "{retries} retries, {most} allowed");
        }
    }
}
