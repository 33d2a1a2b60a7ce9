//! Backends that are down, by the checks or by their own doing.

use underpass::http1::Reason;
use underpass::ipc::ToWorker;
use underpass::metrics::Counter;
use underpass_command::state::WhenAllDown;
use underpass_tests::proxy::Setup;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, OK, Peer};

fn ask(worker: &Worker) -> u16 {
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    client.response().status()
}

/// Tells the worker what the checks have found, and waits until it knows.
fn tell(worker: &Worker, backends: &[(u32, bool)]) {
    worker.order(&ToWorker::Health { backends: backends.to_vec() });
    worker.change(2, &[], &[]);
}

#[test]
fn what_is_down_gets_no_request_until_it_is_up() {
    let backends = [Backend::answering(OK), Backend::answering(OK)];
    let worker = Worker::start(Setup::to(&[backends[0].address(), backends[1].address()]));
    tell(&worker, &[(0, false), (99, false)]);
    assert!((0..6).all(|_| ask(&worker) == 200));
    assert_eq!((backends[0].requests().len(), backends[1].requests().len()), (0, 6));
    tell(&worker, &[(0, true)]);
    assert!((0..6).all(|_| ask(&worker) == 200));
    assert_eq!((backends[0].requests().len(), backends[1].requests().len()), (3, 9));
    worker.stop();
}

#[test]
fn when_all_are_down_the_cluster_says_what_becomes_of_requests() {
    for (choice, status) in [(WhenAllDown::Answer, 503), (WhenAllDown::UseAll, 200)] {
        let backend = Backend::answering(OK);
        let setup = Setup::to(&[backend.address()]).with(|state| state.clusters[0].when_all_down = choice);
        let worker = Worker::start(setup);
        tell(&worker, &[(0, false)]);
        assert_eq!(ask(&worker), status, "{choice}");
        assert_eq!(worker.refused_requests(Reason::BackendMissing), u64::from(status == 503));
        worker.stop();
    }
}

#[test]
fn a_backup_serves_while_the_others_are_down() {
    let (primary, backup) = (Backend::answering(OK), Backend::answering(OK));
    let setup = Setup::to(&[primary.address(), backup.address()])
        .with(|state| state.clusters[0].backends[1].backup = true);
    let worker = Worker::start(setup);
    assert!((0..4).all(|_| ask(&worker) == 200));
    backup.expect_untouched();
    tell(&worker, &[(0, false)]);
    assert_eq!(ask(&worker), 200);
    assert_eq!((primary.requests().len(), backup.requests().len()), (4, 1));
    worker.stop();
}

#[test]
fn a_backend_that_answers_with_errors_is_ejected_for_a_while() {
    let sick = Backend::answering("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let well = Backend::answering(OK);
    let setup = Setup::to(&[sick.address(), well.address()]).with(|state| {
        let cluster = &mut state.clusters[0];
        cluster.eject_failures = 2;
        (cluster.eject_ms, cluster.eject_ms_max) = (600_000, 600_000);
    });
    let worker = Worker::start(setup);
    let statuses: Vec<u16> = (0..20).map(|_| ask(&worker)).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 2, "{statuses:?}");
    assert_eq!(worker.counter(Counter::Ejections), 1);
    // The other one is half of the cluster, so it stays, whatever it does.
    assert_eq!(sick.requests().len(), 2);
    worker.stop();
}

#[test]
fn an_ejected_backend_comes_back() {
    let sick = Backend::answering("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let well = Backend::answering(OK);
    let setup = Setup::to(&[sick.address(), well.address()]).with(|state| {
        state.clusters[0].eject_failures = 1;
        state.clusters[0].eject_ms = 50;
    });
    let worker = Worker::start(setup);
    underpass_tests::until("it fails again after it was out", || {
        ask(&worker);
        (sick.requests().len() >= 2).then_some(())
    });
    assert!(worker.counter(Counter::Ejections) >= 2);
    worker.stop();
}
