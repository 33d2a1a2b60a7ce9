//! What routes do beside choosing a cluster: answers, redirections, rewriting, changed fields, passwords.

use sha2::{Digest, Sha256};
use underpass::http1::Reason;
use underpass_command::state::{
    Answer, AnswerField, AnswerFor, BasicAuth, EditAction, EditOn, FieldEdit, HeaderMatch, PathMatch,
    RedirectTo, Respond, Rewrite, Route, Scheme, Secret, State, User, ValueMatch,
};
use underpass_tests::proxy::Setup;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, Message, OK, Peer};

/// A worker with these routes before a backend, and no default cluster.
fn worker(backend: &Backend, change: impl FnOnce(&mut State)) -> Worker {
    Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.listeners[0].default_cluster = None;
        change(state);
    }))
}

fn at(prefix: &str, route: Route) -> Route {
    Route { path: PathMatch::Prefix(prefix.into()), ..route }
}

fn edit(on: EditOn, action: EditAction, name: &str, value: &str) -> FieldEdit {
    FieldEdit { on, action, name: name.into(), value: value.into() }
}

/// The response to one request on a new connection.
#[track_caller]
fn ask(worker: &Worker, request: &str) -> Message {
    let mut client = Peer::connect(worker.address());
    client.send(request);
    client.try_response_to(request.split(' ').next().unwrap_or_default()).expect("a response")
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: shop.example:81\r\n{fields}\r\n")
}

/// Tells in its body what it was asked for.
fn echo() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request() {
            let text = String::from_utf8(request.head).expect("a head in ASCII");
            let head = "HTTP/1.1 200 OK\r\nServer: backend\r\nX-Powered-By: it\r\nContent-Length: ";
            connection.peer.send(format!("{head}{}\r\n\r\n{text}", text.len()));
        }
    })
}

#[test]
fn what_is_denied_is_answered_and_the_connection_goes_on() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        state.routes.push(Route::new("app"));
        state.routes.push(at("/admin", Route::respond(403)));
        state.routes.push(at("/gone", Route::respond(410)));
        state.routes.push(at("/health", Route::respond(200)));
        state.routes.push(at("/nothing", Route::respond(204)));
    });
    let mut client = Peer::connect(worker.address());
    for (path, status, text) in [
        ("/admin/x", 403, "403 Forbidden: This is not served.\n"),
        ("/gone", 410, "410 Gone: This is not served.\n"),
        ("/health", 200, "200 OK\n"),
        ("/nothing", 204, ""),
        ("/", 200, "ok"),
    ] {
        client.send(get(path, ""));
        let response = client.response();
        assert_eq!((response.status(), response.text()), (status, text), "{path}");
        assert_eq!(response.value("Connection"), None, "{path}");
        assert_eq!(response.value("Content-Length").is_none(), status == 204, "{path}");
    }
    client.send("HEAD /gone HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = client.try_response_to("HEAD").expect("a response");
    assert_eq!((response.status(), response.value("Content-Length")), (410, Some("30")));
    assert_eq!(worker.refused_requests(Reason::RouteRefused), 3);
    drop(client);
    worker.stop();
}

