//! What a proxy is configured to do: settings, listeners, clusters and routes.
//!
//! These types are the contract between the configuration file, the admin API and the workers. They hold no
//! behaviour of the data path. Units stand last in a name (`_ms`, `_size` in bytes).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Everything a worker needs to forward traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Process-wide settings.
    pub settings: Settings,
    /// Where connections come in.
    pub listeners: Vec<Listener>,
    /// Groups of backends that serve the same application.
    pub clusters: Vec<Cluster>,
    /// Which requests go to which cluster.
    pub routes: Vec<Route>,
}

/// Settings of the process, the same for all workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Number of workers; 0 means one for each core that the process may use.
    pub workers: u16,
    /// The user that workers run as when the supervisor is root; empty keeps the supervisor's user.
    pub user: String,
    /// Path of the Unix socket of the admin API.
    pub admin_socket: PathBuf,
    /// How bodies are forwarded where neither listener nor cluster says otherwise.
    pub redirect: RedirectMode,
    /// How new connections are steered to workers.
    pub steering: SteeringPolicy,
    /// In mode `auto`, the smallest rest of a body, in bytes, that is worth a splice.
    pub splice_size_min: u64,
    /// In mode `auto`, the smallest rest of a body, in bytes, that is worth a redirection by sockmap.
    pub sockmap_size_min: u64,
    /// The name of this proxy in `Via` fields (RFC 9110 section 7.6.3); empty leaves `Via` alone.
    pub via: String,
    /// What is logged, and where.
    pub log: Log,
    /// Bounds of each worker.
    pub limits: Limits,
    /// The deadline of each kind of wait.
    pub timeouts: Timeouts,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 0,
            user: "nobody".into(),
            admin_socket: PathBuf::from("/run/underpass/admin.sock"),
            redirect: RedirectMode::Auto,
            steering: SteeringPolicy::Cpu,
            splice_size_min: 32 * 1024,
            sockmap_size_min: 768 * 1024,
            via: "underpass".into(),
            log: Log::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// What is logged, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Log {
    /// Filter of the supervisor's own log, in the syntax of `RUST_LOG`.
    pub level: String,
    /// Format of the access log, one line per request.
    pub access: AccessLogFormat,
    /// File of the access log; `-` is the standard output.
    pub access_file: PathBuf,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), access: AccessLogFormat::Off, access_file: PathBuf::from("-") }
    }
}

/// Bounds of each worker. Pools are sized from them at start and never grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Client connections of one worker.
    pub connections: u32,
    /// Buffers of one worker; 0 means as many as its connections can ever need.
    pub buffers: u32,
    /// Size of one buffer in bytes; a head must fit into it.
    pub buffer_size: u32,
    /// Longest head in bytes: request line and fields, with the empty line.
    pub head_size_max: u32,
    /// Most fields in a head or trailer section.
    pub header_count_max: u16,
    /// Longest request target in bytes.
    pub target_size_max: u32,
    /// Largest request body in bytes; 0 means no limit.
    pub request_body_size_max: u64,
    /// Pipes of one worker, for splice.
    pub pipes: u32,
    /// Size of one pipe in bytes; the kernel rounds it up to a power of two pages.
    pub pipe_size: u32,
    /// Connections of one worker whose bytes sockmap can redirect at a time; 0 means none.
    pub redirect_flows: u32,
    /// Bytes that sockmap may redirect before the target has drained what it got: the credit of one direction.
    pub redirect_credit: u64,
    /// Length of each listening socket's accept queue.
    pub backlog: u32,
    /// Idle connections that one worker keeps to one backend.
    pub backend_idle: u32,
    /// Requests on one client connection before it is closed; 0 means no limit.
    pub requests_per_connection: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            buffers: 0,
            buffer_size: 16 * 1024,
            head_size_max: 16 * 1024,
            header_count_max: 100,
            target_size_max: 8 * 1024,
            request_body_size_max: 0,
            pipes: 64,
            pipe_size: 1024 * 1024,
            redirect_flows: 4096,
            redirect_credit: 1024 * 1024,
            backlog: 1024,
            backend_idle: 256,
            requests_per_connection: 0,
        }
    }
}

