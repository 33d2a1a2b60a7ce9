//! Routes and answers in files: read, written, refused.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use underpass_command::state::{
    Answer, AnswerField, AnswerFor, BasicAuth, Cluster, EditAction, EditOn, FieldEdit, HeaderMatch, Listener,
    PathMatch, RedirectMode, RedirectTo, Respond, Rewrite, Route, Scheme, Secret, State, User, ValueMatch,
};

use crate::config::{Severity, parse, parse_with_warnings, to_toml, validate};

const HASH: &str = "0123456789abcdef$a82a3210f69c0ac67e8a254d6e6c7d27c042352a0b14534d400553d9bfe0bcb3";

/// A valid file up to its routes.
const START: &str = "[[listener]]\nname = \"web\"\naddress = \"0.0.0.0:8080\"\n[[cluster]]\nname = \"app\"\n\
                     [[cluster.backend]]\naddress = \"127.0.0.1:9000\"\n";

fn read(routes: &str) -> Result<State, String> {
    parse_with_warnings(&format!("{START}{routes}"), "u.toml")
        .map(|(state, _)| state)
        .map_err(|errors| errors.to_string())
}

#[test]
fn a_file_with_everything() {
    let text = r#"
[[route]]
host_regex = '(?P<tenant>[a-z]+)\.example'
path_regex = '/v([0-9]+)/.*'
methods = "GET, HEAD"
priority = 7
cluster = "app"
redirect = "copy"
rewrite = { host = "${tenant}.internal", path = "/$1" }
header = [{ name = "X-Version", value_regex = "[0-9]+", not = true }]
edit = [{ name = "X-Client", value = "${client}" }, { on = "response", action = "remove", name = "Server" }]

[route.auth]
realm = "staff"

[[route.auth.user]]
name = "ann"
password = "HASH"

[[route]]
path = "/old"
redirect_to = { status = 308, scheme = "https", port = 8443, path = "/new" }

[[route]]
path_prefix = "/closed"
respond = { answer = "sorry" }

[[answer]]
name = "sorry"
status = 503
content_type = "text/html"
body = """<p>${status}</p>
"""
field = [{ name = "Retry-After", value = "120" }]
"#;
    let state = read(&text.replace("HASH", HASH)).expect("valid");
    let route = &state.routes[0];
    assert_eq!(route.methods, ["GET", "HEAD"]);
    assert_eq!(route.headers[0].value, ValueMatch::Regex("[0-9]+".into()));
    assert_eq!(route.edits[1].action, EditAction::Remove);
    assert_eq!(route.auth.as_ref().map(|auth| auth.users[0].name.as_str()), Some("ann"));
    assert_eq!(state.routes[1].redirect_to.as_ref().map(|to| (to.status, to.port)), Some((308, 8443)));
    assert_eq!(state.answers[0].fields[0].value, "120");
    assert_eq!(parse(&to_toml(&state), "again").expect("what is written can be read"), state);
}

/// What one route is refused with.
#[track_caller]
fn refused(route: &str, expected: &str) {
    let text = format!("[[route]]\n{route}");
    let said = read(&text).expect_err("it must be refused");
    assert!(said.contains(expected), "{said}\nshould say: {expected}");
}

