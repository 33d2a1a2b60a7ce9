//! Which route a request takes, and what that does: a table that changes without being rebuilt.
//!
//! | first difference | in this order |
//! |---|---|
//! | host | exact, longest wildcard, regular expressions, any host |
//! | listener | its own routes, everybody's |
//! | path | exact, regular expressions, longest prefix |
//! | conditions | more header conditions; a list of methods before none, a shorter before a longer; the smaller text |
//!
//! Among regular expressions: the higher priority, the longer text, the smaller text. So the order is total, and no two routes
//! are equal in it but those with the same [`RouteKey`], of which the later takes the place of the earlier. A request takes
//! the first route that it matches in everything: a host that is known, but has no route for the path, falls back to the
//! next.
//!
//! Hosts stand in a radix tree by their text from right to left, so that a name and the wildcards above it lie on one way;
//! paths in one for each host. Regular expressions are tried one after the other, so their number is bounded.
#![deny(clippy::disallowed_methods)]

mod actions;
mod allowed;
mod auth;
mod condition;
mod paths;
mod pattern;
mod template;
mod tree;

use std::collections::HashMap;
use std::rc::Rc;

use regex::bytes::Regex;
use underpass_command::state::{Route, RouteKey};

pub use actions::{Actions, EDITS_MAX, Edits, Invalid, Own, REDIRECT_STATUSES, Redirect, Rewritten, Target};
pub use allowed::Allowed;
pub use auth::{Auth, USERS_MAX};
pub(crate) use auth::{CREDENTIALS_SIZE_MAX, user_of};
pub use pattern::{PATTERN_SIZE_MAX, compile as compile_pattern};
pub use template::{Groups, IN_ANSWER, TEMPLATE_SIZE_MAX, Template, Values};

use crate::http1::Fields;
use condition::Conditions;
use paths::{Paths, RegexOrder, Slot, regex_order};
use tree::Tree;

/// Longest host name looked up; RFC 1035 section 2.3.4 allows 255 octets.
pub const HOST_SIZE_MAX: usize = 255;

/// What a request asks for, as far as routes look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The host as it was sent, without port.
    pub host: &'a [u8],
    /// The path without query.
    pub path: &'a [u8],
    /// The method.
    pub method: &'a [u8],
    /// The header fields.
    pub fields: &'a Fields,
    /// The buffer in which the fields lie.
    pub bytes: &'a [u8],
}

/// What a route does.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    /// The cluster's number; none where the proxy answers itself.
    pub cluster: Option<u32>,
    /// Whether CONNECT is allowed.
    pub allow_connect: bool,
    /// What else is done; none for most.
    pub actions: Option<Rc<Actions>>,
    /// What it is called, where somebody wants to know.
    pub name: Option<Rc<String>>,
}

impl Destination {
    /// What a route does; `cluster` is the number of the cluster that it leads to, if it leads to one.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the route.
    pub fn new(route: &Route, cluster: Option<u32>) -> Result<Self, String> {
        let actions = Actions::new(route).map_err(|(key, error)| format!("{key}: {error}"))?;
        Ok(Self { cluster, allow_connect: route.allow_connect, actions, name: None })
    }
}

/// Outcome of a lookup.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// A route matches.
    Route(&'a Destination),
    /// The host is known, but nothing matches there.
    NoPath,
    /// The host is not known.
    NoHost,
}

/// The routes of one host: those of single listeners, and those of all.
#[derive(Debug, Default)]
struct ByListener {
    everywhere: Option<Box<Paths>>,
    /// Sorted by the listener's number.
    own: Vec<(u32, Box<Paths>)>,
}

impl ByListener {
    fn is_empty(&self) -> bool {
        self.everywhere.is_none() && self.own.is_empty()
    }

    fn paths_mut(&mut self, listener: Option<u32>) -> &mut Paths {
        let Some(number) = listener else { return self.everywhere.get_or_insert_default() };
        let at = match self.own.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => at,
            Err(at) => {
                self.own.insert(at, (number, Box::default()));
                at
            }
        };
        &mut self.own[at].1
    }

    fn existing(&mut self, listener: Option<u32>) -> Option<&mut Paths> {
        match listener {
            None => self.everywhere.as_deref_mut(),
            Some(number) => {
                let at = self.own.binary_search_by_key(&number, |(number, _)| *number).ok()?;
                Some(&mut self.own[at].1)
            }
        }
    }

    /// Removes paths that have become empty.
    fn tidy(&mut self) {
        if self.everywhere.as_ref().is_some_and(|paths| paths.is_empty()) {
            self.everywhere = None;
        }
        self.own.retain(|(_, paths)| !paths.is_empty());
    }

    /// Visits the listener's own routes, then everybody's.
    #[inline]
    fn visit<'a, R>(
        &'a self,
        listener: u32,
        path: &[u8],
        known: &mut bool,
        visit: &mut impl FnMut(&'a Slot) -> Option<R>,
    ) -> Option<R> {
        let own = match self.own.as_slice() {
            [] => None,
            own => own.binary_search_by_key(&listener, |(number, _)| *number).ok().map(|at| &own[at].1),
        };
        own.into_iter().chain(&self.everywhere).find_map(|paths| {
            *known = true;
            paths.visit(path, visit)
        })
    }
}

