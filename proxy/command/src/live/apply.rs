//! Applies a change as a whole, or not at all.

use std::collections::{BTreeMap, HashMap};

use super::diff::Steps;
use super::touched::{Touched, note};
use super::{ClusterEntry, Configuration, Operation, OperationError};
use crate::state::{Answer, AnswerFor, Cluster, Listener, Route, RouteKey};

/// The most faults that are told of one change.
pub(super) const ERRORS_MAX: usize = 100;

/// A change that has been applied and can still be taken back.
#[derive(Debug)]
pub struct Applied {
    /// What the change comes to: no step for what it leaves as it was, one for each item, in an order in which each can be
    /// done.
    pub effects: Vec<Operation>,
    /// What the change touched.
    pub touched: Touched,
    revision_before: u64,
}

/// Whether two listeners of the same name can have the same socket.
pub(super) fn same_socket(before: &Listener, after: &Listener) -> bool {
    before.address == after.address && before.protocol == after.protocol
}

struct Fault {
    reason: String,
    remedy: String,
}

impl Fault {
    fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

fn exists(kind: &str, name: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        format!("{kind} {name} is there already"),
        format!("change it with change_{kind}, or use another identity"),
    )
}

fn missing(kind: &str, name: &dyn std::fmt::Display) -> Fault {
    Fault::new(format!("there is no {kind} {name}"), format!("add it with add_{kind} first, or name another"))
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

impl Configuration {
    /// Applies a change: all its operations, or none. The revision goes up by one if the change comes to anything.
    ///
    /// # Errors
    /// Each operation that cannot be done, and why; of the names and bounds that do not fit at the end, each. Nothing has
    /// changed then.
    pub fn apply(&mut self, operations: &[Operation]) -> Result<Applied, Vec<OperationError>> {
        let mut touched = Touched::default();
        let mut errors = Vec::new();
        for (step, operation) in operations.iter().enumerate() {
            if let Err(fault) = self.step(step, operation, &mut touched) {
                errors.push(OperationError {
                    step: Some(step),
                    what: operation.to_string(),
                    reason: fault.reason,
                    remedy: fault.remedy,
                });
                if errors.len() >= ERRORS_MAX {
                    break;
                }
            }
        }
        if errors.is_empty() {
            self.check_references(operations, &touched, &mut errors);
            self.check_counts(&touched, &mut errors);
        }
        if !errors.is_empty() {
            self.restore(touched);
            return Err(errors);
        }
        let effects = self.effects(&touched);
        let revision_before = self.revision;
        if !effects.is_empty() {
            self.revision += 1;
        }
        Ok(Applied { effects, touched, revision_before })
    }

    /// Takes the last change back.
    pub fn revert(&mut self, applied: Applied) {
        self.revision = applied.revision_before;
        self.restore(applied.touched);
    }

    fn step(&mut self, step: usize, operation: &Operation, touched: &mut Touched) -> Result<(), Fault> {
        match operation {
            Operation::ChangeSettings { settings } => {
                let before = std::mem::replace(&mut self.settings, (**settings).clone());
                let first = touched.settings.take().map_or(before, |(first, _)| first);
                touched.settings = Some((first, step));
                Ok(())
            }
            Operation::AddAnswer { .. } | Operation::ChangeAnswer { .. } | Operation::RemoveAnswer { .. } => {
                self.step_answer(step, operation, touched)
            }
            Operation::AddCluster { cluster } => self.add_cluster(step, cluster, touched),
            Operation::ChangeCluster { cluster } => {
                if !cluster.backends.is_empty() {
                    let remedy = "use add_backend, change_backend and remove_backend";
                    return Err(Fault::new("a cluster's own settings are changed without backends", remedy));
                }
                let name = &cluster.name;
                let entry = self.clusters.get_mut(name).ok_or_else(|| missing("cluster", &quoted(name)))?;
                name_answers(&mut self.answer_uses, &cluster.answers, true);
                let before = std::mem::replace(&mut entry.own, cluster.clone());
                name_answers(&mut self.answer_uses, &before.answers, false);
                note(&mut touched.clusters, name, Some(before), step);
                Ok(())
            }
            Operation::RemoveCluster { name } => {
                let entry = self.clusters.remove(name).ok_or_else(|| missing("cluster", &quoted(name)))?;
                self.backends -= entry.backends.len();
                name_answers(&mut self.answer_uses, &entry.own.answers, false);
                note(&mut touched.clusters, name, Some(entry.own), step);
                let backends = touched.backends.entry(name.clone()).or_default();
                for (address, backend) in entry.backends {
                    note(backends, &address, Some(backend), step);
                }
                Ok(())
            }
            Operation::AddBackend { cluster, backend } => {
                let entry =
                    self.clusters.get_mut(cluster).ok_or_else(|| missing("cluster", &quoted(cluster)))?;
                if entry.backends.contains_key(&backend.address) {
                    return Err(exists("backend", &backend.address));
                }
                entry.backends.insert(backend.address, backend.clone());
                self.backends += 1;
                note(touched.backends.entry(cluster.clone()).or_default(), &backend.address, None, step);
                Ok(())
            }
            Operation::ChangeBackend { cluster, backend } => {
                let found =
                    self.clusters.get_mut(cluster).ok_or_else(|| missing("cluster", &quoted(cluster)))?;
                let slot = found.backends.get_mut(&backend.address);
                let slot = slot.ok_or_else(|| missing("backend", &backend.address))?;
                let before = std::mem::replace(slot, backend.clone());
                let backends = touched.backends.entry(cluster.clone()).or_default();
                note(backends, &backend.address, Some(before), step);
                Ok(())
            }
            Operation::RemoveBackend { cluster, address } => {
                let found =
                    self.clusters.get_mut(cluster).ok_or_else(|| missing("cluster", &quoted(cluster)))?;
                let before = found.backends.remove(address).ok_or_else(|| missing("backend", address))?;
                self.backends -= 1;
                note(touched.backends.entry(cluster.clone()).or_default(), address, Some(before), step);
                Ok(())
            }
            Operation::AddListener { .. }
            | Operation::ChangeListener { .. }
            | Operation::RemoveListener { .. } => self.step_listener(step, operation, touched),
            Operation::AddRoute { .. } | Operation::ChangeRoute { .. } | Operation::RemoveRoute { .. } => {
                self.step_route(step, operation, touched)
            }
        }
    }

    fn add_cluster(&mut self, step: usize, cluster: &Cluster, touched: &mut Touched) -> Result<(), Fault> {
        if self.clusters.contains_key(&cluster.name) {
            return Err(exists("cluster", &quoted(&cluster.name)));
        }
        let mut backends = BTreeMap::new();
        for backend in &cluster.backends {
            if backends.insert(backend.address, backend.clone()).is_some() {
                return Err(Fault::new(
                    format!("backend {} is given twice", backend.address),
                    "remove one of them",
                ));
            }
        }
        note(&mut touched.clusters, &cluster.name, None, step);
        let seen = touched.backends.entry(cluster.name.clone()).or_default();
        for address in backends.keys() {
            note(seen, address, None, step);
        }
        self.backends += backends.len();
        name_answers(&mut self.answer_uses, &cluster.answers, true);
        let own = Cluster { backends: Vec::new(), ..cluster.clone() };
        self.clusters.insert(cluster.name.clone(), ClusterEntry { own, backends });
        Ok(())
    }

    fn step_answer(
        &mut self,
        step: usize,
        operation: &Operation,
        touched: &mut Touched,
    ) -> Result<(), Fault> {
        let (name, after) = match operation {
            Operation::AddAnswer { answer } if self.answers.contains_key(&answer.name) => {
                return Err(exists("answer", &quoted(&answer.name)));
            }
            Operation::AddAnswer { answer } => (&answer.name, Some(answer)),
            Operation::ChangeAnswer { answer: Answer { name, .. } } | Operation::RemoveAnswer { name }
                if !self.answers.contains_key(name) =>
            {
                return Err(missing("answer", &quoted(name)));
            }
            Operation::ChangeAnswer { answer } => (&answer.name, Some(answer)),
            Operation::RemoveAnswer { name } => (name, None),
            _ => return Ok(()),
        };
        let before = match after {
            Some(answer) => self.answers.insert(name.clone(), answer.clone()),
            None => self.answers.remove(name),
        };
        note(&mut touched.answers, name, before, step);
        Ok(())
    }

    fn step_listener(
        &mut self,
        step: usize,
        operation: &Operation,
        touched: &mut Touched,
    ) -> Result<(), Fault> {
        let (name, after) = match operation {
            Operation::AddListener { listener } => {
                if self.listeners.contains_key(&listener.name) {
                    return Err(exists("listener", &quoted(&listener.name)));
                }
                (&listener.name, Some(listener))
            }
            Operation::ChangeListener { listener } => {
                let name = &listener.name;
                let before = self.listeners.get(name).ok_or_else(|| missing("listener", &quoted(name)))?;
                if !same_socket(before, listener) {
                    let remedy = "remove the listener and add it anew, both in one change";
                    return Err(Fault::new("a listener's address and protocol cannot be changed", remedy));
                }
                (name, Some(listener))
            }
            Operation::RemoveListener { name } => {
                if !self.listeners.contains_key(name) {
                    return Err(missing("listener", &quoted(name)));
                }
                (name, None)
            }
            _ => return Ok(()),
        };
        let before = self.put_listener(name, after.cloned());
        note(&mut touched.listeners, name, before, step);
        Ok(())
    }

    fn step_route(&mut self, step: usize, operation: &Operation, touched: &mut Touched) -> Result<(), Fault> {
        let (key, after) = match operation {
            Operation::AddRoute { route } | Operation::ChangeRoute { route } => (route.key(), Some(&**route)),
            Operation::RemoveRoute { route } => (route.canonical(), None),
            _ => return Ok(()),
        };
        let there = self.routes.contains_key(&key);
        match operation {
            Operation::AddRoute { .. } if there => return Err(exists("route", &key)),
            Operation::ChangeRoute { .. } | Operation::RemoveRoute { .. } if !there => {
                return Err(missing("route", &key));
            }
            _ => {}
        }
        let before = self.put_route(&key, after.cloned());
        note(&mut touched.routes, &key, before, step);
        Ok(())
    }

    /// Puts a listener in its place, or takes it out, and keeps count of what it leads to.
    fn put_listener(&mut self, name: &str, listener: Option<Listener>) -> Option<Listener> {
        if let Some(cluster) = listener.as_ref().and_then(|listener| listener.default_cluster.as_deref()) {
            count(&mut self.references, cluster, true);
        }
        if let Some(listener) = &listener {
            name_answers(&mut self.answer_uses, &listener.answers, true);
        }
        let before = match listener {
            Some(listener) => self.listeners.insert(name.to_owned(), listener),
            None => self.listeners.remove(name),
        };
        if let Some(cluster) = before.as_ref().and_then(|listener| listener.default_cluster.as_deref()) {
            count(&mut self.references, cluster, false);
        }
        if let Some(before) = &before {
            name_answers(&mut self.answer_uses, &before.answers, false);
        }
        before
    }

    /// Puts a route in its place, or takes it out, and keeps count of what it leads to and comes from.
    fn put_route(&mut self, key: &RouteKey, route: Option<Route>) -> Option<Route> {
        let mut account = |route: &Route, up: bool| {
            if let Some(cluster) = route.cluster() {
                count(&mut self.references, cluster, up);
            }
            if let Some(listener) = route.listener.as_deref() {
                count(&mut self.listener_routes, listener, up);
            }
            if let Some(answer) = answer_of(route) {
                count(&mut self.answer_uses, answer, up);
            }
            self.patterns.count(route, up);
        };
        if let Some(route) = &route {
            account(route, true);
        }
        let before = match route {
            Some(route) => self.routes.insert(key.clone(), route),
            None => self.routes.remove(key),
        };
        if let Some(before) = &before {
            account(before, false);
        }
        before
    }

    /// Puts everything back that a change has touched.
    fn restore(&mut self, touched: Touched) {
        if let Some((settings, _)) = touched.settings {
            self.settings = settings;
        }
        for (name, (before, _)) in touched.answers {
            match before {
                Some(answer) => self.answers.insert(name, answer),
                None => self.answers.remove(&name),
            };
        }
        for (name, (before, _)) in touched.clusters {
            if let Some(own) = &before {
                name_answers(&mut self.answer_uses, &own.answers, true);
            }
            if let Some(entry) = self.clusters.get(&name) {
                name_answers(&mut self.answer_uses, &entry.own.answers, false);
            }
            match (before, self.clusters.get_mut(&name)) {
                (None, _) => {
                    if let Some(entry) = self.clusters.remove(&name) {
                        self.backends -= entry.backends.len();
                    }
                }
                (Some(own), Some(entry)) => entry.own = own,
                (Some(own), None) => {
                    self.clusters.insert(name, ClusterEntry { own, backends: BTreeMap::new() });
                }
            }
        }
        for (name, backends) in touched.backends {
            // One that was not there before has gone, and its backends with it.
            let Some(entry) = self.clusters.get_mut(&name) else { continue };
            self.backends -= entry.backends.len();
            for (address, (before, _)) in backends {
                match before {
                    Some(backend) => entry.backends.insert(address, backend),
                    None => entry.backends.remove(&address),
                };
            }
            self.backends += entry.backends.len();
        }
        for (name, (before, _)) in touched.listeners {
            self.put_listener(&name, before);
        }
        for (key, (before, _)) in touched.routes {
            self.put_route(&key, before);
        }
    }

    /// What has changed, item by item.
    fn effects(&self, touched: &Touched) -> Vec<Operation> {
        let mut steps = Steps::default();
        if touched.settings.as_ref().is_some_and(|(before, _)| *before != self.settings) {
            steps.settings(self);
        }
        for (name, (before, _)) in &touched.answers {
            steps.answer(name, before.as_ref(), self.answers.get(name));
        }
        for (name, (before, _)) in &touched.clusters {
            steps.cluster(name, before.as_ref(), self.clusters.get(name));
        }
        for (name, backends) in &touched.backends {
            let entry = self.clusters.get(name);
            for (address, (before, _)) in backends {
                let after = entry.and_then(|entry| entry.backends.get(address));
                steps.backend(name, *address, before.as_ref(), after);
            }
        }
        for (name, (before, _)) in &touched.listeners {
            steps.listener(name, before.as_ref(), self.listeners.get(name));
        }
        for (key, (before, _)) in &touched.routes {
            steps.route(key, before.as_ref(), self.routes.get(key));
        }
        steps.finish()
    }
}

/// The answer that a route gives.
pub(super) fn answer_of(route: &Route) -> Option<&str> {
    route.respond.as_ref()?.answer.as_deref()
}

/// Counts the use of answers up or down.
fn name_answers(uses: &mut HashMap<String, usize>, wanted: &[AnswerFor], up: bool) {
    wanted.iter().for_each(|wanted| count(uses, &wanted.answer, up));
}

/// One more, or one less, of a name.
fn count(names: &mut HashMap<String, usize>, name: &str, up: bool) {
    if up {
        match names.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                names.insert(name.to_owned(), 1);
            }
        }
    } else if let Some(count) = names.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            names.remove(name);
        }
    }
}
