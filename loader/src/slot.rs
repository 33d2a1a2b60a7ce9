//! The memory through which a worker tells the steering program how it is, without a system call.

use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use underpass_ebpf::{SLOT_SIZE, STATE_DOWN, STATE_DRAINING, STATE_RUNNING, Slot};

use crate::mapping::{Mapping, page_size};

/// A worker's place in the array that the steering program reads.
///
/// Made from the descriptor of the array, which the supervisor passes on; needs no privilege. Publishing is a store
/// to memory. The slot belongs to one worker: its methods must be called from one thread at a time.
#[derive(Debug)]
pub struct WorkerSlot {
    /// The page that holds the slot.
    mapping: Mapping,
    /// Where the slot begins in it; a slot lies in one page, because its size divides that of a page.
    begin: usize,
}

/// Whether a worker takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// No process, or one that is not ready: gets no connections.
    Down,
    /// Accepts connections.
    Running,
    /// Finishes what it has: gets no connections.
    Draining,
}

impl WorkerSlot {
    /// Maps the slot of worker `index`.
    ///
    /// # Errors
    /// `InvalidInput` where the array has no such index; otherwise those of mmap(2).
    pub fn map(fd: BorrowedFd<'_>, index: u16) -> io::Result<Self> {
        let offset = usize::from(index) * SLOT_SIZE;
        let begin = offset % page_size()?.get();
        let mapping =
            Mapping::new(fd, offset - begin, begin + SLOT_SIZE).map_err(|error| no_slot(index, error))?;
        Ok(Self { mapping, begin })
    }

    /// Publishes what steering needs to know of a worker that begins, and at last that it runs.
    ///
    /// `limit` is the number of open sessions at which it counts as overloaded; 0 means no limit.
    pub fn start(&self, generation: u32, limit: u32) {
        self.end_turn();
        self.set_active(0);
        self.set_limit(limit);
        self.u32_at(offset_of!(Slot, generation)).store(generation, Ordering::Relaxed);
        self.set_state(WorkerState::Running);
    }

    /// A turn of the worker's loop begins: epoll has returned. `now_ns` is [`monotonic_ns`].
    pub fn begin_turn(&self, now_ns: u64) {
        // 0 would mean asleep.
        self.u64_at(offset_of!(Slot, busy_since_ns)).store(now_ns.max(1), Ordering::Relaxed);
    }

    /// The turn is over: the worker goes to sleep, which is no stall however long it lasts.
    pub fn end_turn(&self) {
        self.u64_at(offset_of!(Slot, busy_since_ns)).store(0, Ordering::Relaxed);
    }

    /// `count` more connections were accepted.
    pub fn accepted(&self, count: u64) {
        let accepted = self.u64_at(offset_of!(Slot, accepted));
        // No read-modify-write: there is one writer.
        accepted.store(accepted.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The number of sessions that are open now.
    pub fn set_active(&self, sessions: u32) {
        self.u32_at(offset_of!(Slot, active)).store(sessions, Ordering::Relaxed);
    }

    /// The number of open sessions at which the worker counts as overloaded; 0 means no limit.
    pub fn set_limit(&self, sessions: u32) {
        self.u32_at(offset_of!(Slot, limit)).store(sessions, Ordering::Relaxed);
    }

    /// Whether the worker takes connections.
    pub fn set_state(&self, state: WorkerState) {
        // Release: whoever sees the state sees what was published before it.
        self.u32_at(offset_of!(Slot, state)).store(state.to_abi(), Ordering::Release);
    }

    /// What is published now.
    pub fn snapshot(&self) -> SlotSnapshot {
        SlotSnapshot {
            state: WorkerState::from_abi(self.u32_at(offset_of!(Slot, state)).load(Ordering::Acquire)),
            generation: self.u32_at(offset_of!(Slot, generation)).load(Ordering::Relaxed),
            busy_since_ns: self.u64_at(offset_of!(Slot, busy_since_ns)).load(Ordering::Relaxed),
            accepted: self.u64_at(offset_of!(Slot, accepted)).load(Ordering::Relaxed),
            active: self.u32_at(offset_of!(Slot, active)).load(Ordering::Relaxed),
            limit: self.u32_at(offset_of!(Slot, limit)).load(Ordering::Relaxed),
        }
    }

    /// Takes the slot back from a worker that is gone: not running, nothing open.
    ///
    /// The count of accepted connections stays: it only ever grows.
    pub fn reset(&self) {
        self.set_state(WorkerState::Down);
        self.end_turn();
        self.set_active(0);
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        self.mapping.u32_at(self.begin + offset)
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        self.mapping.u64_at(self.begin + offset)
    }
}

/// What a worker has published, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSnapshot {
    /// Whether it takes connections.
    pub state: WorkerState,
    /// Generation of its process.
    pub generation: u32,
    /// Begin of the loop's turn that is under way; 0 while it sleeps.
    pub busy_since_ns: u64,
    /// Connections accepted so far.
    pub accepted: u64,
    /// Sessions open now.
    pub active: u32,
    /// Sessions at which it counts as overloaded; 0 means no limit.
    pub limit: u32,
}

impl WorkerState {
    fn to_abi(self) -> u32 {
        match self {
            Self::Down => STATE_DOWN,
            Self::Running => STATE_RUNNING,
            Self::Draining => STATE_DRAINING,
        }
    }

    fn from_abi(state: u32) -> Self {
        match state {
            STATE_RUNNING => Self::Running,
            STATE_DRAINING => Self::Draining,
            _ => Self::Down, // the program takes only the value for running, so everything else means this
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of the BPF programs.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, std::time::Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn no_slot(index: u16, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::InvalidInput {
        return error;
    }
    let text = format!("the worker array has no mappable slot for worker {index}: {error}");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    #[test]
    fn neighbours_do_not_touch_each_other() {
        let memory = memfd_create("slots", MFdFlags::MFD_CLOEXEC).expect("memfd");
        ftruncate(&memory, 2 * 4096).expect("size");
        // 31 and 32 lie on both sides of a page border.
        let slots: Vec<WorkerSlot> =
            [30, 31, 32].map(|index| WorkerSlot::map(memory.as_fd(), index).expect("map")).into();
        let before = slots[0].snapshot();
        slots[1].start(7, 100);
        slots[1].set_active(3);
        slots[1].begin_turn(55);
        slots[1].accepted(2);
        slots[1].accepted(1);
        let running = SlotSnapshot {
            state: WorkerState::Running,
            generation: 7,
            busy_since_ns: 55,
            accepted: 3,
            active: 3,
            limit: 100,
        };
        assert_eq!(slots[1].snapshot(), running);
        assert_eq!(slots[0].snapshot(), before);
        assert_eq!(slots[2].snapshot(), before);
        // A second mapping, as that of the supervisor, sees the same memory.
        let supervisor = WorkerSlot::map(memory.as_fd(), 31).expect("map");
        supervisor.reset();
        let down = SlotSnapshot { state: WorkerState::Down, busy_since_ns: 0, active: 0, ..running };
        assert_eq!(slots[1].snapshot(), down);
    }
}