/// The routes at one name in the tree of hosts.
#[derive(Debug, Default)]
struct Host {
    /// For this very name.
    exact: ByListener,
    /// For the names below it: the key in the tree ends with the dot.
    below: ByListener,
}

#[derive(Debug)]
struct HostRegex {
    order: RegexOrder,
    regex: Regex,
    routes: ByListener,
}

/// A listener's place in the table.
#[derive(Debug, Default)]
struct Listener {
    routes: usize,
    /// How many look routes up for it: its successor of the same name may be there while it is still in use.
    held: u32,
}

/// The routing table of a worker.
#[derive(Debug, Default)]
pub struct Table {
    /// By the name from right to left.
    hosts: Tree<Host>,
    /// In the order in which they are tried.
    regexes: Vec<HostRegex>,
    any: ByListener,
    numbers: HashMap<String, u32>,
    listeners: Vec<Listener>,
    /// Numbers of listeners that have gone.
    free: Vec<u32>,
    /// Routes for every listener.
    everywhere: usize,
}

impl Table {
    /// Adds a route, or puts it in the place of the one with the same key.
    ///
    /// In a table of server names a route's `sni` is looked up as the host.
    ///
    /// # Errors
    /// What is wrong with a regular expression; nothing was changed then.
    pub fn add(&mut self, route: &Route, destination: Destination) -> Result<(), String> {
        let key = route.key();
        let conditions = Conditions::new(&key)?;
        let listener = key.listener.as_deref().map(|name| self.number_of(name));
        let added =
            self.at(&key).and_then(|routes| routes.paths_mut(listener).add(&key, conditions, destination));
        match &added {
            Ok(true) => *self.count(listener) += 1,
            Ok(false) => {}
            Err(_) => {
                // What was made for it on the way.
                self.remove_at(listener, &key);
                key.listener.iter().for_each(|name| self.forget_if_unused(name));
            }
        }
        added.map(|_| ())
    }

    /// Removes a route; false when it is not there.
    pub fn remove(&mut self, key: &RouteKey) -> bool {
        let listener = match &key.listener {
            None => None,
            Some(name) => match self.numbers.get(name) {
                Some(number) => Some(*number),
                None => return false,
            },
        };
        let removed = self.remove_at(listener, key);
        if removed {
            *self.count(listener) -= 1;
            if let Some(name) = &key.listener {
                self.forget_if_unused(name);
            }
        }
        removed
    }

    /// The number under which a listener's routes are looked up, which stays until [`Self::release_listener`] has been
    /// called as often as this.
    pub fn hold_listener(&mut self, listener: &str) -> u32 {
        let number = self.number_of(listener);
        self.listeners[number as usize].held += 1;
        number
    }

    /// Nobody looks up routes for this listener any more.
    pub fn release_listener(&mut self, listener: &str) {
        if let Some(number) = self.numbers.get(listener) {
            self.listeners[*number as usize].held -= 1;
            self.forget_if_unused(listener);
        }
    }

    /// Whether any route concerns a listener: one of its own, or one of everybody.
    pub fn has_routes(&self, listener: u32) -> bool {
        self.everywhere > 0 || self.listeners.get(listener as usize).is_some_and(|own| own.routes > 0)
    }

