//! The rules of routes and answers: what they do must be clear, safe and bounded.

use std::collections::{HashMap, HashSet};

pub(super) use underpass_command::live::ANSWERS_MAX;
use underpass_command::live::{CONDITIONS_MAX, PATTERNS_MAX, PATTERNS_PER_HOST_MAX};
use underpass_command::state::{Action, PathMatch, Route, RouteKey, State, ValueMatch};

use super::super::keys;
use super::super::problem::{Place, Problem};
use super::super::table::{Fault, quote};
use super::{check_keys, label};
use crate::http1::FieldChange;
use crate::route::{Actions, Groups, IN_ANSWER, Template};

/// The most header fields of an answer.
const ANSWER_FIELDS_MAX: usize = 16;
/// The most answers in place of the proxy's own, of one listener or cluster.
const ANSWERS_FOR_MAX: usize = 64;
/// The most header conditions of a route.
const HEADERS_MAX: usize = 16;

/// Each value by itself, by the table of keys.
pub(super) fn check_values(state: &State, problems: &mut Vec<Problem>) {
    for (index, route) in state.routes.iter().enumerate() {
        let place = Place::Route(index);
        if let Some(respond) = &route.respond {
            check_keys(problems, place, "", "respond.", keys::RESPOND, respond);
        }
        if let Some(redirect) = &route.redirect_to {
            check_keys(problems, place, "", "redirect_to.", keys::REDIRECT_TO, redirect);
        }
        if let Some(rewrite) = &route.rewrite {
            check_keys(problems, place, "", "rewrite.", keys::REWRITE, rewrite);
        }
        if let Some(auth) = &route.auth {
            check_keys(problems, place, "", "auth.", keys::AUTH, auth);
        }
        for (number, header) in route.headers.iter().enumerate() {
            check_keys(problems, place, "", &format!("header {}.", number + 1), keys::HEADER, header);
        }
        for (number, edit) in route.edits.iter().enumerate() {
            check_keys(problems, place, "", &format!("edit {}.", number + 1), keys::EDIT, edit);
        }
    }
    for (index, answer) in state.answers.iter().enumerate() {
        let place = Place::Answer(index);
        check_keys(problems, place, &answer.name, "", keys::ANSWER, answer);
        for (number, field) in answer.fields.iter().enumerate() {
            let prefix = format!("field {}.", number + 1);
            check_keys(problems, place, &answer.name, &prefix, keys::ANSWER_FIELD, field);
        }
    }
    let listeners = state.listeners.iter().enumerate();
    let listeners =
        listeners.map(|(index, listener)| (Place::Listener(index), &listener.name, &listener.answers));
    let clusters = state.clusters.iter().enumerate();
    let clusters = clusters.map(|(index, cluster)| (Place::Cluster(index), &cluster.name, &cluster.answers));
    for (place, name, answers) in listeners.chain(clusters) {
        for (number, answer) in answers.iter().enumerate() {
            check_keys(problems, place, name, &format!("answer {}.", number + 1), keys::ANSWER_FOR, answer);
        }
        let mut seen = HashSet::new();
        for answer in answers.iter().filter(|answer| !seen.insert(answer.status)) {
            let fault = Fault::new(format!("there is another for {}", answer.status), "remove one of them");
            problems.push(Problem::error(place, &label(place, name), "answer", None, fault));
        }
        if answers.len() > ANSWERS_FOR_MAX {
            let fault = Fault::new(format!("more than {ANSWERS_FOR_MAX}"), "remove some");
            problems.push(Problem::error(place, &label(place, name), "answer", None, fault));
        }
    }
}

/// What each route and answer does.
pub(super) fn check(state: &State, problems: &mut Vec<Problem>) {
    for (index, route) in state.routes.iter().enumerate() {
        let place = Place::Route(index);
        for (key, fault) in faults(route) {
            problems.push(Problem::error(place, &label(place, ""), key, None, fault));
        }
    }
    for (index, answer) in state.answers.iter().enumerate() {
        let place = Place::Answer(index);
        let mut refuse = |key: &str, fault: Fault| {
            problems.push(Problem::error(place, &label(place, &answer.name), key, None, fault));
        };
        if answer.status != 0 && answer.status < 200 {
            refuse("status", Fault::new("not the status of an answer", "use 0, or one from 200 to 599"));
        }
        if let Err(error) = Template::new(&answer.body, IN_ANSWER, &Groups::default()) {
            refuse("body", Fault::new(error, "correct the body"));
        }
        let buffer_size = state.settings.limits.buffer_size as usize;
        if answer.body.len() > buffer_size {
            let reason = format!("longer than limits.buffer_size, {buffer_size}");
            refuse("body", Fault::new(reason, "use a shorter one, or raise limits.buffer_size"));
        }
        if answer.fields.len() > ANSWER_FIELDS_MAX {
            refuse("field", Fault::new(format!("more than {ANSWER_FIELDS_MAX}"), "remove some"));
        }
        for field in &answer.fields {
            let own = field.name.eq_ignore_ascii_case("content-type");
            let change = FieldChange::new(&field.name, underpass_command::state::EditAction::Set);
            if let Some(error) = change.err().or_else(|| own.then(|| "content_type says that".to_owned())) {
                refuse("field", Fault::new(error, "remove it"));
            }
        }
    }
}

