//! Which cluster serves a request: a table of hosts and paths that changes without being rebuilt.
#![deny(clippy::disallowed_methods)]

use std::collections::HashMap;

use underpass_command::state::{PathMatch, Route};

/// Longest host name looked up; RFC 1035 section 2.3.4 allows 255 octets.
pub const HOST_SIZE_MAX: usize = 255;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The cluster's number.
    pub cluster: u32,
    /// Whether CONNECT is allowed.
    pub allow_connect: bool,
}

/// Outcome of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A route matches.
    Route(Destination),
    /// The host is known, the path is not.
    NoPath,
    /// The host is not known.
    NoHost,
}

/// Paths of one host on one listener.
#[derive(Clone, Debug, Default)]
struct Paths {
    exact: HashMap<Vec<u8>, Destination>,
    /// Longest first.
    prefixes: Vec<(Vec<u8>, Destination)>,
}

impl Paths {
    fn find(&self, path: &[u8]) -> Option<Destination> {
        if let Some(found) = self.exact.get(path) {
            return Some(*found);
        }
        self.prefixes.iter().find(|(prefix, _)| is_under(path, prefix)).map(|(_, destination)| *destination)
    }
}

/// Whether `path` is `prefix` or below it, at a segment's border.
fn is_under(path: &[u8], prefix: &[u8]) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest[0] == b'/' || prefix.ends_with(b"/"),
        None => false,
    }
}

/// All routes of one scope: one listener, or every listener.
#[derive(Clone, Debug, Default)]
struct Scope {
    exact: HashMap<Vec<u8>, Paths>,
    /// By the name behind `*.`.
    wildcard: HashMap<Vec<u8>, Paths>,
    any: Paths,
}

impl Scope {
    fn is_empty(&self) -> bool {
        self.exact.is_empty()
            && self.wildcard.is_empty()
            && self.any.exact.is_empty()
            && self.any.prefixes.is_empty()
    }

    fn paths_mut(&mut self, host: Option<&str>) -> &mut Paths {
        match host.map(str::to_ascii_lowercase) {
            None => &mut self.any,
            Some(host) => match host.strip_prefix("*.") {
                Some(suffix) => self.wildcard.entry(suffix.as_bytes().to_vec()).or_default(),
                None => self.exact.entry(host.into_bytes()).or_default(),
            },
        }
    }
}

/// The routing table of a worker.
#[derive(Clone, Debug, Default)]
pub struct Table {
    everywhere: Scope,
    listeners: HashMap<String, u32>,
    scopes: Vec<Scope>,
}

