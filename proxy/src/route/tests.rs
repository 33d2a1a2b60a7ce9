//! The table against its documentation: every route sorted by the order that is promised, and the first that matches.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use regex::Regex;
use underpass_command::state::{HeaderMatch, PathMatch, Route, ValueMatch};

use super::*;
use crate::http1::{Fields, Limits, parse_request};

const LIMITS: Limits = Limits { head_size_max: 4096, header_count_max: 32, target_size_max: 1024 };

/// A request and what was asked for in it.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    host: String,
    path: String,
    fields: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Path,
    Host,
}

impl Request {
    fn get(host: &str, path: &str) -> Self {
        Self { method: "GET".into(), host: host.into(), path: path.into(), fields: Vec::new() }
    }

    /// What the table finds for it, as the number of a cluster.
    fn find(&self, table: &Table, listener: u32) -> Result<u32, Missing> {
        self.asked(|asked| match table.find(listener, asked) {
            Found::Route(destination) => Ok(destination.cluster.expect("a cluster")),
            Found::NoPath => Err(Missing::Path),
            Found::NoHost => Err(Missing::Host),
        })
    }

    /// What is done with it as a table sees it.
    fn asked<R>(&self, done: impl FnOnce(&Asked<'_>) -> R) -> R {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: a\r\n", self.method, self.path);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut fields = Fields::with_capacity(LIMITS.header_count_max);
        let head = parse_request(text.as_bytes(), &mut fields, &LIMITS).expect("valid").expect("whole");
        let asked = Asked {
            host: self.host.as_bytes(),
            path: head.path(text.as_bytes()),
            method: self.method.as_bytes(),
            fields: &fields,
            bytes: text.as_bytes(),
        };
        done(&asked)
    }
}

fn to(cluster: u32) -> Destination {
    Destination { cluster: Some(cluster), ..Destination::default() }
}

fn route(listener: Option<&str>, host: Option<&str>, path: PathMatch) -> Route {
    Route { listener: listener.map(str::to_owned), host: host.map(str::to_owned), path, ..Route::new("") }
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn add(table: &mut Table, route: &Route, cluster: u32) {
    table.add(route, to(cluster)).expect("a valid route");
}

#[test]
fn exact_host_before_wildcard_before_regex_before_any() {
    let mut table = Table::default();
    add(&mut table, &route(None, Some("a.example"), prefix("/")), 1);
    add(&mut table, &route(None, Some("*.example"), prefix("/")), 2);
    add(&mut table, &route(None, Some("*.b.example"), prefix("/")), 3);
    let find = |table: &Table, host: &str, path: &str| Request::get(host, path).find(table, 9);
    assert_eq!(find(&table, "A.Example", "/x"), Ok(1));
    assert_eq!(find(&table, "a.example.", "/x"), Ok(1));
    assert_eq!(find(&table, "c.example", "/x"), Ok(2));
    assert_eq!(find(&table, "c.b.example", "/x"), Ok(3));
    assert_eq!(find(&table, "example", "/x"), Err(Missing::Host));
    let regex = Route { host_regex: Some("[a-z]+".into()), ..route(None, None, prefix("/r")) };
    add(&mut table, &regex, 5);
    assert_eq!(find(&table, "EXAMPLE", "/r/x"), Ok(5));
    assert_eq!(find(&table, "example", "/x"), Err(Missing::Path));
    add(&mut table, &route(None, None, prefix("/x")), 4);
    assert_eq!(find(&table, "example", "/x"), Ok(4));
    assert_eq!(find(&table, "a9", "/y"), Err(Missing::Path));
}

#[test]
fn exact_path_before_regex_before_longest_prefix() {
    let mut table = Table::default();
    add(&mut table, &route(None, Some("h"), prefix("/a")), 1);
    add(&mut table, &route(None, Some("h"), prefix("/a/b")), 2);
    add(&mut table, &route(None, Some("h"), PathMatch::Exact("/a/b/c".into())), 3);
    add(&mut table, &route(None, Some("h"), PathMatch::Regex("/[a-z]+".into())), 4);
    let find = |table: &Table, path: &str| Request::get("h", path).find(table, 0);
    assert_eq!(find(&table, "/a"), Ok(4));
    assert_eq!(find(&table, "/a/"), Ok(1));
    assert_eq!(find(&table, "/a/b/x"), Ok(2));
    add(&mut table, &route(None, Some("h"), PathMatch::Regex("/a/b/.+".into())), 5);
    assert_eq!(find(&table, "/a/b/x"), Ok(5));
    assert_eq!(find(&table, "/a/b/c"), Ok(3));
    assert_eq!(find(&table, "/a/b/c?query"), Ok(3));
    assert_eq!(find(&table, "/ab"), Ok(4));
    assert_eq!(find(&table, "/ab/c"), Err(Missing::Path));
    add(&mut table, &route(None, Some("h"), prefix("/a")), 7);
    assert_eq!(find(&table, "/a/x"), Ok(7));
}

#[test]
fn conditions_that_do_not_hold_lead_to_the_next_route() {
    let mut table = Table::default();
    let header = |name: &str, value, not| HeaderMatch { name: name.into(), value, not };
    add(&mut table, &route(None, None, prefix("/")), 1);
    let posts = Route { methods: vec!["POST".into()], ..route(None, None, prefix("/a")) };
    add(&mut table, &posts, 2);
    let new = header("X-Version", ValueMatch::Regex("[2-9]".into()), false);
    add(&mut table, &Route { headers: vec![new.clone()], ..posts.clone() }, 3);
    let no_cookie = header("Cookie", ValueMatch::Any, true);
    let both = Route { headers: vec![new, no_cookie], methods: Vec::new(), ..posts };
    add(&mut table, &both, 4);
    let find = |method: &str, fields: &[(&str, &str)]| {
        let fields = fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Request { method: method.into(), fields, ..Request::get("h", "/a/b") }.find(&table, 0)
    };
    assert_eq!(find("GET", &[]), Ok(1));
    assert_eq!(find("POST", &[]), Ok(2));
    assert_eq!(find("POST", &[("x-version", "1")]), Ok(2));
    assert_eq!(find("POST", &[("x-version", "1"), ("X-VERSION", "2"), ("cookie", "")]), Ok(3));
    assert_eq!(find("POST", &[("x-version", "2")]), Ok(4));
    assert_eq!(find("GET", &[("x-version", "2")]), Ok(4));
    assert_eq!(find("GET", &[("x-version", "22")]), Ok(1));
}

#[test]
fn a_listeners_own_routes_come_first() {
    let mut table = Table::default();
    add(&mut table, &route(None, Some("h"), prefix("/")), 1);
    add(&mut table, &route(Some("web"), Some("h"), prefix("/")), 2);
    let web = table.hold_listener("web");
    let other = table.hold_listener("other");
    let get = Request::get("h", "/");
    assert_eq!(get.find(&table, web), Ok(2));
    assert_eq!(get.find(&table, other), Ok(1));
    assert!(table.remove(&route(None, Some("h"), prefix("/")).key()));
    assert!(table.has_routes(web) && !table.has_routes(other));
    assert_eq!(get.find(&table, other), Err(Missing::Host));
}

#[test]
fn the_numbers_of_listeners_that_have_gone_are_used_again() {
    let mut table = Table::default();
    let route = route(Some("web"), None, prefix("/"));
    add(&mut table, &route, 1);
    let web = table.hold_listener("web");
    table.release_listener("web");
    assert_ne!(table.hold_listener("other"), web, "a route still has it");
    assert!(table.remove(&route.key()));
    assert!(!table.remove(&route.key()));
    assert_eq!(table.hold_listener("third"), web);
    assert!(!table.has_routes(web));
}

#[test]
fn a_route_that_is_refused_leaves_nothing() {
    let mut table = Table::default();
    let bad = Route { host: Some("h".into()), ..route(Some("web"), None, PathMatch::Regex("(".into())) };
    assert!(table.add(&bad, to(1)).expect_err("unclosed").contains("unclosed group"));
    assert!(table.hosts.is_empty() && table.numbers.is_empty());
    assert_eq!(Request::get("h", "/").find(&table, 0), Err(Missing::Host));
}

const LISTENERS: [&str; 2] = ["one", "two"];

fn any_route() -> impl Strategy<Value = Route> {
    let host = option::weighted(0.8, "(\\*\\.)?[ab](\\.[ab]){0,2}");
    let host_regex = option::weighted(0.2, select(vec!["a.*", "[ab]", ".*b", "a\\.b", "x"]));
    let path = prop_oneof![
        3 => "(/[ab]{0,2}){1,3}".prop_map(PathMatch::Prefix),
        2 => "(/[ab]{0,2}){1,3}".prop_map(PathMatch::Exact),
        1 => select(vec!["/a.*", "/.*b", "/[ab]", ".*", "/b/.+"]).prop_map(|text| PathMatch::Regex(text.into())),
    ];
    let methods = vec(select(vec!["GET", "PUT", "POST", "CONNECT"]).prop_map(str::to_owned), 0..3);
    let value = prop_oneof![
        Just(ValueMatch::Any),
        select(vec!["1", "2"]).prop_map(|text| ValueMatch::Exact(text.into())),
        select(vec!["[12]", "2.*"]).prop_map(|text| ValueMatch::Regex(text.into())),
    ];
    let header = (select(vec!["X-A", "x-a", "x-b"]), value, any::<bool>())
        .prop_map(|(name, value, not)| HeaderMatch { name: name.into(), value, not });
    let conditions = prop_oneof![
        2 => Just((Vec::new(), Vec::new())),
        1 => (methods, vec(header, 0..3)),
    ];
    let listener = option::weighted(0.4, select(&LISTENERS[..]));
    (listener, host, host_regex, path, conditions, 0..2_u16).prop_map(
        |(listener, host, host_regex, path, (methods, headers), priority)| Route {
            listener: listener.map(str::to_owned),
            host: host.filter(|_| host_regex.is_none()),
            host_regex: host_regex.map(str::to_owned),
            path,
            methods,
            headers,
            priority,
            ..Route::new("")
        },
    )
}

fn any_request() -> impl Strategy<Value = Request> {
    let host = "[abAB](\\.[ab]){0,3}\\.?";
    let path = "(/[ab]{0,2}){1,4}(\\?a/b)?";
    let fields = vec((select(vec!["X-A", "X-b"]), select(vec!["1", "2", "23"])), 0..3);
    (select(vec!["GET", "PUT", "POST", "HEAD"]), host, path, fields).prop_map(
        |(method, host, path, fields)| {
            let fields = fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            Request { method: method.into(), host, path, fields }
        },
    )
}

/// Whether a pattern matches the whole text. There are few patterns, and compiling is slow.
fn full(pattern: &str, text: &str) -> bool {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|compiled| {
        let compile = || Regex::new(&format!("^(?:{pattern})$")).expect("a pattern");
        compiled.entry(pattern.to_owned()).or_insert_with(compile).is_match(text)
    })
}

/// Where a route stands among those that match a request; none if it does not match.
fn place(route: &RouteKey, listener: &str, request: &Request) -> Option<impl Ord + use<>> {
    let by_regex = |pattern: &str| (Reverse(route.priority), Reverse(pattern.len()), pattern.to_owned());
    let nothing = || (Reverse(0), Reverse(0), String::new());
    let name = request.host.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let host = match (&route.host, &route.host_regex) {
        (Some(host), _) => match host.strip_prefix('*') {
            None => (name == host).then(|| (0, Reverse(0), nothing()))?,
            Some(suffix) => name.ends_with(suffix).then(|| (1, Reverse(suffix.len()), nothing()))?,
        },
        (None, Some(pattern)) => full(pattern, name).then(|| (2, Reverse(0), by_regex(pattern)))?,
        (None, None) => (3, Reverse(0), nothing()),
    };
    let own = match &route.listener {
        Some(own) => (own == listener).then_some(0)?,
        None => 1,
    };
    let path = request.path.split('?').next().unwrap_or_default();
    let path = match &route.path {
        PathMatch::Exact(exact) => (path == exact).then(|| (0, Reverse(0), nothing()))?,
        PathMatch::Prefix(prefix) => {
            let below = path.strip_prefix(prefix.as_str());
            let border =
                below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'));
            border.then(|| (2, Reverse(prefix.len()), nothing()))?
        }
        PathMatch::Regex(pattern) => full(pattern, path).then(|| (1, Reverse(0), by_regex(pattern)))?,
    };
    let meets = |header: &HeaderMatch| {
        let mut values = request
            .fields
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(&header.name))
            .map(|(_, value)| value.as_str());
        header.not
            != match &header.value {
                ValueMatch::Any => values.next().is_some(),
                ValueMatch::Exact(exact) => values.any(|value| value == exact),
                ValueMatch::Regex(pattern) => values.any(|value| full(pattern, value)),
            }
    };
    let method = route.methods.is_empty() || route.methods.contains(&request.method);
    let conditions = (
        Reverse(route.headers.len()),
        if route.methods.is_empty() { usize::MAX } else { route.methods.len() },
        route.headers.clone(),
        route.methods.clone(),
    );
    (method && route.headers.iter().all(meets)).then_some((host, own, path, conditions))
}

