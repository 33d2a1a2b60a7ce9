//! What another backend is tried for, and how often.

use underpass::metrics::Counter;
use underpass_command::state::{Cluster, RetryOn};
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::Setup;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, OK, Peer};

fn ask(worker: &Worker, request: &str) -> u16 {
    let mut client = Peer::connect(worker.address());
    client.send(request);
    client.response().status()
}

/// A worker in front of a backend that is not there and one that is, with this change of the cluster.
fn half_dead(dead: &ReservedPort, living: &Backend, change: impl FnOnce(&mut Cluster)) -> Worker {
    let addresses = [dead.address(), living.address()];
    Worker::start(Setup::to(&addresses).with(|state| change(&mut state.clusters[0])))
}

#[test]
fn a_connection_that_cannot_be_made_is_made_elsewhere() {
    let (dead, living) = (ReservedPort::new(), Backend::answering(OK));
    let worker = half_dead(&dead, &living, |_| ());
    assert!((0..10).all(|_| ask(&worker, GET) == 200));
    assert_eq!(worker.counter(Counter::RetriesConnect), 5);
    assert_eq!(worker.counter(Counter::RetriesDenied), 0);
    // What was never sent may hold a body.
    for _ in 0..2 {
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(ask(&worker, request), 200);
    }
    assert_eq!(living.requests().iter().filter(|request| request.text() == "hello").count(), 2);
    worker.stop();
}

#[test]
fn a_cluster_may_forbid_retries() {
    let (dead, living) = (ReservedPort::new(), Backend::answering(OK));
    for (retry_on, retry_attempts) in [(RetryOn::Never, 3), (RetryOn::Idempotent, 1)] {
        let worker = half_dead(&dead, &living, |cluster| {
            (cluster.retry_on, cluster.retry_attempts) = (retry_on, retry_attempts);
        });
        let mut statuses: Vec<u16> = (0..10).map(|_| ask(&worker, GET)).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [[200; 5], [502; 5]].concat());
        assert_eq!(worker.counter(Counter::RetriesConnect), 0);
        worker.stop();
    }
}

#[test]
fn an_exhausted_budget_ends_the_retries() {
    let (dead, living) = (ReservedPort::new(), Backend::answering(OK));
    let worker = half_dead(&dead, &living, |cluster| {
        (cluster.retry_budget_percent, cluster.retry_floor) = (20, 0);
    });
    let failed = (0..40).filter(|_| ask(&worker, GET) == 502).count();
    // Half of 40 need a retry, and 40 requests have earned 8; the first ones come before anything is earned.
    assert_eq!(worker.counter(Counter::RetriesConnect) + worker.counter(Counter::RetriesDenied), 20);
    assert_eq!(worker.counter(Counter::RetriesDenied), failed as u64);
    assert!((7..=8).contains(&worker.counter(Counter::RetriesConnect)), "{failed} failed");
    worker.stop();
}

/// Reads a request and ends the connection without a word.
fn silent() -> Backend {
    Backend::start(|connection| {
        let _ = connection.request();
    })
}

fn half_silent(silent: &Backend, living: &Backend, retry_on: RetryOn) -> Worker {
    let addresses = [silent.address(), living.address()];
    Worker::start(Setup::to(&addresses).with(|state| state.clusters[0].retry_on = retry_on))
}

#[test]
fn a_lost_connection_is_tried_elsewhere_if_the_request_may_be_repeated() {
    let (silent, living) = (silent(), Backend::answering(OK));
    let worker = half_silent(&silent, &living, RetryOn::Idempotent);
    assert!((0..10).all(|_| ask(&worker, GET) == 200));
    assert_eq!(worker.counter(Counter::RetriesLost), 5);
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        let before = silent.requests().len() + living.requests().len();
        let mut statuses = [ask(&worker, request), ask(&worker, request)];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 502], "{request}");
        assert_eq!(silent.requests().len() + living.requests().len() - before, 2, "{request} was sent twice");
    }
    assert_eq!(worker.counter(Counter::RetriesLost), 5);
    worker.stop();
}

#[test]
fn a_lost_connection_is_an_error_where_only_connecting_is_retried() {
    let (silent, living) = (silent(), Backend::answering(OK));
    let worker = half_silent(&silent, &living, RetryOn::Connect);
    let mut statuses: Vec<u16> = (0..6).map(|_| ask(&worker, GET)).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 502, 502, 502]);
    assert_eq!(worker.counter(Counter::RetriesLost), 0);
    worker.stop();
}
