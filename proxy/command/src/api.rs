//! The documents of the admin API, version 1.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/state` | | [`StateDocument`]; 304 where `If-None-Match` has its revision |
//! | `POST /v1/changes` | [`ChangeRequest`] | [`Changed`]; 412 where `If-Match` has another revision; 422 for what cannot be |
//! | `GET /v1/listeners`, `/v1/clusters`, `/v1/backends`, `/v1/routes`, `/v1/answers` | | [`Page`], selected by [`Select`] |
//! | `GET /v1/clusters/NAME` | | [`Cluster`](crate::state::Cluster) |
//! | `GET /v1/workers` | | list of [`WorkerStatus`] |
//! | `POST /v1/workers/N/drain` | [`WorkerDrain`], or none | [`WorkerDraining`]; 409 where it drains already |
//! | `POST /v1/drain` | | [`Draining`] |
//! | `POST /v1/save` | | [`Saved`] |
//! | `POST /v1/reload` | | [`Changed`] |
//! | `GET /v1/events` | | stream of [`Event`] (`text/event-stream`) |
//! | `GET /v1/metrics` | | Prometheus' text format |
//! | `GET /v1/top` | | [`Top`]; so many clusters and backends as [`TopSelect`] says |
//! | `GET /v1/openapi.json` | | this table for machines |
//! | `GET /v1/redirect` | | [`RedirectStatus`] |
//! | `PUT /v1/redirect` | [`RedirectChange`] | [`RedirectStatus`] |
//! | `GET /v1/steering` | | [`SteeringStatus`] |
//! | `PUT /v1/steering` | [`SteeringChange`] | [`SteeringStatus`] |
//!
//! Whatever fails is answered with an [`ErrorBody`]. Fields may be added within a version; readers skip those they do
//! not know.

mod lists;
mod sessions;
mod top;
mod workers;

pub use lists::*;
pub use sessions::*;
pub use top::*;
pub use workers::*;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::live::{Operation, OperationError};
use crate::state::{Protocol, RedirectMode, State, SteeringPolicy};

/// What a running proxy does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Status {
    /// Version of the executable.
    pub version: String,
    /// Process id of the supervisor.
    pub pid: u32,
    /// Time since the supervisor started.
    pub uptime_ms: u64,
    /// Generation of the process: 1 for the first, one more with each upgrade of the running executable.
    pub generation: u32,
    /// Whether the proxy finishes what is under way and takes nothing new.
    pub draining: bool,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// Where metrics are published for Prometheus, if they are.
    pub metrics_address: Option<SocketAddr>,
    /// The workers, in their order.
    pub workers: Vec<WorkerStatus>,
    /// Where connections come in.
    pub listeners: Vec<ListenerStatus>,
    /// The clusters.
    pub clusters: Vec<ClusterStatus>,
    /// How connections find their worker.
    pub steering: SteeringStatus,
    /// How bodies are forwarded.
    pub redirect: RedirectStatus,
    /// Whether bodies can be redirected by sockmap.
    pub sockmap: SockmapStatus,
    /// What the kernel and the privileges of the process allow.
    pub probes: Vec<Probe>,
    /// Bytes of the access log that could not be written to its file.
    pub access_log_lost_bytes: u64,
    /// The counters of all workers together.
    pub total: Counters,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// What is spoken on its connections.
    #[serde(default)]
    pub protocol: Protocol,
    /// The address it listens on; where port 0 was configured, with the port that the kernel chose.
    pub address: SocketAddr,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Addresses of its backends.
    pub backends: Vec<SocketAddr>,
    /// Those that health checks have found down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<DownBackend>,
}

/// A backend that gets no requests, because its checks fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DownBackend {
    /// Its address.
    pub address: SocketAddr,
    /// What the last check has found.
    pub reason: String,
}

