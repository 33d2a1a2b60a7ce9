//! The rules that a state must keep, wherever it comes from.

mod change;
mod clusters;
mod protocols;
mod routes;

pub use change::{ChangeProblems, check_change, keep_settled, settled_differently};

pub(super) use protocols::{sni_route_fault, tcp_listener_fault};

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use underpass_command::state::{
    AccessLogFormat, Cluster, Listener, Log, PathMatch, Protocol, RedirectMode, Route, Settings, State,
};

use super::keys;
use super::problem::{Place, Problem};
use super::syntax::nearest;
use super::table::{Fault, Key, quote};
use crate::log_format::{Template, TemplateError};

pub(super) use underpass_command::live::{
    BACKENDS_PER_CLUSTER_MAX as BACKENDS_MAX, CLUSTERS_MAX, LISTENERS_MAX, ROUTES_MAX,
};

/// For how many names that are not there a similar one is sought, because that takes a look at all.
const SUGGESTIONS_MAX: usize = 100;

/// Everything that is wrong with a state, errors and warnings, in no particular order. Nothing outside the state is
/// looked at: whether addresses can be bound, users exist or files can be written is seen at start.
pub fn validate(state: &State) -> Vec<Problem> {
    let mut problems = check_items(state);
    check_settings(&state.settings, &mut problems);
    check_counts(state, &mut problems);
    routes::check_counts(state, &mut problems);
    check_unique(state, &mut problems);
    check_references(state, &mut problems);
    check_use(state, &mut problems);
    check_loops(state, &mut problems);
    problems
}

/// What is wrong with single items, whatever others there are; but what a route or cluster names as listener is looked at.
fn check_items(state: &State) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_values(state, &mut problems);
    check_redirects(state, &mut problems);
    clusters::check(state, &mut problems);
    protocols::check(state, &mut problems);
    routes::check(state, &mut problems);
    problems
}

/// A place in words, as messages begin with it. The name is that of the listener or cluster.
pub(super) fn label(place: Place, name: &str) -> String {
    let named = |kind: &str, index: usize| match name {
        "" => format!("{kind} {}", index + 1),
        name => format!("{kind} {name:?}"),
    };
    match place {
        Place::Whole | Place::Settings => String::new(),
        Place::Listener(index) => named("listener", index),
        Place::Cluster(index) => named("cluster", index),
        Place::Backend { cluster, backend } => {
            format!("{}: backend {}", named("cluster", cluster), backend + 1)
        }
        Place::Route(index) => format!("route {}", index + 1),
        Place::Answer(index) => named("answer", index),
    }
}

/// Each value by itself, by the table of keys.
fn check_values(state: &State, problems: &mut Vec<Problem>) {
    check_keys(problems, Place::Settings, "", "", keys::ROOT, &state.settings);
    for (name, keys) in keys::TABLES {
        check_keys(problems, Place::Settings, "", &format!("{name}."), keys, &state.settings);
    }
    for (index, listener) in state.listeners.iter().enumerate() {
        check_keys(problems, Place::Listener(index), &listener.name, "", keys::LISTENER, listener);
    }
    for (index, cluster) in state.clusters.iter().enumerate() {
        check_keys(problems, Place::Cluster(index), &cluster.name, "", keys::CLUSTER, cluster);
        for (number, backend) in cluster.backends.iter().enumerate() {
            let place = Place::Backend { cluster: index, backend: number };
            check_keys(problems, place, &cluster.name, "", keys::BACKEND, backend);
        }
    }
    for (index, route) in state.routes.iter().enumerate() {
        check_keys(problems, Place::Route(index), "", "", keys::ROUTE, route);
    }
    routes::check_values(state, problems);
}

fn check_keys<T>(
    problems: &mut Vec<Problem>,
    place: Place,
    name: &str,
    prefix: &str,
    keys: &[Key<T>],
    item: &T,
) {
    for key in keys {
        if let Err(fault) = key.check(item) {
            let path = format!("{prefix}{}", key.name);
            let value = if key.is_secret() { None } else { key.literal(item) };
            problems.push(Problem::error(place, &label(place, name), &path, value, fault));
        }
    }
}

