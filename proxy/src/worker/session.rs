//! A client connection and the request it carries.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use underpass_command::state::{Protocol, RedirectMode, Settings};

use super::balancing::Affinity;
use super::measure::Timing;
use super::random::RequestName;
use super::trace::Trace;
use crate::forward::{BufferPool, Endpoint, Flow, Kind, Ledger, Moved, Policy, Tools, TrailerLimits};
use crate::http1::{Framing, Method, Reason, RequestHead, Span, Target, Version};
use crate::route::Actions;

/// Buffers that one request can need at once: what came from the client, what came from the backend, and an edited head
/// on the way to each.
pub(super) const BUFFERS_PER_REQUEST: u32 = 4;
/// Buffers that a tunnel can need at once: one for each direction.
pub(super) const BUFFERS_PER_TUNNEL: u32 = 2;
/// The most backends tried for one request before the client is told.
pub(super) const ATTEMPTS_MAX: usize = 5;
/// Sessions beyond the limit of connections, which only tell a client that it came too late.
pub(super) const OVERFLOW: usize = 128;

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// What must come before anything else: a PROXY protocol header, or the ClientHello that routes are chosen by.
    Preface,
    /// The head of a request.
    Head,
    /// Its turn among those that wait for a backend.
    Queued,
    /// A connection to the backend.
    Connecting,
    /// The request to be sent and the response to come.
    Exchange,
    /// An answer of our own to be sent.
    Reply,
    /// Bytes of a tunnel.
    Tunnel,
    /// The client to close.
    Linger,
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Go on with the phase that the session is in now.
    Again,
    /// Wait for an event or the deadline.
    Wait,
    /// Let others have their turn, then go on.
    Yield,
    /// The connection is at its end.
    Close,
    /// The connection must end with a reset, so that the client does not take what it has for the whole.
    Reset,
}

/// How a request or a connection to a TCP listener ended, for its line in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The response was sent whole; both sides of a tunnel have closed in order.
    Closed,
    /// The client went before that, or reset the connection.
    Client,
    /// The backend went before that, or reset the connection.
    Backend,
    /// Nothing moved for too long.
    Idle,
    /// The end of a drain cut it.
    Cut,
}

impl Ending {
    /// Its name in the access log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Client => "client_aborted",
            Self::Backend => "backend_aborted",
            Self::Idle => "idle",
            Self::Cut => "drain_cut",
        }
    }
}

/// An IP address as text, made once for each connection.
#[derive(Clone, Copy)]
pub(super) struct AddressText {
    bytes: [u8; 45],
    length: u8,
}

