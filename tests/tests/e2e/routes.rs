//! Routes of a configuration file, as curl sees them through a whole proxy.

use sha2::{Digest, Sha256};
use underpass_command::state::{
    Answer, AnswerFor, BasicAuth, EditAction, EditOn, FieldEdit, HeaderMatch, PathMatch, RedirectTo, Respond,
    Rewrite, Route, Secret, User, ValueMatch,
};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, curl};

/// Answers with the request line and Host of what it was asked for.
fn echo() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request() {
            let text = format!("{} | {}", request.start, request.value("Host").unwrap_or("-"));
            let head = "HTTP/1.1 200 OK\r\nServer: backend\r\nContent-Length: ";
            connection.peer.send(format!("{head}{}\r\n\r\n{text}", text.len()));
        }
    })
}

fn at(prefix: &str, route: Route) -> Route {
    Route { path: PathMatch::Prefix(prefix.into()), ..route }
}

fn auth() -> BasicAuth {
    let hash = Sha256::new().chain_update("0123456789").chain_update("secret").finalize();
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let password = Secret(format!("0123456789${digits}"));
    BasicAuth { realm: "staff".into(), users: vec![User { name: "ann".into(), password }] }
}

fn routes() -> Vec<Route> {
    let beta = HeaderMatch { name: "X-Beta".into(), value: ValueMatch::Any, not: false };
    let rewrite = Rewrite { host: Some("v$1.internal".into()), path: Some("/$2".into()), prefix: None };
    let server = FieldEdit {
        on: EditOn::Response,
        action: EditAction::Set,
        name: "Server".into(),
        value: "${cluster} at ${listener}".into(),
    };
    let moved = RedirectTo { status: 308, prefix: Some("/api".into()), ..RedirectTo::default() };
    vec![
        Route::new("app"),
        Route { headers: vec![beta], ..Route::respond(503) },
        Route {
            path: PathMatch::Regex("/v([0-9]+)/(.*)".into()),
            rewrite: Some(rewrite),
            edits: vec![server],
            ..Route::new("app")
        },
        at("/old", Route { redirect_to: Some(moved), ..Route::default() }),
        at("/staff", Route { auth: Some(auth()), ..Route::new("app") }),
        at(
            "/closed",
            Route { respond: Some(Respond { status: 410, answer: Some("page".into()) }), ..Route::default() },
        ),
    ]
}

#[test]
fn routes_of_a_file_do_what_they_say() {
    let backend = echo();
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.routes = routes();
            state.answers.push(Answer::new("page", 0, "<${status} ${phrase}>"));
            state.listeners[0].answers.push(AnswerFor { status: 404, answer: "page".into() });
        })
        .start();
    let url = |path: &str| format!("http://{}{path}", proxy.address());
    let host = proxy.address().to_string();
    let text = |path: &str, options: &[&str]| curl::text(&url(path), options);
    // curl ends with 22 where --fail meets a status from 400 on.
    let refused = Err(22);
    assert_eq!(text("/a?b", &[]), Ok(format!("GET /a?b HTTP/1.1 | {host}")));
    assert_eq!(text("/v7/x/y?z", &[]), Ok("GET /x/y?z HTTP/1.1 | v7.internal".into()));
    let head = text("/v7/x", &["--include"]).expect("a response");
    assert!(head.contains("Server: app at web\r\n") && !head.contains("Server: backend"), "{head}");
    assert_eq!(text("/", &["--header", "X-Beta: 1"]), refused);
    assert_eq!(text("/old/x?y", &["--location"]), Ok(format!("GET /api/x?y HTTP/1.1 | {host}")));
    // 308 keeps method and body.
    let posted = text("/old", &["--location", "--data", "abc"]);
    assert_eq!(posted, Ok(format!("POST /api HTTP/1.1 | {host}")));
    assert_eq!(text("/staff", &[]), refused);
    assert_eq!(text("/staff", &["--user", "ann:wrong"]), refused);
    assert_eq!(text("/staff", &["--user", "ann:secret"]), Ok(format!("GET /staff HTTP/1.1 | {host}")));
    assert_eq!(text("/closed", &["--no-fail"]), Ok("<410 Gone>".into()));
    assert_eq!(proxy.refused_requests("auth_required"), 2);
    proxy.stop();
}
