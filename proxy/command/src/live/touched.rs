//! What a change has touched, and how it was before.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::state::{Answer, Backend, Cluster, Listener, Route, RouteKey, Settings};

/// An item as it was before a change, and the last step that touched it.
pub(super) type Before<T> = (Option<T>, usize);

/// What a change has touched.
#[derive(Debug, Default)]
pub struct Touched {
    pub(super) settings: Option<(Settings, usize)>,
    pub(super) answers: BTreeMap<String, Before<Answer>>,
    pub(super) listeners: BTreeMap<String, Before<Listener>>,
    /// Own settings only.
    pub(super) clusters: BTreeMap<String, Before<Cluster>>,
    pub(super) backends: BTreeMap<String, BTreeMap<SocketAddr, Before<Backend>>>,
    pub(super) routes: BTreeMap<RouteKey, Before<Route>>,
}

impl Touched {
    /// The step that changed the settings.
    pub fn settings(&self) -> Option<usize> {
        self.settings.as_ref().map(|(_, step)| *step)
    }

    /// The settings as they were before, if the change touched them.
    pub fn settings_before(&self) -> Option<&Settings> {
        self.settings.as_ref().map(|(before, _)| before)
    }

    /// Named answers, each with the last step that touched it.
    pub fn answers(&self) -> impl Iterator<Item = (&str, usize)> {
        self.answers.iter().map(|(name, (_, step))| (name.as_str(), *step))
    }

    /// The step that touched a named answer last.
    pub fn answer(&self, name: &str) -> Option<usize> {
        self.answers.get(name).map(|(_, step)| *step)
    }

    /// The step that touched a cluster's own settings last.
    pub fn cluster(&self, name: &str) -> Option<usize> {
        self.clusters.get(name).map(|(_, step)| *step)
    }

    /// The step that touched a listener last.
    pub fn listener(&self, name: &str) -> Option<usize> {
        self.listeners.get(name).map(|(_, step)| *step)
    }

    /// The step that touched a backend last.
    pub fn backend(&self, cluster: &str, address: SocketAddr) -> Option<usize> {
        self.backends.get(cluster)?.get(&address).map(|(_, step)| *step)
    }

    /// The step that touched a route last.
    pub fn route(&self, key: &RouteKey) -> Option<usize> {
        self.routes.get(key).map(|(_, step)| *step)
    }

    /// Backends of one cluster by address, each with the last step that touched it.
    pub fn backends_of(&self, cluster: &str) -> impl Iterator<Item = (SocketAddr, usize)> {
        self.backends.get(cluster).into_iter().flatten().map(|(address, (_, step))| (*address, *step))
    }

    /// Listeners, each with the last step that touched it.
    pub fn listeners(&self) -> impl Iterator<Item = (&str, usize)> {
        self.listeners.iter().map(|(name, (_, step))| (name.as_str(), *step))
    }

    /// Clusters whose own settings were touched, each with the last step that did.
    pub fn clusters(&self) -> impl Iterator<Item = (&str, usize)> {
        self.clusters.iter().map(|(name, (_, step))| (name.as_str(), *step))
    }

    /// Backends by cluster and address, each with the last step that touched it.
    pub fn backends(&self) -> impl Iterator<Item = (&str, SocketAddr, usize)> {
        self.backends.iter().flat_map(|(cluster, backends)| {
            backends.iter().map(|(address, (_, step))| (cluster.as_str(), *address, *step))
        })
    }

    /// Routes by what they match, each with the last step that touched it.
    pub fn routes(&self) -> impl Iterator<Item = (&RouteKey, usize)> {
        self.routes.iter().map(|(key, (_, step))| (key, *step))
    }
}

/// Keeps what was there before the first step that touched it, and which step touched it last.
pub(super) fn note<K: Ord + Clone, T>(
    items: &mut BTreeMap<K, Before<T>>,
    key: &K,
    before: Option<T>,
    step: usize,
) {
    match items.get_mut(key) {
        Some((_, last)) => *last = step,
        None => {
            items.insert(key.clone(), (before, step));
        }
    }
}
