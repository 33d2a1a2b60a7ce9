//! At a bound the answer is quick, counted, and nobody else suffers.

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

/// A reader that does not read leaves the one pipe full; the next body is copied, and both arrive.
#[test]
fn a_body_that_finds_no_pipe_is_copied() {
    const SIZE: usize = 32 * 1024 * 1024;
    let body = Content::new(5, SIZE as u64).to_vec();
    let backend = Backend::answering({
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
        [head, body.clone()].concat()
    });
    let proxy = Setup::to(&[backend.address()])
        .redirect(RedirectMode::Splice)
        .with(|state| state.settings.limits.pipes = 1)
        .start();
    let mut slow = Peer::connect_with_small_window(proxy.address());
    slow.send(GET);
    until("the pipe is in use", || (proxy.counter("pipes_used") == 1).then_some(()));
    let mut other = Peer::connect(proxy.address());
    other.send(GET);
    assert!(other.response().body == body, "the body of the other client differs");
    assert_eq!(proxy.counter("fallback_no_pipe"), 1);
    assert_eq!(proxy.counter("pipes_used"), 1);
    assert!(slow.response().body == body, "the body of the slow client differs");
    drop((slow, other));
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
