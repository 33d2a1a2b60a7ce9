//! Groups of backends.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::names::named;
use super::{AnswerFor, Balance, Check, HashKey, RedirectMode, RetryOn, SameSite, StatusRanges, WhenAllDown};

/// A group of backends that serve the same application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: String,
    /// How a backend is chosen.
    #[serde(default)]
    pub balance: Balance,
    /// What the policy `maglev` chooses by.
    #[serde(default)]
    pub hash: HashKey,
    /// What becomes of requests while no backend is available.
    #[serde(default)]
    pub when_all_down: WhenAllDown,
    /// After a backend was added or came up, until it gets its whole share; 0 gives it that at once.
    #[serde(default)]
    pub slow_start_ms: u64,
    /// Name of the cookie that keeps a client at its backend.
    #[serde(default)]
    pub sticky_cookie: Option<String>,
    /// With which requests of other sites clients send it.
    #[serde(default)]
    pub sticky_same_site: SameSite,
    /// Requests and tunnels of one worker that may wait for a backend below its `in_flight_max`.
    #[serde(default = "queue_length")]
    pub queue_length: u32,
    /// The longest that one of them waits.
    #[serde(default = "queue_timeout_ms")]
    pub queue_timeout_ms: u64,
    /// What another backend is tried for.
    #[serde(default)]
    pub retry_on: RetryOn,
    /// Backends that are tried for one request.
    #[serde(default = "retry_attempts")]
    pub retry_attempts: u8,
    /// Retries for each hundred requests.
    #[serde(default = "retry_budget_percent")]
    pub retry_budget_percent: u16,
    /// Retries in each second that are allowed whatever the budget says.
    #[serde(default = "retry_floor")]
    pub retry_floor: u32,
    /// Whether and how the supervisor checks the backends.
    #[serde(default)]
    pub check: Check,
    /// What an HTTP check asks for.
    #[serde(default = "check_path")]
    pub check_path: String,
    /// The host that an HTTP check names; none: the backend's address.
    #[serde(default)]
    pub check_host: Option<String>,
    /// The statuses of a healthy backend.
    #[serde(default)]
    pub check_status: StatusRanges,
    /// From one check of a backend to the next.
    #[serde(default = "check_interval_ms")]
    pub check_interval_ms: u64,
    /// The longest that one check takes.
    #[serde(default = "check_timeout_ms")]
    pub check_timeout_ms: u64,
    /// Checks in a row that must succeed for a backend to come up.
    #[serde(default = "check_rise")]
    pub check_rise: u16,
    /// Checks in a row that must fail for it to go down.
    #[serde(default = "check_fall")]
    pub check_fall: u16,
    /// Failures in a row after which a worker ejects a backend for a while; 0 never does.
    #[serde(default)]
    pub eject_failures: u32,
    /// How long the first time. Each further time it is as much longer, until it has behaved as long.
    #[serde(default = "eject_ms")]
    pub eject_ms: u64,
    /// How long at most.
    #[serde(default = "eject_ms_max")]
    pub eject_ms_max: u64,
    /// The most backends that may be ejected at a time, of a hundred.
    #[serde(default = "eject_percent_max")]
    pub eject_percent_max: u8,
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
    /// Answers in place of the proxy's own for requests to this cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerFor>,
    /// The backends.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// One server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Its address.
    pub address: SocketAddr,
    /// What its sticky cookie is made from instead of its address, so that it may move.
    #[serde(default)]
    pub name: Option<String>,
    /// Its share in relation to the others; 0 gets no new requests.
    #[serde(default = "weight")]
    pub weight: u16,
    /// Whether it serves only while no other backend is available.
    #[serde(default)]
    pub backup: bool,
    /// Whether it gets no new requests, and an event tells when its last has ended.
    #[serde(default)]
    pub drain: bool,
    /// Requests and tunnels of one worker that may be under way there; 0 means no limit.
    #[serde(default)]
    pub in_flight_max: u32,
}

impl Cluster {
    /// A cluster with every default, without backends.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            balance: Balance::default(),
            hash: HashKey::default(),
            when_all_down: WhenAllDown::default(),
            slow_start_ms: 0,
            sticky_cookie: None,
            sticky_same_site: SameSite::default(),
            queue_length: queue_length(),
            queue_timeout_ms: queue_timeout_ms(),
            retry_on: RetryOn::default(),
            retry_attempts: retry_attempts(),
            retry_budget_percent: retry_budget_percent(),
            retry_floor: retry_floor(),
            check: Check::default(),
            check_path: check_path(),
            check_host: None,
            check_status: StatusRanges::default(),
            check_interval_ms: check_interval_ms(),
            check_timeout_ms: check_timeout_ms(),
            check_rise: check_rise(),
            check_fall: check_fall(),
            eject_failures: 0,
            eject_ms: eject_ms(),
            eject_ms_max: eject_ms_max(),
            eject_percent_max: eject_percent_max(),
            redirect: None,
            chunked_requests: yes(),
            send_proxy: SendProxy::default(),
            answers: Vec::new(),
            backends: Vec::new(),
        }
    }
}

impl Backend {
    /// A backend with every default.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, name: None, weight: weight(), backup: false, drain: false, in_flight_max: 0 }
    }
}

fn yes() -> bool {
    true
}

fn weight() -> u16 {
    1
}

fn queue_length() -> u32 {
    1024
}

fn queue_timeout_ms() -> u64 {
    5000
}

fn retry_attempts() -> u8 {
    3
}

/// As many as requests: where half of the backends cannot be reached, all requests are still served.
fn retry_budget_percent() -> u16 {
    100
}

fn retry_floor() -> u32 {
    10
}

fn check_path() -> String {
    "/".to_owned()
}

fn check_interval_ms() -> u64 {
    5000
}

fn check_timeout_ms() -> u64 {
    2000
}

fn check_rise() -> u16 {
    2
}

fn check_fall() -> u16 {
    3
}

fn eject_ms() -> u64 {
    10_000
}

fn eject_ms_max() -> u64 {
    300_000
}

fn eject_percent_max() -> u8 {
    50
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
