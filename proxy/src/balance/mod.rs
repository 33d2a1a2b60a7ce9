//! Choosing a backend among those of a cluster. No clock, no randomness of its own.
#![deny(clippy::disallowed_methods)]

use underpass_command::state::Balance;

/// Chooses among a cluster's backends.
#[derive(Clone, Debug)]
pub struct Balancer {
    policy: Balance,
    next: usize,
}

impl Balancer {
    /// A balancer that begins at backend number `start`, so that several workers do not all begin at the first.
    pub fn new(policy: Balance, start: usize) -> Self {
        Self { policy, next: start }
    }

    /// The number of the backend for the next request, given how many requests each has under way. Those that were tried in
    /// vain are chosen only if there is no other. `None` without backends.
    #[inline]
    pub fn choose(
        &mut self,
        count: usize,
        load: impl Fn(usize) -> u32,
        tried: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if count == 0 {
            return None;
        }
        let first = self.next % count;
        let mut in_turn = (0..count).map(|step| (first + step) % count).filter(|n| !tried(*n));
        let chosen = match self.policy {
            Balance::RoundRobin => in_turn.next(),
            // Ties are broken in turn, else the first would get every request of an idle cluster.
            Balance::LeastLoaded => in_turn.min_by_key(|n| load(*n)),
        };
        let chosen = chosen.unwrap_or(first);
        self.next = chosen + 1;
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_robin_takes_turns_and_skips_the_failed() {
        let mut balancer = Balancer::new(Balance::RoundRobin, 1);
        let chosen: Vec<_> = (0..4).filter_map(|_| balancer.choose(3, |_| 0, |_| false)).collect();
        assert_eq!(chosen, [1, 2, 0, 1]);
        assert_eq!(balancer.choose(3, |_| 0, |n| n == 2), Some(0));
        assert_eq!(balancer.choose(3, |_| 0, |n| n != 0), Some(0));
        assert_eq!(balancer.choose(0, |_| 0, |_| false), None);
    }

    #[test]
    fn least_loaded_takes_the_least_and_ties_in_turn() {
        let mut balancer = Balancer::new(Balance::LeastLoaded, 0);
        let load = [2, 1, 1];
        assert_eq!(balancer.choose(3, |n| load[n], |_| false), Some(1));
        assert_eq!(balancer.choose(3, |n| load[n], |_| false), Some(2));
        assert_eq!(balancer.choose(3, |n| load[n], |n| n == 1), Some(2));
        assert_eq!(balancer.choose(3, |n| load[n], |n| n > 0), Some(0));
    }

    #[test]
    fn the_only_backend_is_tried_again() {
        for policy in Balance::ALL {
            let mut balancer = Balancer::new(*policy, 0);
            assert_eq!(balancer.choose(1, |_| 0, |_| true), Some(0));
        }
    }
}
