//! What goes with the protocol of a listener, and what does not.

use std::collections::HashMap;

use underpass_command::state::{
    ForwardedFields, Listener, PathMatch, Protocol, RequestId, Route, State, TraceContext,
};

use super::super::problem::{Place, Problem};
use super::super::table::{Fault, quote};
use super::label;

/// Why a key for HTTP is refused on a TCP listener.
pub(in crate::config) fn tcp_listener_fault() -> Fault {
    Fault::new("means nothing where protocol is \"tcp\"", "remove it")
}

/// Why a key for HTTP is refused on a route by server name.
pub(in crate::config) fn sni_route_fault() -> Fault {
    Fault::new("means nothing beside sni: inside TLS nobody sees it", "remove it, or sni")
}

/// Whether requests or connections that come in by this listener may take the route.
pub(super) fn concerns(route: &Route, listener: &Listener) -> bool {
    let protocol = if route.sni.is_some() { Protocol::Tcp } else { Protocol::Http };
    listener.protocol == protocol && route.listener.as_ref().is_none_or(|name| *name == listener.name)
}

/// Finds what does not go with a protocol.
pub(super) fn check(state: &State, problems: &mut Vec<Problem>) {
    for (index, listener) in state.listeners.iter().enumerate() {
        if listener.protocol == Protocol::Tcp {
            check_listener(state, index, listener, problems);
        }
    }
    let listeners: HashMap<&str, &Listener> =
        state.listeners.iter().map(|listener| (listener.name.as_str(), listener)).collect();
    for (index, route) in state.routes.iter().enumerate() {
        check_route(state, index, route, &listeners, problems);
    }
}

fn check_listener(state: &State, index: usize, listener: &Listener, problems: &mut Vec<Problem>) {
    let place = Place::Listener(index);
    let label = label(place, &listener.name);
    let mut refuse = |key: &str, value: &str| {
        problems.push(Problem::error(place, &label, key, Some(quote(value)), tcp_listener_fault()));
    };
    // A state from elsewhere than a file has a value in each; what nobody has set does not disturb.
    if listener.x_forwarded != Listener::new("", listener.address).x_forwarded {
        refuse("x_forwarded", listener.x_forwarded.name());
    }
    if listener.forwarded != ForwardedFields::default() {
        refuse("forwarded", listener.forwarded.name());
    }
    if listener.request_id != RequestId::default() {
        refuse("request_id", listener.request_id.name());
    }
    if listener.trace_context != TraceContext::default() {
        refuse("trace_context", listener.trace_context.name());
    }
    if listener.default_cluster.is_none() && !state.routes.iter().any(|route| concerns(route, listener)) {
        let fault = Fault::new(
            "missing, and no route with sni leads from this tcp listener",
            "add it, as default_cluster = \"app\"",
        );
        let problem = Problem::error(place, &label, "default_cluster", None, fault);
        problems.push(problem.follows_from(Place::Whole, "listener"));
    }
}

fn check_route(
    state: &State,
    index: usize,
    route: &Route,
    listeners: &HashMap<&str, &Listener>,
    problems: &mut Vec<Problem>,
) {
    let place = Place::Route(index);
    let label = label(place, "");
    let named = route.listener.as_deref().and_then(|name| listeners.get(name));
    let mut refuse = |key: &str, value: Option<String>, fault: Fault| {
        let problem = Problem::error(place, &label, key, value, fault);
        problems.push(problem.follows_from(Place::Whole, "listener"));
    };
    let Some(sni) = &route.sni else {
        if let Some(listener) = named.filter(|listener| listener.protocol == Protocol::Tcp) {
            let fault = Fault::new(
                "a tcp listener, whose routes select by sni",
                "add sni, or use the listener's default_cluster",
            );
            refuse("listener", Some(quote(&listener.name)), fault);
        }
        return;
    };
    if let Some(host) = &route.host {
        refuse("host", Some(quote(host)), sni_route_fault());
    }
    match &route.path {
        PathMatch::Exact(path) => refuse("path", Some(quote(path)), sni_route_fault()),
        path if *path == PathMatch::default() => {}
        PathMatch::Regex(regex) => refuse("path_regex", Some(quote(regex)), sni_route_fault()),
        PathMatch::Prefix(path) => refuse("path_prefix", Some(quote(path)), sni_route_fault()),
    }
    if route.allow_connect {
        refuse("allow_connect", Some("true".into()), sni_route_fault());
    }
    let others = [
        ("host_regex", route.host_regex.is_some()),
        ("methods", !route.methods.is_empty()),
        ("header", !route.headers.is_empty()),
        ("respond", route.respond.is_some()),
        ("redirect_to", route.redirect_to.is_some()),
        ("redirect", route.redirect.is_some()),
        ("rewrite", route.rewrite.is_some()),
        ("edit", !route.edits.is_empty()),
        ("auth", route.auth.is_some()),
    ];
    for (key, _) in others.into_iter().filter(|(_, there)| *there) {
        refuse(key, None, sni_route_fault());
    }
    match named {
        Some(listener) if listener.protocol != Protocol::Tcp => {
            let fault = Fault::new(
                format!(
                    "listener {:?} speaks {}, and sni is seen by tcp listeners",
                    listener.name, listener.protocol
                ),
                "name a listener with protocol = \"tcp\", or use host",
            );
            refuse("sni", Some(quote(sni)), fault);
        }
        None if route.listener.is_none()
            && !state.listeners.iter().any(|listener| listener.protocol == Protocol::Tcp) =>
        {
            let fault = Fault::new("no listener has protocol = \"tcp\"", "add one, or use host");
            refuse("sni", Some(quote(sni)), fault);
        }
        _ => {}
    }
}