/// Settings that do not go together.
fn check_settings(settings: &Settings, problems: &mut Vec<Problem>) {
    let limits = &settings.limits;
    let mut refuse = |key: &str, value: u32, other: &str, fault| {
        let problem = Problem::error(Place::Settings, "", key, Some(value.to_string()), fault);
        problems.push(problem.follows_from(Place::Settings, other));
    };
    if limits.head_size_max > limits.buffer_size {
        let reason =
            format!("above limits.buffer_size, {}, and a head must fit into one buffer", limits.buffer_size);
        let fault = Fault::new(reason, "lower it, or raise limits.buffer_size");
        refuse("limits.head_size_max", limits.head_size_max, "limits.buffer_size", fault);
    }
    if limits.target_size_max >= limits.head_size_max {
        let reason = format!(
            "not below limits.head_size_max, {}, and the target is part of the head",
            limits.head_size_max
        );
        let fault = Fault::new(reason, "lower it, or raise limits.head_size_max");
        refuse("limits.target_size_max", limits.target_size_max, "limits.head_size_max", fault);
    }
    if u64::from(limits.unsent_max) < limits.redirect_credit {
        let reason = format!(
            "below limits.redirect_credit, {}, and sockmap may pass on as much before the socket has sent it",
            limits.redirect_credit
        );
        let fault = Fault::new(reason, "raise it, or lower limits.redirect_credit");
        refuse("limits.unsent_max", limits.unsent_max, "limits.redirect_credit", fault);
    }
    check_access_log(&settings.log, problems);
}

/// The template of the access log, together with how its values are written; also one that is not in use.
fn check_access_log(log: &Log, problems: &mut Vec<Problem>) {
    let key = "log.access_template";
    let Some(text) = log.access_template.as_deref() else {
        if log.access == AccessLogFormat::Template {
            let fault =
                Fault::new("missing, and log.access is \"template\"", "add it, or use another format");
            let problem = Problem::error(Place::Settings, "", key, None, fault);
            problems.push(problem.follows_from(Place::Settings, "log.access"));
        }
        return;
    };
    if let Err(TemplateError { at, reason, remedy }) = Template::new(text, log.access_escape.into()) {
        let at = at.map(|at| format!("at character {at}: ")).unwrap_or_default();
        let fault = Fault::new(format!("{at}{reason}"), remedy);
        let problem = Problem::error(Place::Settings, "", key, Some(quote(text)), fault);
        problems.push(problem.follows_from(Place::Settings, "log.access_escape"));
    }
}

/// Modes that have no pipe to work with.
fn check_redirects(state: &State, problems: &mut Vec<Problem>) {
    if state.settings.limits.pipes > 0 {
        return;
    }
    let mut check = |place: Place, name: &str, mode: Option<RedirectMode>| {
        if mode == Some(RedirectMode::Splice) {
            let fault =
                Fault::new("limits.pipes is 0, so bodies are copied", "raise limits.pipes, or use \"copy\"");
            let value = Some(quote(RedirectMode::Splice.name()));
            problems.push(Problem::warning(place, &label(place, name), "redirect", value, fault));
        }
    };
    check(Place::Settings, "", Some(state.settings.redirect));
    for (index, listener) in state.listeners.iter().enumerate() {
        check(Place::Listener(index), &listener.name, listener.redirect);
    }
    for (index, cluster) in state.clusters.iter().enumerate() {
        check(Place::Cluster(index), &cluster.name, cluster.redirect);
    }
}

/// Every list has a bound.
fn check_counts(state: &State, problems: &mut Vec<Problem>) {
    let mut check = |count: usize, max: usize, kind: &str, place: Place, name: &str| {
        if count > max {
            let fault = Fault::new(format!("more than {max} {kind}s"), format!("remove {}", count - max));
            problems.push(Problem::error(place, &label(place, name), "", None, fault));
        }
    };
    check(state.listeners.len(), LISTENERS_MAX, "listener", Place::Listener(LISTENERS_MAX), "");
    check(state.clusters.len(), CLUSTERS_MAX, "cluster", Place::Cluster(CLUSTERS_MAX), "");
    check(state.routes.len(), ROUTES_MAX, "route", Place::Route(ROUTES_MAX), "");
    check(state.answers.len(), routes::ANSWERS_MAX, "answer", Place::Answer(routes::ANSWERS_MAX), "");
    for (index, cluster) in state.clusters.iter().enumerate() {
        let place = Place::Backend { cluster: index, backend: BACKENDS_MAX };
        check(cluster.backends.len(), BACKENDS_MAX, "backend", place, &cluster.name);
    }
}

