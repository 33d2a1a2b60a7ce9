//! What a state is refused for, or warned of, also when it comes from elsewhere than a file.

use underpass_command::state::{
    Backend, Cluster, ForwardedFields, Listener, PathMatch, Protocol, RedirectMode, RequestId, Route, State,
};

use crate::config::{Place, Severity, validate};

fn address(text: &str) -> std::net::SocketAddr {
    text.parse().expect("an address")
}

/// One listener that leads to one cluster of one backend.
fn state() -> State {
    let mut listener = Listener::new("web", address("0.0.0.0:8080"));
    listener.default_cluster = Some("app".into());
    let mut cluster = Cluster::new("app");
    cluster.backends.push(Backend::new(address("127.0.0.1:9000")));
    State { listeners: vec![listener], clusters: vec![cluster], ..State::default() }
}

/// The problems of a state, after a change to the valid one.
fn problems(change: impl FnOnce(&mut State)) -> Vec<String> {
    let mut state = state();
    change(&mut state);
    let mut problems: Vec<_> = validate(&state).iter().map(ToString::to_string).collect();
    problems.sort();
    problems
}

const NONE: [&str; 0] = [];

#[test]
fn a_valid_state_has_no_problem() {
    assert_eq!(problems(|_| ()), NONE);
}

#[test]
fn values_out_of_range_are_refused() {
    let found = problems(|state| {
        state.settings.workers = 1025;
        state.settings.limits.connections = 0;
        state.settings.limits.pipe_size = 1;
        state.settings.timeouts.head_ms = 0;
        state.settings.timeouts.drain_ms = u64::MAX;
    });
    let expected = [
        "limits.connections 0: below 1; use a number from 1 to 1048576 connections",
        "limits.pipe_size 1: below 4096; use a number from 4096 to 67108864 bytes",
        "timeouts.drain_ms 18446744073709551615: above 2592000000; use a number from 1 to 2592000000 milliseconds",
        "timeouts.head_ms 0: below 1; use a number from 1 to 2592000000 milliseconds",
        "workers 1025: above 1024; use a number from 0 to 1024 workers",
    ];
    assert_eq!(found, expected);
}

#[test]
fn every_timeout_of_zero_is_refused() {
    let found = problems(|state| {
        let timeouts = &mut state.settings.timeouts;
        for timeout in [
            &mut timeouts.head_ms,
            &mut timeouts.body_idle_ms,
            &mut timeouts.connect_ms,
            &mut timeouts.response_ms,
            &mut timeouts.keep_alive_ms,
            &mut timeouts.backend_keep_alive_ms,
            &mut timeouts.tunnel_idle_ms,
            &mut timeouts.tcp_idle_ms,
            &mut timeouts.linger_ms,
            &mut timeouts.drain_ms,
        ] {
            *timeout = 0;
        }
    });
    assert_eq!(found.len(), 10);
    assert!(found.iter().all(|problem| problem.contains("_ms 0: below 1; ")), "{found:?}");
}

#[test]
fn a_head_must_fit_into_a_buffer_and_a_target_into_a_head() {
    let found = problems(|state| {
        state.settings.limits.buffer_size = 8192;
        state.settings.limits.head_size_max = 8193;
        state.settings.limits.target_size_max = 8193;
    });
    let expected = [
        "limits.head_size_max 8193: above limits.buffer_size, 8192, and a head must fit into one buffer; lower it, or \
         raise limits.buffer_size",
        "limits.target_size_max 8193: not below limits.head_size_max, 8193, and the target is part of the head; lower \
         it, or raise limits.head_size_max",
    ];
    assert_eq!(found, expected);
    let at_the_bound = problems(|state| {
        state.settings.limits.buffer_size = 8192;
        state.settings.limits.head_size_max = 8192;
        state.settings.limits.target_size_max = 8191;
    });
    assert_eq!(at_the_bound, NONE);
}

#[test]
fn a_path_that_no_file_can_hold_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let found = problems(|state| {
        state.settings.log.access_file = std::ffi::OsString::from_vec(vec![b'/', 0xff]).into();
    });
    assert_eq!(found, ["log.access_file: not UTF-8; use a path in UTF-8"]);
}

#[test]
fn a_problem_tells_its_place() {
    let mut state = state();
    state.clusters[0].backends.push(Backend::new(address("127.0.0.1:0")));
    let problems = validate(&state);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].place, Place::Backend { cluster: 0, backend: 1 });
    assert_eq!(problems[0].severity, Severity::Error);
    assert_eq!(
        (problems[0].key.as_str(), problems[0].value.as_deref()),
        ("address", Some("\"127.0.0.1:0\""))
    );
}

