//! The way back: the rest of the request's body, the response's head and body, and what becomes of both connections.

use underpass_command::state::{Protocol, SendProxy};

use super::actions::response_changes;
use super::balancing::StickyCookie;
use super::connection;
use super::event_loop::Worker;
use super::log::Names;
use super::measure::{count_exchange, note_first_byte};
use super::session::{Ending, Phase, Step};
use crate::forward::{Broken, Flow, Kind, Ledger, Progress, Received};
use crate::http1::{
    Framing, Known, Reason, ResponseEdit, ResponseHead, Version, edit_response, parse_response,
};
use crate::metrics::{Counter, Peer};

/// Interim responses to one request. RFC 9110 section 15.2 sets no bound; a backend that sends more is broken.
const INTERIM_MAX: u8 = 32;

impl Worker {
    /// Moves what can be moved in both directions.
    pub(super) fn exchange(&mut self, key: usize) -> Step {
        let mut yielded = false;
        if !self.sessions[key].exchange.request_done && !self.sessions[key].exchange.request_broken {
            match self.pump_request(key) {
                Step::Wait => {}
                Step::Yield => yielded = true,
                step => return step,
            }
        }
        loop {
            if self.sessions[key].exchange.response_head_done {
                return match self.pump_response(key) {
                    Step::Wait if yielded => Step::Yield,
                    step => step,
                };
            }
            match self.flush_interim(key) {
                Ok(true) => {}
                Ok(false) => return if yielded { Step::Yield } else { Step::Wait },
                Err(step) => return step,
            }
            match self.read_response_head(key) {
                Step::Again => {}
                Step::Wait if yielded => return Step::Yield,
                step => return step,
            }
            if self.sessions[key].phase != Phase::Exchange {
                return Step::Again;
            }
        }
    }

