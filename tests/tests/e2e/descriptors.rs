//! A worker that runs out of file descriptors.

use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer};

/// What is open goes on, what comes waits, and all is well when there is room again.
#[test]
fn a_worker_without_descriptors_recovers() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.limits.connections = 1000;
            state.settings.limits.pipes = 2;
        })
        .run_by(&["prlimit", "--nofile=48"])
        .expect_log("limit of open files")
        .start();
    let mut first = Peer::connect(proxy.address());
    first.send(GET);
    assert_eq!(first.response().text(), "ok");
    let clients: Vec<Peer> = (0..60).map(|_| Peer::connect(proxy.address())).collect();
    proxy.until_counter("accept_failed", 1);
    // Its connection to the backend is in the pool.
    first.send(GET);
    assert_eq!(first.response().text(), "ok");
    drop((clients, first));
    proxy.expect_quiet();
    let mut last = Peer::connect(proxy.address());
    last.send(GET);
    assert_eq!(last.response().text(), "ok");
    drop(last);
    proxy.stop();
}
