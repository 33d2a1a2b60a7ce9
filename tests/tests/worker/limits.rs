//! Bounds: who is refused when something runs out, and that the worker recovers.

use underpass::http1::Reason;
use underpass::metrics::Counter;
use underpass_command::state::AtLimit;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer};

use underpass_tests::worker::Worker;

/// A client that was refused and does not go takes no place that others could have.
#[test]
fn a_refused_connection_that_stays_open_is_not_one_of_the_limit() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.limits.connections = 1;
        state.settings.timeouts.linger_ms = 60_000;
    }));
    let mut first = Peer::connect(worker.address());
    first.send(GET);
    assert_eq!(first.response().text(), "ok");
    let mut refused: Vec<Peer> = (0..3)
        .map(|_| {
            let mut peer = Peer::connect(worker.address());
            assert_eq!(peer.response().status(), 503);
            peer
        })
        .collect();
    // The gauge follows at the end of a turn: it has to show all four before it can show that one of them went.
    worker.until(Counter::ClientsActive, 4);
    drop(first);
    worker.until(Counter::ClientsActive, 3);
    let mut second = Peer::connect(worker.address());
    second.send(GET);
    assert_eq!(second.response().text(), "ok");
    for peer in &mut refused {
        peer.expect_end();
    }
    drop((second, refused));
    worker.stop();
}

#[test]
fn those_who_wait_are_served_when_there_is_a_place() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.limits.connections = 2;
        state.listeners[0].at_limit = AtLimit::Wait;
    }));
    let mut clients: Vec<Peer> = (0..9)
        .map(|_| {
            let mut peer = Peer::connect(worker.address());
            peer.send(GET);
            peer
        })
        .collect();
    for mut client in clients.drain(..) {
        assert_eq!(client.response().text(), "ok");
    }
    worker.stop();
}

/// Four buffers serve one request at a time; whoever comes meanwhile is told so at once.
#[test]
fn a_request_that_finds_no_buffer_is_refused_and_the_next_is_served() {
    let (backend, permit) = Backend::holding(OK);
    let worker =
        Worker::start(Setup::to(&[backend.address()]).with(|state| state.settings.limits.buffers = 4));
    for round in 1..=3 {
        let mut first = Peer::connect(worker.address());
        first.send(GET);
        worker.until(Counter::RequestsActive, 1);
        let mut second = Peer::connect(worker.address());
        second.send(GET);
        let response = second.response();
        assert_eq!((response.status(), response.value("Retry-After")), (503, Some("1")));
        second.expect_end();
        assert_eq!(worker.refused_requests(Reason::BuffersExhausted), round);
        permit.send(()).expect("the backend runs");
        assert_eq!(first.response().text(), "ok");
        drop((first, second));
        worker.expect_quiet();
    }
    worker.stop();
}

/// Nor does a client keep buffers that has been answered and does not go.
#[test]
fn a_lingering_connection_has_no_buffers() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.limits.buffers = 4;
        state.settings.timeouts.linger_ms = 60_000;
    }));
    let mut refused = Peer::connect(worker.address());
    refused.send("GET / HTTP/1.1\r\n\r\n");
    assert_eq!(refused.response().status(), 400);
    refused.expect_end();
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    drop((client, refused));
    worker.stop();
}

/// Answers of the proxy itself cost no wait for a backend, so a client that pipelines many could keep a worker from all others.
#[test]
fn pipelined_refusals_give_way_to_other_connections() {
    let worker = Worker::start(Setup::to(&[]));
    let mut client = Peer::connect(worker.address());
    let turns = worker.counter(Counter::LoopTurns);
    let count = 400;
    client.send(GET.repeat(count));
    for _ in 0..count {
        assert_eq!(client.response().status(), 503);
    }
    let turns = worker.counter(Counter::LoopTurns) - turns;
    assert!(turns > 10, "{count} requests were answered in {turns} turns of the loop");
    drop(client);
    worker.stop();
}
