//! Client connections that are open.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The most sessions that are told of each worker.
pub const SESSIONS_MAX: u32 = 100;

/// Which sessions are asked for. In HTTP it is the query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SessionSelect {
    /// Of each worker at most so many, 1 to 1,000; more than 100 are never told.
    pub limit: u32,
    /// Only those with a request to this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

impl Default for SessionSelect {
    fn default() -> Self {
        Self { limit: SESSIONS_MAX, cluster: None }
    }
}

/// Client connections of all workers: those first whose request has been under way for longest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Sessions {
    /// How many there are, those included that are not told.
    pub total: u64,
    /// Some of them.
    pub sessions: Vec<SessionEntry>,
    /// Workers that did not answer in time.
    pub missing: Vec<u16>,
}

/// A client connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionEntry {
    /// The worker that serves it.
    pub worker: u16,
    /// The client, as its connection or the PROXY protocol tells.
    pub client: SocketAddr,
    /// The listener by which it came.
    pub listener: String,
    /// What it waits for: `preface`, `head`, `queued`, `connecting`, `exchange`, `reply`, `tunnel` or `linger`.
    pub phase: String,
    /// Requests on it, the one under way included.
    pub requests: u32,
    /// How long the request or the tunnel has been under way; none between requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_ms: Option<u64>,
    /// The cluster that it was led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The backend that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
}
