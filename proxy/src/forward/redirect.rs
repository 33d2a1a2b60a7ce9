//! Redirection by sockmap: the kernel passes bytes from socket to socket, and the worker sleeps.
//!
//! BPF programs (`ebpf/src/redirect.rs`) read the source and send to the target, as far as the account of the flow
//! allows. This folder opens accounts, renews their credit, enters what was let through into the ledger, and takes the
//! source back. The order of its steps is what keeps every byte; where a step could as well stand elsewhere, nothing is
//! said about it.

mod attachment;
mod redirector;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd;

use underpass_command::state::RedirectMode;
use underpass_loader::{Account, Sent, tcp_handed_at_least, tcp_handed_exactly};

pub(super) use self::attachment::Attachment;
pub use self::redirector::Redirector;
use super::{Broken, Endpoint, Flow, Kind, Progress, Tools};
use crate::metrics::Counter;

/// Below so many bytes a redirection costs more than it saves even where it is wanted: it takes about eight system calls.
const SIZE_LEAST: u64 = 16 * 1024;

/// In mode auto: a target that takes longer to make room for the next credit is slow. The kernel's gain is CPU time per byte,
/// and there are hardly any; a splice holds more in readiness for it, and leaves the account to others.
const STALL_MS: u64 = 1000;

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
            RedirectMode::Auto => {
                let body = self.ledger.content().saturating_add(left);
                left >= self.policy.sockmap_size_min.max(SIZE_LEAST) && body <= self.policy.sockmap_size_max
            }
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
            Some(_) if self.is_body_of_auto() && sink.redirect.spares_a_body() => {
                Err(NotBegun::Never(Counter::FallbackSockmapRecent))
            }
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
            Err(NotBegun::Badly(counter)) => {
                if self.is_body_of_auto() {
                    sink.redirect.spare_next();
                }
                tools.metrics.add(counter, 1);
                self.redirect_given_up = true;
                Begun::No
            }
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
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        redirector: &mut Redirector,
        session: usize,
    ) -> Result<Run, NotBegun> {
        let refused = NotBegun::Badly(Counter::FallbackSockmapRefused);
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
            self.waits_since_ms.get_or_insert(redirector.now_ms);
            return Err(NotBegun::Later);
        }
        let waited_ms = self.waits_since_ms.take().map_or(0, |since| redirector.now_ms.saturating_sub(since));
        if waited_ms > STALL_MS && self.is_body_of_auto() {
            return Err(NotBegun::Badly(Counter::FallbackSockmapRecent));
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
        if redirector.maps.account(slot).used == 0 {
            sink.push(); // else what is redirected pushes what lies before it
        }
        sink.corked = false;
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
        // Before the account: what is in no queue any more has been counted.
        let exhausted = source.redirect.is_source && source.is_exhausted();
        loop {
            match self.look_once(source, sink, tools, exhausted)? {
                Look::Again => {}
                Look::Wait(progress) => return Ok(Some(progress)),
                Look::Ended => break,
            }
        }
        match self.end_run(source, sink, tools) {
            Some(error) => Err(Broken::Source(error)),
            None => Ok(None),
        }
    }

    fn look_once(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        tools: &mut Tools<'_>,
        exhausted: bool,
    ) -> Result<Look, Broken> {
        let account = self.enter(tools);
        let (Some(account), Some(run), Some(redirector)) =
            (account, self.run.as_mut(), tools.redirector.as_deref_mut())
        else {
            return Ok(Look::Ended);
        };
        let (handed, sent) = tcp_handed_at_least(sink.as_fd()).map_err(Broken::Sink)?;
        if sent.closed {
            return Err(Broken::Sink(io::ErrorKind::ConnectionReset.into()));
        }
        // Less than the base where acknowledgements came while it was read.
        let handed = handed.saturating_sub(run.base);
        if source.redirect.is_source && (account.stopped || exhausted) {
            // What came before a reset is still delivered.
            run.reset = source.take_back(run.cookie, redirector).err();
            if account.stopped {
                tools.metrics.add(Counter::SockmapStops, 1);
            }
        }
        if source.redirect.is_source && account.used < run.total {
            return Ok(run.renew(account, handed, &sent, source, sink, redirector));
        }
        // The programs have let everything through. It may still be on its way to the target: until it is there, the
        // target must not be written to, shut down, closed or taken out of its map.
        if handed < account.used {
            if sink.is_writable_or_will_tell() {
                redirector.look_again(run.slot);
            }
            return Ok(Look::Wait(Progress::Blocked));
        }
        if handed > account.used {
            debug_assert_eq!(handed, account.used, "bytes handed to the target, let through by the parser");
            return Err(Broken::Sink(io::Error::other("more was sent than was let through")));
        }
        if source.redirect.is_source && !self.ledger.is_settled() {
            // The end of a chunk. What follows is framing; it makes the parser stop.
            return Ok(Look::Wait(Progress::Starved));
        }
        Ok(Look::Ended)
    }

    /// Enters what the kernel has let through since it was looked at last; returns the run's account.
    fn enter(&mut self, tools: &mut Tools<'_>) -> Option<Account> {
        let run = self.run.as_mut()?;
        let account = tools.redirector.as_deref()?.maps.account(run.slot);
        let fresh = account.used - run.debited;
        run.debited = account.used;
        if fresh > 0 {
            self.ledger.debit(fresh);
            self.redirected += fresh;
            self.count_unseen(fresh);
            tools.metrics.add(Counter::BytesRedirected, fresh);
            tools.metrics.add(self.kind.redirected(), fresh);
        }
        Some(account)
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
            // What it has said all the same raises no event any more, be it that the parser stopped or that it was not run yet.
            source.readable = source.has_unread();
        }
        redirector.end_run(&run, tools.metrics);
        sink.redirect.leave_targets();
        run.reset
    }

    /// Gives a redirection up. What was on its way is lost, so neither side may go on with another message.
    pub(super) fn abandon_run(&mut self, tools: &mut Tools<'_>) {
        if let (Some(run), Some(redirector)) = (&self.run, tools.redirector.as_deref_mut()) {
            // What the source still sends stays in its queue, for whoever throws it away.
            redirector.maps.grant(run.slot, 0, 0);
        }
        self.enter(tools);
        if let (Some(run), Some(redirector)) = (self.run.take(), tools.redirector.as_deref_mut()) {
            redirector.end_run(&run, tools.metrics);
        }
    }

    /// Whether mode auto is to learn from it. A tunnel is one stream from its begin to its end.
    fn is_body_of_auto(&self) -> bool {
        self.policy.mode == RedirectMode::Auto && matches!(self.kind, Kind::Request | Kind::Response)
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

impl Run {
    /// Renews the credit of a source that goes on, if half of it is spent and the target follows.
    fn renew(
        &mut self,
        account: Account,
        handed: u64,
        sent: &Sent,
        source: &Endpoint,
        sink: &mut Endpoint,
        redirector: &mut Redirector,
    ) -> Look {
        if account.used < self.limit && source.has_ended() {
            // The parser was put off, because the socket was in use; when it has read to the end, nobody tells.
            redirector.look_again(self.slot);
        }
        let limit = self.total.min(account.used + redirector.credit);
        let half = redirector.credit / 2;
        if limit == self.limit || self.limit - account.used > half {
            return Look::Wait(Progress::Starved);
        }
        let behind = account.used.saturating_sub(handed) + sent.unsent;
        if behind > redirector.credit {
            if sink.has_drained(sent, redirector.credit) {
                redirector.look_again(self.slot); // it is the kernel that is behind
            }
            return Look::Wait(Progress::Starved);
        }
        let wake_at = redirector.wake_at(limit, self.total);
        redirector.maps.grant(self.slot, limit, wake_at);
        self.limit = limit;
        if redirector.maps.account(self.slot).used >= wake_at {
            return Look::Again; // the mark was passed before it was set
        }
        Look::Wait(Progress::Starved)
    }
}

/// What a look at a redirection has shown.
enum Look {
    /// Something has moved meanwhile.
    Again,
    /// It goes on; an event or the next look will tell.
    Wait(Progress),
    /// All that was let through has arrived.
    Ended,
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
    /// The same, and mode auto is not to try it with the next bodies either.
    Badly(Counter),
}
