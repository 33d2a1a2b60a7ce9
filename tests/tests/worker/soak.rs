//! Many connections at once that do whatever peers do, drawn from a seed: every byte is checked, and in the end everything
//! is back in its place. `UNDERPASS_SOAK_SEED` draws others, `UNDERPASS_SOAK_CONNECTIONS` more of them.

mod client;
mod garbage;
mod plan;
mod server;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use underpass::metrics::Counter;
use underpass_command::state::{AtLimit, RedirectMode};
use underpass_tests::Backend;
use underpass_tests::proxy::Setup;

use underpass_tests::worker::Worker;

const CLIENTS: u64 = 20;

/// A number of the environment, for longer runs than a test's.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// What became of the requests, so that a run in which everything was refused is no success.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) answered: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) tunnels: AtomicU64,
}

#[test]
fn copying() {
    soak(RedirectMode::Copy, 1);
}

#[test]
fn splicing() {
    soak(RedirectMode::Splice, 2);
}

#[test]
fn choosing() {
    soak(RedirectMode::Auto, 3);
}

fn soak(mode: RedirectMode, seed: u64) {
    let backends: Vec<Backend> = (0..3).map(|_| Backend::start(server::serve)).collect();
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let worker = Worker::start(Setup::to(&addresses).redirect(mode).with(|state| {
        state.settings.splice_size_min = 8 * 1024;
        let limits = &mut state.settings.limits;
        limits.connections = 16;
        limits.buffers = 4 * 14; // not enough for all
        limits.buffer_size = 4096;
        limits.head_size_max = 4096;
        limits.target_size_max = 2048;
        limits.pipes = 3;
        limits.pipe_size = 16 * 1024;
        limits.backend_idle = 3;
        state.settings.timeouts.linger_ms = 20_000;
        state.listeners[0].at_limit = AtLimit::Wait;
    }));
    let outcomes = Outcomes::default();
    let seed = seed + setting("UNDERPASS_SOAK_SEED", 0);
    let connections = setting("UNDERPASS_SOAK_CONNECTIONS", 30);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (worker, outcomes) = (&worker, &outcomes);
            scope.spawn(move || {
                for round in 0..connections {
                    client::connection(worker.address(), seed << 32 | number << 16 | round, outcomes);
                }
            });
        }
    });
    worker.expect_quiet();
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let spliced = worker.counter(Counter::BytesSpliced);
    eprintln!("{mode}: {outcomes:?}, {spliced} bytes spliced");
    assert!(count(&outcomes.answered) > CLIENTS * connections, "too few were answered: {outcomes:?}");
    assert!(count(&outcomes.refused) > 0 && count(&outcomes.cut) > 0, "too little went wrong: {outcomes:?}");
    assert!(count(&outcomes.tunnels) > 0, "no tunnel: {outcomes:?}");
    assert_eq!(spliced > 0, mode != RedirectMode::Copy);
    worker.stop();
}
