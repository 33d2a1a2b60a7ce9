//! The access log: one line per request, whatever became of it, and never in the way of a request.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use underpass_command::state::{AccessLogEscape, AccessLogFormat, PathMatch, Route};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer, Proxy, until};

fn logging(backend: &Backend, format: AccessLogFormat) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("access.log");
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.log.access = format;
            state.settings.log.access_file = file;
        })
        .start();
    (proxy, folder)
}

/// The lines of the log as soon as there are so many.
#[track_caller]
fn lines(folder: &tempfile::TempDir, count: usize) -> Vec<String> {
    let path = folder.path().join("access.log");
    until(&format!("{count} lines in the access log"), || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count && text.ends_with('\n')).then_some(lines)
    })
}

/// A good request, one whose fields try to break the line, a refused one, and one the client leaves.
fn requests(proxy: &Proxy) {
    let mut client = Peer::connect(proxy.address());
    client.send(
        "GET /path?query HTTP/1.1\r\nHost: a.example\r\nX-Request-Id: my-id\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    );
    assert_eq!(client.response().text(), "ok");
    client.send("GET /x HTTP/1.1\r\nHost: b.example\r\nX-Request-Id: \"},{\"evil\":\"\\\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    client.send("GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(client.response().status(), 400);
}

#[test]
fn as_json() {
    let backend = Backend::answering(OK);
    let (proxy, folder) = logging(&backend, AccessLogFormat::Json);
    requests(&proxy);
    let lines: Vec<serde_json::Value> = lines(&folder, 3)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let text = |line: usize, key: &str| lines[line][key].as_str().unwrap_or_default().to_owned();
    assert_eq!(lines[0]["status"], 200);
    assert_eq!(lines[0]["bytes"], 2);
    assert!(lines[0]["duration_us"].is_u64());
    assert_eq!(text(0, "client"), "127.0.0.1");
    assert_eq!((text(0, "method"), text(0, "target")), ("GET".into(), "/path?query".into()));
    assert_eq!(text(0, "host"), "a.example");
    assert_eq!(text(0, "backend"), backend.address().to_string());
    assert_eq!(text(0, "id"), "my-id");
    assert!(text(0, "time").contains('T'));
    assert_eq!((text(0, "listener"), text(0, "cluster")), ("web".into(), "app".into()));
    assert_eq!(
        (text(0, "end"), text(0, "trace_id")),
        ("done".into(), "0af7651916cd43dd8448eb211c80319c".into())
    );
    assert_eq!((&lines[0]["attempts"], &lines[0]["bytes_in"]), (&1.into(), &0.into()));
    assert!(lines[0]["connect_us"].is_u64() && lines[0]["queue_us"].is_null());
    let (first_byte, whole) = (&lines[0]["first_byte_us"], &lines[0]["duration_us"]);
    assert!(first_byte.as_u64() <= whole.as_u64() && first_byte.is_u64(), "{first_byte} of {whole}");
    // The second went by the pooled connection.
    assert!(lines[1]["connect_us"].is_null() && lines[1]["trace_id"] == "");
    assert!(lines[1].get("evil").is_none());
    assert_eq!((text(2, "end"), text(2, "cluster")), ("host_repeated".into(), String::new()));
    assert!(lines[2]["first_byte_us"].is_null() && lines[2]["attempts"] == 0);
    assert_eq!(lines[2]["status"], 400);
    assert_eq!(text(2, "reason"), "host_repeated");
    proxy.stop();
    assert_eq!(lines.len(), 3);
}

#[test]
fn as_text() {
    let backend = Backend::answering(OK);
    let (proxy, folder) = logging(&backend, AccessLogFormat::Text);
    requests(&proxy);
    let lines = lines(&folder, 3);
    assert_eq!(lines.len(), 3);
    for part in [
        "127.0.0.1",
        "\"GET /path?query\"",
        "a.example",
        " 200 2 ",
        "my-id end=done in=0 queue=- connect=",
        " attempts=1 listener=web cluster=app trace=0af7651916cd43dd8448eb211c80319c",
        &backend.address().to_string(),
    ] {
        assert!(lines[0].contains(part), "{part:?} is missing in {:?}", lines[0]);
    }
    assert!(lines[2].contains(" 400 ") && lines[2].contains("host_repeated"), "{:?}", lines[2]);
    proxy.stop();
}

#[test]
fn requests_that_fail_are_logged_with_their_reason() {
    let backend = Backend::start(|connection| {
        connection.request();
    });
    let (proxy, folder) = logging(&backend, AccessLogFormat::Json);
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().status(), 502);
    drop(client);
    let line: serde_json::Value = serde_json::from_str(&lines(&folder, 1)[0]).expect("JSON");
    assert_eq!(line["status"], 502);
    assert_eq!(line["reason"], "backend_closed");
    proxy.stop();
}

#[test]
fn bytes_of_both_ways_and_who_broke_off_are_told() {
    let backend = Backend::start(|connection| {
        while let Some(request) = connection.request() {
            let whole = request.text() != "break off";
            let length = if whole { 4 } else { 400 };
            connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nbody"));
            if !whole {
                return;
            }
        }
    });
    let (proxy, folder) = logging(&backend, AccessLogFormat::Json);
    let request =
        |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut client = Peer::connect(proxy.address());
    client.send(request("seven b"));
    assert_eq!(client.response().text(), "body");
    client.send(request("break off"));
    let lines: Vec<serde_json::Value> =
        lines(&folder, 2).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(
        (&lines[0]["bytes_in"], &lines[0]["bytes"], &lines[0]["end"]),
        (&7.into(), &4.into(), &"done".into())
    );
    assert_eq!((&lines[1]["bytes_in"], &lines[1]["bytes"]), (&9.into(), &4.into()));
    assert_eq!((&lines[1]["status"], &lines[1]["end"]), (&200.into(), &"body_truncated".into()));
    drop(client);
    proxy.stop();
}

#[test]
fn a_log_that_was_moved_away_is_opened_anew() {
    let backend = Backend::answering(OK);
    let (proxy, folder) = logging(&backend, AccessLogFormat::Text);
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    lines(&folder, 1);
    fs::rename(folder.path().join("access.log"), folder.path().join("old.log")).expect("renaming a file");
    proxy.signal(Signal::SIGUSR1);
    until("the log is there again", || folder.path().join("access.log").exists().then_some(()));
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    assert_eq!(lines(&folder, 1).len(), 1);
    drop(client);
    proxy.stop();
}

/// A reader of the log that has stopped reading: requests go on, and what is lost is counted.
#[test]
fn a_log_that_nobody_takes_stops_no_request() {
    let backend = Backend::answering(OK);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("fifo");
    nix::unistd::mkfifo(&file, Mode::from_bits_truncate(0o600)).expect("a named pipe");
    // Open for reading as well, so that opening it does not wait for the other end.
    let stuck: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&file)
        .expect("the pipe");
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.log.access = AccessLogFormat::Text;
            state.settings.log.access_file = file;
        })
        .expect_log("access log")
        .start();
    let mut client = Peer::connect(proxy.address());
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(700));
    let lost = || {
        let status = proxy.status();
        status.total.value("access_log_dropped") + status.access_log_lost_bytes
    };
    // Far more lines than all pipes and buffers on the way hold.
    let mut rounds = 0;
    while lost() == 0 {
        assert!(rounds < 200, "nothing is lost after {} requests, which nobody has read", rounds * 100);
        rounds += 1;
        for _ in 0..100 {
            client.send(&request);
            assert_eq!(client.response().text(), "ok");
        }
    }
    client.send(&request);
    assert_eq!(client.response().text(), "ok");
    drop((client, stuck));
    proxy.stop();
}

