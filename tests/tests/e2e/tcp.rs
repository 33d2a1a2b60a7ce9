//! TCP listeners in a whole proxy: real peers, the access log, the status.

use std::fs;

use underpass_command::state::{AccessLogFormat, Protocol, RedirectMode, Route};
use underpass_tests::body::{Content, hash_of};
use underpass_tests::nginx::Nginx;
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, Peer, Proxy, curl, until};

use crate::failures::Unreachable;

fn tcp(setup: Setup) -> Setup {
    setup.with(|state| state.listeners[0].protocol = Protocol::Tcp)
}

#[test]
fn downloads_and_uploads_pass_whole() {
    let content = Content::new(7, 20_000_000);
    let expected = hash_of(&mut content.clone()).expect("a content");
    let nginx = Nginx::start(&[("file", content)]);
    for &mode in RedirectMode::ALL {
        let proxy = tcp(Setup::to(&[nginx.address()])).redirect(mode).start();
        let url = format!("http://{}", proxy.address());
        for path in ["length", "chunked", "close"] {
            assert_eq!(curl::get(&format!("{url}/{path}/file"), &[]), expected, "{mode}: {path}");
        }
        for chunked in [false, true] {
            curl::put(&format!("{url}/upload/file"), &nginx.file("file"), chunked);
            assert_eq!(nginx.take_upload("file").1, expected.1, "{mode}");
        }
        proxy.expect_quiet();
        assert_eq!(proxy.counter("tcp_connections"), 5, "{mode}");
        assert_eq!(proxy.counter("requests"), 0);
        let (copied, spliced) = (proxy.counter("bytes_copied"), proxy.counter("bytes_spliced"));
        match mode {
            RedirectMode::Copy => assert_eq!(spliced, 0),
            RedirectMode::Splice => assert_eq!(copied, 0),
            _ => {}
        }
        proxy.stop();
    }
}

fn logging(setup: Setup, format: AccessLogFormat) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("access.log");
    let setup = tcp(setup).with(|state| {
        state.settings.log.access = format;
        state.settings.log.access_file = file;
    });
    (setup.start(), folder)
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

/// Takes five bytes, and answers three.
fn short_talk() -> Backend {
    Backend::start(|connection| {
        if connection.peer.try_bytes(5).is_ok() {
            connection.peer.send("you");
            let _ = connection.peer.try_rest();
        }
    })
}

#[test]
fn each_connection_has_a_line_in_the_log() {
    let formats = [AccessLogFormat::Json, AccessLogFormat::Text];
    for (format, mode) in
        formats.iter().flat_map(|format| RedirectMode::ALL.iter().map(|mode| (*format, *mode)))
    {
        let backend = short_talk();
        let (proxy, folder) = logging(Setup::to(&[backend.address()]).redirect(mode), format);
        let mut client = Peer::connect(proxy.address());
        client.send("hello");
        assert_eq!(client.bytes(3), b"you");
        client.finish();
        client.expect_end();
        lines(&folder, 1);
        let mut client = Peer::connect(proxy.address());
        client.send("hello");
        assert_eq!(client.bytes(3), b"you");
        client.reset();
        let lines = lines(&folder, 2);
        proxy.stop();
        for (line, end) in lines.iter().zip(["closed", "client_aborted"]) {
            if format == AccessLogFormat::Text {
                let words: Vec<&str> = line.split(' ').collect();
                let backend = backend.address().to_string();
                assert_eq!(words[1..6], ["127.0.0.1", "\"TCP", "web\"", "-", "5/3"], "{line}");
                assert!(words[6].ends_with("us"), "{line}");
                let names = ["attempts=1", "listener=web", "cluster=app"];
                assert_eq!((words[7], &words[11..14]), (backend.as_str(), &names[..]), "{line}");
                assert_eq!((words.len(), words[14]), (15, end), "{line}");
                continue;
            }
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&line["bytes_up"], &line["bytes_down"]), (&5.into(), &3.into()), "{line}");
            assert!(line["duration_us"].is_u64() && line["time"].is_string(), "{line}");
            for (key, value) in [
                ("client", "127.0.0.1"),
                ("protocol", "tcp"),
                ("listener", "web"),
                ("server_name", ""),
                ("backend", &backend.address().to_string()),
                ("end", end),
            ] {
                assert_eq!(line[key], value, "{line}");
            }
        }
    }
}