#[test]
fn redirections_keep_what_they_do_not_change() {
    let backend = Backend::answering(OK);
    let to = |redirect: RedirectTo| Route { redirect_to: Some(redirect), ..Route::default() };
    let none = RedirectTo::default();
    let worker = worker(&backend, |state| {
        let https = RedirectTo { status: 308, scheme: Some(Scheme::Https), ..none.clone() };
        state.routes.push(at("/secure", to(https)));
        let host = RedirectTo { status: 301, host: Some("new.example".into()), ..none.clone() };
        state.routes.push(at("/host", to(host)));
        let port = RedirectTo { port: 8443, scheme: Some(Scheme::Https), ..none.clone() };
        state.routes.push(at("/port", to(port)));
        let prefix = RedirectTo { status: 307, prefix: Some("/new/".into()), ..none.clone() };
        state.routes.push(at("/old", to(prefix)));
        let path = RedirectTo { status: 303, path: Some("/$2?v=${version}&$$".into()), ..none.clone() };
        let regex = PathMatch::Regex("/v(?P<version>[0-9]+)/(.*)".into());
        state.routes.push(Route { path: regex, ..to(path) });
        let host = RedirectTo { host: Some("${tenant}.new.example".into()), ..none };
        let by_host = Route { host_regex: Some("(?P<tenant>[a-z]+)\\.old\\.example".into()), ..to(host) };
        state.routes.push(by_host);
    });
    let location = |target: &str, status: u16| {
        let response = ask(&worker, &get(target, ""));
        assert_eq!(response.status(), status, "{target}");
        response.value("Location").expect("a Location").to_owned()
    };
    assert_eq!(location("/secure/a?b=c", 308), "https://shop.example/secure/a?b=c");
    assert_eq!(location("/host?x", 301), "http://new.example/host?x");
    assert_eq!(location("/port", 302), "https://shop.example:8443/port");
    assert_eq!(location("/old/a/b?q", 307), "http://shop.example:81/new/a/b?q");
    assert_eq!(location("/old", 307), "http://shop.example:81/new/");
    assert_eq!(location("/v2/a/b?lost", 303), "http://shop.example:81/a/b?v=2&$");
    // No path is taken for a host.
    assert_eq!(location("/v2//evil.example/", 303), "http://shop.example:81//evil.example/?v=2&$");
    let response = ask(&worker, "GET /v1//evil.example HTTP/1.0\r\n\r\n");
    assert_eq!(response.value("Location"), Some("/evil.example?v=1&$"));
    // The target's authority is what was asked for.
    let response = ask(&worker, "GET http://SHOP.old.example:82 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(response.value("Location"), Some("http://shop.new.example/"));
    backend.expect_untouched();
    worker.stop();
}

#[test]
fn a_rewritten_request() {
    let backend = echo();
    let worker = worker(&backend, |state| {
        let rewrite = Rewrite { prefix: Some("/v2".into()), ..Rewrite::default() };
        state.routes.push(at("/api", Route { rewrite: Some(rewrite), ..Route::new("app") }));
        let rewrite = Rewrite {
            host: Some("$1.internal:8080".into()),
            path: Some("/${tenant}/$2".into()),
            prefix: None,
        };
        state.routes.push(Route {
            host_regex: Some("(?P<tenant>[a-z]+)\\..*".into()),
            path: PathMatch::Regex("/(app|web)/(.*)".into()),
            rewrite: Some(rewrite),
            ..Route::new("app")
        });
    });
    let start = |request: &str| {
        let response = ask(&worker, request);
        let body = response.text();
        let host: Vec<_> =
            body.lines().filter(|line| line.to_ascii_lowercase().starts_with("host:")).collect();
        assert_eq!(host.len(), 1, "{body}");
        format!("{} | {}", body.lines().next().unwrap_or_default(), host[0])
    };
    assert_eq!(start(&get("/api/x?y=1", "")), "GET /v2/x?y=1 HTTP/1.1 | Host: shop.example:81");
    assert_eq!(start(&get("/api", "")), "GET /v2 HTTP/1.1 | Host: shop.example:81");
    assert_eq!(start(&get("/app/a/b?q", "")), "GET /shop/a/b?q HTTP/1.1 | Host: app.internal:8080");
    let absolute = "GET http://Shop.example/api?q HTTP/1.1\r\nHost: other\r\n\r\n";
    assert_eq!(start(absolute), "GET /v2?q HTTP/1.1 | Host: Shop.example");
    let old = "GET /api/x HTTP/1.0\r\nHost: old.example\r\n\r\n";
    assert_eq!(start(old), "GET /v2/x HTTP/1.1 | Host: old.example");
    // With a body, and on the same connection again.
    let mut client = Peer::connect(worker.address());
    for _ in 0..3 {
        client.send("POST /api/y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert!(client.response().text().starts_with("POST /v2/y HTTP/1.1\r\n"));
    }
    drop(client);
    worker.stop();
}

#[test]
fn a_target_that_cannot_be_rewritten_is_refused() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        state.settings.limits.target_size_max = 64;
        let rewrite = Rewrite { host: Some("$1.internal".into()), ..Rewrite::default() };
        let path = PathMatch::Regex("/host/(.*)".into());
        state.routes.push(Route { path, rewrite: Some(rewrite), ..Route::new("app") });
        let rewrite = Rewrite { prefix: Some(format!("/{}", "x".repeat(60))), ..Rewrite::default() };
        state.routes.push(at("/long", Route { rewrite: Some(rewrite), ..Route::new("app") }));
    });
    // Slashes may stand in a path, and not in a host.
    assert_eq!(ask(&worker, &get("/host/a/b", "")).status(), 400);
    assert_eq!(ask(&worker, &get("/host/a", "")).status(), 200);
    assert_eq!(ask(&worker, &get("/long/abcdef", "")).status(), 414);
    assert_eq!(worker.refused_requests(Reason::RewriteInvalid), 1);
    worker.stop();
}

