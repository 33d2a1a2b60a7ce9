//! Worker processes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Counters;

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct WorkerStatus {
    /// Its number, from 0.
    pub index: u16,
    /// The process that serves, while there is one.
    pub pid: Option<u32>,
    /// The CPU that it is pinned to.
    pub cpu: Option<u16>,
    /// What that process does.
    pub state: WorkerState,
    /// How often it was started again because it had died.
    pub restarts: u64,
    /// How its last predecessor ended.
    pub last_exit: Option<String>,
    /// The process before, while it finishes what it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining: Option<Predecessor>,
    /// What it and its predecessors have counted; of what is under way, that of both processes together.
    pub counters: Counters,
}

/// A process of a worker that was drained: it takes nothing new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Predecessor {
    /// The process.
    pub pid: Option<u32>,
    /// Client connections that it has still open.
    pub connections: u64,
    /// After so many milliseconds it cuts them.
    pub cut_in_ms: u64,
}

/// How a worker is to drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct WorkerDrain {
    /// After so many milliseconds what is left is cut, 30 days at most; none stands for the setting `timeouts.drain_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// A worker that has begun to drain: its successor accepts connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct WorkerDraining {
    /// Its number.
    pub worker: u16,
    /// The process that finishes what it has. The event `worker_drained` tells of its end.
    pub pid: u32,
    /// The process that serves in its place.
    pub successor: u32,
    /// After so many milliseconds what is left is cut.
    pub deadline_ms: u64,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Started; takes the state.
    #[default]
    Starting,
    /// Accepts connections.
    Running,
    /// Died too often in a short time; is started again after a pause.
    Waiting,
    /// Finishes what is under way.
    Draining,
    /// Has ended and will not be started again.
    Ended,
}

impl WorkerState {
    /// The name that JSON uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Draining => "draining",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