/// Counters and latency of one worker or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Counters {
    /// Every counter and gauge by name.
    pub values: BTreeMap<String, u64>,
    /// Requests that were refused, by reason; reasons that never occurred are left out.
    pub refused_requests: BTreeMap<String, u64>,
    /// Responses of backends that were refused, by reason; reasons that never occurred are left out.
    pub refused_responses: BTreeMap<String, u64>,
    /// From the first byte of a request to the last byte of its response.
    pub latency: Latency,
}

impl Counters {
    /// The value of a counter or gauge; 0 for a name that does not exist.
    pub fn value(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or(0)
    }
}

/// Percentiles of a duration, in microseconds; none where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_us: Option<u64>,
    /// 90 % took no longer.
    pub p90_us: Option<u64>,
    /// 99 % took no longer.
    pub p99_us: Option<u64>,
    /// 99.9 % took no longer.
    pub p999_us: Option<u64>,
}

/// Whether the redirect mode `sockmap` can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SockmapStatus {
    /// Whether it passed its self-test at start; otherwise bodies that are to go by it are spliced.
    pub available: bool,
    /// Why it is not available.
    pub reason: Option<String>,
}

/// How new connections find their worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SteeringStatus {
    /// The policy that is asked for.
    pub policy: SteeringPolicy,
    /// Whether the BPF program chooses; otherwise the kernel does, by its hash.
    pub active: bool,
    /// Why the program does not choose.
    pub reason: Option<String>,
    /// What the program cannot do here, although it chooses.
    pub reduced: Option<String>,
    /// Connections by the CPU that handled the connection request and by the worker they went to; without CPUs that
    /// handled none.
    pub matrix: Vec<SteeringRow>,
    /// Connections by how their worker was found; without those that never occurred.
    pub outcomes: BTreeMap<String, u64>,
}

/// The connections that one CPU handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SteeringRow {
    /// The CPU that handled the connection request.
    pub cpu: u32,
    /// Connections by worker.
    pub workers: Vec<u64>,
    /// Connections whose worker the kernel chose by its hash.
    #[serde(default)]
    pub kernel: u64,
}

/// A new steering policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SteeringChange {
    /// The policy.
    pub policy: SteeringPolicy,
}

/// How bodies are forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct RedirectStatus {
    /// Where neither listener nor cluster says otherwise.
    pub process: RedirectMode,
    /// By listener; none inherits from the process.
    pub listeners: BTreeMap<String, Option<RedirectMode>>,
    /// By cluster; none inherits from the listener.
    pub clusters: BTreeMap<String, Option<RedirectMode>>,
}

/// A new redirect mode. Takes effect with the next body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RedirectChange {
    /// The mode; none lets a listener or cluster inherit.
    pub mode: Option<RedirectMode>,
    /// What it applies to.
    #[serde(default)]
    pub scope: RedirectScope,
}

/// What a redirect mode applies to: `"process"`, `{"listener": "name"}` or `{"cluster": "name"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RedirectScope {
    /// The whole process.
    #[default]
    Process,
    /// The listener of this name.
    Listener(String),
    /// The cluster of this name.
    Cluster(String),
}

impl fmt::Display for RedirectScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("process"),
            Self::Listener(name) => write!(f, "listener \"{name}\""),
            Self::Cluster(name) => write!(f, "cluster \"{name}\""),
        }
    }
}

/// Something that the kernel offers or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Probe {
    /// What was tried.
    pub name: String,
    /// Whether it works here.
    pub available: bool,
    /// What was found, or why it does not work.
    pub detail: String,
}

/// A change of the configuration: all its operations are done, or none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// The steps, in any order in which what is added, changed or removed is there or not, as it must be; what is named
    /// needs to be there at the end only.
    pub operations: Vec<Operation>,
    /// Only if the configuration has this revision. In HTTP it is the field `If-Match`.
    #[serde(skip)]
    pub if_revision: Option<u64>,
    /// Only tell what it would come to. In HTTP it is `?dry_run=true`.
    #[serde(skip)]
    pub dry_run: bool,
}

