//! Parts of a configuration, page by page.

use serde::{Deserialize, Serialize};

use crate::state::Backend;

/// The most items of a page.
pub const PAGE_SIZE_MAX: usize = 1000;

/// Which part of a list is asked for. In HTTP it is the query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Select {
    /// Only items whose name contains this; for backends the name is their address, for routes what they match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only backends of this cluster, or routes that lead to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// At most so many, 1 to 1,000; none: 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only what comes after this: [`Page::next`] of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A part of a list, in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page<T> {
    /// The configuration's revision.
    pub revision: u64,
    /// The items.
    pub items: Vec<T>,
    /// What to ask for to get more; none at the end of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A backend, whose it is, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BackendEntry {
    /// Name of the cluster.
    pub cluster: String,
    /// The backend.
    pub backend: Backend,
    /// What its health checks have found.
    #[serde(default)]
    pub health: BackendHealth,
    /// Requests and TCP connections under way on it now, in all workers together.
    #[serde(default)]
    pub active: u64,
}

impl BackendEntry {
    /// A backend of which nothing is known but its configuration.
    pub fn new(cluster: &str, backend: &Backend) -> Self {
        let (cluster, backend) = (cluster.to_owned(), backend.clone());
        Self { cluster, backend, health: BackendHealth::default(), active: 0 }
    }
}

/// What health checks have found of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct BackendHealth {
    /// Whether it gets requests.
    pub state: HealthState,
    /// What the last check has found; none where there was none.
    pub reason: Option<String>,
    /// Since when it is up or down, in milliseconds since 1970; none where no check has told.
    pub since_ms: Option<u64>,
}

/// Whether a backend is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// It is not checked, or was not checked yet. It gets requests.
    #[default]
    Unknown,
    /// Its checks succeed.
    Up,
    /// Its checks fail.
    Down,
}

impl HealthState {
    /// The name that JSON uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}
