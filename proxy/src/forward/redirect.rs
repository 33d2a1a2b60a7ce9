//! Redirection by sockmap: the kernel passes bytes from socket to socket, and the worker sleeps.
//!
//! BPF programs (`ebpf/src/redirect.rs`) read the source and send to the target, as far as the account of the flow
//! allows. This folder opens accounts, renews their credit, enters what was let through into the ledger, and takes the
//! source back. The order of its steps is what keeps every byte; where a step could as well stand elsewhere, nothing is
//! said about it.

mod attachment;
mod redirector;

use std::io;
use std::os::fd::AsFd;

use underpass_command::state::RedirectMode;
use underpass_loader::{tcp_handed_at_least, tcp_handed_exactly};

pub(super) use self::attachment::Attachment;
pub use self::redirector::Redirector;
use super::{Broken, Endpoint, Flow, Kind, Progress, Tools};
use crate::metrics::Counter;

/// Below so many bytes a redirection costs more than it saves even where it is wanted: it takes about eight system calls.
const SIZE_LEAST: u64 = 16 * 1024;

/// A redirection that goes on: a part of a message, at most as long as the ledger allowed when it began.
#[derive(Debug)]
pub(super) struct Run {
    slot: u32,
    cookie: u64,
    /// What had been handed to the target before.
    base: u64,
    /// Bytes that it is about; `u64::MAX` until the source closes.
    total: u64,
    /// Bytes entered into the ledger.
    debited: u64,
    /// Bytes that may be let through so far.
    limit: u64,
    /// The source was reset.
    reset: Option<io::Error>,
}

impl Flow {
    /// Whether the kernel is to move what comes next.
    pub(super) fn wants_redirection(&self, source: &Endpoint) -> bool {
        // A source that has closed its side cannot be put into the map.
        if self.redirect_given_up || source.hangup {
            return false;
        }
        let left = self.ledger.data_left();
        match self.policy.mode {
            RedirectMode::Copy | RedirectMode::Splice => false,
            RedirectMode::Sockmap => left >= SIZE_LEAST,
            RedirectMode::Auto if matches!(self.kind, Kind::Tunnel | Kind::Tcp) => true,
            // Until the connection closes the size is not known.
            RedirectMode::Auto if left == u64::MAX => false,
            RedirectMode::Auto => left >= self.policy.sockmap_size_min.max(SIZE_LEAST),
        }
    }

    /// Leaves what comes next to the kernel. Everything before it has been passed on.
    pub(super) fn redirect(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        tools: &mut Tools<'_>,
    ) -> Begun {
        let begun = match tools.redirector.as_deref_mut() {
            None => Err(NotBegun::Never(Counter::FallbackSockmapOff)),
            Some(redirector) => self.begin_run(source, sink, redirector, tools.session),
        };
        match begun {
            Ok(run) => {
                self.run = Some(run);
                let running = tools.redirector.as_ref().map_or(0, |redirector| redirector.running);
                tools.metrics.set(Counter::SockmapFlows, running as u64);
                if let Some(buffer) = source.buffer.as_mut() {
                    buffer.held = false; // what the kernel passes on cannot be sent again
                }
                source.release_if_empty(tools.buffers);
                self.release_pipe(tools);
                Begun::Yes
            }
            Err(NotBegun::Later) => Begun::Later,
            Err(NotBegun::Never(counter)) => {
                // In mode auto nobody has asked for it.
                if counter != Counter::FallbackSockmapOff || self.policy.mode == RedirectMode::Sockmap {
                    tools.metrics.add(counter, 1);
                }
                self.redirect_given_up = true;
                Begun::No
            }
        }
    }

    fn begin_run(
        &self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        redirector: &mut Redirector,
        session: usize,
    ) -> Result<Run, NotBegun> {
        let refused = NotBegun::Never(Counter::FallbackSockmapRefused);
        if source.redirect.is_source || source.redirect.is_spent {
            return Err(NotBegun::Never(Counter::FallbackSockmapHeld));
        }
        let Ok(account) = source.account(redirector) else { return Err(refused) };
        let (slot, cookie) = account.ok_or(NotBegun::Never(Counter::FallbackSockmapNoFlow))?;
        // What the target has been handed before the first redirected byte: from here on nobody else may write to it.
        let (base, sent) = match tcp_handed_exactly(sink.as_fd()) {
            Ok((handed, sent)) if !sent.closed => (handed, sent),
            _ => return Err(refused),
        };
        if !sink.has_drained(&sent, redirector.credit) {
            return Err(NotBegun::Later);
        }
        let total = self.ledger.data_left();
        let limit = total.min(redirector.credit);
        redirector.maps.open_account(slot, limit, redirector.wake_at(limit, total));
        // The target first: what the source has received is redirected from the moment it is in its map.
        if redirector.maps.insert_target(cookie, sink.as_fd()).is_err() {
            return Err(refused);
        }
        if redirector.maps.insert_source(cookie, source.as_fd()).is_err() {
            redirector.maps.remove_target(cookie);
            return Err(refused);
        }
        redirector.sessions[slot as usize] = session;
        redirector.running += 1;
        (source.redirect.is_source, source.redirect.is_spent) = (true, true);
        sink.redirect.is_target = true;
        source.readable = false;
        // What was received before is not seen until the next segment comes, or somebody looks. It may show the error of a stop,
        // which the account tells as well.
        let _ = source.stream().peek(&mut [0u8; 1]);
        Ok(Run { slot, cookie, base, total, debited: 0, limit, reset: None })
    }

