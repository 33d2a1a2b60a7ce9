//! What the workers count, and how the supervisor sees it without asking them.
//!
//! Each worker owns one block of 64-bit counters in shared memory (a memfd that the supervisor made). It is the only
//! writer, so counting is a plain load, add and store; the supervisor reads whenever it likes. The block outlives the
//! worker: a successor goes on counting where its predecessor died.
//!
//! In front lie the counters of the whole worker ([`Counter`]); behind them slots for each listener, cluster and backend
//! (`slots`). A [`View`] reads those without touching the pages that nobody has counted in.

mod durations;
mod exposition;
mod histogram;
mod memory;
mod pair;
mod slots;
mod view;

pub use durations::{COARSE, Durations, FINE, Scale};
pub use exposition::{Exposition, Family, Format, Kind, Labels, PUBLISHED_BOUNDS_US, seconds};
pub use histogram::{BUCKETS, Histogram, bucket_of, bucket_value_max};
pub use memory::{Block, BlockError, Slot};
pub use pair::{BlockPair, TURNS, views};
pub use slots::{
    BACKENDS_MAX, BackendCounter, BackendDuration, CLUSTERS_MAX, ClusterCounter, ClusterDuration,
    LISTENERS_MAX, ListenerCounter, ListenerDuration, SlotCounter,
};
pub use view::{Reading, View};

