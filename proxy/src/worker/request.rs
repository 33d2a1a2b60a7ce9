//! The way in: from the first byte of a request to its head on the way to a backend.

use std::io;

use underpass_command::state::{RequestId, RetryOn};

use super::actions::request_changes;
use super::connection::{self, Idle};
use super::event_loop::Worker;
use super::own::OwnAnswers;
use super::random::RequestName;
use super::session::{BUFFERS_PER_REQUEST, Exchange, Phase, Step};
use super::trace::Trace;
use crate::forward::{Broken, Buffer, Received};
use crate::http1::{Framing, Known, Method, Reason, RequestEdit, RequestHead, edit_request, parse_request};
use crate::metrics::{Counter, Peer};
use crate::route::{Allowed, Asked, Destination, Found};

/// Reads for one head before the others get their turn: there may be any number of empty lines before it.
const READS_MAX: usize = 16;

/// The longest value of an `Allow` field in bytes: 32 methods of 128 bytes, and what stands between them.
const ALLOW_SIZE_MAX: usize = 32 * 130;

impl Worker {
    /// Reads until a head is complete, then begins its request.
    pub(super) fn read_head(&mut self, key: usize) -> Step {
        if self.sessions[key].client.is_read_by_kernel() {
            return self.await_head(key); // it has said nothing since the last request: `Worker::drive`
        }
        for _ in 0..READS_MAX {
            match self.parse_head(key) {
                Ok(Some(head)) => return self.begin_request(key, head),
                Ok(None) => {}
                Err(reason) => return self.refuse(key, reason),
            }
            let session = &mut self.sessions[key];
            if !session.client.readable {
                return self.await_head(key);
            }
            if !session.reserve(BUFFERS_PER_REQUEST, &mut self.core.buffers) {
                self.core.count(Counter::BuffersExhausted);
                return self.refuse_connection(key, Reason::BuffersExhausted);
            }
            if let Some(buffer) = session.client.buffer.as_mut()
                && buffer.end == self.core.buffers.size()
            {
                // A head that fills the buffer whole has been refused by the parser, so there is something before it.
                self.core.buffers.compact(buffer);
            }
            match session.client.receive(&mut self.core.buffers) {
                Ok(Received::Bytes(_)) => {
                    if session.first_byte_us == 0 {
                        session.first_byte_us = self.core.now.us.max(1);
                    }
                }
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) => {
                    if session.client.buffer.as_ref().is_some_and(Buffer::has_unscanned) {
                        self.core.refused(Peer::Client, Reason::HeadTruncated);
                    }
                    return Step::Close;
                }
                Err(_) => return Step::Close,
            }
        }
        Step::Yield
    }

    /// Nothing is there to be read: gives back what is not needed meanwhile.
    fn await_head(&mut self, key: usize) -> Step {
        let session = &mut self.sessions[key];
        session.client.release_if_empty(&mut self.core.buffers);
        if session.client.buffer.is_none() {
            session.give_reservation_back(&mut self.core.buffers);
        } else if session.first_byte_us == 0 {
            session.first_byte_us = self.core.now.us.max(1); // it was pipelined, and its turn has come
        }
        if session.first_byte_us != 0 {
            // An empty line counts as the beginning of a request, else a client could hold its connection with nothing but
            // those.
            let deadline = session.first_byte_us / 1000 + self.core.settings.timeouts.head_ms;
            self.core.wheel.set(key, deadline);
            return Step::Wait;
        }
        if session.requests == 0 {
            return Step::Wait; // the deadline for the first head has run since the connection was accepted
        }
        let Some(idle_ms) = self.core.idle_ms() else { return Step::Close };
        self.deadline(key, idle_ms);
        Step::Wait
    }

    fn parse_head(&mut self, key: usize) -> Result<Option<RequestHead>, Reason> {
        let session = &mut self.sessions[key];
        let Some(buffer) = session.client.buffer.as_mut() else { return Ok(None) };
        // RFC 9112 section 2.2: at least one empty line before the request line should be ignored.
        while self.core.buffers.bytes(buffer, buffer.unscanned..buffer.end).starts_with(b"\r\n") {
            buffer.unscanned += 2;
            (buffer.start, buffer.cleared) = (buffer.unscanned, buffer.unscanned);
        }
        let bytes = self.core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        if bytes.is_empty() {
            return Ok(None);
        }
        // A head that comes in many small pieces is not parsed from its start for each of them: only when a line has ended
        // or the bound is reached can the answer have changed.
        let parsed = session.parsed.min(bytes.len());
        let full = bytes.len() >= self.core.head_limits.head_size_max as usize;
        if parsed > 0 && !full && memchr::memchr(b'\n', &bytes[parsed..]).is_none() {
            return Ok(None);
        }
        session.parsed = bytes.len();
        let head = parse_request(bytes, &mut self.core.fields, &self.core.head_limits)?;
        if head.is_some() {
            session.parsed = 0;
        }
        Ok(head)
    }

    fn begin_request(&mut self, key: usize, head: RequestHead) -> Step {
        let core = &mut self.core;
        let session = &mut self.sessions[key];
        let Some(buffer) = session.client.buffer.as_mut() else { return Step::Close };
        if session.first_byte_us == 0 {
            session.first_byte_us = core.now.us.max(1); // it was pipelined, and its turn has come
        }
        session.requests = session.requests.saturating_add(1);
        session.exchange = Exchange::begin(head, buffer.unscanned);
        buffer.held = true;
        core.gauge(Counter::RequestsActive, true);
        let exchange = &mut session.exchange;
        let limit = core.settings.limits.requests_per_connection;
        exchange.close |= core.draining || (limit > 0 && session.requests >= limit);
        let bytes = core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        let listener = &core.listeners[usize::from(session.listener)];
        if listener.configured.request_id != RequestId::Off || core.log.is_enabled() {
            let clients = (listener.configured.request_id == RequestId::Keep)
                .then(|| core.fields.last_end_to_end(Known::XRequestId))
                .flatten();
            exchange.id = match clients {
                Some(field) => RequestName::new(core.fields.list()[field].value.of(bytes)),
                None => core.random.request_id(),
            };
        }
        let trace_context = listener.configured.trace_context;
        exchange.trace =
            Trace::of(trace_context, bytes, &core.fields, &mut core.random, core.log.is_enabled());
        if core.log.is_enabled() {
            let (method, target) = (head.method_span.of(bytes), head.target_span.of(bytes));
            core.log.keep(key, method, target, head.host.of(bytes));
            core.log.keep_headers(key, &core.fields, bytes);
        }
        let asked = Asked {
            host: head.host.of(bytes),
            path: head.path(bytes),
            method: head.method_span.of(bytes),
            fields: &core.fields,
            bytes,
        };
        let destination = match core.routes.find(listener.scope, &asked) {
            Found::Route(destination) => Ok(destination.clone()),
            Found::NoHost => listener.default_destination().ok_or(Reason::Misdirected),
            Found::NoPath => listener.default_destination().ok_or(Reason::RouteMissing),
        };
        match destination {
            // What CONNECT asks for is not served as a resource, so a route that is missing changes nothing.
            destination
                if head.method == Method::Connect
                    && !destination.as_ref().is_ok_and(|destination| destination.allow_connect) =>
            {
                self.refuse(key, Reason::ConnectRefused)
            }
            Ok(Destination { cluster, actions, name, .. }) => {
                exchange.actions = actions;
                exchange.route = name;
                match (self.act(key), cluster) {
                    (Some(step), _) => step,
                    (None, Some(cluster)) => self.admit(key, cluster),
                    // `Actions::new` refuses routes that lead nowhere.
                    (None, None) => self.refuse(key, Reason::RouteMissing),
                }
            }
            Err(Reason::RouteMissing) => {
                let reason = missing(core.routes.allowed(listener.scope, &asked), &mut core.own);
                self.refuse(key, reason)
            }
            Err(reason) => self.refuse(key, reason),
        }
    }

    /// Applies what the cluster and the limits say of a request that is to be passed on.
    fn admit(&mut self, key: usize, cluster: u32) -> Step {
        let core = &mut self.core;
        let session = &mut self.sessions[key];
        core.enter_cluster(cluster);
        let exchange = &mut session.exchange;
        exchange.cluster = Some(cluster);
        let head = exchange.head;
        let own_mode = exchange.actions.as_ref().and_then(|actions| actions.redirect);
        exchange.mode = own_mode.unwrap_or_else(|| core.redirect_mode(session.listener, cluster));
        let largest = core.settings.limits.request_body_size_max;
        let refusal = match head.framing {
            Framing::Length(length) if largest > 0 && length > largest => Some(Reason::BodyTooLarge),
            Framing::Chunked if !core.clusters[cluster as usize].configured.chunked_requests => {
                Some(Reason::LengthRequired)
            }
            _ => None,
        };
        match refusal {
            Some(reason) => self.refuse(key, reason),
            None if head.forwards_left == Some(0) => self.answer_last_hop(key, head.method),
            None => self.dispatch(key, true),
        }
    }

    /// Chooses a backend and gets a connection to it. `parsed` tells that the fields of this very request are at hand.
    pub(super) fn dispatch(&mut self, key: usize, parsed: bool) -> Step {
        if let Some(failed) = self.sessions[key].exchange.upstream.take() {
            self.core.leave_backend(failed);
        }
        match self.choose_upstream(key, parsed) {
            Ok(upstream) => self.go_to(key, upstream, parsed),
            Err(step) => step,
        }
    }

    /// Gets a connection to the backend that was chosen.
    pub(super) fn go_to(&mut self, key: usize, upstream: u32, parsed: bool) -> Step {
        let Self { core, sessions, connections, .. } = self;
        let tcp = sessions[key].is_tcp();
        let exchange = &mut sessions[key].exchange;
        exchange.upstream = Some(upstream);
        exchange.tried[usize::from(exchange.attempts)] = upstream;
        exchange.attempts += 1;
        exchange.sent_us = core.now.us;
        core.enter_backend(upstream);
        // A retry and a tunnel want a connection that is surely fresh.
        let fresh_only = tcp || exchange.attempts > 1 || exchange.head.method == Method::Connect;
        while !fresh_only && let Some(connection) = connection::reuse(core, connections, upstream, key) {
            // RFC 9110 section 9.2.2: what is not idempotent must not be sent twice, and no body is, so a stale connection
            // would cost the client an error. One look avoids nearly all of them. And what the last read or splice may have
            // left in the socket gives no event of its own; it must not be taken for this request's response.
            let endpoint = &mut connections[connection].endpoint;
            if endpoint.readable || !is_repeatable(&exchange.head) {
                let idle = connection::peek(endpoint);
                if matches!(idle, Idle::Unsolicited) {
                    core.count(Counter::BackendUnsolicited);
                }
                if !matches!(idle, Idle::Quiet) {
                    connection::close(core, connections, connection);
                    continue;
                }
            }
            exchange.reused = true;
            sessions[key].backend = Some(connection);
            self.note_reused(key);
            return self.send_request(key, parsed);
        }
        exchange.reused = false;
        match connection::open(core, connections, upstream, key) {
            Ok(connection) => {
                sessions[key].backend = Some(connection);
                sessions[key].phase = Phase::Connecting;
                let connect_ms = core.settings.timeouts.connect_ms;
                self.note_connect_begun(key);
                self.deadline(key, connect_ms);
                Step::Wait
            }
            Err(error) => {
                if !is_of_this_host(&error) {
                    self.note_failure_of(key);
                }
                self.unconnected(key, Reason::ConnectFailed)
            }
        }
    }

    /// An event came while the connection to the backend was being made.
    pub(super) fn connecting(&mut self, key: usize) -> Step {
        let Some(connection) = self.sessions[key].backend else { return Step::Close };
        let endpoint = &mut self.connections[connection].endpoint;
        if !endpoint.writable {
            return Step::Wait;
        }
        match endpoint.take_error() {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return self.connect_failed(key, Reason::ConnectFailed),
        }
        if let Err(error) = endpoint.stream().peer_addr() {
            if error.kind() != io::ErrorKind::NotConnected {
                return self.connect_failed(key, Reason::ConnectFailed);
            }
            // Not yet: the event was left over from another connection, and so was all that it said.
            (endpoint.readable, endpoint.writable, endpoint.hangup) = (false, false, false);
            return Step::Wait;
        }
        self.note_connected(key);
        if connection::introduce(&self.core, connection, &mut self.connections, &self.sessions[key]).is_err()
        {
            return self.connect_failed(key, Reason::ConnectFailed);
        }
        if self.sessions[key].is_tcp() {
            return self.open_tcp_tunnel(key);
        }
        if self.sessions[key].exchange.head.method == Method::Connect {
            return self.open_connect_tunnel(key);
        }
        self.send_request(key, false)
    }

    /// The backend did not take the connection.
    pub(super) fn connect_failed(&mut self, key: usize, reason: Reason) -> Step {
        self.note_failure_of(key);
        self.unconnected(key, reason)
    }

    /// No connection was made; nothing of the request was sent, so another backend may have it.
    fn unconnected(&mut self, key: usize, reason: Reason) -> Step {
        self.core.count(Counter::BackendConnectsFailed);
        self.note_connect_failed(key);
        self.close_backend(key);
        let unsent = self.sessions[key].is_tcp() || self.is_held(key);
        if unsent && self.may_retry(key, RetryOn::Connect) {
            return self.dispatch(key, false);
        }
        self.refuse(key, reason)
    }

    /// Edits the head and sends it with what has come of the body.
    fn send_request(&mut self, key: usize, parsed: bool) -> Step {
        if !parsed && let Err(reason) = self.parse_again(key) {
            return self.refuse(key, reason);
        }
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        let Some(connection) = session.backend else { return Step::Close };
        let upstream = connections[connection].upstream as usize;
        let rewriting = match core.rewrite(session, upstream) {
            Ok(rewriting) => rewriting,
            Err(reason) => return self.refuse(key, reason),
        };
        let Some(buffer) = session.client.buffer.as_ref() else { return Step::Close };
        let exchange = &mut session.exchange;
        let listener = &core.listeners[usize::from(session.listener)];
        let edit = RequestEdit {
            client: session.address.as_bytes(),
            port: &listener.port,
            backend: &core.upstreams[upstream].text,
            via_name: core.settings.via.as_bytes(),
            x_forwarded: listener.configured.x_forwarded,
            forwarded: listener.configured.forwarded,
            request_id: listener.configured.request_id,
            id: exchange.id.as_bytes(),
            traceparent: exchange.trace.replacement(),
            changes: request_changes(exchange.actions.as_deref(), rewriting, &core.texts),
        };
        let bytes = core.buffers.bytes(buffer, buffer.unscanned..buffer.end);
        edit_request(bytes, &exchange.head, &core.fields, &edit, &mut core.edit);
        exchange.request = exchange.request_flow(core.trailer_limits, &core.settings);
        let size = exchange.head.size as usize;
        let sink = &mut connections[connection].endpoint;
        sink.writable = true;
        session.phase = Phase::Exchange;
        match exchange.request.send_head(
            &core.edit,
            size,
            &mut session.client,
            sink,
            &mut core.buffers,
            &core.metrics,
        ) {
            Ok(()) => {}
            Err(Broken::Refused(reason)) => return self.refuse(key, reason),
            // The first write failed, so the backend has seen nothing of the request.
            Err(_) => return self.backend_lost(key, Reason::BackendClosed, true),
        }
        session.note_sent(core.now.us);
        let exchange = &session.exchange;
        let wait_ms = if exchange.request.ledger.is_settled() {
            core.settings.timeouts.response_ms
        } else {
            core.settings.timeouts.body_idle_ms
        };
        self.deadline(key, wait_ms);
        Step::Again
    }

    /// Puts the client's buffer back to the head that it still holds, and parses it once more, because another session's
    /// fields may have taken its place.
    fn parse_again(&mut self, key: usize) -> Result<(), Reason> {
        let session = &mut self.sessions[key];
        let Some(buffer) = session.client.buffer.as_mut() else { return Err(Reason::BackendClosed) };
        debug_assert!(buffer.held);
        let start = session.exchange.head_start;
        (buffer.start, buffer.cleared, buffer.unscanned) = (start, start, start);
        let bytes = self.core.buffers.bytes(buffer, start..buffer.end);
        let head = parse_request(bytes, &mut self.core.fields, &self.core.head_limits)?;
        debug_assert_eq!(head, Some(session.exchange.head));
        Ok(())
    }

    /// Whether the request, as far as it has come, is still in the buffer and could be sent again.
    pub(super) fn is_held(&self, key: usize) -> bool {
        self.sessions[key].client.buffer.as_ref().is_some_and(|buffer| buffer.held)
    }

    /// The backend went before a byte of its response came. A pooled connection may just have been stale: the request is
    /// sent again, once, on a fresh one, if it may be (RFC 9110 section 9.2.2) and is still at hand. Where a fresh one was
    /// lost, the cluster decides whether another backend is tried.
    pub(super) fn backend_lost(&mut self, key: usize, reason: Reason, unsent: bool) -> Step {
        let held = self.is_held(key);
        let exchange = &self.sessions[key].exchange;
        let repeatable = held && !exchange.response_begun && (unsent || is_repeatable(&exchange.head));
        let stale = exchange.reused;
        self.close_backend(key);
        if stale && repeatable {
            self.core.count(Counter::Retries);
        }
        if !stale {
            self.note_failure_of(key);
        }
        if repeatable && (stale || self.may_retry(key, RetryOn::Idempotent)) {
            self.sessions[key].exchange.request_broken = false;
            self.sessions[key].exchange.request_done = false;
            return self.dispatch(key, false);
        }
        self.core.count(Counter::AbortsBackend);
        self.note_backend_broken(key);
        self.refuse(key, reason)
    }

    /// Closes the connection to the backend, if there is one.
    pub(super) fn close_backend(&mut self, key: usize) {
        let Self { core, sessions, connections, .. } = self;
        let session = &mut sessions[key];
        if let Some(connection) = session.backend.take() {
            session.exchange.end_request(&mut core.tools(key));
            connection::close(core, connections, connection);
        }
    }
}

/// Why there is no route for a request that would take one with these methods. RFC 9110 section 15.5.6: they are told.
fn missing(allowed: Allowed<'_>, own: &mut OwnAnswers) -> Reason {
    if allowed.methods().is_empty() {
        return Reason::RouteMissing;
    }
    let written = own.add_field_with("Allow", ALLOW_SIZE_MAX, |out| {
        allowed.write(out);
        Ok::<_, std::convert::Infallible>(())
    });
    debug_assert!(written.is_ok());
    Reason::MethodNotAllowed
}

/// Whether a request may be sent twice: RFC 9110 section 9.2.2, and no body ever is.
fn is_repeatable(head: &RequestHead) -> bool {
    head.method.is_idempotent() && head.framing == Framing::None
}

/// Whether a connection could not be made for want of something here, which tells nothing of the backend.
fn is_of_this_host(error: &io::Error) -> bool {
    let lacking = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.kind() == io::ErrorKind::QuotaExceeded
        || error.raw_os_error().is_some_and(|code| lacking.contains(&code))
}