/// What is wrong with one route, by key.
fn faults(route: &Route) -> Vec<(&'static str, Fault)> {
    let mut faults = Vec::new();
    match (&route.cluster, &route.respond, &route.redirect_to) {
        (None, None, None) => {
            let remedy = "add it, as cluster = \"app\", or respond or redirect_to in its place";
            faults.push(("cluster", Fault::new("missing", remedy)));
            return faults;
        }
        _ if route.action().is_none() => {
            let remedy = "keep one of cluster, respond and redirect_to";
            let key = if route.redirect_to.is_some() { "redirect_to" } else { "respond" };
            faults.push((key, Fault::new("the route says what to do already", remedy)));
            return faults;
        }
        _ => {}
    }
    if route.sni.is_some() {
        return faults; // nothing else may be there: `protocols`
    }
    if route.host.is_some() && route.host_regex.is_some() {
        faults.push(("host_regex", Fault::new("host is given as well", "keep one of the two")));
    }
    if route.headers.len() > HEADERS_MAX {
        faults.push(("header", Fault::new(format!("more than {HEADERS_MAX}"), "remove some")));
    }
    if !matches!(route.action(), Some(Action::Forward(_))) {
        let idle = [
            ("rewrite", route.rewrite.is_some()),
            ("edit", !route.edits.is_empty()),
            ("redirect", route.redirect.is_some()),
            ("allow_connect", route.allow_connect),
        ];
        for (key, _) in idle.into_iter().filter(|(_, there)| *there) {
            let reason = "means nothing where the proxy answers itself";
            faults.push((key, Fault::new(reason, "remove it, or lead to a cluster")));
        }
    }
    if route.allow_connect && (route.auth.is_some() || route.rewrite.is_some() || !route.edits.is_empty()) {
        let reason = "a tunnel passes bytes as they are, without auth, rewrite and edit";
        faults.push(("allow_connect", Fault::new(reason, "use a route of its own for CONNECT")));
    }
    // A pattern that is wrong is told where it stands, and so is a name that is missing.
    if faults.is_empty()
        && route.edits.iter().all(|edit| !edit.name.is_empty())
        && let Err((key, reason)) = Actions::new(route)
        && !key.ends_with("_regex")
    {
        faults.push((key, Fault::new(reason, "correct it; underpass check --explain tells what it takes")));
    }
    faults
}

/// What is tried one after the other, or takes much memory, has a bound.
pub(super) fn check_counts(state: &State, problems: &mut Vec<Problem>) {
    let mut at_path: HashMap<RouteKey, usize> = HashMap::new();
    let mut at_host: HashMap<RouteKey, HashSet<(u16, &str)>> = HashMap::new();
    let mut hosts: HashSet<(u16, &str)> = HashSet::new();
    let mut patterns = 0;
    for (index, route) in state.routes.iter().enumerate() {
        let place = Place::Route(index);
        let mut refuse = |key: &str, value: Option<String>, fault: Fault| {
            problems.push(Problem::error(place, &label(place, ""), key, value, fault));
        };
        patterns += patterns_of(route);
        if patterns > PATTERNS_MAX && patterns - patterns_of(route) <= PATTERNS_MAX {
            refuse(
                "",
                None,
                Fault::new(format!("more than {PATTERNS_MAX} regular expressions"), "use fewer"),
            );
        }
        if let Some(text) = &route.host_regex
            && hosts.insert((route.priority, text))
            && hosts.len() == PATTERNS_PER_HOST_MAX + 1
        {
            let reason = format!("more than {PATTERNS_PER_HOST_MAX} regular expressions for hosts");
            refuse("host_regex", Some(quote(text)), Fault::new(reason, "use host, as *.example.com"));
        }
        if let PathMatch::Regex(text) = &route.path {
            let RouteKey { listener, host, host_regex, .. } = route.key();
            let host = RouteKey { listener, host, host_regex, ..RouteKey::default() };
            let here = at_host.entry(host).or_default();
            if here.insert((route.priority, text)) && here.len() == PATTERNS_PER_HOST_MAX + 1 {
                let reason =
                    format!("more than {PATTERNS_PER_HOST_MAX} regular expressions for paths of one host");
                refuse("path_regex", Some(quote(text)), Fault::new(reason, "use path or path_prefix"));
            }
        }
        if !route.methods.is_empty() || !route.headers.is_empty() {
            let path = RouteKey { methods: Vec::new(), headers: Vec::new(), ..route.key() };
            let count = at_path.entry(path).or_default();
            *count += 1;
            if *count == CONDITIONS_MAX + 1 {
                let reason = format!("more than {CONDITIONS_MAX} routes for the same host and path");
                refuse("", None, Fault::new(reason, "let the cluster tell such requests apart"));
            }
        }
    }
}

/// Every place where an answer is named: the place, the name of its item, the key, the answer.
pub(super) fn named_answers(state: &State) -> impl Iterator<Item = (Place, &str, String, &str)> {
    let listeners = state.listeners.iter().enumerate();
    let listeners = listeners.map(|(index, listener)| {
        (Place::Listener(index), listener.name.as_str(), listener.answers.as_slice())
    });
    let clusters = state.clusters.iter().enumerate();
    let clusters = clusters
        .map(|(index, cluster)| (Place::Cluster(index), cluster.name.as_str(), cluster.answers.as_slice()));
    let items = listeners.chain(clusters).flat_map(|(place, name, answers)| {
        let keyed = answers.iter().enumerate();
        keyed.map(move |(number, wanted)| {
            (place, name, format!("answer {}.answer", number + 1), wanted.answer.as_str())
        })
    });
    let routes = state.routes.iter().enumerate().filter_map(|(index, route)| {
        let answer = route.respond.as_ref()?.answer.as_deref()?;
        Some((Place::Route(index), "", "respond.answer".to_owned(), answer))
    });
    items.chain(routes)
}

/// How many regular expressions a route has.
fn patterns_of(route: &Route) -> usize {
    let headers = route.headers.iter().filter(|header| matches!(header.value, ValueMatch::Regex(_))).count();
    headers + usize::from(route.host_regex.is_some()) + usize::from(matches!(route.path, PathMatch::Regex(_)))
}
