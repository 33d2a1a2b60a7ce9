//! Answers of the proxy itself, and the end of a client's connection.

use std::io::{self, Read, Write};

use super::event_loop::Worker;
use super::own::{ALLOW, Frame, phrase};
use super::session::{Ending, Exchange, Phase, Session, Step};
use crate::forward::Flow;
use crate::http1::{Framing, Method, Reason, Version};
use crate::metrics::{Counter, Peer};

/// Bytes that a client may still send after it was told that nothing more will be read.
const LINGER_SIZE_MAX: usize = 1024 * 1024;
/// Bytes thrown away in one call.
const DISCARD: usize = 16 * 1024;
/// Rounds of discarding in one turn.
const DISCARD_ROUNDS: usize = 8;

const CLOSE: &str = "Connection: close\r\n";

/// An answer in a fixed space, so that answering needs no memory.
struct Answer {
    bytes: [u8; 512],
    length: usize,
}

impl Answer {
    /// `connection` is the line that tells what becomes of the connection, or nothing.
    fn new(status: u16, reason: Reason, connection: &str, head_only: bool) -> Self {
        let mut answer = Self { bytes: [0; 512], length: 0 };
        let phrase = phrase(status);
        // RFC 9110 section 15.5.6: 405 comes with Allow.
        let allow = if status == 405 { ALLOW } else { "" };
        let body_size = 4 + phrase.len() + 2 + reason.text().len() + 1;
        let retry = if status == 503 { "Retry-After: 1\r\n" } else { "" };
        let mut rest = &mut answer.bytes[..];
        let room = rest.len();
        // The longest phrase and text together take half the space, so writing cannot fail.
        let _ = write!(
            rest,
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\nContent-Length: {body_size}\r\n{allow}{retry}{connection}\r\n"
        );
        if !head_only {
            let _ = writeln!(rest, "{status} {phrase}: {}", reason.text());
        }
        answer.length = room - rest.len();
        answer
    }

