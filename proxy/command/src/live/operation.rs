//! The steps of a change.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::state::{Answer, Backend, Cluster, Listener, Route, RouteKey, Settings};

/// One step of a change. In JSON the name of the step stands first: `{"op":"remove_cluster","name":"app"}`.
///
/// What is added must not be there yet, what is changed or removed must be. A change replaces the whole item, and its
/// identity stays: a listener's and a cluster's name, a backend's address, what a route matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Replaces the settings of the process.
    ChangeSettings {
        /// All of them.
        settings: Box<Settings>,
    },
    /// Adds a named answer.
    AddAnswer {
        /// The answer.
        answer: Answer,
    },
    /// Replaces a named answer.
    ChangeAnswer {
        /// The answer.
        answer: Answer,
    },
    /// Removes a named answer; at the end of the change nothing may use it any more.
    RemoveAnswer {
        /// Its name.
        name: String,
    },
    /// Adds a cluster, with the backends that it brings.
    AddCluster {
        /// The cluster.
        cluster: Cluster,
    },
    /// Replaces a cluster's own settings; its backends stay, and none may be given.
    ChangeCluster {
        /// The cluster, without backends.
        cluster: Cluster,
    },
    /// Removes a cluster and its backends; at the end of the change nothing may lead to it any more.
    RemoveCluster {
        /// Its name.
        name: String,
    },
    /// Adds a backend to a cluster.
    AddBackend {
        /// The cluster's name.
        cluster: String,
        /// The backend.
        backend: Backend,
    },
    /// Replaces the settings of a backend.
    ChangeBackend {
        /// The cluster's name.
        cluster: String,
        /// The backend.
        backend: Backend,
    },
    /// Removes a backend: it gets no new requests, and those under way are finished.
    RemoveBackend {
        /// The cluster's name.
        cluster: String,
        /// The backend's address.
        address: SocketAddr,
    },
    /// Adds a listener.
    AddListener {
        /// The listener.
        listener: Listener,
    },
    /// Replaces the settings of a listener; its address and protocol stay.
    ChangeListener {
        /// The listener.
        listener: Listener,
    },
    /// Removes a listener: its socket is closed, and what is under way on its connections is finished.
    RemoveListener {
        /// Its name.
        name: String,
    },
    /// Adds a route.
    AddRoute {
        /// The route.
        route: Box<Route>,
    },
    /// Replaces what a route does; what it matches stays.
    ChangeRoute {
        /// The route.
        route: Box<Route>,
    },
    /// Removes a route.
    RemoveRoute {
        /// What it matches.
        route: RouteKey,
    },
}

impl Operation {
    /// The name of the step, as JSON has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ChangeSettings { .. } => "change_settings",
            Self::AddAnswer { .. } => "add_answer",
            Self::ChangeAnswer { .. } => "change_answer",
            Self::RemoveAnswer { .. } => "remove_answer",
            Self::AddCluster { .. } => "add_cluster",
            Self::ChangeCluster { .. } => "change_cluster",
            Self::RemoveCluster { .. } => "remove_cluster",
            Self::AddBackend { .. } => "add_backend",
            Self::ChangeBackend { .. } => "change_backend",
            Self::RemoveBackend { .. } => "remove_backend",
            Self::AddListener { .. } => "add_listener",
            Self::ChangeListener { .. } => "change_listener",
            Self::RemoveListener { .. } => "remove_listener",
            Self::AddRoute { .. } => "add_route",
            Self::ChangeRoute { .. } => "change_route",
            Self::RemoveRoute { .. } => "remove_route",
        }
    }
}

/// What the step does, for people, without what may be secret.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::ChangeSettings { .. } => Ok(()),
            Self::AddAnswer { answer } | Self::ChangeAnswer { answer } => write!(f, " \"{}\"", answer.name),
            Self::AddCluster { cluster } => match cluster.backends.len() {
                0 => write!(f, " \"{}\"", cluster.name),
                1 => write!(f, " \"{}\" with 1 backend", cluster.name),
                count => write!(f, " \"{}\" with {count} backends", cluster.name),
            },
            Self::ChangeCluster { cluster } => write!(f, " \"{}\"", cluster.name),
            Self::RemoveAnswer { name } | Self::RemoveCluster { name } | Self::RemoveListener { name } => {
                write!(f, " \"{name}\"")
            }
            Self::AddBackend { cluster, backend } | Self::ChangeBackend { cluster, backend } => {
                write!(f, " {} of \"{cluster}\"", backend.address)
            }
            Self::RemoveBackend { cluster, address } => write!(f, " {address} of \"{cluster}\""),
            Self::AddListener { listener } | Self::ChangeListener { listener } => {
                write!(f, " \"{}\" on {}", listener.name, listener.address)
            }
            Self::AddRoute { route } | Self::ChangeRoute { route } => write!(f, " {}", route.key()),
            Self::RemoveRoute { route } => write!(f, " {route}"),
        }
    }
}

/// Why one step of a change cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[error("{}{what}: {reason}; {remedy}", step.map_or_else(String::new, |step| format!("operation {}: ", step + 1)))]
pub struct OperationError {
    /// Its place in the change, from 0; none where the fault is in what the change as a whole leads to.
    #[serde(rename = "operation")]
    pub step: Option<usize>,
    /// The step or the item, for people.
    pub what: String,
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}
