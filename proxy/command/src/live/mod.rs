//! The configuration of a running proxy: a state with an index, changed by lists of operations.
//!
//! A change is all or nothing, and what it costs depends on its own size, never on that of the configuration.
//! [`diff()`] tells which operations lead from one configuration to another.
//!
//! What is checked here is what the parts have to do with each other: names are unique, what is named exists, lists keep
//! their bounds. Whether values are sensible is for whoever runs the proxy to check, before [`Configuration::revert`]
//! gets impossible because the next change has come.

mod apply;
mod check;
mod diff;
mod operation;
mod patterns;
mod touched;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

pub use apply::Applied;
pub use diff::diff;
pub use operation::{Operation, OperationError};
pub use patterns::{CONDITIONS_MAX, PATTERNS_MAX, PATTERNS_PER_HOST_MAX};
pub use touched::Touched;

use crate::state::{Answer, Backend, Cluster, Listener, Route, RouteKey, Settings, State};

/// The most listeners of a proxy.
pub const LISTENERS_MAX: usize = 256;
/// The most clusters of a proxy.
pub const CLUSTERS_MAX: usize = 16 * 1024;
/// The most backends of a cluster.
pub const BACKENDS_PER_CLUSTER_MAX: usize = 1024;
/// The most backends of a proxy.
pub const BACKENDS_MAX: usize = 64 * 1024;
/// The most named answers of a proxy.
pub const ANSWERS_MAX: usize = 1024;
/// The most routes of a proxy.
pub const ROUTES_MAX: usize = 64 * 1024;

/// A cluster of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterEntry {
    /// Its own settings; the list of backends is empty.
    own: Cluster,
    backends: BTreeMap<SocketAddr, Backend>,
}

impl ClusterEntry {
    /// Its own settings; their list of backends is empty.
    pub fn own(&self) -> &Cluster {
        &self.own
    }

    /// Its backends, by address.
    pub fn backends(&self) -> &BTreeMap<SocketAddr, Backend> {
        &self.backends
    }

    /// The cluster as a state has it.
    pub fn whole(&self) -> Cluster {
        Cluster { backends: self.backends.values().cloned().collect(), ..self.own.clone() }
    }
}

/// The configuration of a running proxy. Two are equal if they configure the same, whatever their revisions.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    revision: u64,
    settings: Settings,
    listeners: BTreeMap<String, Listener>,
    clusters: BTreeMap<String, ClusterEntry>,
    answers: BTreeMap<String, Answer>,
    routes: BTreeMap<RouteKey, Route>,
    /// How many backends all clusters have.
    backends: usize,
    /// How many routes and listeners lead to a cluster; those that none leads to are left out.
    references: HashMap<String, usize>,
    /// How often routes, listeners and clusters name an answer; those that nobody names are left out.
    answer_uses: HashMap<String, usize>,
    /// How many regular expressions routes have.
    patterns: patterns::Patterns,
    /// How many routes are for one listener; those without routes are left out.
    listener_routes: HashMap<String, usize>,
}

impl PartialEq for Configuration {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
            && self.listeners == other.listeners
            && self.clusters == other.clusters
            && self.answers == other.answers
            && self.routes == other.routes
    }
}

impl Configuration {
    /// The configuration that a state describes, as revision 1.
    ///
    /// # Errors
    /// What does not fit together; of things that are there twice, the second is told.
    pub fn new(state: State) -> Result<Self, Vec<OperationError>> {
        let mut configuration = Self { settings: state.settings, ..Self::default() };
        let answers = state.answers.into_iter().map(|answer| Operation::AddAnswer { answer });
        let clusters = state.clusters.into_iter().map(|cluster| Operation::AddCluster { cluster });
        let listeners = state.listeners.into_iter().map(|listener| Operation::AddListener { listener });
        let routes = state.routes.into_iter().map(|route| Operation::AddRoute { route: Box::new(route) });
        let operations: Vec<Operation> = answers.chain(clusters).chain(listeners).chain(routes).collect();
        configuration.apply(&operations)?;
        configuration.revision = 1;
        Ok(configuration)
    }

    /// The state that this is, its lists sorted: listeners and clusters by name, backends by address, routes by what they
    /// match.
    pub fn state(&self) -> State {
        State {
            settings: self.settings.clone(),
            listeners: self.listeners.values().cloned().collect(),
            clusters: self.clusters.values().map(ClusterEntry::whole).collect(),
            routes: self.routes.values().cloned().collect(),
            answers: self.answers.values().cloned().collect(),
        }
    }

    /// How many changes have led here, the first configuration included.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Goes on counting from the revision of an earlier life.
    pub fn set_revision(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// The settings of the process.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The listeners, by name.
    pub fn listeners(&self) -> &BTreeMap<String, Listener> {
        &self.listeners
    }

    /// The clusters, by name.
    pub fn clusters(&self) -> &BTreeMap<String, ClusterEntry> {
        &self.clusters
    }

    /// The named answers, by name.
    pub fn answers(&self) -> &BTreeMap<String, Answer> {
        &self.answers
    }

    /// The routes, by what they match.
    pub fn routes(&self) -> &BTreeMap<RouteKey, Route> {
        &self.routes
    }

    /// How many backends all clusters have together.
    pub fn backend_count(&self) -> usize {
        self.backends
    }

    /// Whether a route or a listener leads to a cluster.
    pub fn is_used(&self, cluster: &str) -> bool {
        self.references.contains_key(cluster)
    }
}