    fn pump_request(&mut self, key: usize) -> Step {
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return Step::Close };
        let exchange = &mut session.exchange;
        let before = exchange.request.moved();
        let mut tools = core.tools(key);
        let sink = &mut connections[connection].endpoint;
        let progress = exchange.request.pump(&mut session.client, sink, &mut tools);
        let moved = exchange.request.moved() != before;
        match progress {
            Ok(Progress::Done) => {
                exchange.request_done = true;
                if before > 0 || moved {
                    let response_ms = core.settings.timeouts.response_ms;
                    self.deadline(key, response_ms);
                }
                Step::Wait
            }
            Ok(progress) => {
                if moved {
                    let body_idle_ms = core.settings.timeouts.body_idle_ms;
                    self.deadline(key, body_idle_ms);
                }
                if progress == Progress::Yielded { Step::Yield } else { Step::Wait }
            }
            Err(Broken::SourceEnded) if exchange.response_head_done => {
                // It has seen the answer, and gives up sending what nobody wants any more.
                exchange.request_broken = true;
                Step::Wait
            }
            Err(Broken::SourceEnded | Broken::Source(_)) => {
                core.count(Counter::AbortsClient);
                Step::Close
            }
            Err(Broken::Refused(reason)) => self.refuse(key, reason),
            Err(Broken::Sink(error)) => {
                // The backend may have answered before it went: that answer, not the failed write, decides.
                exchange.break_request(&error);
                exchange.end_request(&mut core.tools(key));
                connections[connection].endpoint.readable = true;
                Step::Wait
            }
        }
    }

    /// Sends what is left of an interim response's head. `Ok(false)`: the client takes no more now.
    fn flush_interim(&mut self, key: usize) -> Result<bool, Step> {
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return Err(Step::Close) };
        if session.exchange.response.is_flushed() {
            return Ok(true);
        }
        let mut tools = core.tools(key);
        let source = &mut connections[connection].endpoint;
        session.exchange.response.flush(source, &mut session.client, &mut tools).map_err(|_| {
            tools.metrics.add(Counter::AbortsClient, 1);
            Step::Close
        })
    }

    /// Reads until the head of a response is complete, and passes it on.
    fn read_response_head(&mut self, key: usize) -> Step {
        loop {
            match self.parse_response_head(key) {
                Ok(Some(head)) => return self.begin_response(key, head),
                Ok(None) => {}
                Err(reason) => return self.refuse_response(key, reason),
            }
            let Self { core, sessions, connections, .. } = self;
            let Some(connection) = sessions[key].backend else { return Step::Close };
            let endpoint = &mut connections[connection].endpoint;
            if !endpoint.readable {
                endpoint.release_if_empty(&mut core.buffers);
                return Step::Wait;
            }
            if let Some(buffer) = endpoint.buffer.as_mut()
                && buffer.end == core.buffers.size()
            {
                core.buffers.compact(buffer);
            }
            match endpoint.receive(&mut core.buffers) {
                Ok(Received::Bytes(_)) => note_first_byte(core, &mut sessions[key]),
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) | Err(_) => {
                    if sessions[key].exchange.response_begun {
                        return self.refuse_response(key, Reason::HeadTruncated);
                    }
                    return self.backend_lost(key, Reason::BackendClosed, false);
                }
            }
        }
    }

    fn parse_response_head(&mut self, key: usize) -> Result<Option<ResponseHead>, Reason> {
        let Self { core, sessions, connections, .. } = self;
        let session = &sessions[key];
        let Some(connection) = session.backend else { return Ok(None) };
        let Some(buffer) = connections[connection].endpoint.buffer.as_ref() else { return Ok(None) };
        let bytes = core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        if bytes.is_empty() {
            return Ok(None);
        }
        let method = session.exchange.head.method;
        let head = parse_response(bytes, &mut core.fields, &core.head_limits, method)?;
        match head {
            // RFC 9110 section 7.8: a server must not switch to a protocol that was not asked for.
            Some(head)
                if head.status == 101
                    && !(session.exchange.head.upgrade
                        && session.exchange.request_done
                        && core.fields.has(Known::Upgrade)) =>
            {
                Err(Reason::UpgradeUnexpected)
            }
            head => Ok(head),
        }
    }

    fn begin_response(&mut self, key: usize, head: ResponseHead) -> Step {
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return Step::Close };
        let exchange = &mut session.exchange;
        let source = &mut connections[connection].endpoint;
        let Some(buffer) = source.buffer.as_mut() else { return Step::Close };
        let old_client = exchange.head.version == Version::Http10;
        if head.is_interim() {
            exchange.interim += 1;
            if exchange.interim > INTERIM_MAX {
                return self.refuse_response(key, Reason::StatusMalformed);
            }
            if old_client {
                // RFC 9110 section 15.2: no 1xx to a client that does not know it.
                buffer.unscanned += head.size as usize;
                (buffer.start, buffer.cleared) = (buffer.unscanned, buffer.unscanned);
                return Step::Again;
            }
        } else {
            // From here on the request cannot be sent again, so its bytes need not be kept.
            if let Some(request) = session.client.buffer.as_mut() {
                request.held = false;
            }
            let dechunk = old_client && head.framing == Framing::Chunked;
            exchange.status = head.status;
            core.note_response(exchange);
            exchange.response_keep_alive = head.keep_alive;
            exchange.response_until_close = head.framing == Framing::UntilClose;
            // An answer before the end of the request: what is still to come of the request would have to be read and thrown
            // away, so the connection ends with the answer (RFC 9112 section 9.3).
            exchange.close |=
                exchange.response_until_close || dechunk || !exchange.request_done || core.draining;
            let ledger = Ledger::new(head.framing, core.trailer_limits);
            let policy = core.policy(exchange.mode);
            exchange.response = Flow::new(Kind::Response, ledger, policy, dechunk);
            exchange.response_head_done = true;
        }
        let final_response = !head.is_interim();
        let edited = match core.edit_response(session, final_response) {
            Ok(edited) => edited,
            Err(reason) => return self.refuse_response(key, reason),
        };
        let exchange = &mut session.exchange;
        let bytes = core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        let cookie = if final_response { core.sticky_cookie(exchange) } else { StickyCookie::default() };
        let edit = ResponseEdit {
            via_name: core.settings.via.as_bytes(),
            close: final_response && exchange.close,
            old_client: final_response && old_client,
            dechunk: final_response && old_client && head.framing == Framing::Chunked,
            changes: response_changes(exchange.actions.as_deref(), edited, &core.texts),
            set_cookie: cookie.as_bytes(),
        };
        edit_response(bytes, &head, &core.fields, &edit, &mut core.edit);
        let size = head.size as usize;
        match exchange.response.send_head(
            &core.edit,
            size,
            source,
            &mut session.client,
            &mut core.buffers,
            &core.metrics,
        ) {
            Ok(()) => {}
            Err(Broken::Refused(reason)) => return self.refuse_response(key, reason),
            Err(_) => {
                core.count(Counter::AbortsClient);
                return Step::Close;
            }
        }
        if head.status == 101 {
            return self.open_upgrade_tunnel(key);
        }
        if final_response && !exchange.response.ledger.is_settled() {
            let body_idle_ms = core.settings.timeouts.body_idle_ms;
            self.deadline(key, body_idle_ms);
        }
        Step::Again
    }

    fn pump_response(&mut self, key: usize) -> Step {
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return Step::Close };
        let exchange = &mut session.exchange;
        let before = exchange.response.moved();
        let mut tools = core.tools(key);
        let source = &mut connections[connection].endpoint;
        let progress = exchange.response.pump(source, &mut session.client, &mut tools);
        let moved = exchange.response.moved() != before;
        match progress {
            Ok(Progress::Done) if exchange.response_until_close && exchange.backend_reset => {
                self.response_broken(key, Reason::BodyTruncated)
            }
            Ok(Progress::Done) => self.complete(key),
            Ok(progress) => {
                if moved {
                    let body_idle_ms = core.settings.timeouts.body_idle_ms;
                    self.deadline(key, body_idle_ms);
                }
                if progress == Progress::Yielded { Step::Yield } else { Step::Wait }
            }
            Err(Broken::Sink(_)) => {
                core.count(Counter::AbortsClient);
                Step::Close
            }
            Err(Broken::Refused(reason)) => self.response_broken(key, reason),
            Err(Broken::SourceEnded | Broken::Source(_)) => self.response_broken(key, Reason::BodyTruncated),
        }
    }

    /// The rest of a response that the client has begun to receive will not come, or cannot be passed on.
    fn response_broken(&mut self, key: usize, reason: Reason) -> Step {
        self.core.refused(Peer::Backend, reason);
        self.core.count(Counter::AbortsBackend);
        self.note_backend_broken(key);
        let exchange = &mut self.sessions[key].exchange;
        exchange.reason = Some(reason);
        exchange.ending = Ending::Backend;
        Step::Reset
    }

    /// The response has been passed on whole.
    fn complete(&mut self, key: usize) -> Step {
        let session = &mut self.sessions[key];
        let exchange = &mut session.exchange;
        exchange.ending = Ending::Closed;
        let settled = exchange.request_done;
        let close = exchange.close;
        self.finish_exchange(key, settled);
        let session = &mut self.sessions[key];
        if let Some(buffer) = session.client.buffer.as_mut() {
            buffer.held = false;
        }
        if !close && settled {
            session.phase = Phase::Head;
            session.first_byte_us = 0;
            return Step::Again;
        }
        self.close_gently(key, settled)
    }

    /// Counts an exchange out and parts with the backend: its connection goes back to the pool where both messages have ended
    /// and `settled` says that the request had. For a tunnel it says that both directions have ended in order.
    pub(super) fn finish_exchange(&mut self, key: usize, settled: bool) {
        self.leave_line(key);
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let exchange = &mut session.exchange;
        if let Some(connection) = session.backend.take() {
            let reusable = settled
                && exchange.response_head_done
                && exchange.response.ledger.is_settled()
                && exchange.response.is_flushed()
                && exchange.response_keep_alive
                && session.phase != Phase::Tunnel
                // It has told this client's address.
                && exchange.cluster.is_none_or(|cluster| {
                    core.clusters[cluster as usize].configured.send_proxy == SendProxy::Off
                });
            if reusable {
                connection::retire(core, connections, connection);
            } else {
                if session.phase == Phase::Tunnel && !settled {
                    // A tunnel has no framing but its ends.
                    connections[connection].endpoint.reset_on_close();
                }
                connection::close(core, connections, connection);
            }
        }
        if !exchange.active {
            return;
        }
        exchange.active = false;
        exchange.end_request(&mut core.tools(key));
        exchange.end_response(&mut core.tools(key));
        session.client.leave_targets();
        if session.protocol == Protocol::Http {
            core.gauge(Counter::RequestsActive, false);
        }
        let micros = core.now.us.saturating_sub(session.first_byte_us);
        if exchange.status != 0 {
            core.count(Counter::Requests);
            core.count(match exchange.status / 100 {
                1 => Counter::Responses1xx,
                2 => Counter::Responses2xx,
                3 => Counter::Responses3xx,
                4 => Counter::Responses4xx,
                _ => Counter::Responses5xx,
            });
            core.metrics.latency(micros);
        }
        let upstream = exchange.upstream.take();
        count_exchange(core, session, upstream, micros);
        if core.log.is_enabled() {
            let backend = upstream.map_or(&b""[..], |upstream| &core.upstreams[upstream as usize].text);
            let listener = core.listeners[usize::from(session.listener)].configured.name.as_bytes();
            let cluster = session
                .exchange
                .routed_to()
                .map_or(&b""[..], |number| core.clusters[number as usize].configured.name.as_bytes());
            let names = Names { listener, cluster, backend };
            core.log.write(key, session, &names, micros, &core.metrics);
        }
        // Last, because what was removed meanwhile is gone now.
        if let Some(upstream) = upstream {
            core.leave_backend(upstream);
        }
        if let Some(cluster) = session.exchange.cluster.take() {
            core.leave_cluster(cluster);
        }
    }
}
