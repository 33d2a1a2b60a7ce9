//! A worker that dies under load: its listeners stay, its successor serves.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use underpass_command::api::WorkerState;
use underpass_command::state::SteeringPolicy;
use underpass_tests::proxy::{Setup, send_signal};
use underpass_tests::{Backend, GET, OK, Peer, Proxy, until};

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    served: AtomicU64,
    /// Connections that ended before their answer: those the killed worker had accepted.
    cut: AtomicU64,
}

/// Opens connections one after the other, three requests each. That none is refused is asserted by connecting.
fn load(proxy: &Proxy, seen: &Seen) {
    while !seen.stop.load(Ordering::Relaxed) {
        let mut client = Peer::connect(proxy.address());
        for _ in 0..3 {
            let response = client.try_send(GET).and_then(|()| client.try_response_to("GET"));
            match response {
                Ok(response) => {
                    assert_eq!(response.text(), "ok");
                    seen.served.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let hung = error.kind() == io::ErrorKind::WouldBlock;
                    assert!(!hung, "a connection is neither served nor ended");
                    seen.cut.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
    }
}

fn kill_under_load(workers: u16, policy: SteeringPolicy) {
    const CLIENTS: u64 = 8;
    const KILLS: u64 = 3;
    let _alone = crate::alone();
    // The killed worker leaves it with half a request, or with an answer that nobody takes.
    let backend = Backend::start(|connection| {
        while let Ok(Some(_)) = connection.peer.try_request() {
            if connection.peer.try_send(OK).is_err() {
                return;
            }
        }
    });
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.workers = workers;
            state.settings.steering = policy;
        })
        .expect_log("worker")
        .start();
    let seen = Seen::default();
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| load(&proxy, &seen));
        }
        for kill in 1..=KILLS {
            let served = seen.served.load(Ordering::Relaxed);
            until("requests are served", || {
                (seen.served.load(Ordering::Relaxed) > served + 200).then_some(())
            });
            let pid = proxy.status().workers[0].pid.expect("worker 0 runs");
            send_signal(pid, Signal::SIGKILL);
            until("worker 0 runs again", || {
                let worker = &proxy.status().workers[0];
                (worker.restarts == kill && worker.state == WorkerState::Running).then_some(())
            });
            assert_ne!(proxy.status().workers[0].pid, Some(pid));
        }
        let served = seen.served.load(Ordering::Relaxed);
        until("requests are served", || (seen.served.load(Ordering::Relaxed) > served + 200).then_some(()));
        seen.stop.store(true, Ordering::Relaxed);
    });
    // Each client has one connection at a time, so each kill can cut one of each at most.
    assert!(seen.cut.load(Ordering::Relaxed) <= CLIENTS * KILLS);
    // Of the dead worker's connections nothing is left in the counts.
    proxy.stop();
}

#[test]
fn the_only_worker() {
    kill_under_load(1, SteeringPolicy::Off);
}

#[test]
fn one_of_two_workers() {
    kill_under_load(2, SteeringPolicy::Off);
}

#[test]
fn one_of_two_steered_workers() {
    if crate::can_steer() {
        kill_under_load(2, SteeringPolicy::Cpu);
    }
}
