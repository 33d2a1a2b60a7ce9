//! A worker that is stopped gets no new connections, although it has no heartbeat that could miss.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_command::state::SteeringPolicy;
use underpass_tests::proxy::{Setup, send_signal};
use underpass_tests::wait::until_within;
use underpass_tests::{Backend, GET, OK, PATIENCE, Peer, until};

#[test]
fn a_stopped_worker_gets_no_new_connection_after_200_ms() {
    let _alone = crate::alone();
    if !crate::can_steer() {
        return;
    }
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.workers = 2;
            state.settings.steering = SteeringPolicy::Cpu;
        })
        .expect_log("worker 0 is stalled")
        .start();
    assert!(proxy.status().steering.active, "{:?}", proxy.status().steering.reason);
    // On loopback the connection request is handled where it is sent: all of these belong to the worker of this CPU.
    let worker = proxy.status().workers[0].clone();
    crate::pin(usize::from(worker.cpu.expect("worker 0 is pinned")));
    let accepted = |worker: usize| proxy.status().workers[worker].counters.value("connections_accepted");
    for _ in 0..20 {
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
    }
    assert_eq!((accepted(0), accepted(1)), (20, 0));

    let pid = worker.pid.expect("worker 0 runs");
    send_signal(pid, Signal::SIGSTOP);
    until("the worker is stopped", || (state_of(pid) == Some('T')).then_some(()));
    let stopped = Instant::now();
    let mut waiting = Vec::new();
    while stopped.elapsed() < Duration::from_millis(200) {
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        waiting.push(client);
        // The pace of a server that is not busy; without it there would be more connections than the limit allows.
        until_within(Duration::from_millis(2), || None::<()>);
    }
    // From here on every connection is served, by the other worker.
    let before = accepted(1);
    for number in 0..100 {
        let mut client = Peer::connect(proxy.address());
        client.set_patience(PATIENCE);
        client.send(GET);
        let response = client.try_response_to("GET");
        assert!(
            response.is_ok_and(|response| response.text() == "ok"),
            "connection {number} after 200 ms hangs"
        );
    }
    assert!(accepted(1) >= before + 100);
    assert_eq!(accepted(0), 20);

    // What waited for the stopped worker is not lost.
    send_signal(pid, Signal::SIGCONT);
    for client in &mut waiting {
        assert_eq!(client.response().text(), "ok");
    }
    drop(waiting);
    proxy.stop();
}

/// The state letter of a process, as proc(5) has it.
fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