    /// Tells what may be asked for, and nothing else.
    fn options(connection: &str) -> Self {
        let mut answer = Self { bytes: [0; 512], length: 0 };
        let mut rest = &mut answer.bytes[..];
        let room = rest.len();
        // It is known to fit.
        let _ = write!(rest, "HTTP/1.1 200 {}\r\n{ALLOW}Content-Length: 0\r\n{connection}\r\n", phrase(200));
        answer.length = room - rest.len();
        answer
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What an answer of the proxy says.
#[derive(Clone, Copy)]
enum Content<'a> {
    /// What the configuration wants for this status, or else a line of text.
    Own,
    /// What may be asked for.
    Options,
    /// What the route wants, by the name of an answer, or else a line of text.
    Chosen(Option<&'a str>),
}

impl Worker {
    /// Answers a request with a refusal. The connection closes unless the request had no body and broke no rule.
    pub(super) fn refuse(&mut self, key: usize, reason: Reason) -> Step {
        if self.sessions[key].is_tcp() {
            return self.break_off(key, reason);
        }
        let peer = if reason.is_of_backend() { Peer::Backend } else { Peer::Client };
        self.core.refused(peer, reason);
        self.answer(key, Some(reason), reason.status(), Content::Own)
    }

    /// Answers a request that may not be passed on any more as its last recipient (RFC 9110 section 7.6.2). TRACE is not sent
    /// back: the fields in it, cookies too, would become readable for scripts that may not read them (section 9.3.8).
    pub(super) fn answer_last_hop(&mut self, key: usize, method: Method) -> Step {
        match method {
            Method::Options => self.answer(key, None, 200, Content::Options),
            _ => self.refuse(key, Reason::TraceRefused),
        }
    }

    /// Answers for a backend whose response cannot be passed on.
    pub(super) fn refuse_response(&mut self, key: usize, reason: Reason) -> Step {
        self.core.refused(Peer::Backend, reason);
        self.core.count(Counter::AbortsBackend);
        self.note_backend_broken(key);
        self.note_failure_of(key);
        self.answer(key, Some(reason), reason.gateway_status(), Content::Own)
    }

    /// Answers as a route wants, with the named answer if there is one. What is added to it stands in `core.own`.
    pub(super) fn answer_chosen(
        &mut self,
        key: usize,
        reason: Option<Reason>,
        status: u16,
        name: Option<&str>,
    ) -> Step {
        if let Some(reason) = reason {
            self.core.refused(Peer::Client, reason);
        }
        self.answer(key, reason, status, Content::Chosen(name))
    }

    fn answer(&mut self, key: usize, reason: Option<Reason>, status: u16, content: Content<'_>) -> Step {
        self.close_backend(key);
        let Self { core, sessions, .. } = self;
        let session = &mut sessions[key];
        let active = session.exchange.active;
        if !active {
            // What came was no request, or none yet; it is answered and logged as one all the same.
            session.exchange = Exchange::none();
            session.exchange.active = true;
            session.count_unread_request(core.now.us);
            core.gauge(Counter::RequestsActive, true);
            if core.log.is_enabled() {
                core.log.keep(key, b"-", b"-", b"");
            }
        }
        let exchange = &mut session.exchange;
        exchange.reason = reason;
        if exchange.response_head_done || !exchange.response.is_flushed() {
            return Step::Reset; // half a response cannot be taken back
        }
        // A request whose head was understood and that has no body ends where its head ends, whatever became of it.
        let settled =
            active && exchange.head.framing == Framing::None && exchange.head.method != Method::Connect;
        let blameless =
            matches!(status, 200 | 404 | 405 | 502 | 503 | 504) || matches!(content, Content::Chosen(_));
        exchange.close |= !(settled && blameless) || core.draining;
        exchange.status = status;
        if let Some(buffer) = session.client.buffer.as_mut() {
            if active && buffer.held {
                buffer.unscanned = exchange.head_start + exchange.head.size as usize;
                (buffer.start, buffer.cleared) = (buffer.unscanned, buffer.unscanned);
            }
            buffer.held = false;
        }
        let head_only = active && exchange.head.method == Method::Head;
        // RFC 9112 section 9.3: an HTTP/1.0 client must be told that its connection stays open.
        let connection = match exchange.head.version {
            _ if exchange.close => CLOSE,
            Version::Http10 => "Connection: keep-alive\r\n",
            Version::Http11 => "",
        };
        exchange.response = Flow::idle();
        if let Content::Options = content {
            exchange.response.push_own(Answer::options(connection).as_bytes(), &mut core.buffers);
        } else {
            let named = match content {
                Content::Chosen(name) => name.and_then(|name| core.own.named(name)),
                _ => core.answer_for(session.listener, exchange.cluster, status),
            };
            let frame = Frame {
                status,
                reason,
                connection,
                head_only,
                client: session.address.as_bytes(),
                request_id: exchange.id.as_bytes(),
                room: core.buffers.edited_size_max(),
            };
            let (text, sent, body_size) = core.own.write(&frame, named.as_deref());
            exchange.status = sent;
            exchange.own_bytes = body_size as u64;
            exchange.response.push_own(text, &mut core.buffers);
        }
        session.phase = Phase::Reply;
        let linger_ms = core.settings.timeouts.linger_ms;
        self.deadline(key, linger_ms);
        Step::Again
    }

    /// Sends an answer of our own.
    pub(super) fn reply(&mut self, key: usize) -> Step {
        let Self { core, sessions, .. } = self;
        let session = &mut sessions[key];
        let mut tools = core.tools(key);
        match session.exchange.response.flush_own(&mut session.client, &mut tools) {
            Ok(true) => session.exchange.bytes += session.exchange.own_bytes,
            Ok(false) => return Step::Wait,
            Err(_) => return Step::Close,
        }
        let close = session.exchange.close;
        session.exchange.ending = Ending::Closed;
        self.finish_exchange(key, false);
        let session = &mut self.sessions[key];
        if close {
            return self.close_gently(key, false);
        }
        session.phase = Phase::Head;
        session.first_byte_us = 0;
        Step::Again
    }

    /// Tells a client that there is no room for it. Needs no buffer: the answer fits into the new socket's send buffer.
    pub(super) fn refuse_connection(&mut self, key: usize, reason: Reason) -> Step {
        self.core.refused(Peer::Client, reason);
        self.core.count(Counter::Responses5xx);
        let answer = Answer::new(reason.status(), reason, CLOSE, false);
        let session = &mut self.sessions[key];
        let _ = session.client.send(&[io::IoSlice::new(answer.as_bytes())]);
        session.client.readable = true;
        self.close_gently(key, false)
    }

    /// Closes a client's connection so that it gets the last answer: RFC 9112 section 9.6. Unread bytes in the socket would turn
    /// the close into a reset, which can overtake the answer; so they are read first, within bounds.
    pub(super) fn close_gently(&mut self, key: usize, settled: bool) -> Step {
        let session = &mut self.sessions[key];
        let quiet = session.client.buffer.as_ref().is_none_or(|buffer| !buffer.has_unscanned());
        // A client that meant to go on does not know yet that it cannot, and may be sending.
        let expected = settled && !session.exchange.head.keep_alive;
        if session.client.ended || (expected && quiet && !session.client.readable) {
            return Step::Close;
        }
        session.client.shutdown_write();
        session.client.discard_buffer(&mut self.core.buffers);
        session.give_reservation_back(&mut self.core.buffers);
        session.phase = Phase::Linger;
        session.linger_left = LINGER_SIZE_MAX;
        session.client.readable = true;
        let linger_ms = self.core.settings.timeouts.linger_ms;
        self.deadline(key, linger_ms);
        Step::Again
    }

    /// Throws away what a client still sends, until it closes. Kept out of line: its large frame would be every turn's.
    #[cold]
    #[inline(never)]
    pub(super) fn linger(&mut self, key: usize) -> Step {
        let session = &mut self.sessions[key];
        if session.client.is_read_by_kernel() {
            return Step::Wait; // it has said nothing more: `Worker::drive`
        }
        let mut discarded = [0u8; DISCARD];
        for _ in 0..DISCARD_ROUNDS {
            if !session.client.readable {
                return Step::Wait;
            }
            match session.client.stream().read(&mut discarded) {
                Ok(0) => return Step::Close,
                Ok(n) => {
                    session.linger_left = session.linger_left.saturating_sub(n);
                    if session.linger_left == 0 {
                        return Step::Close;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => session.client.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        Step::Yield
    }

    /// A session's deadline has passed.
    pub(super) fn timed_out(&mut self, key: usize) {
        if self.has_advanced(key) {
            if self.sessions[key].phase == Phase::Tunnel {
                self.renew_tunnel_deadline(key);
            } else {
                let body_idle_ms = self.core.settings.timeouts.body_idle_ms;
                self.deadline(key, body_idle_ms);
            }
            self.drive(key);
            return;
        }
        let session = &self.sessions[key];
        let exchange = &session.exchange;
        let step = match session.phase {
            Phase::Preface => self.preface_timed_out(key),
            Phase::Head if session.client.buffer.is_none() => {
                let idle = session.requests > 0;
                self.core.count(if idle { Counter::TimeoutKeepAlive } else { Counter::TimeoutHead });
                Step::Close
            }
            Phase::Head => {
                self.core.count(Counter::TimeoutHead);
                self.refuse(key, Reason::HeadTimeout)
            }
            Phase::Queued => self.queue_timed_out(key),
            Phase::Connecting => {
                self.core.count(Counter::TimeoutConnect);
                self.connect_failed(key, Reason::ConnectTimeout)
            }
            Phase::Exchange if exchange.response_head_done => {
                self.core.count(Counter::TimeoutBody);
                self.sessions[key].exchange.ending = Ending::Idle;
                Step::Reset
            }
            Phase::Exchange if exchange.request_done || exchange.request_broken => {
                self.core.count(Counter::TimeoutResponse);
                self.note_failure_of(key);
                self.refuse(key, Reason::ResponseTimeout)
            }
            Phase::Exchange => {
                self.core.count(Counter::TimeoutBody);
                // Who kept the other waiting?
                let backend = session.backend.and_then(|connection| self.connections.get(connection));
                let full = backend.is_some_and(|connection| !connection.endpoint.writable);
                self.refuse(key, if full { Reason::ResponseTimeout } else { Reason::BodyTimeout })
            }
            Phase::Tunnel => {
                let tcp = session.is_tcp();
                self.core.count(if tcp { Counter::TimeoutTcp } else { Counter::TimeoutTunnel });
                self.sessions[key].exchange.ending = Ending::Idle;
                Step::Close
            }
            Phase::Reply | Phase::Linger => {
                self.core.count(Counter::TimeoutLinger);
                self.sessions[key].exchange.ending = Ending::Idle;
                Step::Close
            }
        };
        match step {
            Step::Close | Step::Reset => self.end(key, step),
            Step::Again => self.drive(key),
            Step::Wait | Step::Yield => {}
        }
    }

    /// Whether bytes have moved that no event told of: the kernel passes them on while the worker sleeps.
    fn has_advanced(&self, key: usize) -> bool {
        let Session { phase, exchange, .. } = &self.sessions[key];
        let redirector = self.core.redirector.as_ref();
        matches!(phase, Phase::Exchange | Phase::Tunnel)
            && (exchange.request.has_advanced(redirector) || exchange.response.has_advanced(redirector))
    }
}
