//! Clients and backends break off in the middle of large bodies and tunnels, and workers are killed: nothing hangs, nothing is
//! left behind.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use nix::sys::signal::Signal;
use underpass_command::api::WorkerState;
use underpass_command::state::RedirectMode;
use underpass_tests::proxy::send_signal;
use underpass_tests::{Proxy, until};

use crate::client::{self, Outcomes, Tolerance};
use crate::plan::WILD;
use crate::rig::{Rig, each_mode, seed};
use crate::scaled;

const CLIENTS: u64 = 16;
/// A full run has 1,000 (`UNDERPASS_REDIRECT_COUNT=400`).
const KILLS: u64 = 250;
/// One of so many kills is that of a worker.
const WORKER_EVERY: u64 = 40;

fn killed(outcomes: &Outcomes) -> u64 {
    outcomes.cut.load(Relaxed) + outcomes.broken_tunnels.load(Relaxed)
}

/// Kills a worker and waits for its successor.
fn kill_worker(proxy: &Proxy, index: usize) {
    let before = proxy.status().workers[index].clone();
    let Some(pid) = before.pid else { return };
    send_signal(pid, Signal::SIGKILL);
    until("the worker has a successor", || {
        let worker = &proxy.status().workers[index];
        (worker.restarts > before.restarts && worker.state == WorkerState::Running).then_some(())
    });
}

fn run(mode: RedirectMode) {
    let seed = seed("kills", mode) | WILD;
    let kills = scaled(KILLS);
    let rig = Rig::new(mode, |setup| {
        setup.with(|state| state.settings.workers = 2).expect_log("worker died").expect_log("worker ended")
    });
    let addresses = rig.addresses();
    let outcomes = Outcomes::default();
    let stop = AtomicBool::new(false);
    let mut workers_killed = 0;
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (addresses, outcomes, stop) = (&addresses, &outcomes, &stop);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    let seed = seed | client << 20 | round;
                    let address = addresses[usize::try_from(client + round).unwrap_or(0) % addresses.len()];
                    if client % 4 == 0 {
                        client::tunnel(address, seed, Tolerance::Ends, outcomes);
                    } else {
                        client::requests(address, seed, 1, Tolerance::Ends, outcomes);
                    }
                }
            });
        }
        while killed(&outcomes) < kills {
            let next = killed(&outcomes) + WORKER_EVERY;
            until("connections break off", || (killed(&outcomes) >= next.min(kills)).then_some(()));
            kill_worker(&rig.proxy, workers_killed % 2);
            workers_killed += 1;
        }
        stop.store(true, Relaxed);
    });
    eprintln!("{mode}: {outcomes:?}, {workers_killed} workers killed; {}", rig.moved());
    // Whoever comes after all that is served.
    let after = Outcomes::default();
    crate::exact::load(&addresses, seed & !WILD | crate::plan::CALM, 100, &after);
    assert!(after.answered.load(Relaxed) >= 100, "{after:?}");
    rig.finish();
}

#[test]
fn clients_backends_and_workers_that_die_in_the_middle() {
    let _alone = crate::alone();
    each_mode(run);
}
