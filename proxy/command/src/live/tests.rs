use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::state::{AnswerFor, PathMatch, Protocol, RedirectMode, Respond};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn cluster(name: &str) -> Cluster {
    Cluster::new(name)
}

fn backend(port: u16) -> Backend {
    Backend::new(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn listener(name: &str, port: u16) -> Listener {
    Listener::new(name, SocketAddr::from(([127, 0, 0, 1], port)))
}

fn route(host: &str, cluster: &str) -> Route {
    Route { host: Some(host.to_owned()), ..Route::new(cluster) }
}

fn add_route(route: Route) -> Operation {
    Operation::AddRoute { route: Box::new(route) }
}

/// A configuration with a cluster `app` of one backend, a route to it, and a listener `web`.
fn small() -> Configuration {
    let app = Cluster { backends: vec![backend(1)], ..cluster("app") };
    let state = State {
        clusters: vec![app],
        listeners: vec![listener("web", 80)],
        routes: vec![route("example.org", "app")],
        ..State::default()
    };
    Configuration::new(state).expect("fits together")
}

/// The index must say what a count of everything says.
fn check_index(configuration: &Configuration) {
    let backends: usize = configuration.clusters.values().map(|entry| entry.backends.len()).sum();
    assert_eq!(configuration.backends, backends);
    let mut references = HashMap::new();
    let mut listener_routes = HashMap::new();
    for listener in configuration.listeners.values() {
        if let Some(name) = &listener.default_cluster {
            *references.entry(name.clone()).or_insert(0) += 1;
        }
    }
    for route in configuration.routes.values() {
        if let Some(name) = route.cluster() {
            *references.entry(name.to_owned()).or_insert(0) += 1;
        }
        if let Some(name) = &route.listener {
            *listener_routes.entry(name.clone()).or_insert(0) += 1;
        }
    }
    assert_eq!(configuration.references, references);
    assert_eq!(configuration.listener_routes, listener_routes);
    let mut answer_uses = HashMap::new();
    let listeners = configuration.listeners.values().flat_map(|listener| &listener.answers);
    let clusters = configuration.clusters.values().flat_map(|entry| &entry.own.answers);
    let named = listeners.chain(clusters).map(|wanted| &wanted.answer);
    let routes = configuration.routes.values();
    let routes = routes.filter_map(|route| route.respond.as_ref()?.answer.as_ref());
    named.chain(routes).for_each(|name| *answer_uses.entry(name.clone()).or_insert(0) += 1);
    assert_eq!(configuration.answer_uses, answer_uses);
    let mut patterns = patterns::Patterns::default();
    configuration.routes.values().for_each(|route| patterns.count(route, true));
    assert_eq!(configuration.patterns, patterns);
    assert!(answer_uses.keys().all(|name| configuration.answers.contains_key(name)));
    assert!(references.keys().all(|name| configuration.clusters.contains_key(name)));
    assert!(listener_routes.keys().all(|name| configuration.listeners.contains_key(name)));
    assert!(configuration.clusters.values().all(|entry| entry.own.backends.is_empty()));
}

fn any_answers() -> impl Strategy<Value = Vec<AnswerFor>> {
    let answer = select(&NAMES[..2]).prop_map(|name| AnswerFor { status: 503, answer: name.into() });
    proptest::collection::vec(answer, 0..2)
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let ports = proptest::collection::btree_set(1u16..5, 0..4);
    let mode = select(vec![None, Some(RedirectMode::Copy), Some(RedirectMode::Splice)]);
    (select(&NAMES[..]), ports, mode, any_answers()).prop_map(|(name, ports, redirect, answers)| Cluster {
        redirect,
        answers,
        backends: ports.into_iter().map(backend).collect(),
        ..cluster(name)
    })
}

fn any_listener() -> impl Strategy<Value = Listener> {
    let name = proptest::option::of(select(&NAMES[..]));
    let kind = (any::<bool>(), any_answers());
    (select(&NAMES[..]), 80u16..83, kind, name).prop_map(|(name, port, (tcp, answers), default)| Listener {
        answers,
        protocol: if tcp { Protocol::Tcp } else { Protocol::Http },
        default_cluster: default.map(str::to_owned),
        ..listener(name, port)
    })
}

fn any_route() -> impl Strategy<Value = Route> {
    let path =
        select(vec![PathMatch::default(), PathMatch::Exact("/x".into()), PathMatch::Prefix("/x".into())]);
    let listener = proptest::option::of(select(&NAMES[..]));
    let leads_to = prop_oneof![
        3 => (select(&NAMES[..]), any::<bool>())
            .prop_map(|(name, allow_connect)| Route { allow_connect, ..Route::new(name) }),
        1 => proptest::option::of(select(&NAMES[..2])).prop_map(|answer| Route {
            respond: Some(Respond { status: 403, answer: answer.map(str::to_owned) }),
            ..Route::default()
        }),
    ];
    (select(&["h", "H", "*.h"][..]), path, listener, leads_to).prop_map(|(host, path, listener, route)| {
        Route { host: Some(host.to_owned()), path, listener: listener.map(str::to_owned), ..route }
    })
}

fn any_answer() -> impl Strategy<Value = Answer> {
    (select(&NAMES[..2]), 403u16..405).prop_map(|(name, status)| Answer::new(name, status, "sorry"))
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let name = || select(&NAMES[..]).prop_map(str::to_owned);
    let own = || any_cluster().prop_map(|found| Cluster { backends: Vec::new(), ..found });
    prop_oneof![
        any_cluster().prop_map(|cluster| Operation::AddCluster { cluster }),
        own().prop_map(|cluster| Operation::ChangeCluster { cluster }),
        name().prop_map(|name| Operation::RemoveCluster { name }),
        any_answer().prop_map(|answer| Operation::AddAnswer { answer }),
        any_answer().prop_map(|answer| Operation::ChangeAnswer { answer }),
        select(&NAMES[..2]).prop_map(|name| Operation::RemoveAnswer { name: name.to_owned() }),
        (name(), 1u16..5)
            .prop_map(|(cluster, port)| Operation::AddBackend { cluster, backend: backend(port) }),
        (name(), 1u16..5)
            .prop_map(|(cluster, port)| Operation::ChangeBackend { cluster, backend: backend(port) }),
        (name(), 1u16..5)
            .prop_map(|(cluster, port)| Operation::RemoveBackend { cluster, address: backend(port).address }),
        any_listener().prop_map(|listener| Operation::AddListener { listener }),
        any_listener().prop_map(|listener| Operation::ChangeListener { listener }),
        name().prop_map(|name| Operation::RemoveListener { name }),
        any_route().prop_map(add_route),
        any_route().prop_map(|route| Operation::ChangeRoute { route: Box::new(route) }),
        any_route().prop_map(|route| Operation::RemoveRoute { route: route.key() }),
        (1u64..3).prop_map(|head_ms| {
            let mut settings = Settings::default();
            settings.timeouts.head_ms = head_ms;
            Operation::ChangeSettings { settings: Box::new(settings) }
        }),
    ]
}

/// A configuration that some operations have led to; those that cannot be done are passed over.
fn any_configuration() -> impl Strategy<Value = Configuration> {
    proptest::collection::vec(any_operation(), 0..40).prop_map(|operations| {
        let mut configuration = Configuration::default();
        for operation in operations {
            let _ = configuration.apply(&[operation]);
        }
        configuration
    })
}

proptest! {
    #[test]
    fn a_difference_leads_where_it_should(from in any_configuration(), to in any_configuration()) {
        let operations = diff(&from, &to);
        prop_assert_eq!(operations.is_empty(), from == to);
        let mut reached = from.clone();
        let applied = reached.apply(&operations).expect("each can be done");
        prop_assert_eq!(&reached, &to);
        check_index(&reached);
        prop_assert_eq!(applied.effects, operations, "none is for what is equal");
        prop_assert!(diff(&to, &to.clone()).is_empty());
    }

    #[test]
    fn each_step_of_a_difference_is_needed(
        from in any_configuration(), to in any_configuration(), left_out in any::<Index>(),
    ) {
        let mut operations = diff(&from, &to);
        prop_assume!(!operations.is_empty());
        operations.remove(left_out.index(operations.len()));
        let mut reached = from;
        let missed = reached.apply(&operations).is_err() || reached != to;
        prop_assert!(missed);
    }

    #[test]
    fn a_change_is_all_or_nothing(
        from in any_configuration(), operations in proptest::collection::vec(any_operation(), 0..12),
    ) {
        let mut configuration = from.clone();
        let outcome = configuration.apply(&operations);
        check_index(&configuration);
        match outcome {
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                prop_assert_eq!(configuration.revision, from.revision);
                prop_assert_eq!(configuration, from);
            }
            Ok(applied) => {
                let moved = u64::from(configuration != from);
                prop_assert_eq!(configuration.revision, from.revision + moved);
                let mut other = from.clone();
                other.apply(&applied.effects).expect("the effects alone can be done");
                prop_assert_eq!(&other, &configuration);
                prop_assert_eq!(&applied.effects, &diff(&from, &configuration));
                configuration.revert(applied);
                check_index(&configuration);
                prop_assert_eq!(configuration.revision, from.revision);
                prop_assert_eq!(configuration, from);
            }
        }
    }

    #[test]
    fn a_state_and_back(configuration in any_configuration()) {
        let again = Configuration::new(configuration.state()).expect("it was one");
        check_index(&again);
        prop_assert_eq!(again, configuration);
    }

    #[test]
    fn operations_survive_json(operation in any_operation()) {
        let text = serde_json::to_string(&operation).expect("JSON");
        prop_assert!(text.starts_with(&format!("{{\"op\":\"{}\"", operation.name())), "{}", text);
        prop_assert_eq!(serde_json::from_str::<Operation>(&text).expect("as written"), operation);
    }
}

fn errors(configuration: &mut Configuration, operations: &[Operation]) -> Vec<String> {
    let before = configuration.clone();
    let errors = configuration.apply(operations).expect_err("it does not fit");
    assert_eq!(*configuration, before);
    check_index(configuration);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn each_operation_that_cannot_be_done_is_named() {
    let operations = [
        Operation::AddCluster { cluster: cluster("app") },
        Operation::AddBackend { cluster: "app".into(), backend: backend(2) },
        Operation::RemoveBackend { cluster: "shop".into(), address: backend(1).address },
        add_route(route("EXAMPLE.org", "app")),
    ];
    let told = errors(&mut small(), &operations);
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(
        told[0].starts_with("operation 1: add_cluster \"app\": cluster \"app\" is there already; "),
        "{told:?}"
    );
    assert!(
        told[1].contains("operation 3: ") && told[1].contains("there is no cluster \"shop\""),
        "{told:?}"
    );
    assert!(told[2].contains("operation 4: ") && told[2].contains("is there already"), "{told:?}");
}

#[test]
fn what_is_named_must_be_there_at_the_end_in_whatever_order() {
    let mut configuration = small();
    let told = errors(&mut configuration, &[add_route(route("shop.example", "shop"))]);
    assert!(told[0].contains("there is no cluster \"shop\""), "{told:?}");
    let told = errors(&mut configuration, &[Operation::RemoveCluster { name: "app".into() }]);
    assert!(told[0].contains("1 routes and listeners still lead to this cluster"), "{told:?}");
    let own = Route { listener: Some("web".into()), ..route("own.example", "app") };
    configuration.apply(&[add_route(own)]).expect("it fits");
    let told = errors(&mut configuration, &[Operation::RemoveListener { name: "web".into() }]);
    assert!(told[0].contains("1 routes are for this listener only"), "{told:?}");
    let gone =
        Route { respond: Some(Respond { status: 410, answer: Some("gone".into()) }), ..Route::default() };
    let told = errors(&mut configuration, &[add_route(gone.clone())]);
    assert!(told[0].contains("there is no answer \"gone\""), "{told:?}");
    let answer = Answer::new("gone", 410, "gone");
    configuration.apply(&[add_route(gone), Operation::AddAnswer { answer }]).expect("it fits");
    let told = errors(&mut configuration, &[Operation::RemoveAnswer { name: "gone".into() }]);
    assert!(told[0].contains("1 routes, listeners and clusters use this answer"), "{told:?}");
    let swap = [
        add_route(route("shop.example", "shop")),
        Operation::AddCluster { cluster: cluster("shop") },
        Operation::ChangeRoute { route: Box::new(route("example.org", "shop")) },
        Operation::RemoveRoute {
            route: Route { listener: Some("web".into()), ..route("own.example", "") }.key(),
        },
        Operation::RemoveCluster { name: "app".into() },
        Operation::RemoveListener { name: "web".into() },
    ];
    let applied = configuration.apply(&swap).expect("it fits at the end");
    let names: Vec<&str> = applied.effects.iter().map(Operation::name).collect();
    let order =
        ["add_cluster", "remove_listener", "change_route", "add_route", "remove_route", "remove_cluster"];
    assert_eq!(names, order);
}

#[test]
fn a_listeners_address_changes_by_one_that_takes_its_place() {
    let mut configuration = small();
    let told = errors(&mut configuration, &[Operation::ChangeListener { listener: listener("web", 81) }]);
    assert!(told[0].contains("address and protocol cannot be changed; remove the listener"), "{told:?}");
    let replace = [
        Operation::RemoveListener { name: "web".into() },
        Operation::AddListener { listener: listener("web", 81) },
    ];
    let applied = configuration.apply(&replace).expect("it fits");
    assert_eq!(applied.effects, replace);
}

#[test]
fn what_comes_to_nothing_is_no_change() {
    let mut configuration = small();
    let there_and_back = [
        Operation::AddBackend { cluster: "app".into(), backend: backend(2) },
        Operation::RemoveBackend { cluster: "app".into(), address: backend(2).address },
    ];
    let applied = configuration.apply(&there_and_back).expect("it fits");
    assert!(applied.effects.is_empty());
    assert_eq!(configuration.revision(), 1);
}

#[test]
fn bounds_hold() {
    let mut configuration = small();
    let last = u16::try_from(BACKENDS_PER_CLUSTER_MAX).expect("it fits") + 1;
    let operations: Vec<Operation> = (2..=last)
        .map(|port| Operation::AddBackend { cluster: "app".into(), backend: backend(port) })
        .collect();
    let told = errors(&mut configuration, &operations);
    assert_eq!(told, ["backends of cluster \"app\": 1025, above the limit of 1024; remove some"]);
    configuration.apply(&operations[1..]).expect("as many as there may be");
}

/// Routes that differ in one thing, to the bound and one beyond.
#[test]
fn what_workers_try_one_after_the_other_is_bounded() {
    let header = |n: usize| crate::state::HeaderMatch {
        name: "X-A".into(),
        value: crate::state::ValueMatch::Exact(n.to_string()),
        not: false,
    };
    type Make = fn(usize) -> Route;
    let makes: [(Make, usize, &str); 3] = [
        (
            |n| Route { path: PathMatch::Regex(format!("/{n}")), ..route("a.example", "app") },
            PATTERNS_PER_HOST_MAX,
            "more than 64 regular expressions for paths of one host",
        ),
        (
            |n| Route { host_regex: Some(format!("h{n}")), ..Route::new("app") },
            PATTERNS_PER_HOST_MAX,
            "regular expressions for hosts: 65, above the limit of 64",
        ),
        (
            |n| Route { methods: vec![format!("M{n}")], ..route("a.example", "app") },
            CONDITIONS_MAX,
            "more than 64 routes for the same host and path",
        ),
    ];
    for (make, max, told) in makes {
        let mut configuration = small();
        let many: Vec<Operation> = (0..max).map(|n| add_route(make(n))).collect();
        configuration.apply(&many).expect("as many as there may be");
        let found = errors(&mut configuration, &[add_route(make(max))]);
        assert!(found.len() == 1 && found[0].contains(told), "{found:?}");
        let changed = Operation::ChangeRoute { route: Box::new(Route { redirect: None, ..make(0) }) };
        configuration.apply(&[changed]).expect("no more than before");
        check_index(&configuration);
    }
    let mut configuration = small();
    let headers: Vec<Operation> = (0..=CONDITIONS_MAX)
        .map(|n| add_route(Route { headers: vec![header(n)], ..route("a.example", "app") }))
        .collect();
    assert!(errors(&mut configuration, &headers)[0].contains("more than 64 routes"));
    check_index(&configuration);
}

#[test]
fn a_misspelt_key_is_refused() {
    let text = r#"{"op":"add_cluster","cluster":{"name":"a","balence":"random"}}"#;
    let error = serde_json::from_str::<Operation>(text).expect_err("unknown key");
    assert!(error.to_string().contains("balence"), "{error}");
}
