//! The routes of one host on one listener: paths, and conditions below them.

use std::cmp::Reverse;

use regex::bytes::Regex;
use underpass_command::state::{PathMatch, RouteKey};

use super::condition::Conditions;
use super::tree::Tree;
use super::{Allowed, Asked, Destination, pattern};

/// Routes by path.
#[derive(Debug, Default)]
pub(super) struct Paths {
    tree: Tree<Node>,
    /// In the order in which they are tried.
    regexes: Vec<ByRegex>,
}

/// The routes at one path.
#[derive(Debug, Default)]
struct Node {
    exact: Slot,
    prefix: Slot,
}

#[derive(Debug)]
struct ByRegex {
    order: RegexOrder,
    regex: Regex,
    slot: Slot,
}

/// The order of regular expressions: higher priority, longer text, smaller text.
pub(super) type RegexOrder = (Reverse<u16>, Reverse<usize>, String);

/// The place of a regular expression among others.
pub(super) fn regex_order(priority: u16, text: &str) -> RegexOrder {
    (Reverse(priority), Reverse(text.len()), text.to_owned())
}

/// Routes that differ in nothing but conditions, in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct Slot(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    conditions: Option<Box<Conditions>>,
    destination: Destination,
}

impl Slot {
    #[inline]
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<&Destination> {
        let met = |entry: &&Entry| entry.conditions.as_ref().is_none_or(|conditions| conditions.hold(asked));
        self.0.iter().find(met).map(|entry| &entry.destination)
    }

    /// Tells the methods of the routes that a request would take if it had another.
    pub(super) fn allowed<'a>(&'a self, asked: &Asked<'_>, allowed: &mut Allowed<'a>) {
        for conditions in self.0.iter().filter_map(|entry| entry.conditions.as_deref()) {
            if conditions.hold_but_method(asked) {
                // RFC 9110 section 9.3.6: what CONNECT asks for is an authority, no resource.
                let methods = conditions.methods().iter().filter(|method| *method != "CONNECT");
                methods.for_each(|method| allowed.add(method));
            }
        }
    }

    /// True when it is one more.
    fn put(&mut self, conditions: Option<Box<Conditions>>, destination: Destination) -> bool {
        let at = {
            let rank = Conditions::rank(conditions.as_deref());
            self.0.binary_search_by(|entry| Conditions::rank(entry.conditions.as_deref()).cmp(&rank))
        };
        match at {
            Ok(at) => self.0[at].destination = destination,
            Err(at) => {
                // Nearly all have one.
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, Entry { conditions, destination });
            }
        }
        at.is_err()
    }

    fn remove(&mut self, key: &RouteKey) -> bool {
        let before = self.0.len();
        self.0.retain(|entry| !Conditions::are_of(entry.conditions.as_deref(), key));
        self.0.len() < before
    }
}

impl Paths {
    pub(super) fn is_empty(&self) -> bool {
        self.tree.is_empty() && self.regexes.is_empty()
    }

    /// Adds a route, or puts it in the place of the one with the same key; true when it is one more.
    pub(super) fn add(
        &mut self,
        key: &RouteKey,
        conditions: Option<Box<Conditions>>,
        destination: Destination,
    ) -> Result<bool, String> {
        Ok(match &key.path {
            PathMatch::Exact(path) => self.tree.entry(path.as_bytes()).exact.put(conditions, destination),
            PathMatch::Prefix(path) => self.tree.entry(path.as_bytes()).prefix.put(conditions, destination),
            PathMatch::Regex(text) => {
                let order = regex_order(key.priority, text);
                let at = match self.regexes.binary_search_by(|by_regex| by_regex.order.cmp(&order)) {
                    Ok(at) => at,
                    Err(at) => {
                        let regex = pattern::compile(text)?;
                        self.regexes.insert(at, ByRegex { order, regex, slot: Slot::default() });
                        at
                    }
                };
                self.regexes[at].slot.put(conditions, destination)
            }
        })
    }

    /// Removes a route; false when it is not there.
    pub(super) fn remove(&mut self, key: &RouteKey) -> bool {
        let path = match &key.path {
            PathMatch::Exact(path) | PathMatch::Prefix(path) => path.as_bytes(),
            PathMatch::Regex(text) => {
                let order = regex_order(key.priority, text);
                let Ok(at) = self.regexes.binary_search_by(|by_regex| by_regex.order.cmp(&order)) else {
                    return false;
                };
                let removed = self.regexes[at].slot.remove(key);
                if self.regexes[at].slot.0.is_empty() {
                    self.regexes.remove(at);
                }
                return removed;
            }
        };
        let Some(node) = self.tree.get_mut(path) else { return false };
        let exact = matches!(key.path, PathMatch::Exact(_));
        let removed = if exact { node.exact.remove(key) } else { node.prefix.remove(key) };
        if node.exact.0.is_empty() && node.prefix.0.is_empty() {
            self.tree.remove(path);
        }
        removed
    }

    /// Visits the routes that match a path until one gives an outcome: exact, then regular expressions, then the longest
    /// prefix, so that one that takes every path leaves the others theirs.
    #[inline]
    pub(super) fn visit<'a, R>(
        &'a self,
        path: &[u8],
        visit: &mut impl FnMut(&'a Slot) -> Option<R>,
    ) -> Option<R> {
        if self.regexes.is_empty() {
            // Nearly always: one way down the tree finds both.
            return self.visit_plain(path, true, true, visit);
        }
        if let Some(outcome) = self.visit_plain(path, true, false, visit) {
            return Some(outcome);
        }
        let mut matching = self.regexes.iter().filter(|by_regex| by_regex.regex.is_match(path));
        if let Some(outcome) = matching.find_map(|by_regex| visit(&by_regex.slot)) {
            return Some(outcome);
        }
        self.visit_plain(path, false, true, visit)
    }

    #[inline]
    fn visit_plain<'a, R>(
        &'a self,
        path: &[u8],
        exact: bool,
        prefixes: bool,
        visit: &mut impl FnMut(&'a Slot) -> Option<R>,
    ) -> Option<R> {
        self.tree.longest_first(path, |node, length| {
            let whole = length == path.len();
            if exact
                && whole
                && let Some(outcome) = visit(&node.exact)
            {
                return Some(outcome);
            }
            // A prefix ends at a segment's border.
            let border = || whole || path[length] == b'/' || path[..length].ends_with(b"/");
            if prefixes && border() { visit(&node.prefix) } else { None }
        })
    }
}
