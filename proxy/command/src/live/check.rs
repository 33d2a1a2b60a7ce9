//! What must hold at the end of a change: what is named is there, lists keep their bounds.

use super::apply::{ERRORS_MAX, answer_of};
use super::touched::Touched;
use super::{
    ANSWERS_MAX, BACKENDS_MAX, BACKENDS_PER_CLUSTER_MAX, CLUSTERS_MAX, Configuration, LISTENERS_MAX,
    Operation, OperationError, ROUTES_MAX,
};
use crate::state::Route;

impl Configuration {
    /// What is named at the end of the change must be there.
    pub(super) fn check_references(
        &self,
        operations: &[Operation],
        touched: &Touched,
        errors: &mut Vec<OperationError>,
    ) {
        let mut refuse = |step: usize, reason: String, remedy: &str| {
            if errors.len() < ERRORS_MAX {
                let what = operations[step].to_string();
                errors.push(OperationError { step: Some(step), what, reason, remedy: remedy.to_owned() });
            }
        };
        let absent = |cluster: &str| format!("there is no cluster \"{cluster}\"");
        let add = "add it in this change or before, or name another";
        for (name, (_, step)) in &touched.listeners {
            let cluster = self.listeners.get(name).and_then(|listener| listener.default_cluster.as_deref());
            if let Some(cluster) = cluster.filter(|cluster| !self.clusters.contains_key(*cluster)) {
                refuse(*step, absent(cluster), add);
            }
            if !self.listeners.contains_key(name)
                && let Some(count) = self.listener_routes.get(name)
            {
                refuse(
                    *step,
                    format!("{count} routes are for this listener only"),
                    "remove them in the same change",
                );
            }
        }
        for (key, (_, step)) in &touched.routes {
            let Some(route) = self.routes.get(key) else { continue };
            if let Some(cluster) = route.cluster().filter(|cluster| !self.clusters.contains_key(*cluster)) {
                refuse(*step, absent(cluster), add);
            }
            if let Some(name) = route.listener.as_deref().filter(|name| !self.listeners.contains_key(*name)) {
                refuse(*step, format!("there is no listener \"{name}\""), add);
            }
        }
        for (key, (_, step)) in &touched.routes {
            if let Some(reason) = self.routes.get(key).and_then(|_| self.crowded(key)) {
                refuse(*step, reason, "let the cluster tell such requests apart, or match by path and host");
            }
        }
        self.check_answers(touched, &mut refuse);
        for (name, (_, step)) in &touched.clusters {
            if !self.clusters.contains_key(name)
                && let Some(count) = self.references.get(name)
                // Those that this change has brought are told above.
                && !touched.routes.keys().any(|key| self.routes.get(key).and_then(Route::cluster) == Some(name))
            {
                let reason = format!("{count} routes and listeners still lead to this cluster");
                refuse(*step, reason, "remove or change them in the same change");
            }
        }
    }

    fn check_answers(&self, touched: &Touched, refuse: &mut dyn FnMut(usize, String, &str)) {
        let mut check = |step: usize, names: &mut dyn Iterator<Item = &str>| {
            for name in names.filter(|name| !self.answers.contains_key(*name)) {
                let remedy = "add it in this change or before, or name another";
                refuse(step, format!("there is no answer \"{name}\""), remedy);
            }
        };
        for (name, (_, step)) in &touched.listeners {
            let found = self.listeners.get(name).into_iter().flat_map(|listener| &listener.answers);
            check(*step, &mut found.map(|wanted| wanted.answer.as_str()));
        }
        for (name, (_, step)) in &touched.clusters {
            let found = self.clusters.get(name).into_iter().flat_map(|entry| &entry.own.answers);
            check(*step, &mut found.map(|wanted| wanted.answer.as_str()));
        }
        for (key, (_, step)) in &touched.routes {
            check(*step, &mut self.routes.get(key).and_then(answer_of).into_iter());
        }
        for (name, (_, step)) in &touched.answers {
            if !self.answers.contains_key(name)
                && let Some(count) = self.answer_uses.get(name)
            {
                let reason = format!("{count} routes, listeners and clusters use this answer");
                refuse(*step, reason, "change them in the same change");
            }
        }
    }

    pub(super) fn check_counts(&self, touched: &Touched, errors: &mut Vec<OperationError>) {
        let mut check = |count: usize, max: usize, what: String| {
            if count > max && errors.len() < ERRORS_MAX {
                let reason = format!("{count}, above the limit of {max}");
                errors.push(OperationError { step: None, what, reason, remedy: "remove some".into() });
            }
        };
        check(self.listeners.len(), LISTENERS_MAX, "listeners".into());
        check(self.answers.len(), ANSWERS_MAX, "answers".into());
        check(self.clusters.len(), CLUSTERS_MAX, "clusters".into());
        check(self.routes.len(), ROUTES_MAX, "routes".into());
        check(self.backends, BACKENDS_MAX, "backends".into());
        for (what, count, max) in self.pattern_counts() {
            check(count, max, what.into());
        }
        for name in touched.backends.keys() {
            let count = self.clusters.get(name).map_or(0, |entry| entry.backends.len());
            check(count, BACKENDS_PER_CLUSTER_MAX, format!("backends of cluster \"{name}\""));
        }
    }
}