fn with_template(backend: &Backend, template: &str, escape: AccessLogEscape) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("access.log");
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.log.access = AccessLogFormat::Template;
            state.settings.log.access_template = Some(template.to_owned());
            state.settings.log.access_escape = escape;
            state.settings.log.access_file = file;
        })
        .start();
    (proxy, folder)
}

#[test]
fn as_apache_and_nginx_write_it() {
    let backend = Backend::answering(OK);
    let (proxy, folder) = logging(&backend, AccessLogFormat::Combined);
    let mut client = Peer::connect(proxy.address());
    // fred:secret
    client.send(
        "GET /a?b HTTP/1.1\r\nHost: a\r\nAuthorization: Basic ZnJlZDpzZWNyZXQ=\r\n\
         Referer: http://x/\"\r\nUser-Agent: curl/8 é\r\n\r\n",
    );
    assert_eq!(client.response().text(), "ok");
    client.send("GET /bad HTTP/1.1\r\nHost: a\r\nHost: b\r\nReferer: http://x/\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    let lines = lines(&folder, 2);
    let (before, after) = lines[0].split_once('[').expect("a time");
    assert_eq!(before, "127.0.0.1 - fred ");
    let (time, after) = after.split_once("] ").expect("the end of the time");
    // 23/Nov/2026:13:45:06 +0000
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_eq!((shape.len(), &shape[..3], &shape[7..21]), (26, "99/", "9999:99:99:99 "));
    // A string of Rust is UTF-8, so it was two bytes.
    assert_eq!(after, r#""GET /a?b HTTP/1.1" 200 2 "http://x/\x22" "curl/8 \xC3\xA9""#);
    // What was not understood has no parts, and nothing of the request before.
    assert!(lines[1].starts_with("127.0.0.1 - - ["), "{}", lines[1]);
    assert!(lines[1].contains(r#"] "- - -" 400 "#) && lines[1].ends_with(r#" "-" "-""#), "{}", lines[1]);
    drop(client);
    proxy.stop();
}

#[test]
fn a_template_tells_what_is_known() {
    let backend = Backend::answering(OK);
    let template = r#"{"n":$requests,"path":"$path","query":"$query","route":"$route","mode":"$redirect",
        "copied":$bytes_copied,"spliced":$bytes_spliced,"out":$bytes,"in":$bytes_in,"ms":$time_ms,"iso":"$time_iso",
        "worker":$worker,"port":$client_port,"version":"$version","retries":$retries,"queue":$queue_us,
        "first":$first_byte_us,"whole":$duration_us,"end":"$end","x":"$http_x_y","listener":"$listener",
        "cluster":"$cluster","backend":"$backend","status":$status,"reason":"$reason","host":"$host","id":"$id"}"#;
    let template: String = template.lines().map(str::trim).collect();
    let (proxy, folder) = with_template(&backend, &template, AccessLogEscape::Json);
    let mut client = Peer::connect(proxy.address());
    client.send(
        "POST http://a.example/p/q?r=1 HTTP/1.1\r\nHost: a.example\r\nX-Y: \"1\\\r\nx-y: 2\r\n\
         Content-Length: 3\r\n\r\nabc",
    );
    assert_eq!(client.response().text(), "ok");
    client.send("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    let lines: Vec<serde_json::Value> =
        lines(&folder, 2).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let expected = serde_json::json!({
        "n": 1, "path": "/p/q", "query": "r=1", "copied": 5, "spliced": 0, "out": 2, "in": 3,
        "version": "HTTP/1.1", "retries": 0, "queue": null, "end": "done", "x": "\"1\\, 2", "listener": "web",
        "cluster": "app", "backend": backend.address().to_string(), "status": 200, "reason": "", "host": "a.example",
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&lines[0][key], value, "{key} in {}", lines[0]);
    }
    for key in ["ms", "worker", "port", "first", "whole"] {
        assert!(lines[0][key].is_u64(), "{key} in {}", lines[0]);
    }
    assert!(lines[0]["iso"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!((&lines[1]["n"], &lines[1]["path"], &lines[1]["x"]), (&2.into(), &"/".into(), &"".into()));
    drop(client);
    proxy.stop();
}

#[test]
fn a_template_names_the_route() {
    let backend = Backend::answering(OK);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("access.log");
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.log.access = AccessLogFormat::Template;
            state.settings.log.access_template = Some("$route $end".to_owned());
            state.settings.log.access_file = file;
            state.routes.push(Route { path: PathMatch::Prefix("/shop".into()), ..Route::new("app") });
        })
        .start();
    let mut client = Peer::connect(proxy.address());
    for path in ["/shop/1", "/"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.response().text(), "ok");
    }
    let lines = lines(&folder, 2);
    assert_eq!(lines[0], "*/shop... done");
    assert_eq!(lines[1], "- done", "no route, but the default cluster");
    drop(client);
    proxy.stop();
}

/// A request id may hold what no token may: spaces, quotes, and bytes that are not ASCII.
#[test]
fn no_request_id_forges_a_field() {
    let backend = Backend::answering(OK);
    for format in [AccessLogFormat::Text, AccessLogFormat::Json] {
        let (proxy, folder) = logging(&backend, format);
        let mut client = Peer::connect(proxy.address());
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: a end=\"\\é\r\n\r\n");
        assert_eq!(client.response().text(), "ok");
        let line = &lines(&folder, 1)[0];
        if format == AccessLogFormat::Json {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(line["id"], "a end=\"\\\u{c3}\u{a9}", "two bytes, each a character of Latin-1");
        } else {
            assert!(line.contains(" a\\x20end=\\x22\\x5C\\xC3\\xA9 end=done "), "{line}");
        }
        drop(client);
        proxy.stop();
    }
}

/// What the proxy answers itself is counted as what a backend answers; so is what a backend took before it failed.
#[test]
fn an_answer_of_the_proxy_is_told_with_its_bytes_and_its_time() {
    const BODY: usize = 100_000;
    let backend = Backend::start(|connection| {
        let Ok(Some(_)) = connection.peer.try_head() else { return };
        let _ = connection.peer.try_bytes(BODY);
    });
    let template =
        "{\"status\":${status},\"bytes\":$bytes,\"in\":$bytes_in,\"us\":$duration_us,\"request\":$requests}";
    let (proxy, folder) = with_template(&backend, template, AccessLogEscape::Json);
    let began = std::time::Instant::now();
    let mut client = Peer::connect(proxy.address());
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"));
    client.send(vec![b'x'; BODY]);
    let failed = client.response();
    assert_eq!(failed.status(), 502);
    // The second was pipelined, and is no request.
    let mut pipelining = Peer::connect(proxy.address());
    pipelining.send("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\nnonsense\r\n\r\n");
    assert_eq!(pipelining.response_to("OPTIONS").status(), 200);
    let refused = pipelining.response();
    assert_eq!(refused.status(), 400);
    let lines: Vec<serde_json::Value> =
        lines(&folder, 3).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let whole_us = began.elapsed().as_micros();
    assert_eq!((&lines[0]["in"], &lines[0]["bytes"]), (&BODY.into(), &failed.body.len().into()));
    assert_eq!(
        (&lines[1]["status"], &lines[1]["bytes"], &lines[1]["request"]),
        (&200.into(), &0.into(), &1.into())
    );
    assert_eq!((&lines[2]["status"], &lines[2]["request"]), (&400.into(), &2.into()));
    assert_eq!(lines[2]["bytes"], refused.body.len());
    for line in &lines {
        assert!(u128::from(line["us"].as_u64().expect("a number")) <= whole_us, "{line}");
    }
    proxy.stop();
}
