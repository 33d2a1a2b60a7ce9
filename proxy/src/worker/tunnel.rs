//! Tunnels: after 101 (RFC 9110 section 7.8) and after CONNECT (section 9.3.6) bytes pass both ways as they are.

use super::event_loop::Worker;
use super::session::{Ending, Phase, Step};
use crate::forward::{Broken, Flow, Kind, Ledger, Progress};
use crate::http1::Framing;
use crate::metrics::Counter;

impl Worker {
    /// The backend has agreed to switch protocols, and its head is on the way to the client.
    pub(super) fn open_upgrade_tunnel(&mut self, key: usize) -> Step {
        let exchange = &mut self.sessions[key].exchange;
        let policy = self.core.policy(exchange.mode);
        let ledger = Ledger::new(Framing::UntilClose, self.core.trailer_limits);
        // The rest of the 101 head may still be under way in this flow, so it goes on with it.
        exchange.response.become_tunnel(ledger.clone(), policy);
        exchange.request = Flow::new(Kind::Tunnel, ledger, policy, false);
        exchange.response_head_done = true;
        self.begin_tunnel(key)
    }

    /// The connection that CONNECT asked for is there: the proxy itself answers.
    pub(super) fn open_connect_tunnel(&mut self, key: usize) -> Step {
        let session = &mut self.sessions[key];
        let exchange = &mut session.exchange;
        let ledger = Ledger::new(Framing::UntilClose, self.core.trailer_limits);
        let policy = self.core.policy(exchange.mode);
        exchange.response = Flow::new(Kind::Tunnel, ledger.clone(), policy, false);
        exchange.request = Flow::new(Kind::Tunnel, ledger, policy, false);
        exchange.response.push_own(b"HTTP/1.1 200 Connection Established\r\n\r\n", &mut self.core.buffers);
        exchange.response_head_done = true;
        exchange.status = 200;
        if let Some(buffer) = session.client.buffer.as_mut() {
            buffer.unscanned = exchange.head_start + exchange.head.size as usize;
            (buffer.start, buffer.cleared) = (buffer.unscanned, buffer.unscanned);
            buffer.held = false;
        }
        self.begin_tunnel(key)
    }

    pub(super) fn begin_tunnel(&mut self, key: usize) -> Step {
        self.core.count(Counter::Tunnels);
        self.core.gauge(Counter::TunnelsActive, true);
        let session = &mut self.sessions[key];
        session.phase = Phase::Tunnel;
        session.exchange.close = true;
        (session.exchange.request_done, session.exchange.request_broken) = (false, false);
        self.renew_tunnel_deadline(key);
        Step::Again
    }

    pub(super) fn renew_tunnel_deadline(&mut self, key: usize) {
        let timeouts = &self.core.settings.timeouts;
        let tcp = self.sessions[key].is_tcp();
        let idle_ms = if tcp { timeouts.tcp_idle_ms } else { timeouts.tunnel_idle_ms };
        self.deadline(key, idle_ms);
    }

    /// Moves what can be moved both ways. Each side's end is passed on when its bytes have been (half-close).
    ///
    /// While nothing is under way a tunnel holds no buffer and no promise of one; so there may be as many idle tunnels as
    /// connections, however few the buffers are.
    pub(super) fn tunnel(&mut self, key: usize) -> Step {
        if !self.sessions[key].has_reservation() && (!self.has_news(key) || !self.reserve_for_tunnel(key)) {
            return Step::Wait;
        }
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return Step::Close };
        let backend = &mut connections[connection].endpoint;
        let exchange = &mut session.exchange;
        let before = exchange.request.moved() + exchange.response.moved();
        let mut tools = core.tools(key);
        let mut yielded = false;
        for upward in [true, false] {
            let (flow, source, sink) = if upward {
                (&mut exchange.request, &mut session.client, &mut *backend)
            } else {
                (&mut exchange.response, &mut *backend, &mut session.client)
            };
            if is_done(flow) || (upward && exchange.request_broken) {
                continue;
            }
            match flow.pump(source, sink, &mut tools) {
                Ok(Progress::Done) if !upward && exchange.backend_reset => {
                    return self.tunnel_broken(key, Ending::Backend);
                }
                Ok(Progress::Done) => sink.shutdown_write(),
                Ok(Progress::Yielded) => yielded = true,
                Ok(Progress::Starved | Progress::Blocked) => {}
                Err(Broken::Sink(error)) if upward => {
                    // What the backend said before it went is still to be delivered.
                    exchange.break_request(&error);
                    sink.readable = true;
                    exchange.end_request(&mut tools);
                    session.client.discard_buffer(tools.buffers);
                }
                Err(Broken::Sink(_)) => return self.tunnel_broken(key, Ending::Client),
                Err(_) if upward => return self.tunnel_broken(key, Ending::Client),
                Err(_) => return self.tunnel_broken(key, Ending::Backend),
            }
        }
        if (is_done(&exchange.request) || exchange.request_broken) && is_done(&exchange.response) {
            exchange.ending = Ending::Closed;
            self.finish_exchange(key, true);
            return Step::Close;
        }
        if exchange.request.moved() + exchange.response.moved() != before {
            self.renew_tunnel_deadline(key);
        }
        if yielded {
            return Step::Yield;
        }
        self.rest_tunnel(key);
        Step::Wait
    }

    /// Whether either side has something to say that is to be passed on.
    fn has_news(&self, key: usize) -> bool {
        let session = &self.sessions[key];
        let exchange = &session.exchange;
        let backend = session.backend.and_then(|connection| self.connections.get(connection));
        let upward = session.client.readable && !is_done(&exchange.request) && !exchange.request_broken;
        let downward =
            backend.is_some_and(|backend| backend.endpoint.readable) && !is_done(&exchange.response);
        // What the kernel passes on is looked after whenever it wakes the worker.
        upward || downward || exchange.request.is_redirected() || exchange.response.is_redirected()
    }

    /// Gives back the promise of buffers where nothing is under way.
    fn rest_tunnel(&mut self, key: usize) {
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return };
        let backend = &connections[connection].endpoint;
        let exchange = &session.exchange;
        let quiet = session.client.buffer.is_none()
            && backend.buffer.is_none()
            && exchange.request.holds_nothing()
            && exchange.response.holds_nothing();
        if quiet {
            session.give_reservation_back(&mut core.buffers);
        }
    }

    /// One side of a tunnel has gone without an end in order: so must the other.
    fn tunnel_broken(&mut self, key: usize, by: Ending) -> Step {
        let session = &mut self.sessions[key];
        session.exchange.ending = by;
        if session.is_tcp() {
            let client = by == Ending::Client;
            self.core.count(if client { Counter::AbortsClient } else { Counter::AbortsBackend });
        }
        Step::Reset
    }
}

/// The ledger of a tunnel's direction is settled when its end was read and all before it was passed on.
fn is_done(flow: &Flow) -> bool {
    flow.ledger.is_settled() && flow.is_flushed()
}