    /// Looks after a redirection: enters what was let through, renews the credit, ends it where it has ended. `None`
    /// when it has, and userspace goes on.
    pub(super) fn look_after(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        tools: &mut Tools<'_>,
    ) -> Result<Option<Progress>, Broken> {
        let (Some(run), Some(redirector)) = (self.run.as_mut(), tools.redirector.as_deref_mut()) else {
            return Ok(None);
        };
        // Before the account: what is in no queue any more has been counted.
        let exhausted = source.redirect.is_source && source.is_exhausted();
        loop {
            let account = redirector.maps.account(run.slot);
            let fresh = account.used - run.debited;
            if fresh > 0 {
                run.debited = account.used;
                self.ledger.debit(fresh);
                self.redirected += fresh;
                tools.metrics.add(Counter::BytesRedirected, fresh);
                tools.metrics.add(self.kind.redirected(), fresh);
            }
            let (handed, sent) = tcp_handed_at_least(sink.as_fd()).map_err(Broken::Sink)?;
            if sent.closed {
                return Err(Broken::Sink(io::ErrorKind::ConnectionReset.into()));
            }
            // Less than the base where acknowledgements came while it was read.
            let handed = handed.saturating_sub(run.base);
            let behind = account.used.saturating_sub(handed) + sent.unsent;
            if source.redirect.is_source && (account.stopped || exhausted) {
                // What came before a reset is still delivered.
                run.reset = source.take_back(run.cookie, redirector).err();
                if account.stopped {
                    tools.metrics.add(Counter::SockmapStops, 1);
                }
            }
            if source.redirect.is_source && account.used < run.total {
                if account.used < run.limit && source.has_ended() {
                    // The parser was put off, because the socket was in use; when it has read to the end, nobody tells.
                    redirector.look_again(run.slot);
                }
                let limit = run.total.min(account.used + redirector.credit);
                let half = redirector.credit / 2;
                if limit == run.limit || run.limit - account.used > half {
                    return Ok(Some(Progress::Starved));
                }
                if behind > redirector.credit {
                    if sink.has_drained(&sent, redirector.credit) {
                        redirector.look_again(run.slot); // it is the kernel that is behind
                    }
                    return Ok(Some(Progress::Starved));
                }
                let wake_at = redirector.wake_at(limit, run.total);
                redirector.maps.grant(run.slot, limit, wake_at);
                run.limit = limit;
                if redirector.maps.account(run.slot).used >= wake_at {
                    continue; // the mark was passed before it was set
                }
                return Ok(Some(Progress::Starved));
            }
            // The programs have let everything through. It may still be on its way to the target: until it is there, the
            // target must not be written to, shut down, closed or taken out of its map.
            if handed < account.used {
                if sink.is_writable_or_will_tell() {
                    redirector.look_again(run.slot);
                }
                return Ok(Some(Progress::Blocked));
            }
            if handed > account.used {
                debug_assert_eq!(
                    handed, account.used,
                    "bytes handed to the target, let through by the parser"
                );
                return Err(Broken::Sink(io::Error::other("more was sent than was let through")));
            }
            if source.redirect.is_source && !self.ledger.is_settled() {
                // The end of a chunk. What follows is framing; it makes the parser stop.
                return Ok(Some(Progress::Starved));
            }
            break;
        }
        match self.end_run(source, sink, tools) {
            Some(error) => Err(Broken::Source(error)),
            None => Ok(None),
        }
    }

    /// All bytes have arrived. Returns how the source was reset, if it was.
    fn end_run(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        tools: &mut Tools<'_>,
    ) -> Option<io::Error> {
        let redirector = tools.redirector.as_deref_mut()?;
        let run = self.run.take()?;
        // A client may send its next request at any time, and its parser must not be unhooked while it reads: the client
        // stays in the map, and its next byte makes the parser stop. A backend that has answered has nothing more to say.
        if source.redirect.is_source && self.kind == Kind::Response {
            // That it has been reset meanwhile is found out by whoever uses it next.
            let _ = source.take_back(run.cookie, redirector);
            // What it says all the same gives no event of its own.
            source.readable = redirector.maps.account(run.slot).stopped;
        }
        redirector.end_run(&run, tools.metrics);
        sink.redirect.leave_targets();
        run.reset
    }

    /// Gives a redirection up. What was on its way is lost, so neither side may go on with another message.
    pub(super) fn abandon_run(&mut self, tools: &mut Tools<'_>) {
        let (Some(run), Some(redirector)) = (self.run.take(), tools.redirector.as_deref_mut()) else {
            return;
        };
        // What the source still sends stays in its queue, for whoever throws it away.
        redirector.maps.grant(run.slot, 0, 0);
        let fresh = redirector.maps.account(run.slot).used - run.debited;
        redirector.end_run(&run, tools.metrics);
        if fresh > 0 {
            self.ledger.debit(fresh);
            self.redirected += fresh;
            tools.metrics.add(Counter::BytesRedirected, fresh);
            tools.metrics.add(self.kind.redirected(), fresh);
        }
    }

    /// Whether the kernel has been told to move more than the credit allows, and stands still.
    pub(super) fn has_stopped(&self, redirector: &Redirector) -> bool {
        self.run.as_ref().is_some_and(|run| redirector.maps.account(run.slot).stopped)
    }

    /// Whether the kernel has passed on bytes that nobody has entered yet.
    pub fn has_advanced(&self, redirector: Option<&Redirector>) -> bool {
        match (&self.run, redirector) {
            (Some(run), Some(redirector)) => redirector.maps.account(run.slot).used > run.debited,
            _ => false,
        }
    }
}

/// Whether a redirection has begun.
pub(super) enum Begun {
    /// It has.
    Yes,
    /// The target has to drain first; an event will tell.
    Later,
    /// It cannot be: userspace goes on.
    No,
}

enum NotBegun {
    Later,
    /// Why not, as it is counted.
    Never(Counter),
}
