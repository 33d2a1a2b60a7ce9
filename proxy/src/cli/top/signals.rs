//! Signals that end the program while the terminal is not as its user left it.

use std::io;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What users, shells and closing terminals end a program with.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Holds these signals back, so that the terminal can be restored first.
pub(super) struct Signals {
    held: SigSet,
    pending: SignalFd,
}

impl Signals {
    /// Holds them back from this thread and from those that it starts from now on.
    pub(super) fn hold() -> io::Result<Self> {
        let held: SigSet = ENDING.into_iter().collect();
        held.thread_block()?;
        let pending = SignalFd::with_flags(&held, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { held, pending })
    }

    /// The signal that has come, if one has.
    pub(super) fn come(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.pending.read_signal()? else { return Ok(None) };
        Ok(ENDING.into_iter().find(|signal| u32::try_from(*signal as i32) == Ok(info.ssi_signo)))
    }

    /// Lets the signal do what it was sent for: who has started the program sees that it ended by it.
    pub(super) fn end_by(self, signal: Signal) -> io::Result<()> {
        raise(signal)?;
        self.held.thread_unblock()?;
        Ok(())
    }
}