#[test]
fn routes_that_are_refused() {
    for (route, expected) in [
        ("path = \"/\"", "route 1: cluster: missing"),
        ("cluster = \"app\"\nrespond = {}", "route 1: respond: the route says what to do already"),
        ("cluster = \"app\"\nhost = \"a\"\nhost_regex = \"a\"", "host_regex: host is given as well"),
        ("cluster = \"app\"\npath = \"/\"\npath_regex = \"/\"", "path_regex \"/\": path is given as well"),
        (
            "cluster = \"app\"\npath_regex = \"(\"",
            "path_regex \"(\": not a regular expression: unclosed group",
        ),
        ("cluster = \"app\"\nmethods = \"GET,,PUT\"", "methods \"GET,,PUT\": empty"),
        ("cluster = \"app\"\nmethods = \"get\"", "methods have a case"),
        ("cluster = \"app\"\nrespond = 403", "respond: a number, not a table"),
        ("respond = { status = 100 }", "respond.status 100: below 200"),
        ("respond = { answer = \"none\" }", "respond.answer \"none\": there is no such answer"),
        ("respond = { colour = 1 }", "respond.colour: unknown key"),
        ("redirect_to = { status = 304, path = \"/\" }", "redirect_to: the status 304 is none of 301"),
        ("redirect_to = {}", "redirect_to: nothing is given, so the client would come back"),
        ("redirect_to = { path = \"$1\" }", "redirect_to: $1 is a group of path_regex, which is not given"),
        (
            "path_regex = \"(.*)\"\nredirect_to = { path = \"$1\" }",
            "redirect_to: the path does not begin with /",
        ),
        (
            "cluster = \"app\"\nrewrite = { path = \"/a\", prefix = \"/b\" }",
            "rewrite: path and prefix exclude each other",
        ),
        (
            "cluster = \"app\"\npath = \"/a\"\nrewrite = { prefix = \"/b\" }",
            "rewrite: there is no path_prefix",
        ),
        ("cluster = \"app\"\nrewrite = { path = \"/${backend}\" }", "${backend} is not known here"),
        ("respond = {}\nrewrite = { path = \"/\" }", "rewrite: means nothing where the proxy answers itself"),
        (
            "cluster = \"app\"\nedit = [{ name = \"Content-Length\" }]",
            "edit: Content-Length belongs to the connection",
        ),
        (
            "cluster = \"app\"\nedit = [{ name = \"transfer-encoding\", action = \"remove\" }]",
            "belongs to the connection",
        ),
        (
            "cluster = \"app\"\nedit = [{ name = \"A\", value = \"a\\r\\nB: c\" }]",
            "edit 1.value \"a\\r\\nB: c\": holds the control character",
        ),
        (
            "cluster = \"app\"\nedit = [{ name = \"A\", on = \"response\", value = \"${path}\" }]",
            "A: ${path} is not known here",
        ),
        (
            "cluster = \"app\"\nedit = [{ name = \"A\", action = \"remove\", value = \"x\" }]",
            "a field that is removed has no value",
        ),
        ("cluster = \"app\"\nedit = [{ action = \"remove\" }]", "edit 1.name: missing"),
        ("cluster = \"app\"\nedit = {}", "edit: a table, not a list of tables"),
        (
            "cluster = \"app\"\nheader = [{ name = \"a b\" }]",
            "header 1.name \"a b\": ' ' is not allowed in a token",
        ),
        (
            "cluster = \"app\"\nheader = [{ name = \"a\", value = \"b\", value_regex = \"c\" }]",
            "header 1.value_regex \"c\": value is given as well",
        ),
        (
            "cluster = \"app\"\nallow_connect = true\nauth = { realm = \"x\", user = [] }",
            "allow_connect: a tunnel passes bytes",
        ),
        ("cluster = \"app\"\nauth = { realm = \"x\" }", "auth: there must be 1 to 1024 users"),
    ] {
        refused(route, expected);
    }
}

#[test]
fn no_message_shows_a_password() {
    for password in ["hunter2", "saltsalt$hunter2", "7777"] {
        let value = if password == "7777" { password.to_owned() } else { format!("{password:?}") };
        let auth = format!(
            "[[route]]\ncluster = \"app\"\nauth = {{ realm = \"x\", user = [{{ name = \"ann\", password = {value} }}] }}"
        );
        let said = read(&auth).expect_err("it must be refused");
        assert!(!said.contains(password) && said.contains("route 1: auth"), "{said}");
    }
}

#[test]
fn answers_that_are_refused() {
    for (answer, expected) in [
        ("name = \"a\"\nstatus = 100", "answer \"a\": status: not the status of an answer"),
        ("name = \"a\"\nbody = \"${path}\"", "answer \"a\": body: ${path} is not known here"),
        (
            "name = \"a\"\nfield = [{ name = \"Content-Length\", value = \"1\" }]",
            "answer \"a\": field: Content-Length belongs",
        ),
        (
            "name = \"a\"\nfield = [{ name = \"content-type\", value = \"1\" }]",
            "field: content_type says that",
        ),
        ("name = \"a\"\nfield = [{ name = \"A\", value = \"1\\n2\" }]", "field 1.value"),
        ("name = \"a\"\n[[answer]]\nname = \"a\"", "answer 2: name \"a\": answer 1 has this name already"),
    ] {
        let said = read(&format!("[[answer]]\n{answer}")).expect_err("it must be refused");
        assert!(said.contains(expected), "{said}\nshould say: {expected}");
    }
    let long = read(&format!("[[answer]]\nname = \"a\"\nbody = \"{}\"", "x".repeat(16 * 1024 + 1)));
    assert!(long.expect_err("too long").contains("longer than limits.buffer_size, 16384"));
    let twice = START.replace(
        "[[cluster.backend]]",
        "answer = [{ status = 503, answer = \"a\" }, { status = 503, answer = \"a\" }]\n[[cluster.backend]]",
    );
    let twice = format!("{twice}[[answer]]\nname = \"a\"\n");
    let said = parse(&twice, "u.toml").expect_err("twice").to_string();
    assert!(said.contains("cluster \"app\": answer: there is another for 503"), "{said}");
}