/// Declares counters: their place, their name, and what they count.
macro_rules! counters {
    ($(#[doc = $about:literal])+ $kind:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $kind { $($(#[doc = $doc])+ $variant,)+ }

        impl $kind {
            /// Every one, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in status and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

use counters;

counters! {
    /// A counter or gauge of one worker.
    Counter {
        /// Client connections accepted.
        Accepted = "connections_accepted",
        /// Client connections open now (gauge).
        ClientsActive = "connections_active",
        /// Client connections refused or left waiting because of the limit of connections.
        LimitReached = "connections_limit_reached",
        /// Times a client connection found no buffer left: it was refused, or as a tunnel waited.
        BuffersExhausted = "buffers_exhausted",
        /// Times accept failed other than for want of connections.
        AcceptFailed = "accept_failed",
        /// Requests that were answered, by a backend or by the proxy itself.
        Requests = "requests",
        /// Requests under way now (gauge).
        RequestsActive = "requests_active",
        /// Final responses of class 1xx (101 only) sent to clients.
        Responses1xx = "responses_1xx",
        /// Responses of class 2xx sent to clients.
        Responses2xx = "responses_2xx",
        /// Responses of class 3xx sent to clients.
        Responses3xx = "responses_3xx",
        /// Responses of class 4xx sent to clients, our own included.
        Responses4xx = "responses_4xx",
        /// Responses of class 5xx sent to clients, our own included.
        Responses5xx = "responses_5xx",
        /// Connections to backends opened.
        BackendConnects = "backend_connects",
        /// Connections to backends that could not be opened.
        BackendConnectsFailed = "backend_connects_failed",
        /// Requests sent on a pooled connection to a backend.
        BackendReuses = "backend_reuses",
        /// Idle connections to backends in the pool now (gauge).
        BackendsIdle = "backend_connections_idle",
        /// Connections to backends open now, idle or not (gauge).
        BackendsOpen = "backend_connections_open",
        /// Idle connections on which a backend sent bytes nobody asked for.
        BackendUnsolicited = "backend_unsolicited",
        /// Requests sent again because the pooled connection was stale.
        Retries = "retries",
        /// Backends tried in place of one that could not be connected to.
        RetriesConnect = "retries_connect",
        /// Requests sent again to another backend because the connection was lost before a byte of the response.
        RetriesLost = "retries_lost",
        /// Retries that the budget did not allow.
        RetriesDenied = "retries_denied",
        /// Backends taken out for a while because they failed.
        Ejections = "backend_ejections",
        /// Requests and TCP connections that had to wait for a backend with room for them.
        Queued = "queued",
        /// Requests and TCP connections that wait for a backend now (gauge).
        QueueActive = "queue_active",
        /// Requests and TCP connections refused because too many waited for a backend already.
        QueueFull = "queue_full",
        /// Requests that ended before their response was whole, and TCP connections broken off, because the client went.
        AbortsClient = "aborts_client",
        /// Requests that ended before their response was whole, and TCP connections broken off, because the backend went.
        AbortsBackend = "aborts_backend",
        /// Connections turned into tunnels, by an upgrade, CONNECT or a TCP listener.
        Tunnels = "tunnels",
        /// Connections to TCP listeners for which a backend was reached.
        TcpConnections = "tcp_connections",
        /// Tunnels open now, those of TCP listeners included (gauge).
        TunnelsActive = "tunnels_active",
        /// Bodies forwarded by copying.
        BodiesCopied = "bodies_copied",
        /// Bodies of which some part was spliced.
        BodiesSpliced = "bodies_spliced",
        /// Bodies of which some part was redirected by sockmap.
        BodiesRedirected = "bodies_sockmap",
        /// Bytes of bodies and tunnels copied through userspace.
        BytesCopied = "bytes_copied",
        /// Bytes of bodies and tunnels spliced.
        BytesSpliced = "bytes_spliced",
        /// Bytes of bodies and tunnels redirected by sockmap.
        BytesRedirected = "bytes_sockmap",
        /// Bytes of request bodies copied.
        BytesRequestCopied = "bytes_request_copied",
        /// Bytes of request bodies spliced.
        BytesRequestSpliced = "bytes_request_spliced",
        /// Bytes of request bodies redirected by sockmap.
        BytesRequestRedirected = "bytes_request_sockmap",
        /// Bytes of response bodies copied.
        BytesResponseCopied = "bytes_response_copied",
        /// Bytes of response bodies spliced.
        BytesResponseSpliced = "bytes_response_spliced",
        /// Bytes of response bodies redirected by sockmap.
        BytesResponseRedirected = "bytes_response_sockmap",
        /// Bytes of tunnels copied, both ways.
        BytesTunnelCopied = "bytes_tunnel_copied",
        /// Bytes of tunnels spliced, both ways.
        BytesTunnelSpliced = "bytes_tunnel_spliced",
        /// Bytes of tunnels redirected by sockmap, both ways.
        BytesTunnelRedirected = "bytes_tunnel_sockmap",
        /// Bytes of TCP connections copied, both ways.
        BytesTcpCopied = "bytes_tcp_copied",
        /// Bytes of TCP connections spliced, both ways.
        BytesTcpSpliced = "bytes_tcp_spliced",
        /// Bytes of TCP connections redirected by sockmap, both ways.
        BytesTcpRedirected = "bytes_tcp_sockmap",
        /// Bodies that were to be spliced and were copied: no pipe was free.
        FallbackNoPipe = "fallback_no_pipe",
        /// Bodies that were to be spliced and were copied: the kernel refused (EINVAL).
        FallbackRefused = "fallback_splice_refused",
        /// Bodies that were to go by sockmap and were not: it is not available here.
        FallbackSockmapOff = "fallback_sockmap_off",
        /// Bodies that were to go by sockmap and were not: all accounts were in use.
        FallbackSockmapNoFlow = "fallback_sockmap_no_flow",
        /// Bodies that were to go by sockmap and were not: the kernel refused one of the sockets.
        FallbackSockmapRefused = "fallback_sockmap_refused",
        /// Bodies that mode auto spliced instead: it went badly with earlier ones to the same peer, which was slow or refused.
        FallbackSockmapRecent = "fallback_sockmap_recent",
        /// Directions of tunnels that went on by splice: the socket could not be taken back while the other direction ran.
        FallbackSockmapHeld = "fallback_sockmap_held",
        /// Times the kernel stopped at the end of a credit or of a body.
        SockmapStops = "sockmap_stops",
        /// Directions redirected by sockmap now (gauge).
        SockmapFlows = "sockmap_flows",
        /// Pipes in use now (gauge).
        PipesUsed = "pipes_used",
        /// Buffers in use now (gauge).
        BuffersUsed = "buffers_used",
        /// Deadline: the request's head did not come, or what must come before it.
        TimeoutHead = "timeout_head",
        /// Deadline: no byte of a body moved.
        TimeoutBody = "timeout_body_idle",
        /// Deadline: no backend had room.
        TimeoutQueue = "timeout_queue",
        /// Deadline: no connection to the backend.
        TimeoutConnect = "timeout_connect",
        /// Deadline: the backend did not answer.
        TimeoutResponse = "timeout_response",
        /// Deadline: an idle client connection was closed.
        TimeoutKeepAlive = "timeout_keep_alive",
        /// Deadline: an idle tunnel was closed.
        TimeoutTunnel = "timeout_tunnel_idle",
        /// Deadline: an idle connection of a TCP listener was reset.
        TimeoutTcp = "timeout_tcp_idle",
        /// Deadline: a closing connection was cut.
        TimeoutLinger = "timeout_linger",
        /// Connections cut at the end of a drain.
        DrainCut = "drain_cut",
        /// Lines of the access log dropped because nobody took them.
        AccessLogDropped = "access_log_dropped",
        /// Turns of the event loop.
        LoopTurns = "loop_turns",
        /// Events handled.
        LoopEvents = "loop_events",
    }
}

impl Counter {
    /// Whether it goes down again.
    pub fn is_gauge(self) -> bool {
        self.help().contains("(gauge)")
    }
}

/// Number of counters in a block.
pub const COUNTERS: usize = Counter::ALL.len();
/// Slots kept for the reasons for which a message was refused; index = reason's number.
pub const REASONS: usize = 96;
/// 64-bit words in front of the slots: counters, reasons of the client side, reasons of the backend side, latency.
const PROCESS_WORDS: usize = COUNTERS + 2 * REASONS + BUCKETS;

/// Which peer sent a message that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The client.
    Client,
    /// A backend.
    Backend,
}
