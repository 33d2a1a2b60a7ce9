//! Which operations lead from one configuration to another.

use std::collections::{BTreeMap, BTreeSet};

use super::{ClusterEntry, Configuration, Operation};
use crate::state::{Answer, Cluster};

/// The operations that make `to` of `from`: none for what is equal, in an order in which each can be done.
pub fn diff(from: &Configuration, to: &Configuration) -> Vec<Operation> {
    let mut steps = Steps::default();
    if from.settings != to.settings {
        steps.settings(to);
    }
    each_key(&from.answers, &to.answers, |name| {
        steps.answer(name, from.answers.get(name), to.answers.get(name));
    });
    each_key(&from.clusters, &to.clusters, |name| {
        let (before, after) = (from.clusters.get(name), to.clusters.get(name));
        steps.cluster(name, before.map(ClusterEntry::own), after);
        if let (Some(before), Some(after)) = (before, after) {
            each_key(&before.backends, &after.backends, |address| {
                steps.backend(name, *address, before.backends.get(address), after.backends.get(address));
            });
        }
    });
    each_key(&from.listeners, &to.listeners, |name| {
        steps.listener(name, from.listeners.get(name), to.listeners.get(name));
    });
    each_key(&from.routes, &to.routes, |key| {
        steps.route(key, from.routes.get(key), to.routes.get(key));
    });
    steps.finish()
}

/// Visits the keys whose values are not equal, in order.
fn each_key<K: Ord, V: PartialEq>(from: &BTreeMap<K, V>, to: &BTreeMap<K, V>, visit: impl FnMut(&K)) {
    let keys: BTreeSet<&K> = from.keys().chain(to.keys()).collect();
    keys.into_iter().filter(|key| from.get(*key) != to.get(*key)).for_each(visit);
}

/// The difference of two configurations, item by item, sorted so that each step can be done: what is led to before what
/// leads to it, and removals the other way round.
#[derive(Default)]
pub(super) struct Steps {
    /// First of all, because others may have to be done under them.
    settings: Vec<Operation>,
    answers: Vec<Operation>,
    clusters: Vec<Operation>,
    backends: Vec<Operation>,
    /// A listener that takes another's address comes after that one has gone.
    listeners_removed: Vec<Operation>,
    listeners: Vec<Operation>,
    routes_removed: Vec<Operation>,
    routes: Vec<Operation>,
    backends_removed: Vec<Operation>,
    clusters_removed: Vec<Operation>,
    answers_removed: Vec<Operation>,
    /// Clusters that are added whole: their backends need no step.
    whole: BTreeSet<String>,
}

impl Steps {
    pub(super) fn settings(&mut self, to: &Configuration) {
        self.settings.push(Operation::ChangeSettings { settings: Box::new(to.settings.clone()) });
    }

    pub(super) fn answer(&mut self, name: &str, before: Option<&Answer>, after: Option<&Answer>) {
        match (before, after) {
            (None, Some(after)) => self.answers.push(Operation::AddAnswer { answer: after.clone() }),
            (Some(before), Some(after)) if before != after => {
                self.answers.push(Operation::ChangeAnswer { answer: after.clone() });
            }
            (Some(_), None) => {
                self.answers_removed.push(Operation::RemoveAnswer { name: name.to_owned() });
            }
            _ => {}
        }
    }

    pub(super) fn cluster(&mut self, name: &str, before: Option<&Cluster>, after: Option<&ClusterEntry>) {
        match (before, after) {
            (None, None) => {}
            (None, Some(after)) => {
                self.whole.insert(name.to_owned());
                self.clusters.push(Operation::AddCluster { cluster: after.whole() });
            }
            (Some(_), None) => {
                self.whole.insert(name.to_owned());
                self.clusters_removed.push(Operation::RemoveCluster { name: name.to_owned() });
            }
            (Some(before), Some(after)) if *before != after.own => {
                self.clusters.push(Operation::ChangeCluster { cluster: after.own.clone() });
            }
            (Some(_), Some(_)) => {}
        }
    }

    pub(super) fn backend(
        &mut self,
        cluster: &str,
        address: std::net::SocketAddr,
        before: Option<&crate::state::Backend>,
        after: Option<&crate::state::Backend>,
    ) {
        if self.whole.contains(cluster) {
            return;
        }
        let cluster = cluster.to_owned();
        match (before, after) {
            (None, Some(after)) => {
                self.backends.push(Operation::AddBackend { cluster, backend: after.clone() });
            }
            (Some(before), Some(after)) if before != after => {
                self.backends.push(Operation::ChangeBackend { cluster, backend: after.clone() });
            }
            (Some(_), None) => self.backends_removed.push(Operation::RemoveBackend { cluster, address }),
            _ => {}
        }
    }

    pub(super) fn listener(
        &mut self,
        name: &str,
        before: Option<&crate::state::Listener>,
        after: Option<&crate::state::Listener>,
    ) {
        let remove = || Operation::RemoveListener { name: name.to_owned() };
        match (before, after) {
            (None, Some(after)) => self.listeners.push(Operation::AddListener { listener: after.clone() }),
            (Some(_), None) => self.listeners_removed.push(remove()),
            (Some(before), Some(after)) if !super::apply::same_socket(before, after) => {
                self.listeners_removed.push(remove());
                self.listeners.push(Operation::AddListener { listener: after.clone() });
            }
            (Some(before), Some(after)) if before != after => {
                self.listeners.push(Operation::ChangeListener { listener: after.clone() });
            }
            _ => {}
        }
    }

    pub(super) fn route(
        &mut self,
        key: &crate::state::RouteKey,
        before: Option<&crate::state::Route>,
        after: Option<&crate::state::Route>,
    ) {
        match (before, after) {
            (None, Some(after)) => {
                self.routes.push(Operation::AddRoute { route: Box::new(after.clone()) });
            }
            (Some(before), Some(after)) if before != after => {
                self.routes.push(Operation::ChangeRoute { route: Box::new(after.clone()) });
            }
            (Some(_), None) => self.routes_removed.push(Operation::RemoveRoute { route: key.clone() }),
            _ => {}
        }
    }

    pub(super) fn finish(self) -> Vec<Operation> {
        let mut operations = self.settings;
        for mut list in [
            self.answers,
            self.clusters,
            self.backends,
            self.listeners_removed,
            self.listeners,
            self.routes,
            self.routes_removed,
            self.backends_removed,
            self.clusters_removed,
            self.answers_removed,
        ] {
            operations.append(&mut list);
        }
        operations
    }
}
