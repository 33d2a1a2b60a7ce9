//! Redirection by sockmap: the kernel passes bytes from socket to socket, and the worker sleeps.
//!
//! BPF programs (`ebpf/src/redirect.rs`) read the source and send to the target, as far as the account of the flow
//! allows. This file opens accounts, renews their credit, enters what was let through into the ledger, and takes the
//! source back. The order of its steps is what keeps every byte; where a step could as well stand elsewhere, nothing is
//! said about it.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_command::state::RedirectMode;
use underpass_loader::{
    REDIRECT_DESCRIPTORS, RedirectMaps, Sent, has_unread, socket_cookie, tcp_handed_at_least,
    tcp_handed_exactly, tcp_sent,
};

use super::{Broken, Endpoint, Flow, Kind, Progress, Tools};
use crate::metrics::{Block, Counter};

/// Below so many bytes a redirection costs more than it saves even where it is wanted: it takes about eight system calls.
const SIZE_LEAST: u64 = 16 * 1024;

/// All redirections of a worker.
#[derive(Debug)]
pub struct Redirector {
    maps: RedirectMaps,
    free: Vec<u32>,
    /// Session of each slot: a hint, as all events are.
    sessions: Vec<usize>,
    /// Slots whose bytes are on the way from the programs to the target: nobody tells when they have arrived.
    arriving: Vec<u32>,
    credit: u64,
    running: usize,
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
    fn look_again(&mut self, slot: u32) {
        if !self.arriving.contains(&slot) {
            self.arriving.push(slot);
        }
    }

    /// Where the worker wants to be woken on the way to a limit: at the end of the flow, else half a credit before.
    fn wake_at(&self, limit: u64, total: u64) -> u64 {
        if limit == total { total } else { limit - self.credit / 2 }
    }

    /// Lets nothing more through, and forgets the target.
    fn end_run(&mut self, run: &Run, metrics: &Block) {
        self.maps.remove_target(run.cookie);
        self.arriving.retain(|slot| *slot != run.slot);
        self.running -= 1;
        metrics.set(Counter::SockmapFlows, self.running as u64);
    }
}

/// What the kernel's redirection has to do with a socket.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    /// Slot of its account and its cookie, from its first redirection until it is closed.
    account: Option<(u32, u64)>,
    /// It is in the map of sources: the kernel reads it.
    is_source: bool,
    /// It is in the map of targets.
    is_target: bool,
    /// It has been a source since it is a target. Its stream parser lives on as long as any map holds the socket, and
    /// must not be started twice.
    is_spent: bool,
    /// It counts as writable only when little of what it was handed is unsent.
    has_low_water: bool,
}

impl Attachment {
    fn leave_sources(&mut self) {
        self.is_source = false;
        self.is_spent &= self.is_target;
    }

    fn leave_targets(&mut self) {
        self.is_target = false;
        self.is_spent &= self.is_source;
    }
}

impl Endpoint {
    /// Whether the kernel reads the socket; then userspace must not.
    #[inline]
    pub fn is_read_by_kernel(&self) -> bool {
        self.redirect.is_source
    }

    /// The flow to this socket has ended, and its entry in the map of targets with it.
    pub fn leave_targets(&mut self) {
        self.redirect.leave_targets();
    }

    /// The socket's pending error, if it means that the connection has failed.
    pub fn has_failed(&self) -> bool {
        match self.take_error() {
            Ok(None) => false,
            // The parser's way to stop: `ebpf/src/redirect.rs`, STOP.
            Ok(Some(error)) => !(self.is_read_by_kernel() && error.kind() == io::ErrorKind::WouldBlock),
            Err(_) => true,
        }
    }

    /// Takes back a socket that the kernel still reads although its flow has ended; false when nothing has come from it
    /// since, so that there is nothing to be read.
    pub fn reclaim(&mut self, redirector: Option<&mut Redirector>) -> bool {
        let (true, Some((slot, cookie)), Some(redirector)) =
            (self.redirect.is_source, self.redirect.account, redirector)
        else {
            return true;
        };
        // A parser that has not met the next byte may be about to; one that has stands still.
        if !redirector.maps.account(slot).stopped && !self.is_exhausted() {
            self.readable = false;
            return false;
        }
        // Whoever reads next finds out what became of the connection.
        let _ = self.take_back(cookie, redirector);
        true
    }

