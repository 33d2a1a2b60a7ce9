//! Heads at the borders of buffers, segments and turns.

use std::time::Duration;

use underpass::metrics::Counter;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer};

use underpass_tests::worker::Worker;

#[test]
fn an_empty_line_cut_in_two_before_a_request_is_skipped() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    client.send("\r");
    worker.until(Counter::BuffersUsed, 1);
    client.send(format!("\n{GET}"));
    assert_eq!(client.response().text(), "ok");
    client.send("\r");
    worker.until(Counter::BuffersUsed, 1);
    client.send(format!("\n\r\n{GET}"));
    assert_eq!(client.response().text(), "ok");
    drop(client);
    worker.stop();
}

/// The beginning of a request that was pipelined has its own deadline, which begins when its turn has come.
#[test]
fn the_beginning_of_a_pipelined_request_is_not_late_at_once() {
    let (backend, permit) = Backend::holding(OK);
    let head_ms = 1500;
    let worker = Worker::start(
        Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.head_ms = head_ms),
    );
    let mut client = Peer::connect(worker.address());
    client.send(format!("{GET}GET /second HTTP/1.1\r\nHost:"));
    worker.until(Counter::RequestsActive, 1);
    // The worker becomes older than the deadline is long.
    client.expect_silence(Duration::from_millis(head_ms + 100));
    permit.send(()).expect("the backend runs");
    permit.send(()).expect("the backend runs");
    assert_eq!(client.response().text(), "ok");
    client.expect_silence(Duration::from_millis(200));
    client.send(" a\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.text()), (200, "ok"));
    drop(client);
    worker.stop();
}

/// Else a client could hold its connection for ever with nothing but empty lines.
#[test]
fn an_empty_line_begins_a_request_that_has_to_come_in_time() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.timeouts.head_ms = 100;
        state.settings.timeouts.keep_alive_ms = 3_600_000;
    }));
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.send("\r\n");
    client.expect_end();
    worker.stop();
}