/// What a change has come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Changed {
    /// The revision after it; the one before, if it came to nothing. For a dry run the one that it would have had.
    pub revision: u64,
    /// What it came to, in the order in which it was done: nothing for what was so before.
    pub effects: Vec<Operation>,
    /// What works and is probably not meant.
    pub warnings: Vec<String>,
    /// Whether nothing was done, because only the outcome was asked for.
    pub dry_run: bool,
}

/// The configuration of a running proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StateDocument {
    /// Its revision: how many changes have led to it. In HTTP it is the field `ETag` too.
    pub revision: u64,
    /// The configuration, sorted by name.
    pub state: State,
}

/// Where the configuration was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Saved {
    /// The file.
    pub path: PathBuf,
    /// The revision that it has.
    pub revision: u64,
}

/// A proxy that has begun to drain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Draining {
    /// After so many milliseconds what is left is cut.
    pub deadline_ms: u64,
}

/// Something that happened in a running proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Counts events from 1; a gap means that some were lost.
    pub sequence: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A worker accepts connections.
    WorkerUp {
        /// Its number.
        worker: u16,
    },
    /// A worker has ended.
    WorkerDown {
        /// Its number.
        worker: u16,
        /// How.
        reason: String,
    },
    /// A process of a worker that was drained has ended; another one serves since its drain began.
    WorkerDrained {
        /// Its number.
        worker: u16,
        /// The process that has ended.
        #[serde(default)]
        pid: u32,
        /// How it ended, if not by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The configuration has changed in every worker.
    Changed {
        /// Its revision.
        revision: u64,
        /// How many items have changed.
        operations: usize,
    },
    /// A backend takes requests again.
    BackendUp {
        /// Its cluster.
        cluster: String,
        /// Its address.
        backend: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A backend gets no more requests, because it does not answer as it should.
    BackendDown {
        /// Its cluster.
        cluster: String,
        /// Its address.
        backend: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The last request of all workers on a backend that was removed, or put to drain, has ended: it may be stopped.
    BackendDrained {
        /// Its cluster.
        cluster: String,
        /// Its address.
        backend: SocketAddr,
    },
    /// The last connection of a listener that was removed has ended.
    ListenerDrained {
        /// Its name.
        listener: String,
    },
    /// A limit was reached, for the first time in a while.
    LimitReached {
        /// The worker.
        worker: u16,
        /// The counter that tells how often.
        what: String,
    },
    /// A fast path was not to be had, for the first time in a while.
    Fallback {
        /// The worker.
        worker: u16,
        /// The counter that tells how often.
        what: String,
    },
    /// The configuration was saved.
    Saved {
        /// Its revision.
        revision: u64,
    },
}

/// The answer to a request that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What failed, which value, and why.
    pub error: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Of a change: each operation that cannot be done, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationError>,
    /// Of a change for another revision: the one that the configuration has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_process_needs_no_scope() {
        let change: RedirectChange = serde_json::from_str(r#"{"mode":"copy"}"#).expect("valid");
        assert_eq!(change, RedirectChange { mode: Some(RedirectMode::Copy), scope: RedirectScope::Process });
    }

    #[test]
    fn a_scope_reads_as_documented() {
        let change: RedirectChange =
            serde_json::from_str(r#"{"mode":null,"scope":{"cluster":"app"}}"#).expect("valid");
        assert_eq!(change, RedirectChange { mode: None, scope: RedirectScope::Cluster("app".into()) });
        assert_eq!(change.scope.to_string(), "cluster \"app\"");
    }

    #[test]
    fn an_unknown_key_of_a_change_is_refused() {
        let error = serde_json::from_str::<RedirectChange>(r#"{"mode":"copy","scop":"process"}"#)
            .expect_err("a misspelt scope must not change the whole process");
        assert!(error.to_string().contains("scop"), "{error}");
    }

    #[test]
    fn a_status_of_a_newer_version_is_understood() {
        let status: Status =
            serde_json::from_str(r#"{"version":"9.0.0","pid":7,"something_new":[1]}"#).expect("valid");
        assert_eq!((status.version.as_str(), status.pid), ("9.0.0", 7));
    }
}