#[test]
fn changed_fields_of_request_and_response() {
    use EditAction::{Append, Remove, Set};
    use EditOn::{Request, Response};
    let backend = echo();
    let worker = worker(&backend, |state| {
        state.routes.push(Route {
            edits: vec![
                edit(Request, Set, "X-Client", "${client} by ${listener} for ${host}${path}?${query}"),
                edit(Request, Set, "X-Forwarded-Proto", "https"),
                edit(Request, Append, "Accept-Language", "de"),
                edit(Request, Remove, "Cookie", ""),
                edit(Response, Set, "Server", "front"),
                edit(Response, Remove, "x-powered-by", ""),
                edit(Response, Append, "X-Served-By", "${cluster} ${backend}"),
            ],
            ..Route::new("app")
        });
    });
    let fields = "x-client: forged\r\nCookie: a\r\nX-CLIENT: again\r\naccept-language: en\r\ncookie: b\r\nX-Forwarded-Proto: ftp\r\n";
    let response = ask(&worker, &get("/a?b", fields));
    let request = Message::from_head(&response.body).expect("a head");
    assert_eq!(request.values("X-Client"), ["127.0.0.1 by web for shop.example/a?b"]);
    assert_eq!(request.values("X-Forwarded-Proto"), ["https"]);
    assert_eq!(request.values("Accept-Language"), ["en", "de"]);
    assert_eq!(request.values("Cookie"), [""; 0]);
    assert_eq!(request.values("X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(response.values("Server"), ["front"]);
    assert_eq!(response.values("X-Powered-By"), [""; 0]);
    assert_eq!(response.values("X-Served-By"), [format!("app {}", backend.address())]);
    // What Connection names goes no further; what the operator sets does all the same.
    let response = ask(&worker, &get("/", "Connection: X-Client\r\nX-Client: forged\r\n"));
    let request = Message::from_head(&response.body).expect("a head");
    assert_eq!(request.values("X-Client"), ["127.0.0.1 by web for shop.example/?"]);
    worker.stop();
}

#[test]
fn methods_and_header_fields_choose_the_route() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        state.routes.push(Route { methods: vec!["GET".into(), "HEAD".into()], ..Route::new("app") });
        let beta = HeaderMatch {
            name: "Cookie".into(),
            value: ValueMatch::Regex("(.*; )?beta=[0-9]+(;.*)?".into()),
            not: false,
        };
        state.routes.push(Route { headers: vec![beta], ..Route::respond(418) });
    });
    assert_eq!(ask(&worker, &get("/", "")).status(), 200);
    assert_eq!(ask(&worker, &get("/", "cookie: a=b; beta=1\r\n")).status(), 418);
    assert_eq!(ask(&worker, &get("/", "cookie: a=b; alphabeta=1\r\n")).status(), 200);
    let response = ask(&worker, "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((response.status(), response.value("Allow")), (405, Some("GET, HEAD")));
    worker.stop();
}

/// RFC 9110 section 15.5.6.
#[test]
fn a_method_that_no_route_takes_is_told_which_ones_do() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        let to = |methods: &[&str]| Route {
            methods: methods.iter().map(|method| (*method).into()).collect(),
            ..Route::new("app")
        };
        state.routes.push(at("/a", to(&["PUT", "GET"])));
        state.routes.push(at("/a/b", to(&["POST"])));
        let header = HeaderMatch { name: "X-Beta".into(), value: ValueMatch::Any, not: false };
        state.routes.push(at("/a", Route { headers: vec![header.clone()], ..to(&["PATCH"]) }));
        state.routes.push(at("/c", Route { headers: vec![header], ..Route::new("app") }));
    });
    let allowed = |request: &str| {
        let response = ask(&worker, request);
        (response.status(), response.value("Allow").unwrap_or_default().to_owned())
    };
    let told = |status, methods: &str| (status, methods.to_owned());
    assert_eq!(allowed("DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n"), told(405, "GET, PUT"));
    // What stands above it would take it, too.
    assert_eq!(allowed("DELETE /a/b HTTP/1.1\r\nHost: a\r\n\r\n"), told(405, "GET, POST, PUT"));
    assert_eq!(allowed("DELETE /a HTTP/1.1\r\nHost: a\r\nX-Beta: 1\r\n\r\n"), told(405, "GET, PATCH, PUT"));
    // Another method would not help: a header field is missing, or the path.
    assert_eq!(allowed("GET /c HTTP/1.1\r\nHost: a\r\n\r\n"), told(404, ""));
    assert_eq!(allowed("DELETE /d HTTP/1.1\r\nHost: a\r\n\r\n"), told(404, ""));
    // It is as good a connection as before, and an answer to HEAD has no body.
    let mut client = Peer::connect(worker.address());
    for _ in 0..2 {
        client.send("DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().status(), 405);
    }
    drop(client);
    worker.stop();
}

#[test]
fn a_custom_answer_may_stand_for_it_and_the_methods_stay() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        state.routes.push(Route { methods: vec!["GET".into()], ..Route::new("app") });
        state.answers.push(Answer::new("no", 0, "not so"));
        state.listeners[0].answers.push(AnswerFor { status: 405, answer: "no".into() });
    });
    let response = ask(&worker, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((response.status(), response.value("Allow"), response.text()), (405, Some("GET"), "not so"));
    worker.stop();
}