/// What the documentation promises.
fn promised(routes: &[(Route, u32)], listener: &str, request: &Request) -> Option<u32> {
    let placed = routes
        .iter()
        .filter_map(|(route, number)| place(&route.key(), listener, request).map(|place| (place, *number)));
    placed.min().map(|(_, number)| number)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_first_in_the_documented_order_is_found(
        steps in vec((any_route(), prop::bool::weighted(0.75), any::<prop::sample::Index>()), 1..40),
        requests in vec(any_request(), 30),
        turn in any::<prop::sample::Index>(),
    ) {
        let mut table = Table::default();
        let numbers = LISTENERS.map(|name| table.hold_listener(name));
        let mut routes: Vec<(Route, u32)> = Vec::new();
        for (number, (route, keep, which)) in steps.into_iter().enumerate() {
            let number = u32::try_from(number).expect("few");
            if keep || routes.is_empty() {
                table.add(&route, to(number)).expect("a valid route");
                routes.retain(|(other, _)| other.key() != route.key());
                routes.push((route, number));
            } else {
                let (route, _) = routes.swap_remove(which.index(routes.len()));
                prop_assert!(table.remove(&route.key()));
                prop_assert!(!table.remove(&route.key()));
            }
        }
        // The same routes in another order.
        let mut other = Table::default();
        let others = LISTENERS.map(|name| other.hold_listener(name));
        let turn = turn.index(routes.len().max(1)).min(routes.len());
        for (route, number) in routes[turn..].iter().chain(&routes[..turn]).rev() {
            other.add(route, to(*number)).expect("a valid route");
        }
        for request in &requests {
            for (index, listener) in LISTENERS.iter().enumerate() {
                let expected = promised(&routes, listener, request);
                let found = request.find(&table, numbers[index]);
                prop_assert_eq!(found.ok(), expected, "{} {}", request.host, request.path);
                prop_assert_eq!(request.find(&other, others[index]), found);
                if expected.is_none() {
                    let methods = routes.iter().flat_map(|(route, _)| &route.methods);
                    let with = |method: &String| Request { method: method.clone(), ..request.clone() };
                    let allowed: BTreeSet<&String> =
                        methods.filter(|method| *method != "CONNECT" && promised(&routes, listener, &with(method)).is_some()).collect();
                    let told = request.asked(|asked| {
                        let allowed = table.allowed(numbers[index], asked);
                        allowed.methods().iter().map(|method| (*method).to_owned()).collect::<Vec<_>>()
                    });
                    prop_assert!(told.iter().eq(allowed), "{:?} {:?}", told, request);
                }
            }
        }
        for (route, _) in &routes {
            prop_assert!(table.remove(&route.key()));
        }
        prop_assert!(table.hosts.is_empty() && table.regexes.is_empty() && table.any.is_empty());
        prop_assert!(numbers.iter().all(|number| !table.has_routes(*number)));
    }
}
