//! Settings of the process.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::names::named;
use super::{RedirectMode, SteeringPolicy};

/// Settings of the process, the same for all workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Number of workers; 0 means one for each core that the process may use.
    pub workers: u16,
    /// The user that workers run as when the supervisor is root; empty keeps the supervisor's user.
    pub user: String,
    /// Path of the Unix socket of the admin API.
    pub admin_socket: PathBuf,
    /// Ids of the users that may call the admin API beside root and the user whose process it is.
    pub admin_uids: Vec<u32>,
    /// File in which every change is kept, and from which the proxy starts again.
    pub saved_state: Option<PathBuf>,
    /// How bodies are forwarded where neither listener nor cluster says otherwise.
    pub redirect: RedirectMode,
    /// How new connections are steered to workers.
    pub steering: SteeringPolicy,
    /// In mode `auto`, the smallest rest of a body, in bytes, that is worth a splice.
    pub splice_size_min: u64,
    /// In mode `auto`, the smallest rest of a body, in bytes, that is worth a redirection by sockmap.
    pub sockmap_size_min: u64,
    /// In mode `auto`, the size in bytes beyond which a body takes longer by sockmap than it is worth.
    pub sockmap_size_max: u64,
    /// The name of this proxy in `Via` fields (RFC 9110 section 7.6.3); empty leaves `Via` alone.
    pub via: String,
    /// Makes sticky cookies unreadable, the same for all proxies that share clients; empty: the machine's own.
    pub sticky_secret: String,
    /// What is logged, and where.
    pub log: Log,
    /// What is published for Prometheus.
    pub metrics: Metrics,
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
            admin_uids: Vec::new(),
            saved_state: None,
            redirect: RedirectMode::Auto,
            steering: SteeringPolicy::Cpu,
            splice_size_min: 32 * 1024,
            sockmap_size_min: 768 * 1024,
            sockmap_size_max: 2 * 1024 * 1024,
            via: "underpass".into(),
            sticky_secret: String::new(),
            log: Log::default(),
            metrics: Metrics::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// What is logged, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Filter of the supervisor's own log, in the syntax of `RUST_LOG`.
    pub level: String,
    /// Format of the access log, one line per request.
    pub access: AccessLogFormat,
    /// What a line of the access log says where its format is `template`: text with `$name` for fields.
    pub access_template: Option<String>,
    /// How values are written into the template.
    pub access_escape: AccessLogEscape,
    /// File of the access log; `-` is the standard output.
    pub access_file: PathBuf,
    /// File of the audit log: one JSON object for each change that was asked for. None: only the supervisor's log has it.
    pub audit_file: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            access: AccessLogFormat::Off,
            access_template: None,
            access_escape: AccessLogEscape::Text,
            access_file: PathBuf::from("-"),
            audit_file: None,
        }
    }
}

/// What is published for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Where `GET /metrics` is answered; none answers nowhere.
    pub address: Option<SocketAddr>,
    /// Whether each backend has metrics of its own.
    pub backends: bool,
    /// Series in one answer; those beyond are left out, and counted.
    pub series_max: u32,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { address: None, backends: true, series_max: 100_000 }
    }
}

/// Bounds of each worker. Pools are sized from them at start and never grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
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
    /// Bytes that a socket of the proxy may hold unsent; what comes after them waits at its source.
    pub unsent_max: u32,
    /// Size in bytes of the receive buffer of each connection to a backend; 0 leaves it to the kernel.
    pub backend_receive_size: u32,
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
            unsent_max: 1024 * 1024,
            backend_receive_size: 0,
            backlog: 1024,
            backend_idle: 256,
            requests_per_connection: 0,
        }
    }
}

/// The deadline of each kind of wait, in milliseconds. Zero is not allowed: every wait ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
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
        /// One line of text per request, as Apache and nginx write it under this name.
        Combined = "combined",
        /// What a template of the operator's own says.
        Template = "template",
    }
}

named! {
    /// How values are written into a template of the access log.
    #[derive(Default)]
    AccessLogEscape {
        /// Quotes, backslashes, control characters and what is not ASCII as `\xXX`, outside of quotes spaces, too.
        #[default]
        Text = "text",
        /// As the inside of a JSON string.
        Json = "json",
    }
}