#[test]
fn lists_are_bounded() {
    let found = problems(|state| {
        let more = |index: usize| Listener::new(format!("l{index}"), address("127.0.0.1:0"));
        state.listeners.extend((0..256).map(more));
        let backend = |index: u32| Backend::new((std::net::Ipv4Addr::from_bits(index + 1), 80).into());
        state.clusters[0].backends.extend((0..1024).map(backend));
        state.routes.push(Route::new("app"));
    });
    let expected = [
        "cluster \"app\": backend 1025: more than 1024 backends; remove 1",
        "listener 257: more than 256 listeners; remove 1",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_backend_that_is_the_listener_that_leads_to_it_is_refused() {
    let reason = "is listener \"web\", which leads here, so requests would go round in a circle; \
                  use the backend's own address";
    for (listener, backend) in [
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.9.9.9:8080"),
        ("192.0.2.1:8080", "192.0.2.1:8080"),
        ("[::]:8080", "[::1]:8080"),
    ] {
        let found = problems(|state| {
            state.listeners[0].address = address(listener);
            state.clusters[0].backends[0].address = address(backend);
        });
        assert_eq!(found, [format!("cluster \"app\": backend 1: address \"{backend}\": {reason}")]);
    }
    for (listener, backend) in [
        ("0.0.0.0:8080", "127.0.0.1:8081"),
        ("127.0.0.2:8080", "127.0.0.1:8080"),
        // Perhaps another host.
        ("0.0.0.0:8080", "192.0.2.1:8080"),
    ] {
        let found = problems(|state| {
            state.listeners[0].address = address(listener);
            state.clusters[0].backends[0].address = address(backend);
        });
        assert_eq!(found, NONE);
    }
}

#[test]
fn a_backend_that_is_another_listener_is_warned_of() {
    let found = problems(|state| {
        let mut inner = Listener::new("inner", address("127.0.0.1:8081"));
        inner.default_cluster = Some("end".into());
        state.listeners.push(inner);
        state.clusters[0].backends[0].address = address("127.0.0.1:8081");
        state.clusters.push(Cluster::new("end"));
        state.clusters[1].backends.push(Backend::new(address("127.0.0.1:9000")));
    });
    let expected = "warning: cluster \"app\": backend 1: address \"127.0.0.1:8081\": is listener \"inner\" of this \
                    proxy, so these requests pass it twice; use the backend's own address, if that is not meant";
    assert_eq!(found, [expected]);
}

#[test]
fn what_has_no_effect_is_warned_of() {
    let found = problems(|state| {
        state.listeners[0].default_cluster = None;
        state.clusters.push(Cluster::new("empty"));
        let mut route = Route::new("empty");
        route.listener = Some("other".into());
        state.routes.push(route);
        let mut other = Listener::new("other", address("0.0.0.0:8081"));
        other.redirect = Some(RedirectMode::Splice);
        state.listeners.push(other);
        state.settings.limits.pipes = 0;
    });
    let expected = [
        "warning: cluster \"app\": no route and no listener leads to it; add a [[route]], or remove it",
        "warning: cluster \"empty\": has no backend, so its requests cannot be served; add a [[cluster.backend]] below it",
        "warning: listener \"other\": redirect \"splice\": limits.pipes is 0, so bodies are copied; raise limits.pipes, \
         or use \"copy\"",
        "warning: listener \"web\": has neither default_cluster nor a route, so it refuses every request; set \
         default_cluster, or add a [[route]]",
    ];
    assert_eq!(found, expected);
    assert_eq!(
        problems(|state| *state = State::default()),
        ["warning: there is no listener, so nothing is served; add a [[listener]]"]
    );
}

#[test]
fn an_asterisk_in_a_path_is_warned_of() {
    let found = problems(|state| {
        let mut route = Route::new("app");
        route.path = PathMatch::Prefix("/api/*".into());
        state.routes.push(route);
    });
    let expected = "warning: route 1: path_prefix \"/api/*\": the asterisk stands for itself; a path_prefix without \
                    it takes every path below";
    assert_eq!(found, [expected]);
}

#[test]
fn port_zero_may_be_listened_on_more_than_once() {
    let found = problems(|state| {
        state.listeners[0].address = address("127.0.0.1:0");
        let mut other = Listener::new("other", address("127.0.0.1:0"));
        other.default_cluster = Some("app".into());
        state.listeners.push(other);
    });
    assert_eq!(found, NONE);
}

/// The valid state, its listener speaking TCP.
fn tcp(state: &mut State) {
    state.listeners[0].protocol = Protocol::Tcp;
}

fn by_name(name: &str) -> Route {
    Route { sni: Some(name.into()), ..Route::new("app") }
}

#[test]
fn a_tcp_listener_leads_somewhere_and_takes_nothing_of_http() {
    assert_eq!(problems(tcp), NONE);
    let found = problems(|state| {
        tcp(state);
        state.listeners[0].default_cluster = None;
        state.listeners[0].x_forwarded = ForwardedFields::Replace;
        state.listeners[0].forwarded = ForwardedFields::Append;
        state.listeners[0].request_id = RequestId::Off;
        state.routes.push(Route { listener: Some("web".into()), ..Route::new("app") });
    });
    let expected = [
        "listener \"web\": default_cluster: missing, and no route with sni leads from this tcp listener; add it, as \
         default_cluster = \"app\"",
        "listener \"web\": forwarded \"append\": means nothing where protocol is \"tcp\"; remove it",
        "listener \"web\": request_id \"off\": means nothing where protocol is \"tcp\"; remove it",
        "listener \"web\": x_forwarded \"replace\": means nothing where protocol is \"tcp\"; remove it",
        "route 1: listener \"web\": a tcp listener, whose routes select by sni; add sni, or use the listener's \
         default_cluster",
    ];
    assert_eq!(found, expected);
}

#[test]
fn routes_by_server_name() {
    for listener in [None, Some("web".to_owned())] {
        let valid = problems(|state| {
            tcp(state);
            state.listeners[0].default_cluster = None;
            state.routes.push(Route { listener: listener.clone(), ..by_name("*.example.com") });
        });
        assert_eq!(valid, NONE);
    }
    let found = problems(|state| {
        tcp(state);
        state.routes.push(Route { host: Some("a".into()), allow_connect: true, ..by_name("a.example") });
        state.routes.push(Route { path: PathMatch::Exact("/".into()), ..by_name("b.example") });
        state.routes.push(Route { path: PathMatch::Prefix("/x".into()), ..by_name("c.example") });
        state.routes.push(by_name("c.example"));
        state.routes.push(by_name("C.example"));
        state.routes.push(by_name("192.0.2.1"));
    });
    let nothing = "means nothing beside sni: inside TLS nobody sees it; remove it, or sni";
    let address = "TLS clients send no server name for an IP address; leave the route out: such connections go to \
                   default_cluster";
    let expected = [
        format!("route 1: allow_connect true: {nothing}"),
        format!("route 1: host \"a\": {nothing}"),
        format!("route 2: path \"/\": {nothing}"),
        format!("route 3: path_prefix \"/x\": {nothing}"),
        "route 5: the same listener and sni as route 4; remove one of them".to_owned(),
        format!("route 6: sni \"192.0.2.1\": {address}"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn only_tcp_listeners_see_server_names() {
    let found = problems(|state| state.routes.push(by_name("a.example")));
    assert_eq!(
        found,
        ["route 1: sni \"a.example\": no listener has protocol = \"tcp\"; add one, or use host"]
    );
    let found =
        problems(|state| state.routes.push(Route { listener: Some("web".into()), ..by_name("a.example") }));
    assert_eq!(
        found,
        [
            "route 1: sni \"a.example\": listener \"web\" speaks http, and sni is seen by tcp listeners; name a listener \
          with protocol = \"tcp\", or use host"
        ]
    );
}

#[test]
fn a_tcp_listener_whose_backend_it_is_itself() {
    let found = problems(|state| {
        tcp(state);
        state.listeners[0].address = address("127.0.0.1:9000");
    });
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("round in a circle"), "{found:?}");
}

#[test]
fn rules_of_clusters() {
    let found = problems(|state| {
        let cluster = &mut state.clusters[0];
        (cluster.eject_ms, cluster.eject_ms_max) = (20, 10);
        cluster.hash = "header:X-User".parse().expect("valid");
        let named =
            |port| Backend { name: Some("one".into()), ..Backend::new(([127, 0, 0, 1], port).into()) };
        cluster.backends = vec![named(1), named(2)];
    });
    let expected = [
        "cluster \"app\": backend 2: name \"one\": backend 1 of this cluster has this name already; give each its own, or none",
        "cluster \"app\": eject_ms 20: above eject_ms_max, 10; lower it, or raise eject_ms_max",
        "warning: cluster \"app\": hash \"header:X-User\": balance is \"round-robin\", which chooses by nothing; use balance = \"maglev\", or remove it",
    ];
    assert_eq!(found, expected);
}

#[test]
fn values_of_clusters() {
    let found = problems(|state| {
        let cluster = &mut state.clusters[0];
        cluster.check_path = "ready".into();
        cluster.sticky_cookie = Some("a b".into());
        cluster.retry_attempts = 6;
        cluster.backends[0].weight = 257;
    });
    let expected = [
        "cluster \"app\": backend 1: weight 257: above 256; use a number from 0 to 256 shares",
        "cluster \"app\": check_path \"ready\": does not begin with /; write \"/ready\"",
        "cluster \"app\": retry_attempts 6: above 5; use a number from 1 to 5 attempts",
        "cluster \"app\": sticky_cookie \"a b\": ' ' is not allowed in a token; use letters, digits, '-' and '_'",
    ];
    assert_eq!(found, expected);
}