impl AddressText {
    pub(super) fn new(address: IpAddr) -> Self {
        // An IPv4 client of an IPv6 socket is an IPv4 client.
        let mut text = Self { bytes: [0; 45], length: 0 };
        // 45 bytes hold the longest address (INET6_ADDRSTRLEN less its NUL), so this cannot fail.
        let _ = write!(text, "{}", address.to_canonical());
        text
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Write for AddressText {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let start = usize::from(self.length);
        let room = self.bytes.get_mut(start..start + part.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(part.as_bytes());
        self.length = u8::try_from(start + part.len()).map_err(|_| std::fmt::Error)?;
        Ok(())
    }
}

/// A client connection.
pub(super) struct Session {
    pub(super) client: Endpoint,
    /// Tells its events from those of sessions that had its key before.
    pub(super) generation: u32,
    pub(super) listener: u16,
    pub(super) protocol: Protocol,
    pub(super) phase: Phase,
    /// Where the client is, as its connection or the PROXY protocol tells.
    pub(super) source: SocketAddr,
    /// Where the client connected to, as the PROXY protocol tells.
    pub(super) destination: Option<SocketAddr>,
    /// The IP address of `source`.
    pub(super) address: AddressText,
    /// A PROXY protocol header must still come.
    pub(super) proxy_header_due: bool,
    /// Requests begun on this connection.
    pub(super) requests: u32,
    /// Key of the connection to the backend.
    pub(super) backend: Option<usize>,
    pub(super) exchange: Exchange,
    /// It came beyond the limit of connections, and is only told so.
    pub(super) overflow: bool,
    /// How many buffers are reserved for it.
    reserved: u32,
    /// Whether it stands in the list of tunnels that wait for buffers.
    pub(super) waiting: bool,
    /// Whether it stands in the list of runnable sessions.
    pub(super) queued: bool,
    /// Bytes of the head that have been parsed in vain.
    pub(super) parsed: usize,
    /// When the first byte of the request came.
    pub(super) first_byte_us: u64,
    /// What is left of the bytes a lingering client may still send.
    pub(super) linger_left: usize,
}

impl Session {
    pub(super) fn new(client: Endpoint, listener: u16, protocol: Protocol, peer: SocketAddr) -> Self {
        Self {
            client,
            generation: 0,
            listener,
            protocol,
            phase: Phase::Head,
            source: peer,
            destination: None,
            address: AddressText::new(peer.ip()),
            proxy_header_due: false,
            requests: 0,
            backend: None,
            exchange: Exchange::none(),
            overflow: false,
            reserved: 0,
            waiting: false,
            queued: false,
            parsed: 0,
            first_byte_us: 0,
            linger_left: 0,
        }
    }

    /// Counts what is answered or cut before it was understood as a request, and notes when it came.
    pub(super) fn count_unread_request(&mut self, now_us: u64) {
        self.requests = self.requests.saturating_add(1);
        if self.first_byte_us == 0 {
            // It was pipelined, or came together with the PROXY protocol header.
            self.first_byte_us = now_us.max(1);
        }
    }

    /// Whether what came from this client is passed on as it is.
    pub(super) fn is_tcp(&self) -> bool {
        self.protocol == Protocol::Tcp
    }

    /// Has buffers promised, unless some are already; false when there are not so many.
    #[inline]
    pub(super) fn reserve(&mut self, count: u32, buffers: &mut BufferPool) -> bool {
        if self.reserved == 0 && buffers.reserve(count as usize) {
            self.reserved = count;
        }
        self.reserved > 0
    }

    /// Whether buffers are promised to it.
    pub(super) fn has_reservation(&self) -> bool {
        self.reserved > 0
    }

    /// Takes back the promise of buffers, of which none may be in use any more.
    pub(super) fn give_reservation_back(&mut self, buffers: &mut BufferPool) {
        buffers.unreserve(std::mem::take(&mut self.reserved) as usize);
    }
}

/// A request and its response.
pub(super) struct Exchange {
    /// A request is under way: it must be counted out.
    pub(super) active: bool,
    pub(super) head: RequestHead,
    /// Where the request's head begins in the client's buffer, while it is held.
    pub(super) head_start: usize,
    /// The cluster that it was led to, which counts it.
    pub(super) cluster: Option<u32>,
    /// What its route does beside that.
    pub(super) actions: Option<Rc<Actions>>,
    /// The route that it took, where the access log tells.
    pub(super) route: Option<Rc<String>>,
    /// Index of the backend; `None` before one was chosen.
    pub(super) upstream: Option<u32>,
    pub(super) id: RequestName,
    pub(super) trace: Trace,
    pub(super) timing: Timing,
    /// Client to backend.
    pub(super) request: Flow,
    /// Backend to client.
    pub(super) response: Flow,
    pub(super) mode: RedirectMode,
    /// What draws it to one backend rather than another.
    pub(super) affinity: Affinity,
    /// Its place in its cluster's line, while it waits there.
    pub(super) ticket: Option<u64>,
    /// When the backend was chosen.
    pub(super) sent_us: u64,
    /// Times a backend was tried.
    pub(super) attempts: u8,
    /// Which backends those were.
    pub(super) tried: [u32; ATTEMPTS_MAX],
    /// The connection to the backend had carried a request before.
    pub(super) reused: bool,
    /// All of the request was sent.
    pub(super) request_done: bool,
    /// The backend takes no more of the request; its response may still come.
    pub(super) request_broken: bool,
    /// A failed write has told that the backend reset the connection; reading will end as if it had closed in order.
    pub(super) backend_reset: bool,
    /// A byte of a response has come.
    pub(super) response_begun: bool,
    /// The head of the final response has been passed on.
    pub(super) response_head_done: bool,
    pub(super) response_keep_alive: bool,
    /// The body of the response ends with the connection.
    pub(super) response_until_close: bool,
    /// The client's connection ends with this response.
    pub(super) close: bool,
    /// Interim responses passed on.
    pub(super) interim: u8,
    pub(super) status: u16,
    /// Why the proxy answered itself.
    pub(super) reason: Option<Reason>,
    /// Body bytes sent to the client.
    pub(super) bytes: u64,
    /// Body bytes of the proxy's own answer, until they are sent.
    pub(super) own_bytes: u64,
    /// Body bytes sent to the backend.
    pub(super) bytes_up: u64,
    /// Bytes of both bodies by how they were moved, as far as they have ended.
    pub(super) moved: Moved,
    /// How it ended.
    pub(super) ending: Ending,
}

impl Exchange {
    /// The state between requests.
    pub(super) fn none() -> Self {
        let head = RequestHead {
            size: 0,
            method: Method::Other,
            method_span: Span::default(),
            target_span: Span::default(),
            target: Target::Origin,
            version: Version::Http11,
            host: Span::default(),
            framing: Framing::None,
            keep_alive: false,
            expects_continue: false,
            upgrade: false,
            forwards_left: None,
        };
        Self {
            active: false,
            head,
            head_start: 0,
            cluster: None,
            actions: None,
            route: None,
            upstream: None,
            id: RequestName::none(),
            trace: Trace::none(),
            timing: Timing::default(),
            request: Flow::idle(),
            response: Flow::idle(),
            mode: RedirectMode::Copy,
            affinity: Affinity::default(),
            ticket: None,
            sent_us: 0,
            attempts: 0,
            tried: [0; ATTEMPTS_MAX],
            reused: false,
            request_done: false,
            request_broken: false,
            backend_reset: false,
            response_begun: false,
            response_head_done: false,
            response_keep_alive: false,
            response_until_close: false,
            close: false,
            interim: 0,
            status: 0,
            reason: None,
            bytes: 0,
            own_bytes: 0,
            bytes_up: 0,
            moved: Moved::default(),
            ending: Ending::Closed,
        }
    }

    /// The beginning of a request.
    pub(super) fn begin(head: RequestHead, head_start: usize) -> Self {
        let close = !head.keep_alive;
        // Whoever does not say otherwise ends it because the client went.
        Self { active: true, head, head_start, close, ending: Ending::Client, ..Self::none() }
    }

    /// The number of the cluster that it was routed to.
    #[inline]
    pub(super) fn routed_to(&self) -> Option<u32> {
        self.cluster
    }

    /// Ends the flow of the request, and enters what it has moved.
    pub(super) fn end_request(&mut self, tools: &mut Tools<'_>) {
        let moved = self.request.finish(tools);
        self.bytes_up += moved.total();
        self.moved += moved;
    }

    /// Ends the flow of the response, and enters what it has moved.
    pub(super) fn end_response(&mut self, tools: &mut Tools<'_>) {
        let moved = self.response.finish(tools);
        self.bytes += moved.total();
        self.moved += moved;
    }

    /// Enters that writing to the backend has failed. `EPIPE` is what is left of a connection whose end was seen in order.
    pub(super) fn break_request(&mut self, error: &std::io::Error) {
        self.request_broken = true;
        self.backend_reset |= error.kind() != std::io::ErrorKind::BrokenPipe;
    }

    /// The flow of the request's body, from its start.
    pub(super) fn request_flow(&self, limits: TrailerLimits, settings: &Settings) -> Flow {
        let largest = match settings.limits.request_body_size_max {
            0 => u64::MAX,
            set => set,
        };
        let ledger = Ledger::new(self.head.framing, limits).with_content_max(largest);
        Flow::new(Kind::Request, ledger, Policy::new(self.mode, settings), false)
    }
}
