//! The loop: wait for events, drive the sessions they concern, look after deadlines, sleep.

use std::io;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use underpass_command::state::{AtLimit, Protocol, ProxyProtocol};
use underpass_loader::{WorkerSlot, monotonic_ns};

use super::connection::{self, CONTROL, Connections, REDIRECT};
use super::control::Control;
use super::core::Core;
use super::drain::Ended;
use super::session::{BUFFERS_PER_TUNNEL, Ending, OVERFLOW, Phase, Session, Step};
use super::steering::SteeringPlace;
use crate::forward::{Endpoint, Redirector};
use crate::http1::Reason;
use crate::ipc::Channel;
use crate::metrics::{Counter, ListenerCounter, Peer};

/// Events taken from the kernel in one call.
const EVENTS: usize = 256;
/// Connections accepted from one listener before the others get their turn.
const ACCEPT_BATCH: usize = 64;
/// Steps of one session before the others get their turn.
const STEPS_MAX: usize = 16;
/// How soon a failed accept (no descriptors left) or a full access log is tried again.
const RETRY_MS: u64 = 50;

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Client = 0,
    Backend = 1,
    Listener = 2,
}

/// Bits of a key in a token; below them two for the kind, above them those of the generation.
const KEY_BITS: u32 = 32;
const GENERATION_MASK: u32 = u32::MAX >> 2;

/// A token can outlive what it stood for by the rest of a batch, and the key be given to another connection meanwhile: the
/// generation tells them apart. All the same, events are hints: the next system call on the socket decides.
pub(super) fn token(kind: Kind, key: usize, generation: u32) -> Token {
    Token(((generation & GENERATION_MASK) as usize) << (KEY_BITS + 2) | key << 2 | kind as usize)
}

/// A worker: its sessions, its connections to backends, and all they share.
pub struct Worker {
    pub(super) core: Core,
    pub(super) sessions: Slab<Session>,
    pub(super) connections: Connections,
    pub(super) control: Control,
    /// None where nothing is steered.
    pub(super) place: Option<SteeringPlace>,
    pub(super) began: Instant,
    pub(super) drain_deadline_ms: Option<u64>,
    pub(super) expired: Vec<usize>,
    /// Sessions that the kernel's redirection has woken.
    woken: Vec<usize>,
    /// When sessions whose bytes are on their way were last looked at.
    looked_ms: u64,
    /// Sessions that came beyond the limit of connections.
    pub(super) overflow: usize,
    poll: Poll,
}

impl Worker {
    /// Puts a worker together; [`Self::run`] makes it work.
    pub(super) fn new(
        core: Core,
        connections: Connections,
        poll: Poll,
        channel: Channel,
        place: Option<SteeringPlace>,
    ) -> Self {
        let limits = &core.settings.limits;
        let sessions = limits.connections as usize + OVERFLOW;
        Self {
            sessions: Slab::with_capacity(sessions),
            connections,
            expired: Vec::with_capacity(sessions),
            woken: Vec::with_capacity(sessions.max(limits.redirect_flows as usize) + EVENTS),
            looked_ms: 0,
            core,
            control: Control::new(channel),
            place,
            began: Instant::now(),
            drain_deadline_ms: None,
            overflow: 0,
            poll,
        }
    }