/// What must be there only once.
fn check_unique(state: &State, problems: &mut Vec<Problem>) {
    let listeners: Vec<_> = state.listeners.iter().map(|listener| listener.name.as_str()).collect();
    check_names(problems, &listeners, Place::Listener, "listener");
    let clusters: Vec<_> = state.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    check_names(problems, &clusters, Place::Cluster, "cluster");

    let addresses = state.listeners.iter().map(|listener| listener.address);
    // Port 0 is another port each time.
    for (second, first) in repeated(addresses.enumerate().filter(|(_, address)| address.port() != 0)) {
        let listener = &state.listeners[second];
        let place = Place::Listener(second);
        let reason =
            format!("{} listens there already", label(Place::Listener(first), &state.listeners[first].name));
        let fault = Fault::new(reason, "use another address or port");
        let value = Some(quote(&listener.address.to_string()));
        let problem = Problem::error(place, &label(place, &listener.name), "address", value, fault);
        problems.push(problem.follows_from(Place::Listener(first), "address"));
    }
    for (index, cluster) in state.clusters.iter().enumerate() {
        for (second, first) in repeated(cluster.backends.iter().map(|backend| backend.address).enumerate()) {
            let place = Place::Backend { cluster: index, backend: second };
            let fault = Fault::new(
                format!("backend {} of this cluster has it already", first + 1),
                "remove one of them",
            );
            let value = Some(quote(&cluster.backends[second].address.to_string()));
            let problem = Problem::error(place, &label(place, &cluster.name), "address", value, fault);
            problems.push(problem.follows_from(Place::Backend { cluster: index, backend: first }, "address"));
        }
    }
    check_routes_unique(state, problems);
    let answers: Vec<_> = state.answers.iter().map(|answer| answer.name.as_str()).collect();
    check_names(problems, &answers, Place::Answer, "answer");
}

fn check_names(problems: &mut Vec<Problem>, names: &[&str], place: fn(usize) -> Place, kind: &str) {
    // An empty name is refused as such.
    for (second, first) in repeated(names.iter().enumerate().filter(|(_, name)| !name.is_empty())) {
        let fault = Fault::new(format!("{kind} {} has this name already", first + 1), "give each its own");
        let value = Some(quote(names[second]));
        problems.push(Problem::error(place(second), &label(place(second), ""), "name", value, fault));
    }
}

fn check_routes_unique(state: &State, problems: &mut Vec<Problem>) {
    for (second, first) in repeated(state.routes.iter().map(Route::key).enumerate()) {
        let place = Place::Route(second);
        let what =
            if state.routes[second].sni.is_some() { "listener and sni" } else { "listener, host and path" };
        let reason = format!("the same {what} as route {}", first + 1);
        let mut problem =
            Problem::error(place, &label(place, ""), "", None, Fault::new(reason, "remove one of them"));
        for index in [first, second] {
            for key in ["listener", "host", "sni", "path", "path_prefix"] {
                problem = problem.follows_from(Place::Route(index), key);
            }
        }
        problems.push(problem);
    }
}

/// The positions of values that were there before, each with the position of the first.
fn repeated<T: Hash + Eq>(values: impl Iterator<Item = (usize, T)>) -> Vec<(usize, usize)> {
    let mut seen = HashMap::new();
    let mut repeated = Vec::new();
    for (index, value) in values {
        match seen.get(&value) {
            Some(first) => repeated.push((index, *first)),
            None => {
                seen.insert(value, index);
            }
        }
    }
    repeated
}

/// What is named must be there.
fn check_references(state: &State, problems: &mut Vec<Problem>) {
    let clusters: HashSet<&str> = state.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    let listeners: HashSet<&str> = state.listeners.iter().map(|listener| listener.name.as_str()).collect();
    let mut suggestions = 0;
    let mut check = |names: &HashSet<&str>, kind: &str, place: Place, name: &str, key: &str, value: &str| {
        if value.is_empty() || names.contains(value) {
            return;
        }
        suggestions += 1;
        let near = if suggestions <= SUGGESTIONS_MAX { nearest(value, names.iter().copied()) } else { None };
        let remedy = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("add a [[{kind}]] of this name, or name another"),
        };
        let fault = Fault::new(format!("there is no such {kind}"), remedy);
        let problem = Problem::error(place, &label(place, name), key, Some(quote(value)), fault);
        problems.push(problem.follows_from(Place::Whole, kind));
    };
    let answers: HashSet<&str> = state.answers.iter().map(|answer| answer.name.as_str()).collect();
    for (place, name, key, answer) in routes::named_answers(state) {
        check(&answers, "answer", place, name, &key, answer);
    }
    for (index, listener) in state.listeners.iter().enumerate() {
        if let Some(cluster) = &listener.default_cluster {
            let place = Place::Listener(index);
            check(&clusters, "cluster", place, &listener.name, "default_cluster", cluster);
        }
    }
    for (index, route) in state.routes.iter().enumerate() {
        if let Some(cluster) = &route.cluster {
            check(&clusters, "cluster", Place::Route(index), "", "cluster", cluster);
        }
        if let Some(listener) = &route.listener {
            check(&listeners, "listener", Place::Route(index), "", "listener", listener);
        }
    }
}