/// The deadline of each kind of wait, in milliseconds. Zero is not allowed: every wait ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// From the first byte of a request (or from accept) to the end of its head; then 408. From accept to the end of
    /// what else must come before anything is passed on: a PROXY protocol header, a TLS ClientHello.
    pub head_ms: u64,
    /// Without a byte of a body moving in either direction.
    pub body_idle_ms: u64,
    /// For a connection to a backend to be established; then 504.
    pub connect_ms: u64,
    /// From the end of the request to the first byte of the response's head; then 504.
    pub response_ms: u64,
    /// A client connection that waits for its next request.
    pub keep_alive_ms: u64,
    /// An idle connection to a backend in the pool.
    pub backend_keep_alive_ms: u64,
    /// Without a byte in either direction of a tunnel.
    pub tunnel_idle_ms: u64,
    /// Without a byte in either direction of a connection to a TCP listener.
    pub tcp_idle_ms: u64,
    /// For a closing connection's peer to take the last bytes and close.
    pub linger_ms: u64,
    /// From the request to stop until the remaining connections are cut.
    pub drain_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head_ms: 10_000,
            body_idle_ms: 30_000,
            connect_ms: 5_000,
            response_ms: 60_000,
            keep_alive_ms: 60_000,
            backend_keep_alive_ms: 60_000,
            tunnel_idle_ms: 3_600_000,
            tcp_idle_ms: 3_600_000,
            linger_ms: 2_000,
            drain_ms: 30_000,
        }
    }
}

/// Where connections come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Unique among listeners.
    pub name: String,
    /// Address to listen on.
    pub address: SocketAddr,
    /// What is spoken on its connections.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether each connection begins with a PROXY protocol header.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Cluster of the requests or TCP connections that no route matches; without it requests get 421 or 404, and
    /// connections are closed.
    #[serde(default)]
    pub default_cluster: Option<String>,
    /// Overrides the process's redirect mode.
    #[serde(default)]
    pub redirect: Option<RedirectMode>,
    /// What happens to `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    #[serde(default = "ForwardedFields::append")]
    pub x_forwarded: ForwardedFields,
    /// What happens to `Forwarded` (RFC 7239).
    #[serde(default)]
    pub forwarded: ForwardedFields,
    /// What happens to `X-Request-Id`.
    #[serde(default)]
    pub request_id: RequestId,
    /// What happens to a connection that comes when a worker is at its limit of connections.
    #[serde(default)]
    pub at_limit: AtLimit,
}

/// A group of backends that serve the same application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: String,
    /// How a backend is chosen.
    #[serde(default)]
    pub balance: Balance,
    /// Overrides the redirect mode of the process and of the listener.
    #[serde(default)]
    pub redirect: Option<RedirectMode>,
    /// Whether a request body of unknown length may be sent to these backends; otherwise 411.
    #[serde(default = "yes")]
    pub chunked_requests: bool,
    /// Whether a PROXY protocol header begins each connection to these backends. Such a connection carries one client's
    /// address, so it is not used for another.
    #[serde(default)]
    pub send_proxy: SendProxy,
    /// The backends.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// One server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its address.
    pub address: SocketAddr,
}

/// Sends the requests that match to a cluster.
///
/// A route with a host is preferred to one without, an exact host to a wildcard, a longer wildcard to a shorter; then an
/// exact path to a prefix, a longer prefix to a shorter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Only for requests that came in here; none: every listener.
    #[serde(default)]
    pub listener: Option<String>,
    /// Host name without port, `*.example.com` for every name below, none for every host.
    #[serde(default)]
    pub host: Option<String>,
    /// For connections to TCP listeners: the server name in the TLS ClientHello (RFC 6066 section 3), or `*.example.com`
    /// for every name below. Such a route has neither host nor path.
    #[serde(default)]
    pub sni: Option<String>,
    /// Which paths.
    #[serde(default)]
    pub path: PathMatch,
    /// The cluster that serves them.
    pub cluster: String,
    /// Whether CONNECT is allowed, and opens a tunnel to the cluster.
    #[serde(default)]
    pub allow_connect: bool,
}

/// Which paths a route takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathMatch {
    /// This path and nothing else; the query does not count.
    Exact(String),
    /// Paths that begin so, at a segment's border: `/a` takes `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

impl Listener {
    /// A listener with every default.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            address,
            protocol: Protocol::default(),
            proxy_protocol: ProxyProtocol::default(),
            default_cluster: None,
            redirect: None,
            x_forwarded: ForwardedFields::append(),
            forwarded: ForwardedFields::default(),
            request_id: RequestId::default(),
            at_limit: AtLimit::default(),
        }
    }
}

