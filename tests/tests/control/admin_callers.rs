//! Callers of the admin API that are slow, greedy, or not allowed: they get their share and no more.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use underpass_command::Client;
use underpass_command::api::{RedirectChange, RedirectScope};
use underpass_command::state::RedirectMode;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, PATIENCE, Peer, Proxy, until};

use crate::{GET, HELLO, text, underpass};

/// Connections of one process that are served at a time.
const SHARE: usize = 32;
const STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n";

#[track_caller]
fn connect(proxy: &Proxy) -> UnixStream {
    let stream = UnixStream::connect(proxy.client().socket()).expect("the admin socket listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
    stream
}

/// Another process asks, and gets an answer.
#[track_caller]
fn expect_others_are_served(proxy: &Proxy) {
    let output = underpass(&["status", "--socket", &proxy.client().socket().display().to_string()]);
    assert!(output.status.success(), "{}", text(&output));
    let mut peer = Peer::connect(proxy.address());
    peer.send(GET);
    assert_eq!(peer.response().text(), "hello");
}

/// Waits until the other end has closed the connection.
#[track_caller]
fn expect_cut(mut stream: UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "not cut"),
    }
}

#[test]
fn slow_callers_are_cut_and_keep_nobody_waiting() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).start();
    // As many as one process may have: a request that never ends, a body that never comes, silence.
    let beginnings =
        ["GET /v1/sta", "PUT /v1/redirect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", ""];
    // One is left for what a test looks at; it has its connection kept.
    proxy.status();
    let slow: Vec<UnixStream> = (1..SHARE)
        .map(|number| {
            let mut stream = connect(&proxy);
            stream.write_all(beginnings[number % beginnings.len()].as_bytes()).expect("room");
            stream
        })
        .collect();
    expect_others_are_served(&proxy);
    slow.into_iter().for_each(expect_cut);
    proxy.stop();
}

#[test]
fn a_thousand_connections_of_one_process_leave_the_others_theirs() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("caller refused: process").start();
    let mut refused = 0;
    let mut held = Vec::new();
    for _ in 0..1000 {
        let mut stream = connect(&proxy);
        if held.len() < SHARE {
            held.push(stream);
            continue;
        }
        let mut answer = String::new();
        // It was closed without reading a request, which is no failure of the answer before it.
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains(r#""remedy":"close some"#), "{answer}");
        refused += 1;
    }
    // The client's own connection of the start may have been counted as well.
    assert!(refused >= 1000 - SHARE);
    let error =
        Client::new(proxy.client().socket()).status().expect_err("the share of this process is used up");
    assert!(error.to_string().contains("too many connections"), "{error}");
    expect_others_are_served(&proxy);
    drop(held);
    until("the share has come back", || Client::new(proxy.client().socket()).status().ok());
    proxy.stop();
}

#[test]
fn who_never_reads_an_answer_is_cut() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).start();
    let mut stream = connect(&proxy);
    stream.set_nonblocking(true).expect("non-blocking");
    // Requests go on until their answers fill the socket, and then the requests do.
    let mut sent = 0;
    let full = until("the proxy reads no more requests", || match stream.write(STATUS) {
        Ok(count) => {
            sent += count;
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(full.kind(), ErrorKind::WouldBlock, "after {sent} bytes");
    expect_others_are_served(&proxy);
    until("it is cut", || match stream.write(STATUS) {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Some(()),
        _ => None,
    });
    proxy.stop();
}

#[test]
fn a_connection_serves_many_requests() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).start();
    let mut stream = connect(&proxy);
    // Pipelined, and answered in order (RFC 9112 section 9.3.2).
    let request = "GET /v1/redirect HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all((request.repeat(100) + last).as_bytes()).expect("room");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("closed in order");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 100);
    assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 1);
    let change = RedirectChange { mode: Some(RedirectMode::Copy), scope: RedirectScope::Process };
    for _ in 0..100 {
        proxy.client().set_redirect(&change).expect("on one connection");
    }
    proxy.stop();
}

#[test]
fn every_change_is_in_the_audit_log() {
    let backend = Backend::answering(HELLO);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("audit.log");
    let setup = Setup::to(&[backend.address()]).expect_log("there is no cluster");
    let proxy = setup.with(|state| state.settings.log.audit_file = Some(path.clone())).start();
    let set = |scope| proxy.client().set_redirect(&RedirectChange { mode: Some(RedirectMode::Copy), scope });
    set(RedirectScope::Cluster("app".into())).expect("known");
    set(RedirectScope::Cluster("other".into())).expect_err("unknown");
    let text = fs::read_to_string(&path).expect("the audit log");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let (uid, pid) = (nix::unistd::geteuid(), std::process::id());
    for (line, status) in lines.iter().zip(["200", "404"]) {
        for part in [format!("\"uid\":{uid}"), format!("\"pid\":{pid}"), format!("\"status\":{status}")] {
            assert!(line.contains(&part), "{part} not in {line}");
        }
        assert!(line.contains("redirect mode of cluster"), "{line}");
    }
    assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
    assert!(proxy.log().contains("redirect mode of cluster \"app\" to copy"), "{}", proxy.log());
    proxy.stop();
}