#[test]
fn the_log_tells_how_a_connection_ended() {
    let gone = ReservedPort::new();
    let backend = Backend::start(|connection| {
        // Not before the client is connected: a reset could come before connect(2) has looked.
        assert_eq!(connection.peer.bytes(1), b"x");
        match connection.number {
            0 => connection.peer.reset_on_close(),
            _ => drop(connection.peer.try_rest()),
        }
    });
    let setup = Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.tcp_idle_ms = 1000);
    let (proxy, folder) = logging(setup, AccessLogFormat::Text);
    for count in 1..=2 {
        let mut client = Peer::connect(proxy.address());
        client.send("x");
        let _ = client.try_rest();
        lines(&folder, count);
    }
    let ends = lines(&folder, 2);
    assert!(ends[0].ends_with(" backend_aborted") && ends[1].ends_with(" idle"), "{ends:?}");
    proxy.stop();
    let (proxy, folder) = logging(Setup::to(&[gone.address()]), AccessLogFormat::Text);
    // It may be reset before it is connected.
    drop(std::net::TcpStream::connect(proxy.address()));
    let ends = lines(&folder, 1);
    assert!(ends[0].contains(" 0/0 ") && ends[0].ends_with(" connect_failed"), "{ends:?}");
    assert_eq!(proxy.status().total.refused_responses["connect_failed"], 1);
    proxy.stop();
}

/// What a client says before a backend is reached waits in the kernel: the proxy takes no buffer for it.
#[test]
fn nothing_is_read_before_a_backend_is_reached() {
    let unreachable = Unreachable::new();
    let setup = Setup::to(&[unreachable.address]).with(|state| state.settings.timeouts.connect_ms = 1000);
    let (proxy, folder) = logging(setup, AccessLogFormat::Text);
    let mut client = Peer::connect(proxy.address());
    client.send("hello");
    proxy.until_counter("backend_connects", 1);
    let waited = until("the end of the wait", || {
        let (used, over) = (proxy.counter("buffers_used"), proxy.counter("timeout_connect"));
        assert_eq!(used, 0, "a buffer is held while a backend is being reached");
        (over == 1).then_some(over)
    });
    assert_eq!(waited, 1);
    client.expect_gone();
    let ends = lines(&folder, 1);
    assert!(ends[0].contains(" 0/0 ") && ends[0].ends_with(" connect_timeout"), "{ends:?}");
    proxy.stop();
}

/// Listeners of both protocols side by side, and a route that concerns one of them.
#[test]
fn http_and_tcp_side_by_side() {
    let backend = Backend::answering(underpass_tests::OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            let mut listener = state.listeners[0].clone();
            listener.name = "raw".into();
            listener.protocol = Protocol::Tcp;
            state.listeners.push(listener);
            state.listeners[0].default_cluster = None;
            let mut route = Route::new("app");
            route.host = Some("a".into());
            state.routes.push(route);
        })
        .start();
    for name in ["web", "raw"] {
        let mut client = Peer::connect(proxy.listener(name));
        client.send(underpass_tests::GET);
        assert_eq!(client.response().text(), "ok");
    }
    let requests = backend.requests();
    assert!(requests[0].value("X-Forwarded-For").is_some());
    // What passes a TCP listener is not looked at.
    assert!(requests[1].value("X-Forwarded-For").is_none() && requests[1].value("Via").is_none());
    proxy.stop();
}
