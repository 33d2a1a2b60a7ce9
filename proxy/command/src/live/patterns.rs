//! Bounds of what routes make a worker try one after the other, or keep compiled.

use std::collections::{BTreeSet, HashMap};

use super::Configuration;
use crate::state::{PathMatch, Route, RouteKey, ValueMatch};

/// The most regular expressions of all routes: each may take some 100 KiB in every worker.
pub const PATTERNS_MAX: usize = 1024;
/// The most regular expressions for hosts, and for the paths of one host on one listener.
pub const PATTERNS_PER_HOST_MAX: usize = 64;
/// The most routes with methods or headers for the same host and path on one listener.
pub const CONDITIONS_MAX: usize = 64;

/// How many regular expressions the routes of a configuration have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Patterns {
    all: usize,
    /// By priority and text: how many routes have it for their host.
    hosts: HashMap<(u16, String), usize>,
}

impl Patterns {
    /// Counts those of a route in, or out.
    pub(super) fn count(&mut self, route: &Route, up: bool) {
        let count = of_route(route);
        if up {
            self.all += count;
        } else {
            self.all -= count;
        }
        let Some(text) = &route.host_regex else { return };
        let key = (route.priority, text.clone());
        let uses = self.hosts.entry(key.clone()).or_default();
        if up {
            *uses += 1;
        } else {
            *uses -= 1;
            if *uses == 0 {
                self.hosts.remove(&key);
            }
        }
    }
}

fn of_route(route: &Route) -> usize {
    let headers = route.headers.iter().filter(|header| matches!(header.value, ValueMatch::Regex(_))).count();
    headers + usize::from(route.host_regex.is_some()) + usize::from(matches!(route.path, PathMatch::Regex(_)))
}

impl Configuration {
    /// What there is too much of in all routes together: what, how many, and how many there may be.
    pub(super) fn pattern_counts(&self) -> [(&'static str, usize, usize); 2] {
        [
            ("regular expressions of routes", self.patterns.all, PATTERNS_MAX),
            ("regular expressions for hosts", self.patterns.hosts.len(), PATTERNS_PER_HOST_MAX),
        ]
    }

    /// Why a route is one too many for its host or path. Looks at no more routes than there may be.
    pub fn crowded(&self, key: &RouteKey) -> Option<String> {
        let here = RouteKey {
            listener: key.listener.clone(),
            host: key.host.clone(),
            host_regex: key.host_regex.clone(),
            sni: key.sni.clone(),
            ..RouteKey::default()
        };
        let same_host = |other: &RouteKey| {
            (&other.listener, &other.host, &other.host_regex, &other.sni)
                == (&key.listener, &key.host, &key.host_regex, &key.sni)
        };
        if matches!(key.path, PathMatch::Regex(_)) {
            let first = RouteKey { path: PathMatch::Regex(String::new()), ..here.clone() };
            let mut seen = BTreeSet::new();
            for (other, _) in self.routes.range(first..).take_while(|(other, _)| same_host(other)) {
                seen.insert((other.priority, &other.path));
                if seen.len() > PATTERNS_PER_HOST_MAX {
                    let max = PATTERNS_PER_HOST_MAX;
                    return Some(format!("more than {max} regular expressions for paths of one host"));
                }
            }
        }
        if !key.methods.is_empty() || !key.headers.is_empty() {
            let first = RouteKey { path: key.path.clone(), ..here };
            let same = |other: &RouteKey| same_host(other) && other.path == key.path;
            let count = self
                .routes
                .range(first..)
                .take_while(|(other, _)| same(other))
                .filter(|(other, _)| other.priority == key.priority)
                .filter(|(other, _)| !other.methods.is_empty() || !other.headers.is_empty())
                .take(CONDITIONS_MAX + 1)
                .count();
            if count > CONDITIONS_MAX {
                return Some(format!("more than {CONDITIONS_MAX} routes for the same host and path"));
            }
        }
        None
    }
}