    /// Works until the supervisor says to stop and the last connection has ended.
    ///
    /// # Errors
    /// When epoll itself fails.
    pub fn run(&mut self) -> io::Result<Ended> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            }
            self.begin_turn();
            let mut count = 0;
            for event in &events {
                self.handle(event);
                count += 1;
            }
            self.core.metrics.add(Counter::LoopEvents, count);
            if self.control.pending {
                self.control();
            }
            self.look_after_redirections();
            self.run_queued();
            self.accept_pending();
            self.expire();
            self.run_waiting();
            self.call_lines();
            self.report();
            if let Some(ended) = self.drained() {
                self.end_turn();
                self.core.log.close(&self.core.metrics);
                return Ok(ended);
            }
            self.end_turn();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let core = &self.core;
        if !core.runnable.is_empty() || !core.called.is_empty() || self.control.pending {
            return Some(Duration::ZERO);
        }
        let mut wait = core.wheel.wait_ms(core.now.ms);
        let mut at_most = |ms: u64| wait = Some(wait.map_or(ms, |wait| wait.min(ms)));
        let acceptable = (0..core.listeners.len()).any(|index| self.may_accept(index));
        if acceptable && !core.accept_failed {
            return Some(Duration::ZERO); // a batch was full
        }
        if acceptable || core.log.is_blocked() || self.control.is_blocked() {
            at_most(RETRY_MS);
        }
        if core.redirector.as_ref().is_some_and(Redirector::is_waiting) {
            at_most(1);
        }
        if let Some(deadline) = self.drain_deadline_ms {
            at_most(deadline.saturating_sub(core.now.ms));
        }
        wait.map(Duration::from_millis)
    }

    /// Where to publish for steering, if this is the process that does.
    #[inline]
    fn slot(&self) -> Option<&WorkerSlot> {
        self.place.as_ref()?.slot()
    }

    fn begin_turn(&mut self) {
        let elapsed = self.began.elapsed();
        self.core.now.ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.core.now.us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        if let Some(redirector) = &mut self.core.redirector {
            redirector.now_ms = self.core.now.ms;
        }
        if let Some(slot) = self.slot() {
            slot.begin_turn(monotonic_ns());
        }
    }

    fn end_turn(&mut self) {
        let core = &mut self.core;
        core.log.flush(&core.metrics);
        core.metrics.add(Counter::LoopTurns, 1);
        core.metrics.set(Counter::ClientsActive, self.sessions.len() as u64);
        core.metrics.set(Counter::BuffersUsed, core.buffers.used() as u64);
        core.metrics.set(Counter::PipesUsed, core.pipes.used() as u64);
        if let Some(slot) = self.slot() {
            slot.set_active(u32::try_from(self.sessions.len()).unwrap_or(u32::MAX));
            slot.end_turn();
        }
    }

    fn handle(&mut self, event: &Event) {
        if event.token() == CONTROL {
            self.control.pending = true; // looked at in its place in the turn
            return;
        }
        if event.token() == REDIRECT {
            return; // looked at each turn
        }
        let Token(number) = event.token();
        let key = (number >> 2) & ((1 << KEY_BITS) - 1);
        let is_current =
            |generation: u32| (generation & GENERATION_MASK) as usize == number >> (KEY_BITS + 2);
        match number & 3 {
            kind if kind == Kind::Client as usize => {
                if self.sessions.get(key).is_some_and(|session| is_current(session.generation)) {
                    self.client_event(key, event);
                }
            }
            kind if kind == Kind::Backend as usize => {
                if self.connections.get(key).is_some_and(|connection| is_current(connection.generation)) {
                    self.backend_event(key, event);
                }
            }
            _ => self.accept(key),
        }
    }

    fn client_event(&mut self, key: usize, event: &Event) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.client.note(event);
        // An error means that the client has reset the connection: nobody is left to answer. What it sent before may still
        // be read, but a request nobody waits for is not worth serving.
        if event.is_error() && session.client.has_failed() {
            if session.exchange.active {
                self.core.count(Counter::AbortsClient);
                session.exchange.ending = Ending::Client;
            }
            self.end(key, Step::Close);
            return;
        }
        self.drive(key);
    }

    fn backend_event(&mut self, key: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.endpoint.note(event);
        match connection.session {
            Some(session) => self.drive(session),
            None => connection::idle_event(&mut self.core, &mut self.connections, key),
        }
    }

    /// Takes a session as far as it goes.
    pub(super) fn drive(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        if session.client.is_read_by_kernel() && !session.exchange.request.is_redirected() {
            // Whatever the phase: until it is taken back, the error of the parser's stop may be met by whoever writes to the
            // client, and be taken for a full buffer that no event will empty.
            session.client.reclaim(self.core.redirector.as_mut());
        }
        for _ in 0..STEPS_MAX {
            let step = match self.sessions[key].phase {
                Phase::Preface => self.preface(key),
                Phase::Head => self.read_head(key),
                Phase::Queued => Step::Wait, // its turn comes in `call_lines`
                Phase::Connecting => self.connecting(key),
                Phase::Exchange => self.exchange(key),
                Phase::Reply => self.reply(key),
                Phase::Tunnel => self.tunnel(key),
                Phase::Linger => self.linger(key),
            };
            match step {
                Step::Again => {}
                Step::Wait => return,
                Step::Yield => break,
                Step::Close | Step::Reset => {
                    self.end(key, step);
                    return;
                }
            }
        }
        let session = &mut self.sessions[key];
        if !session.queued {
            session.queued = true;
            self.core.runnable.push_back(key);
        }
    }

    /// Drives the sessions that the kernel's redirection has woken, and those whose bytes were on their way when they were
    /// looked at last.
    fn look_after_redirections(&mut self) {
        let Some(redirector) = self.core.redirector.as_mut() else { return };
        debug_assert!(self.woken.is_empty());
        // Each millisecond at most: there is no event for what they wait for, and looking takes a system call.
        if redirector.is_waiting() && self.core.now.ms > self.looked_ms {
            self.looked_ms = self.core.now.ms;
            redirector.take_waiting(&mut self.woken);
        }
        // More than there is room for is left for the next turn.
        while self.woken.len() < self.woken.capacity()
            && let Some(session) = redirector.next_woken()
        {
            self.woken.push(session);
        }
        while let Some(session) = self.woken.pop() {
            if self.sessions.contains(session) {
                self.drive(session);
            }
        }
    }

    fn run_queued(&mut self) {
        for _ in 0..self.core.runnable.len() {
            let Some(key) = self.core.runnable.pop_front() else { return };
            // A session that has ended since leaves its key behind; a new one under this key is not `queued`.
            if self.sessions.get_mut(key).is_some_and(|session| std::mem::take(&mut session.queued)) {
                self.drive(key);
            }
        }
    }

    /// Lets the tunnels that wait for buffers go on, in the order they came, as far as there are buffers again.
    fn run_waiting(&mut self) {
        for _ in 0..self.core.waiting.len() {
            if !self.core.buffers.can_reserve(BUFFERS_PER_TUNNEL as usize) {
                return;
            }
            let Some(key) = self.core.waiting.pop_front() else { return };
            self.sessions[key].waiting = false;
            self.drive(key);
        }
    }

    /// Sets the deadline of a session, in place of the one before.
    #[inline]
    pub(super) fn deadline(&mut self, key: usize, ahead_ms: u64) {
        let deadline = self.core.now.ms + ahead_ms;
        self.core.wheel.set(key, deadline);
    }

    fn expire(&mut self) {
        let mut expired = std::mem::take(&mut self.expired);
        self.core.wheel.expire(self.core.now.ms, &mut expired);
        let sessions_end = connection::wheel_entry(&self.core, 0);
        for entry in expired.drain(..) {
            if entry >= sessions_end {
                let key = entry - sessions_end;
                if self.connections.get(key).is_some_and(|connection| connection.session.is_none()) {
                    connection::close(&mut self.core, &mut self.connections, key);
                }
            } else if self.sessions.contains(entry) {
                self.timed_out(entry);
            }
        }
        self.expired = expired;
    }

    /// Ends a session and all it holds.
    pub(super) fn end(&mut self, key: usize, how: Step) {
        let exchange = &self.sessions[key].exchange;
        // A FIN would make half a response look like a whole one where only the end of the connection ends it.
        let cut = exchange.active && exchange.response_head_done;
        self.finish_exchange(key, false);
        let mut session = self.sessions.remove(key);
        if session.phase == Phase::Tunnel {
            self.core.gauge(Counter::TunnelsActive, false);
        }
        let counters = self.core.metrics.listener(u32::from(session.listener));
        counters.gauge(ListenerCounter::ConnectionsActive, false);
        self.core.wheel.clear(key);
        if session.waiting {
            self.core.waiting.retain(|other| *other != key);
        }
        session.client.discard_buffer(&mut self.core.buffers);
        session.client.detach(self.core.redirector.as_mut());
        session.give_reservation_back(&mut self.core.buffers);
        if session.overflow {
            self.overflow -= 1;
        }
        self.core.leave_listener(session.listener);
        if how == Step::Reset || cut {
            session.client.reset_on_close();
        }
        // Dropping the session closes its socket, which takes it out of epoll.
    }

    fn is_full(&self) -> bool {
        // Those that were refused and have not gone yet take no place.
        self.sessions.len() - self.overflow >= self.core.settings.limits.connections as usize
    }

    /// Accepts from one listener until its queue is empty, a batch is full, or the limit is reached.
    fn accept(&mut self, index: usize) {
        let Some(listener) = self.core.listeners.get_mut(index) else { return };
        listener.pending = true;
        let wait = listener.configured.at_limit == AtLimit::Wait;
        for _ in 0..ACCEPT_BATCH {
            let full = self.is_full();
            if full && wait {
                self.core.count(Counter::LimitReached);
                return;
            }
            let Some(listener) = self.core.listeners.get_mut(index) else { return };
            let Some(socket) = &listener.socket else { return };
            match socket.accept() {
                Ok((stream, peer)) => {
                    self.core.count(Counter::Accepted);
                    self.core.accept_failed = false;
                    if let Some(slot) = self.slot() {
                        slot.accepted(1);
                    }
                    self.welcome(stream, peer, index, full);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listener.pending = false;
                    return;
                }
                // The client went before it was accepted: accept(2), ECONNABORTED.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Out of descriptors or memory: what is open goes on, the rest waits.
                Err(_) => {
                    self.core.count(Counter::AcceptFailed);
                    self.core.accept_failed = true;
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, mut stream: TcpStream, peer: std::net::SocketAddr, listener: usize, full: bool) {
        if full {
            self.core.count(Counter::LimitReached);
        }
        if self.sessions.len() >= self.core.settings.limits.connections as usize + OVERFLOW {
            return; // beyond even the overflow: closed without a word
        }
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let generation = self.core.next_generation();
        if self.core.registry.register(&mut stream, token(Kind::Client, key, generation), interest).is_err() {
            self.core.count(Counter::AcceptFailed);
            return;
        }
        let listener = u16::try_from(listener).unwrap_or(u16::MAX);
        let configured = &self.core.listeners[usize::from(listener)].configured;
        let (protocol, proxy_protocol) = (configured.protocol, configured.proxy_protocol);
        let mut session = Session::new(Endpoint::new(stream, false, true), listener, protocol, peer);
        session.generation = generation;
        entry.insert(session);
        self.core.enter_listener(listener);
        let counters = self.core.metrics.listener(u32::from(listener));
        counters.add(ListenerCounter::Connections, 1);
        counters.gauge(ListenerCounter::ConnectionsActive, true);
        if full {
            counters.add(ListenerCounter::LimitReached, 1);
            self.sessions[key].overflow = true;
            self.overflow += 1;
            if protocol == Protocol::Tcp {
                self.core.refused(Peer::Client, Reason::LimitReached);
                self.end(key, Step::Reset);
                return;
            }
            match self.refuse_connection(key, Reason::LimitReached) {
                step @ (Step::Close | Step::Reset) => self.end(key, step),
                _ => self.drive(key),
            }
        } else {
            let head_ms = self.core.settings.timeouts.head_ms;
            self.deadline(key, head_ms);
            if protocol == Protocol::Tcp || proxy_protocol == ProxyProtocol::Require {
                self.begin_preface(key, proxy_protocol);
                self.drive(key);
            }
        }
    }

    /// Accepts what had to wait: a batch was full, or the limit was reached.
    fn accept_pending(&mut self) {
        for index in 0..self.core.listeners.len() {
            if self.may_accept(index) {
                self.accept(index);
            }
        }
    }

    /// Accepts what waits at a listener that is about to close.
    pub(super) fn accept_all(&mut self, index: usize) {
        self.core.listeners[index].pending = true;
        // More than an accept queue can hold need not be tried.
        for _ in 0..=self.core.settings.limits.backlog as usize / ACCEPT_BATCH {
            if self.may_accept(index) {
                self.accept(index);
            }
        }
    }

    /// Whether connections may wait at a listener and there is room for them, or a refusal.
    fn may_accept(&self, index: usize) -> bool {
        let listener = &self.core.listeners[index];
        listener.pending && !(self.is_full() && listener.configured.at_limit == AtLimit::Wait)
    }
}
