//! This worker's place in the array of the steering program.

use underpass_command::state::Settings;
use underpass_loader::{WorkerSlot, WorkerState};

/// The slot of a worker's number. Only one process may publish in it: a successor waits until its predecessor has left it.
#[derive(Debug)]
pub(super) struct SteeringPlace {
    slot: WorkerSlot,
    generation: u32,
    published: bool,
}

impl SteeringPlace {
    pub(super) fn new(slot: WorkerSlot, generation: u32) -> Self {
        Self { slot, generation, published: false }
    }

    /// Publishes from now on.
    pub(super) fn publish(&mut self, settings: &Settings) {
        // Steering looks for another worker a little before this one must refuse.
        let limit = settings.limits.connections - settings.limits.connections / 16;
        self.slot.start(self.generation, limit);
        self.published = true;
    }

    /// Leaves the slot to another process, and steering at it: what comes meanwhile waits in the accept queues, where the other one
    /// finds it.
    pub(super) fn leave(&mut self) {
        if let Some(slot) = self.slot() {
            slot.set_active(0);
            // Asleep is no stall, however long it lasts.
            slot.end_turn();
        }
        self.published = false;
    }

    /// No connections are steered here any more.
    pub(super) fn close(&self) {
        if let Some(slot) = self.slot() {
            slot.set_state(WorkerState::Draining);
        }
    }

    /// Where to publish; none while that is another's.
    #[inline]
    pub(super) fn slot(&self) -> Option<&WorkerSlot> {
        self.published.then_some(&self.slot)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    #[test]
    fn a_successor_publishes_only_after_its_predecessor_has_left() {
        let memory = memfd_create(c"slots", MFdFlags::MFD_CLOEXEC).expect("memfd");
        ftruncate(&memory, 4096).expect("size");
        let place = || SteeringPlace::new(WorkerSlot::map(memory.as_fd(), 0).expect("map"), 3);
        let settings = Settings::default();
        let (mut old, mut new) = (place(), place());
        old.publish(&settings);
        let published = |place: &SteeringPlace| place.slot().map(WorkerSlot::snapshot);
        old.slot().expect("published").begin_turn(7);
        old.slot().expect("published").set_active(5);
        assert_eq!(published(&new), None);
        old.leave();
        assert_eq!(published(&old), None);
        // What it had under way counts no more, and steering goes on all the while.
        let left = new.slot.snapshot();
        assert_eq!((left.state, left.active, left.busy_since_ns), (WorkerState::Running, 0, 0));
        new.publish(&settings);
        old.close();
        old.leave();
        let taken = published(&new).expect("published");
        assert_eq!((taken.state, taken.generation), (WorkerState::Running, 3));
        assert_eq!(taken.limit, settings.limits.connections - settings.limits.connections / 16);
        new.close();
        assert_eq!(published(&new).map(|slot| slot.state), Some(WorkerState::Draining));
    }
}
