//! What balancing needs to know of a worker's backends.

use super::core::Upstream;
use crate::balance::View;

/// The backends, as a balancer sees them.
pub(super) struct Upstreams<'a> {
    pub(super) list: &'a [Upstream],
    pub(super) now_us: u64,
}

impl View for Upstreams<'_> {
    #[inline]
    fn active(&self, backend: u32) -> u32 {
        self.list[backend as usize].active
    }

    fn latency_us(&self, backend: u32) -> f64 {
        self.list[backend as usize].latency.at(self.now_us)
    }
}