    /// Whether the peer has closed its side and the kernel has read everything before that.
    fn is_exhausted(&self) -> bool {
        // The state first: what lies in no queue after the end has come was let through.
        self.has_ended() && matches!(has_unread(self.as_fd()), Ok(false))
    }

    /// Whether the peer has closed its side. Events are hints; to take a source back that goes on sending would cost its
    /// bytes.
    fn has_ended(&self) -> bool {
        self.hangup && tcp_sent(self.as_fd()).is_ok_and(|sent| sent.ended)
    }

    /// Ends the kernel's reading. The source stands still: its parser has stopped, or nothing more can come.
    ///
    /// # Errors
    /// When the connection was reset. A read would not tell once the pending error is cleared.
    fn take_back(&mut self, cookie: u64, redirector: &mut Redirector) -> io::Result<()> {
        // The parser wakes us from inside the kernel's read loop. Unhooking it under that loop would let the loop eat the
        // rest of the receive queue; it runs under the socket's lock, so whoever has had the lock finds it ended.
        let _ = tcp_sent(self.as_fd());
        redirector.maps.remove_source(cookie);
        self.redirect.leave_sources();
        // The pending error of the stop. Whoever sends to this socket might meet it instead, and takes it for a full buffer:
        // so the socket counts as writable again.
        let error = self.take_error();
        (self.readable, self.writable) = (true, true);
        match error {
            Ok(Some(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if self.was_reset() => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }

    /// Whether the connection was reset, though nothing else tells: a send of the kernel's own, of the other direction, may
    /// have met the error. A connection that is closed, and that we have not finished, was reset.
    pub(super) fn was_reset(&self) -> bool {
        !self.finished && tcp_sent(self.as_fd()).is_ok_and(|sent| sent.closed)
    }

    /// Gives the account back, before the socket is closed.
    pub fn detach(&mut self, redirector: Option<&mut Redirector>) {
        let (Some((slot, cookie)), Some(redirector)) = (self.redirect.account.take(), redirector) else {
            return;
        };
        redirector.maps.unbind(cookie);
        if self.redirect.is_source {
            // A parser that has found the account before may be using it; see `take_back`.
            let _ = tcp_sent(self.as_fd());
        }
        redirector.sessions[slot as usize] = usize::MAX;
        redirector.free.push(slot);
    }

    /// Whether the socket has sent so much of what it was handed that at most `most` bytes are left. If not, an event will
    /// tell, as one does after a write that found no room.
    fn has_drained(&mut self, sent: &Sent, most: u64) -> bool {
        if sent.unsent <= most {
            return true;
        }
        if !self.redirect.has_low_water {
            // From now on the socket counts as writable below this mark, not at a third of whatever its buffer has grown to.
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            self.redirect.has_low_water =
                socket2::SockRef::from(self.stream()).set_tcp_notsent_lowat(most).is_ok();
        }
        self.is_writable_or_will_tell()
    }

    /// Asks the socket whether it is writable. One that is not has been told to raise an event (`tcp_poll` sets SOCK_NOSPACE),
    /// which it otherwise does only after a write of our own.
    fn is_writable_or_will_tell(&mut self) -> bool {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let writable = !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0));
        self.writable = writable;
        writable
    }

    /// The account of the socket, a new one at its first redirection.
    fn account(&mut self, redirector: &mut Redirector) -> io::Result<Option<(u32, u64)>> {
        if self.redirect.account.is_none() {
            let Some(slot) = redirector.free.pop() else { return Ok(None) };
            let bound = socket_cookie(self.as_fd())
                .and_then(|cookie| redirector.maps.bind(cookie, slot).map(|()| cookie));
            match bound {
                Ok(cookie) => self.redirect.account = Some((slot, cookie)),
                Err(error) => {
                    redirector.free.push(slot);
                    return Err(error);
                }
            }
        }
        Ok(self.redirect.account)
    }
}

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
