//! The accounts and maps of a worker.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use underpass_loader::{REDIRECT_DESCRIPTORS, RedirectMaps};

use super::Run;
use crate::metrics::{Block, Counter};

/// All redirections of a worker.
#[derive(Debug)]
pub struct Redirector {
    pub(super) maps: RedirectMaps,
    pub(super) free: Vec<u32>,
    /// Session of each slot: a hint, as all events are.
    pub(super) sessions: Vec<usize>,
    /// Slots whose bytes are on the way from the programs to the target: nobody tells when they have arrived.
    arriving: Vec<u32>,
    pub(super) credit: u64,
    pub(super) running: usize,
    /// When the worker's turn began, on a clock of its own.
    pub now_ms: u64,
}

impl Redirector {
    /// Takes the descriptors of the worker's maps. `credit` is what each direction may be ahead of its target, in bytes.
    ///
    /// # Errors
    /// When the maps are not what they should be.
    pub fn open(descriptors: [OwnedFd; REDIRECT_DESCRIPTORS], credit: u64) -> io::Result<Self> {
        let maps = RedirectMaps::open(descriptors)?;
        let count = maps.count();
        Ok(Self {
            maps,
            free: (0..count).rev().collect(),
            sessions: vec![usize::MAX; count as usize],
            arriving: Vec::with_capacity(count as usize),
            credit,
            running: 0,
            now_ms: 0,
        })
    }

    /// Becomes readable when the kernel wants a flow to be looked at.
    pub fn wake_fd(&self) -> RawFd {
        self.maps.wake_fd()
    }

    /// The session of the next flow that the kernel wants to be looked at.
    pub fn next_woken(&mut self) -> Option<usize> {
        let slot = self.maps.next_wake()?;
        Some(self.sessions.get(slot as usize).copied().unwrap_or(usize::MAX))
    }

    /// Whether flows are to be looked at again soon, without an event.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        !self.arriving.is_empty()
    }

    /// Moves the sessions of those flows to `sessions`.
    pub fn take_waiting(&mut self, sessions: &mut Vec<usize>) {
        let known = &self.sessions;
        sessions.extend(self.arriving.drain(..).map(|slot| known[slot as usize]));
    }

    /// Directions redirected now.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Accounts in use: of connections that have been redirected and are still open.
    pub fn used(&self) -> usize {
        self.sessions.len() - self.free.len()
    }

    /// Sockets in the maps, as sources and as targets.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub fn population(&self) -> io::Result<(usize, usize)> {
        self.maps.population()
    }

    /// Has a flow looked at again soon.
    pub(super) fn look_again(&mut self, slot: u32) {
        if !self.arriving.contains(&slot) {
            self.arriving.push(slot);
        }
    }

    /// Where the worker wants to be woken on the way to a limit: at the end of the flow, else half a credit before.
    pub(super) fn wake_at(&self, limit: u64, total: u64) -> u64 {
        if limit == total { total } else { limit - self.credit / 2 }
    }

    /// Lets nothing more through, and forgets the target.
    pub(super) fn end_run(&mut self, run: &Run, metrics: &Block) {
        self.maps.remove_target(run.cookie);
        self.arriving.retain(|slot| *slot != run.slot);
        self.running -= 1;
        metrics.set(Counter::SockmapFlows, self.running as u64);
    }
}
