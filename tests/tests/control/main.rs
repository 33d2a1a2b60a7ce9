//! The supervisor, the admin API and the command line, with real workers.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod admin;
mod admin_callers;
mod blue_green;
mod changes;
mod command_line;
mod ctl;
mod lab;
mod lifecycle;
mod metrics;
mod ordinary_user;
mod rolling_restart;
mod successor;
mod survival;
mod terminal;
mod worker_drain;

use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use underpass_command::api::WorkerState;
use underpass_tests::proxy::executable;
use underpass_tests::{Proxy, until};

/// A small response with a length.
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
/// A request for it.
const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// Runs a command of the executable to its end.
#[track_caller]
fn underpass(words: &[&str]) -> Output {
    Command::new(executable())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("the command cannot be run: {error}"))
}

/// What a command has printed on both of its outputs.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Sends a signal to a worker.
#[track_caller]
fn signal_worker(proxy: &Proxy, worker: usize, signal: Signal) {
    let pid = proxy.worker_pids()[worker];
    kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), signal).expect("the worker runs");
}

/// Waits until a worker was started again so often, and runs.
#[track_caller]
fn until_restarted(proxy: &Proxy, worker: usize, restarts: u64) {
    until("the worker was started again", || {
        let status = proxy.status();
        let worker = &status.workers[worker];
        (worker.restarts == restarts && worker.state == WorkerState::Running).then_some(())
    });
}