#[test]
fn what_is_tried_one_after_the_other_has_a_bound() {
    let with = |count: usize, route: fn(usize) -> String| {
        let routes: String =
            (0..count).map(|n| format!("[[route]]\ncluster = \"app\"\n{}\n", route(n))).collect();
        read(&routes).err().unwrap_or_default()
    };
    let path = |n: usize| format!("host = \"a\"\npath_regex = \"/{n}\"");
    assert_eq!(with(64, path), "");
    assert!(
        with(65, path)
            .contains("route 65: path_regex \"/64\": more than 64 regular expressions for paths of one host")
    );
    let host = |n: usize| format!("host_regex = \"h{n}\"");
    assert_eq!(with(64, host), "");
    assert!(
        with(65, host).contains("route 65: host_regex \"h64\": more than 64 regular expressions for hosts")
    );
    let header = |n: usize| format!("header = [{{ name = \"A\", value = \"{n}\" }}]");
    assert_eq!(with(64, header), "");
    assert!(with(65, header).contains("route 65: more than 64 routes for the same host and path"));
    let all = |n: usize| format!("host = \"h{}\"\npath_regex = \"/{n}\"", n / 64);
    assert!(with(1025, all).contains("route 1025: more than 1024 regular expressions"));
}

fn line() -> impl Strategy<Value = String> {
    "[^\\p{Cc}$]{0,20}"
}

fn part(route: Route) -> impl Strategy<Value = Route> {
    let name = "X-[a-zA-Z0-9-]{1,8}";
    let value = prop_oneof![
        Just(ValueMatch::Any),
        line().prop_map(ValueMatch::Exact),
        select(vec!["[0-9]+", "a.*b"]).prop_map(|text| ValueMatch::Regex(text.into())),
    ];
    let header = (name, value, any::<bool>()).prop_map(|(name, value, not)| HeaderMatch { name, value, not });
    let edit =
        (select(EditOn::ALL), select(EditAction::ALL), name, line()).prop_map(|(on, action, name, value)| {
            let value = if action == EditAction::Remove { String::new() } else { value };
            FieldEdit { on, action, name, value }
        });
    let methods = vec("[A-Z]{1,7}", 0..3);
    (vec(header, 0..3), vec(edit, 0..3), methods, any::<u16>(), 0..4, option::of(select(RedirectMode::ALL)))
        .prop_map(move |(headers, edits, methods, priority, action, redirect)| {
            let route = Route { headers, methods, priority, ..route.clone() };
            let respond =
                |answer: Option<&str>| Some(Respond { status: 410, answer: answer.map(str::to_owned) });
            match action {
                0 => Route { respond: respond(None), ..route },
                1 => Route { respond: respond(Some("sorry")), ..route },
                2 => Route {
                    redirect_to: Some(RedirectTo {
                        status: 307,
                        scheme: Some(Scheme::Https),
                        host: Some("${host}.example".into()),
                        port: 1,
                        path: Some("/a".into()),
                        prefix: None,
                    }),
                    ..route
                },
                _ => Route {
                    cluster: Some("app".into()),
                    edits,
                    redirect,
                    rewrite: Some(Rewrite {
                        host: Some("a".into()),
                        path: Some("/${query}".into()),
                        prefix: None,
                    }),
                    auth: Some(BasicAuth {
                        realm: "x y".into(),
                        users: vec![User { name: "\u{e4}nn".into(), password: Secret(HASH.into()) }],
                    }),
                    ..route
                },
            }
        })
}

prop_compose! {
    fn state()(
        routes in vec((select(vec!["/[a-z]+", "/(a|b)", ".*"]), any::<bool>()).prop_flat_map(|(path, host)| part(Route {
            path: PathMatch::Regex(path.into()),
            host_regex: host.then(|| "[a-z]+\\.example".into()),
            ..Route::default()
        })), 0..4),
        body in "[^\\p{Cc}$]{0,20}\n?",
        value in line(),
    ) -> State {
        let mut listener = Listener::new("web", "0.0.0.0:8080".parse().expect("an address"));
        listener.answers.push(AnswerFor { status: 404, answer: "sorry".into() });
        let mut cluster = Cluster::new("app");
        cluster.answers.push(AnswerFor { status: 503, answer: "sorry".into() });
        let fields = vec![AnswerField { name: "X-A".into(), value }];
        let answers = vec![Answer { fields, ..Answer::new("sorry", 404, body) }];
        State { listeners: vec![listener], clusters: vec![cluster], routes, answers, ..State::default() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn routes_and_answers_written_and_read_are_the_same(state in state()) {
        let text = to_toml(&state);
        let errors: Vec<_> =
            validate(&state).into_iter().filter(|problem| problem.severity == Severity::Error).collect();
        match parse(&text, "state.toml") {
            Ok(read) => {
                prop_assert_eq!(read, state);
                prop_assert_eq!(errors, []);
            }
            Err(refused) => {
                let twice = errors.iter().all(|problem| problem.reason.contains("the same listener"));
                prop_assert!(!errors.is_empty() && twice, "{refused}\n{text}");
            }
        }
    }
}
