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

    /// The number of the backend for the next request, given how many requests each has under way; `avoid` is one that has
    /// just failed, and is chosen only if there is no other. `None` without backends.
    #[inline]
    pub fn choose(
        &mut self,
        count: usize,
        load: impl Fn(usize) -> u32,
        avoid: Option<usize>,
    ) -> Option<usize> {
        if count == 0 {
            return None;
        }
        let first = self.next % count;
        let chosen = match self.policy {
            Balance::RoundRobin => first,
            // Ties are broken in turn, else the first would get every request of an idle cluster.
            Balance::LeastLoaded => (0..count)
                .map(|step| (first + step) % count)
                .filter(|n| Some(*n) != avoid)
                .min_by_key(|n| load(*n))?,
        };
        let chosen = if Some(chosen) == avoid { (chosen + 1) % count } else { chosen };
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
        let chosen: Vec<_> = (0..4).filter_map(|_| balancer.choose(3, |_| 0, None)).collect();
        assert_eq!(chosen, [1, 2, 0, 1]);
        assert_eq!(balancer.choose(3, |_| 0, Some(2)), Some(0));
        assert_eq!(balancer.choose(1, |_| 0, Some(0)), Some(0));
        assert_eq!(balancer.choose(0, |_| 0, None), None);
    }

    #[test]
    fn least_loaded_takes_the_least_and_ties_in_turn() {
        let mut balancer = Balancer::new(Balance::LeastLoaded, 0);
        let load = [2, 1, 1];
        assert_eq!(balancer.choose(3, |n| load[n], None), Some(1));
        assert_eq!(balancer.choose(3, |n| load[n], None), Some(2));
        assert_eq!(balancer.choose(3, |n| load[n], Some(1)), Some(2));
    }
}