impl Cluster {
    /// A cluster with every default, without backends.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            balance: Balance::default(),
            redirect: None,
            chunked_requests: yes(),
            send_proxy: SendProxy::default(),
            backends: Vec::new(),
        }
    }
}

impl Route {
    /// A route that sends every request of every listener to a cluster.
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            listener: None,
            host: None,
            sni: None,
            path: PathMatch::default(),
            cluster: cluster.into(),
            allow_connect: false,
        }
    }
}

fn yes() -> bool {
    true
}

impl ForwardedFields {
    fn append() -> Self {
        Self::Append
    }
}

/// Declares an enum whose variants have one name each, in files, on the command line and in JSON.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that files, commands and JSON use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or_else(|| UnknownName {
                    found: text.to_owned(),
                    allowed: Self::ALL.iter().map(|value| value.name()).collect(),
                })
            }
        }
    };
}

/// A name that is none of those allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value \"{found}\"; use one of: {}", allowed.join(", "))]
pub struct UnknownName {
    /// What was given.
    pub found: String,
    /// What may be given.
    pub allowed: Vec<&'static str>,
}

named! {
    /// How the bytes of a body get from one socket to the other.
    #[derive(Default)]
    RedirectMode {
        /// Read into a buffer of the worker and written from it.
        Copy = "copy",
        /// Moved by the kernel through a pipe; userspace never sees them.
        Splice = "splice",
        /// Redirected by BPF from socket to socket; the worker sleeps meanwhile.
        Sockmap = "sockmap",
        /// Chosen per body.
        #[default]
        Auto = "auto",
    }
}

named! {
    /// How a new connection finds its worker.
    #[derive(Default)]
    SteeringPolicy {
        /// The worker pinned to the CPU that handles the connection request.
        #[default]
        Cpu = "cpu",
        /// The worker that belongs to the RX queue the connection request came in by.
        RxQueue = "rx-queue",
        /// A worker chosen by the flow's hash.
        Hash = "hash",
        /// The kernel's own choice in the SO_REUSEPORT group.
        Off = "off",
    }
}

named! {
    /// What is spoken on the connections of a listener.
    #[derive(Default)]
    Protocol {
        /// HTTP/1.1 and HTTP/1.0.
        #[default]
        Http = "http",
        /// Anything over TCP: bytes pass both ways as they are.
        Tcp = "tcp",
    }
}

named! {
    /// Whether connections to a listener begin with a PROXY protocol header, which tells the client's address.
    #[derive(Default)]
    ProxyProtocol {
        /// They do not.
        #[default]
        Off = "off",
        /// Each must, version 1 or 2; one that does not is closed.
        Require = "require",
    }
}

named! {
    /// Whether connections to backends begin with a PROXY protocol header.
    #[derive(Default)]
    SendProxy {
        /// They do not.
        #[default]
        Off = "off",
        /// Version 1, a line of text.
        V1 = "v1",
        /// Version 2, binary.
        V2 = "v2",
    }
}

named! {
    /// How a backend is chosen among those of a cluster.
    #[derive(Default)]
    Balance {
        /// One after the other.
        #[default]
        RoundRobin = "round-robin",
        /// The one with the fewest requests and tunnels of this worker under way.
        LeastLoaded = "least-loaded",
    }
}

named! {
    /// What happens to fields that tell the backend who the client is.
    #[derive(Default)]
    ForwardedFields {
        /// What the client sent is kept, this hop is added.
        Append = "append",
        /// What the client sent is removed, this hop is written.
        Replace = "replace",
        /// What the client sent passes unchanged.
        #[default]
        Off = "off",
    }
}

named! {
    /// What happens to `X-Request-Id`.
    #[derive(Default)]
    RequestId {
        /// The client's is kept; one is made where there is none.
        #[default]
        Keep = "keep",
        /// One is made for every request.
        Replace = "replace",
        /// What the client sent passes unchanged.
        Off = "off",
    }
}

named! {
    /// What happens to connections beyond the limit.
    #[derive(Default)]
    AtLimit {
        /// Accepted, answered 503 with `Retry-After`, and closed.
        #[default]
        Refuse = "refuse",
        /// Left in the listener's accept queue until a connection ends.
        Wait = "wait",
    }
}

named! {
    /// Format of the access log.
    #[derive(Default)]
    AccessLogFormat {
        /// None is written.
        #[default]
        Off = "off",
        /// One line of text per request.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}