fn password(salt: &str, password: &str) -> Secret {
    let hash = Sha256::new().chain_update(salt).chain_update(password).finalize();
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Secret(format!("{salt}${digits}"))
}

#[test]
fn who_has_no_password_is_asked_for_one() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        let users = vec![User { name: "Aladdin".into(), password: password("0123456789", "open sesame") }];
        let auth = Some(BasicAuth { realm: "cave".into(), users });
        state.routes.push(Route { auth: auth.clone(), ..Route::new("app") });
        let redirect_to = Some(RedirectTo { path: Some("/".into()), ..RedirectTo::default() });
        state.routes.push(at("/away", Route { auth, redirect_to, ..Route::default() }));
    });
    let right = "Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n";
    let mut client = Peer::connect(worker.address());
    for (path, fields, status) in [
        ("/", "", 401),
        ("/", "Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZR==\r\n", 401),
        ("/", right, 200),
        ("/away", "", 401),
        ("/away", right, 302),
    ] {
        client.send(get(path, fields));
        let response = client.response();
        assert_eq!(response.status(), status, "{path} {fields}");
        let challenge = (status == 401).then_some("Basic realm=\"cave\", charset=\"UTF-8\"");
        assert_eq!(response.value("WWW-Authenticate"), challenge);
        assert_eq!(response.value("Connection"), None);
    }
    assert_eq!(worker.refused_requests(Reason::AuthRequired), 3);
    drop(client);
    worker.stop();
}

#[test]
fn answers_in_the_operators_words() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        let page = "<p>${status} ${phrase}: ${explanation} ${client} [${request_id}] $$</p>\n";
        let fields = vec![AnswerField { name: "Retry-After".into(), value: "120".into() }];
        let html = Answer { content_type: "text/html".into(), fields, ..Answer::new("page", 0, page) };
        state.answers.push(html);
        state.answers.push(Answer::new("closed", 451, ""));
        state.clusters.push(underpass_command::state::Cluster::new("empty"));
        let for_status = |status| AnswerFor { status, answer: "page".into() };
        state.clusters[1].answers.push(for_status(503));
        state.listeners[0].answers.push(for_status(404));
        state.listeners[0].answers.push(AnswerFor { status: 503, answer: "closed".into() });
        state.routes.push(at("/empty", Route::new("empty")));
        let respond = Some(Respond { status: 403, answer: Some("closed".into()) });
        state.routes.push(at("/closed", Route { respond, ..Route::default() }));
    });
    let id = "X-Request-Id: <script>1\r\n";
    let response = ask(&worker, &get("/empty", id));
    assert_eq!(response.status(), 503);
    assert_eq!(response.values("Retry-After"), ["120"]);
    assert_eq!(response.value("Content-Type"), Some("text/html"));
    let text = "<p>503 Service Unavailable: No backend can serve this. 127.0.0.1 [_script_1] $</p>\n";
    assert_eq!(response.text(), text);
    let response = ask(&worker, &get("/nowhere", ""));
    assert_eq!(response.status(), 404);
    assert!(response.text().starts_with("<p>404 Not Found: Nothing is served"), "{}", response.text());
    let response = ask(&worker, &get("/closed", ""));
    assert_eq!((response.status(), response.text()), (451, ""));
    assert_eq!(response.value("Content-Length"), Some("0"));
    assert!(response.start.ends_with("Unavailable For Legal Reasons"), "{}", response.start);
    worker.stop();
}

/// An answer that would not fit into a buffer gives way to a line of text.
#[test]
fn an_answer_too_large_for_its_buffer() {
    let backend = Backend::answering(OK);
    let worker = worker(&backend, |state| {
        state.settings.limits.buffer_size = 4096;
        state.settings.limits.head_size_max = 4096;
        state.settings.limits.target_size_max = 2048;
        state.answers.push(Answer::new("large", 200, "x".repeat(4 * 1024)));
        state.answers.push(Answer::new("larger", 200, "x".repeat(16 * 1024)));
        for name in ["large", "larger"] {
            let respond = Some(Respond { status: 403, answer: Some(name.into()) });
            state.routes.push(at(&format!("/{name}"), Route { respond, ..Route::default() }));
        }
    });
    let response = ask(&worker, &get("/large", ""));
    assert_eq!((response.status(), response.body.len()), (200, 4 * 1024));
    let response = ask(&worker, &get("/larger", ""));
    assert_eq!((response.status(), response.text()), (403, "403 Forbidden: This is not served.\n"));
    worker.stop();
}
