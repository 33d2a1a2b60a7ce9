//! At a bound the answer is quick, counted, and nobody else suffers.

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use underpass_command::state::{AtLimit, RedirectMode};
use underpass_tests::body::Content;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer, until};

#[test]
fn a_connection_beyond_the_limit_is_refused_at_once() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.limits.connections = 2;
            state.listeners[0].at_limit = AtLimit::Refuse;
        })
        .start();
    let mut inside: Vec<Peer> = (0..2).map(|_| Peer::connect(proxy.address())).collect();
    for client in &mut inside {
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
    }
    for _ in 0..3 {
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        let response = client.response();
        assert_eq!((response.status(), response.value("Connection")), (503, Some("close")));
        let retry: u32 = response.value("Retry-After").expect("Retry-After").parse().expect("seconds");
        assert!(retry > 0);
        client.expect_gone();
    }
    assert_eq!(proxy.counter("connections_limit_reached"), 3);
    // Those inside are served all the same, and a free place is given to the next.
    inside[0].send(GET);
    assert_eq!(inside[0].response().text(), "ok");
    inside.pop();
    until("there is a free place", || (proxy.counter("connections_active") == 1).then_some(()));
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    drop((client, inside));
    proxy.stop();
}

#[test]
fn a_connection_beyond_the_limit_waits_for_a_place() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.limits.connections = 2;
            state.listeners[0].at_limit = AtLimit::Wait;
        })
        .start();
    let mut inside: Vec<Peer> = (0..2).map(|_| Peer::connect(proxy.address())).collect();
    for client in &mut inside {
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
    }
    let mut waiting = Peer::connect(proxy.address());
    waiting.send(GET);
    waiting.expect_silence(Duration::from_millis(300));
    assert_eq!(proxy.counter("connections_active"), 2);
    inside.pop();
    assert_eq!(waiting.response().text(), "ok");
    drop((waiting, inside));
    assert_eq!(proxy.counter("connections_accepted"), 3);
    proxy.stop();
}

/// Two bodies at once and one pipe: one is spliced, the other copied, both arrive.
#[test]
fn a_body_that_finds_no_pipe_is_copied() {
    const SIZE: u64 = 4 * 1024 * 1024;
    let (permit, permits) = mpsc::channel::<()>();
    let permits = Mutex::new(permits);
    let backend = Backend::start(move |connection| {
        while connection.request().is_some() {
            let body = Content::new(5, SIZE).to_vec();
            connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
            connection.peer.send(&body[..body.len() / 2]);
            // Both bodies are under way before one goes on.
            if permits.lock().expect("a mutex").recv().is_err() {
                return;
            }
            connection.peer.send(&body[body.len() / 2..]);
        }
    });
    let proxy = Setup::to(&[backend.address()])
        .redirect(RedirectMode::Splice)
        .with(|state| state.settings.limits.pipes = 1)
        .start();
    let expected = Content::new(5, SIZE).to_vec();
    let mut clients = [Peer::connect(proxy.address()), Peer::connect(proxy.address())];
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.head().status(), 200);
    }
    let half = expected.len() / 2;
    for client in &mut clients {
        assert!(client.bytes(half) == expected[..half], "the first half differs");
    }
    permit.send(()).expect("the backend lives");
    permit.send(()).expect("the backend lives");
    for client in &mut clients {
        assert!(client.bytes(half) == expected[half..], "the second half differs");
    }
    drop(clients);
    assert!(proxy.counter("fallback_no_pipe") >= 1);
    assert!(proxy.counter("bytes_spliced") > 0);
    proxy.stop();
}

/// More requests at once than the pool of connections to the backend keeps: the surplus is closed, not kept.
#[test]
fn the_pool_of_backend_connections_keeps_its_bound() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()]).with(|state| state.settings.limits.backend_idle = 2).start();
    let mut clients: Vec<Peer> = (0..6).map(|_| Peer::connect(proxy.address())).collect();
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
    drop(clients);
    proxy.expect_quiet();
    assert!(proxy.counter("backend_connections_idle") <= 2);
    proxy.stop();
}
