//! A backend as a balancer sees it.

use underpass_command::state::Backend;

use super::hash::{PUBLIC, siphash};

/// Parts of one share, so that a slow start has steps.
pub(super) const WHOLE: u32 = 256;

/// The id of a place that no backend has.
const NOBODY: u32 = u32::MAX;

/// A backend of a cluster. Its place in the list stays the same while it is a member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: u32,
    /// The same in every worker and after every start, so that consistent hashing agrees.
    pub(super) identity: u64,
    /// What the sticky cookie calls it.
    pub(super) sticky: u64,
    /// 0 for a place that is vacant, which so is never chosen.
    pub(super) weight: u16,
    pub(super) backup: bool,
    drain: bool,
    down: bool,
    in_flight_max: u32,
    ejected_until_ms: u64,
    /// When it began its slow start; none if it needs none.
    came_ms: Option<u64>,
    /// How far it is behind the others in its turn.
    pub(super) current: i64,
}

/// Which members may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Primary,
    Backup,
    /// Also those that are down or ejected.
    Whoever,
}

impl Member {
    pub(super) fn vacant() -> Self {
        Self {
            id: NOBODY,
            identity: 0,
            sticky: 0,
            weight: 0,
            backup: false,
            drain: false,
            down: false,
            in_flight_max: 0,
            ejected_until_ms: 0,
            came_ms: None,
            current: 0,
        }
    }

    pub(super) fn new(id: u32, backend: &Backend, sticky: u64, came_ms: Option<u64>) -> Self {
        let mut member = Self { id, sticky, came_ms, ..Self::vacant() };
        member.configure(backend);
        member
    }

    /// Takes what is configured of it. What it has shown of itself stays.
    pub(super) fn configure(&mut self, backend: &Backend) {
        let address = backend.address.to_string();
        let name = backend.name.as_ref().unwrap_or(&address);
        self.identity = siphash(PUBLIC, name.as_bytes());
        self.weight = backend.weight;
        self.backup = backend.backup;
        self.drain = backend.drain;
        self.in_flight_max = backend.in_flight_max;
    }

    pub(super) fn is_vacant(&self) -> bool {
        self.id == NOBODY
    }

    pub(super) fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.ejected_until_ms
    }

    /// Whether new requests may go there.
    #[inline]
    pub(super) fn is_available(&self, now_ms: u64) -> bool {
        self.weight > 0 && !self.drain && !self.down && !self.is_ejected(now_ms)
    }

    #[inline]
    pub(super) fn serves(&self, tier: Tier, now_ms: u64) -> bool {
        match tier {
            Tier::Primary => !self.backup && self.is_available(now_ms),
            Tier::Backup => self.backup && self.is_available(now_ms),
            Tier::Whoever => self.weight > 0 && !self.drain,
        }
    }

    /// Whether no more requests may be under way there than are; `active` tells how many are.
    #[inline]
    pub(super) fn is_full(&self, active: impl FnOnce() -> u32) -> bool {
        self.in_flight_max > 0 && active() >= self.in_flight_max
    }

    /// Enters that it is up or down; whether that is news.
    pub(super) fn set_up(&mut self, up: bool, now_ms: u64) -> bool {
        if up && self.down {
            self.came_ms = Some(now_ms);
            self.ejected_until_ms = 0; // the checks know better
        }
        std::mem::replace(&mut self.down, !up) == up
    }

    pub(super) fn eject(&mut self, until_ms: u64) {
        self.ejected_until_ms = until_ms;
        self.came_ms = Some(until_ms);
    }

    /// How much of its slow start is over, of [`WHOLE`].
    #[inline]
    pub(super) fn ramp(&self, slow_start_ms: u64, now_ms: u64) -> u32 {
        let Some(came_ms) = self.came_ms.filter(|_| slow_start_ms > 0) else { return WHOLE };
        let passed = now_ms.saturating_sub(came_ms).min(slow_start_ms);
        #[allow(clippy::cast_possible_truncation, reason = "at most WHOLE")]
        let ramp = (u64::from(WHOLE) * passed / slow_start_ms) as u32;
        ramp
    }

    /// Its share now: at least 1, so that it is seen to work.
    #[inline]
    pub(super) fn share(&self, slow_start_ms: u64, now_ms: u64) -> u32 {
        (u32::from(self.weight) * self.ramp(slow_start_ms, now_ms)).max(1)
    }
}