/// What is there and has no effect, or takes requests and cannot serve them.
fn check_use(state: &State, problems: &mut Vec<Problem>) {
    let mut warn = |place: Place, name: &str, key: &str, reason: &str, remedy: &str| {
        let fault = Fault::new(reason, remedy);
        problems.push(
            Problem::warning(place, &label(place, name), key, None, fault)
                .follows_from(Place::Whole, "listener"),
        );
    };
    if state.listeners.is_empty() {
        warn(Place::Whole, "", "", "there is no listener, so nothing is served", "add a [[listener]]");
    }
    let defaults = state.listeners.iter().filter_map(|listener| listener.default_cluster.as_deref());
    let used: HashSet<&str> =
        state.routes.iter().filter_map(|route| route.cluster.as_deref()).chain(defaults).collect();
    for (index, cluster) in state.clusters.iter().enumerate() {
        let place = Place::Cluster(index);
        if !used.contains(cluster.name.as_str()) {
            warn(
                place,
                &cluster.name,
                "",
                "no route and no listener leads to it",
                "add a [[route]], or remove it",
            );
        } else if cluster.backends.is_empty() {
            let remedy = "add a [[cluster.backend]] below it";
            warn(place, &cluster.name, "", "has no backend, so its requests cannot be served", remedy);
        }
    }
    let any_listener = state.routes.iter().any(|route| route.listener.is_none() && route.sni.is_none());
    let routed: HashSet<&str> = state.routes.iter().filter_map(|route| route.listener.as_deref()).collect();
    let http = |listener: &Listener| listener.protocol == Protocol::Http;
    for (index, listener) in state.listeners.iter().enumerate().filter(|(_, listener)| http(listener)) {
        if listener.default_cluster.is_none() && !any_listener && !routed.contains(listener.name.as_str()) {
            let reason = "has neither default_cluster nor a route, so it refuses every request";
            warn(
                Place::Listener(index),
                &listener.name,
                "",
                reason,
                "set default_cluster, or add a [[route]]",
            );
        }
    }
    for (index, route) in state.routes.iter().enumerate() {
        let (key, path) = match &route.path {
            PathMatch::Exact(path) => ("path", path),
            PathMatch::Prefix(path) => ("path_prefix", path),
            PathMatch::Regex(_) => continue,
        };
        if path.ends_with('*') {
            let fault = Fault::new(
                "the asterisk stands for itself",
                "a path_prefix without it takes every path below",
            );
            let place = Place::Route(index);
            problems.push(Problem::warning(place, &label(place, ""), key, Some(quote(path)), fault));
        }
    }
}

/// Backends that are the proxy itself.
fn check_loops(state: &State, problems: &mut Vec<Problem>) {
    let mut by_port: HashMap<u16, Vec<usize>> = HashMap::new();
    for (index, listener) in state.listeners.iter().enumerate() {
        by_port.entry(listener.address.port()).or_default().push(index);
    }
    for (index, cluster) in state.clusters.iter().enumerate() {
        for (number, backend) in cluster.backends.iter().enumerate() {
            let ip_of = |position: usize| state.listeners[position].address.ip();
            let same_port = by_port.get(&backend.address.port()).into_iter().flatten().copied();
            let answering = same_port.filter(|position| answers(ip_of(*position), backend.address.ip()));
            // The kernel prefers the listener with the more specific address.
            if let Some(position) = answering.min_by_key(|position| ip_of(*position).is_unspecified()) {
                let place = Place::Backend { cluster: index, backend: number };
                problems.push(loop_problem(state, place, cluster, backend.address, position));
            }
        }
    }
}

fn loop_problem(
    state: &State,
    place: Place,
    cluster: &Cluster,
    address: SocketAddr,
    position: usize,
) -> Problem {
    let listener = &state.listeners[position];
    let itself = label(Place::Listener(position), &listener.name);
    let value = Some(quote(&address.to_string()));
    let label = label(place, &cluster.name);
    let problem = if leads_to(&state.routes, listener, cluster) {
        let reason = format!("is {itself}, which leads here, so requests would go round in a circle");
        Problem::error(place, &label, "address", value, Fault::new(reason, "use the backend's own address"))
    } else {
        let reason = format!("is {itself} of this proxy, so these requests pass it twice");
        let remedy = "use the backend's own address, if that is not meant";
        Problem::warning(place, &label, "address", value, Fault::new(reason, remedy))
    };
    problem.follows_from(Place::Listener(position), "address")
}

/// Whether a connection from this host to `target` surely ends at a listener on `address`; both on the same port.
fn answers(address: IpAddr, target: IpAddr) -> bool {
    let (address, target) = (address.to_canonical(), target.to_canonical());
    // Loopback is always this host; which other addresses a wildcard has is not known here.
    address == target
        || address.is_unspecified() && address.is_ipv4() == target.is_ipv4() && target.is_loopback()
}

fn leads_to(routes: &[Route], listener: &Listener, cluster: &Cluster) -> bool {
    let by_route =
        |route: &Route| route.cluster.as_ref() == Some(&cluster.name) && protocols::concerns(route, listener);
    listener.default_cluster.as_ref() == Some(&cluster.name) || routes.iter().any(by_route)
}