    /// Finds the route of a request that came in by a listener.
    pub fn find(&self, listener: u32, asked: &Asked<'_>) -> Found<'_> {
        let mut known = false;
        match self.visit(listener, asked, &mut known, |slot| slot.find(asked)) {
            Some(destination) => Found::Route(destination),
            None if known => Found::NoPath,
            None => Found::NoHost,
        }
    }

    /// The methods with which a request that takes no route would take one. It costs another lookup.
    pub fn allowed(&self, listener: u32, asked: &Asked<'_>) -> Allowed<'_> {
        let mut allowed = Allowed::default();
        self.visit(listener, asked, &mut false, |slot| {
            slot.allowed(asked, &mut allowed);
            None::<()>
        });
        allowed.sorted()
    }

    /// Visits the routes that match in listener, host and path, in their order, until one gives an outcome. `known` becomes
    /// true when the host is.
    #[inline]
    fn visit<'a, R>(
        &'a self,
        listener: u32,
        asked: &Asked<'_>,
        known: &mut bool,
        mut visit: impl FnMut(&'a Slot) -> Option<R>,
    ) -> Option<R> {
        let mut reversed = [0u8; HOST_SIZE_MAX];
        let host = &asked.host[..asked.host.len().min(HOST_SIZE_MAX)];
        // RFC 3986 section 3.2.2: a name may end with the root's dot; it is the same name.
        let host = host.strip_suffix(b".").unwrap_or(host);
        for (to, from) in reversed.iter_mut().zip(host.iter().rev()) {
            *to = from.to_ascii_lowercase();
        }
        let name = &reversed[..host.len()];
        let by_name = self.hosts.longest_first(name, |host, length| {
            let whole = length == name.len();
            if whole && let Some(outcome) = host.exact.visit(listener, asked.path, known, &mut visit) {
                return Some(outcome);
            }
            host.below.visit(listener, asked.path, known, &mut visit)
        });
        if by_name.is_some() {
            return by_name;
        }
        if !self.regexes.is_empty() {
            let host = &mut reversed[..host.len()];
            host.reverse();
            let mut matching = self.regexes.iter().filter(|by_regex| by_regex.regex.is_match(host));
            let by_regex =
                matching.find_map(|by_regex| by_regex.routes.visit(listener, asked.path, known, &mut visit));
            if by_regex.is_some() {
                return by_regex;
            }
        }
        self.any.visit(listener, asked.path, known, &mut visit)
    }

    /// Where the routes of a host stand, made where there are none yet.
    fn at(&mut self, key: &RouteKey) -> Result<&mut ByListener, String> {
        if let Some(text) = &key.host_regex {
            let order = regex_order(key.priority, text);
            let at = match self.regexes.binary_search_by(|by_regex| by_regex.order.cmp(&order)) {
                Ok(at) => at,
                Err(at) => {
                    let regex = pattern::compile(text)?;
                    self.regexes.insert(at, HostRegex { order, regex, routes: ByListener::default() });
                    at
                }
            };
            return Ok(&mut self.regexes[at].routes);
        }
        Ok(match name_in(key) {
            None => &mut self.any,
            Some(Name::Exact(reversed)) => &mut self.hosts.entry(&reversed).exact,
            Some(Name::Below(reversed)) => &mut self.hosts.entry(&reversed).below,
        })
    }

    fn remove_at(&mut self, listener: Option<u32>, key: &RouteKey) -> bool {
        let remove = |routes: &mut ByListener| {
            let removed = routes.existing(listener).is_some_and(|paths| paths.remove(key));
            routes.tidy();
            removed
        };
        if let Some(text) = &key.host_regex {
            let order = regex_order(key.priority, text);
            let Ok(at) = self.regexes.binary_search_by(|by_regex| by_regex.order.cmp(&order)) else {
                return false;
            };
            let removed = remove(&mut self.regexes[at].routes);
            if self.regexes[at].routes.is_empty() {
                self.regexes.remove(at);
            }
            return removed;
        }
        let (name, exact) = match name_in(key) {
            None => return remove(&mut self.any),
            Some(Name::Exact(reversed)) => (reversed, true),
            Some(Name::Below(reversed)) => (reversed, false),
        };
        let Some(host) = self.hosts.get_mut(&name) else { return false };
        let removed = remove(if exact { &mut host.exact } else { &mut host.below });
        if host.exact.is_empty() && host.below.is_empty() {
            self.hosts.remove(&name);
        }
        removed
    }

    fn number_of(&mut self, listener: &str) -> u32 {
        if let Some(number) = self.numbers.get(listener) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.listeners.push(Listener::default());
            u32::try_from(self.listeners.len() - 1).unwrap_or(u32::MAX)
        });
        self.numbers.insert(listener.to_owned(), number);
        number
    }

    fn forget_if_unused(&mut self, listener: &str) {
        let Some(number) = self.numbers.get(listener).copied() else { return };
        let Listener { routes, held } = self.listeners[number as usize];
        if routes == 0 && held == 0 {
            self.numbers.remove(listener);
            self.free.push(number);
        }
    }

    fn count(&mut self, listener: Option<u32>) -> &mut usize {
        match listener {
            None => &mut self.everywhere,
            Some(number) => &mut self.listeners[number as usize].routes,
        }
    }
}

/// The host of a route, from right to left.
enum Name {
    Exact(Vec<u8>),
    /// With the dot that stands before what is below.
    Below(Vec<u8>),
}

fn name_in(key: &RouteKey) -> Option<Name> {
    let host = key.host.as_deref().or(key.sni.as_deref())?;
    let reversed = |name: &str| name.bytes().rev().collect();
    Some(match host.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') => Name::Below(reversed(suffix)),
        _ => Name::Exact(reversed(host)),
    })
}

#[cfg(test)]
mod tests;