impl Table {
    /// Adds a route to cluster number `cluster`. A later route for the same host and path takes the place of an earlier
    /// one.
    pub fn add(&mut self, route: &Route, cluster: u32) {
        let destination = Destination { cluster, allow_connect: route.allow_connect };
        let scope = match &route.listener {
            None => &mut self.everywhere,
            Some(name) => {
                let number = self.scope_of(name);
                &mut self.scopes[number as usize]
            }
        };
        let paths = scope.paths_mut(route.host.as_deref());
        match &route.path {
            PathMatch::Exact(path) => {
                paths.exact.insert(path.clone().into_bytes(), destination);
            }
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.as_bytes();
                paths.prefixes.retain(|(existing, _)| existing != prefix);
                let at = paths.prefixes.partition_point(|(existing, _)| existing.len() >= prefix.len());
                paths.prefixes.insert(at, (prefix.to_vec(), destination));
            }
            // `worker::control` refuses such a route before it comes here.
            PathMatch::Regex(_) => {}
        }
    }

    /// The number of a listener's own scope, for [`Self::find`].
    pub fn scope_of(&mut self, listener: &str) -> u32 {
        if let Some(number) = self.listeners.get(listener) {
            return *number;
        }
        let number = u32::try_from(self.scopes.len()).unwrap_or(u32::MAX);
        self.scopes.push(Scope::default());
        self.listeners.insert(listener.to_owned(), number);
        number
    }

    /// Whether any route concerns a listener: one of its own, or one of everybody.
    pub fn has_routes(&self, listener: u32) -> bool {
        let own = self.scopes.get(listener as usize);
        own.into_iter().chain([&self.everywhere]).any(|scope| !scope.is_empty())
    }

    /// Finds the route of a request. `host` is as it was sent, without port; `path` without query.
    ///
    /// The order is: exact host, longest wildcard, any host; in each, the listener's own routes, then everybody's. A host that
    /// is known but has no route for the path falls back to the routes for any host.
    pub fn find(&self, listener: u32, host: &[u8], path: &[u8]) -> Found {
        let own = self.scopes.get(listener as usize);
        let scopes = [own, Some(&self.everywhere)];
        let mut known = false;
        let mut lower = [0u8; HOST_SIZE_MAX];
        let length = host.len().min(HOST_SIZE_MAX);
        lower[..length].copy_from_slice(&host[..length]);
        lower[..length].make_ascii_lowercase();
        // RFC 3986 section 3.2.2: a name may end with the root's dot; it is the same name.
        let name = lower[..length].strip_suffix(b".").unwrap_or(&lower[..length]);
        let mut try_paths = |paths: Option<&Paths>| {
            let paths = paths?;
            known = true;
            paths.find(path)
        };
        for scope in scopes.into_iter().flatten() {
            if let Some(found) = try_paths(scope.exact.get(name)) {
                return Found::Route(found);
            }
        }
        let mut rest = name;
        while let Some(dot) = memchr::memchr(b'.', rest) {
            rest = &rest[dot + 1..];
            for scope in scopes.into_iter().flatten() {
                if let Some(found) = try_paths(scope.wildcard.get(rest)) {
                    return Found::Route(found);
                }
            }
        }
        for scope in scopes.into_iter().flatten() {
            if let Some(found) = scope.any.find(path) {
                return Found::Route(found);
            }
            known |= !scope.any.exact.is_empty() || !scope.any.prefixes.is_empty();
        }
        if known { Found::NoPath } else { Found::NoHost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(listener: Option<&str>, host: Option<&str>, path: PathMatch) -> Route {
        Route { listener: listener.map(str::to_owned), host: host.map(str::to_owned), path, ..Route::new("") }
    }

    fn prefix(path: &str) -> PathMatch {
        PathMatch::Prefix(path.to_owned())
    }

    fn cluster(found: Found) -> Option<u32> {
        match found {
            Found::Route(destination) => Some(destination.cluster),
            Found::NoPath | Found::NoHost => None,
        }
    }

    #[test]
    fn exact_host_before_wildcard_before_any() {
        let mut table = Table::default();
        table.add(&route(None, Some("a.example"), prefix("/")), 1);
        table.add(&route(None, Some("*.example"), prefix("/")), 2);
        table.add(&route(None, Some("*.b.example"), prefix("/")), 3);
        let find = |host: &str| table.find(9, host.as_bytes(), b"/x");
        assert_eq!(cluster(find("A.Example")), Some(1));
        assert_eq!(cluster(find("a.example.")), Some(1));
        assert_eq!(cluster(find("c.example")), Some(2));
        assert_eq!(cluster(find("c.b.example")), Some(3));
        assert_eq!(find("example"), Found::NoHost);
        table.add(&route(None, None, prefix("/x")), 4);
        assert_eq!(cluster(table.find(9, b"example", b"/x")), Some(4));
        assert_eq!(table.find(9, b"example", b"/y"), Found::NoPath);
    }

    #[test]
    fn exact_path_before_longest_prefix_at_segment_borders() {
        let mut table = Table::default();
        table.add(&route(None, Some("h"), prefix("/a")), 1);
        table.add(&route(None, Some("h"), prefix("/a/b")), 2);
        table.add(&route(None, Some("h"), PathMatch::Exact("/a/b/c".into())), 3);
        let find = |table: &Table, path: &str| table.find(0, b"h", path.as_bytes());
        assert_eq!(cluster(find(&table, "/a")), Some(1));
        assert_eq!(cluster(find(&table, "/a/b/x")), Some(2));
        assert_eq!(cluster(find(&table, "/a/b/c")), Some(3));
        assert_eq!(find(&table, "/ab"), Found::NoPath);
        table.add(&route(None, Some("h"), prefix("/a")), 7);
        assert_eq!(cluster(find(&table, "/a/x")), Some(7));
    }

    #[test]
    fn a_listeners_own_routes_come_first() {
        let mut table = Table::default();
        table.add(&route(None, Some("h"), prefix("/")), 1);
        table.add(&route(Some("web"), Some("h"), prefix("/")), 2);
        let web = table.scope_of("web");
        let other = table.scope_of("other");
        assert_eq!(cluster(table.find(web, b"h", b"/")), Some(2));
        assert_eq!(cluster(table.find(other, b"h", b"/")), Some(1));
    }
}
