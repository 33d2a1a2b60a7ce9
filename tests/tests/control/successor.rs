//! A worker's process is to be replaced, and something happens before its successor is ready.

use std::fs;
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use underpass_command::api::{WorkerDrain, WorkerDraining, WorkerState};
use underpass_command::state::{PathMatch, Route, SteeringPolicy};
use underpass_command::{Client, ClientError};
use underpass_tests::proxy::{Setup, send_signal};
use underpass_tests::{Backend, Peer, Proxy, until};

use crate::{GET, HELLO, signal_worker};

/// So many that a process takes a while to learn them all.
const ROUTES: u32 = 10_000;

fn start(backend: &Backend, expected: &[&str]) -> Proxy {
    let setup = Setup::to(&[backend.address()]).with(|state| {
        state.settings.steering = SteeringPolicy::Hash;
        state.routes.extend(
            (0..ROUTES)
                .map(|number| Route { path: PathMatch::Exact(format!("/{number}")), ..Route::new("app") }),
        );
    });
    let expected = [&["steering: ", "drain of worker"], expected].concat();
    expected.iter().fold(setup, |setup, part| setup.expect_log(part)).start()
}

/// A successor that is stopped before it is ready, and who waits for it.
struct Stopped {
    pid: u32,
    asked: JoinHandle<Result<WorkerDraining, ClientError>>,
}

impl Stopped {
    /// Has worker 0 replaced, and stops the process that is to follow.
    #[track_caller]
    fn start(proxy: &Proxy) -> Self {
        until("a successor is stopped before it is ready", || {
            let before = workers(proxy.pid());
            let client = Client::new(proxy.client().socket());
            let asked = thread::spawn(move || client.drain_worker(0, WorkerDrain::default()));
            let new = || workers(proxy.pid()).into_iter().find(|pid| !before.contains(pid));
            let pid = until("there is a successor", new);
            send_signal(pid, Signal::SIGSTOP);
            let again = proxy.client().drain_worker(0, WorkerDrain::default());
            let waits = |error: &ClientError| error.to_string().contains("waits for its successor already");
            if again.is_err_and(|error| waits(&error)) {
                return Some(Self { pid, asked });
            }
            // It was quicker: once more, when it has taken its place.
            send_signal(pid, Signal::SIGCONT);
            asked.join().expect("no panic").expect("nothing was in its way");
            let drained = || proxy.status().workers[0].draining.is_none().then_some(());
            until("the process before has ended", drained);
            None
        })
    }

    /// Why the worker was not drained.
    #[track_caller]
    fn refused(self) -> (u16, String) {
        match self.asked.join().expect("no panic") {
            Err(ClientError::Refused { status, body }) => (status, body.error),
            other => panic!("{other:?}"),
        }
    }
}

/// The worker processes of a supervisor.
fn workers(supervisor: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let parent = format!("PPid:\t{supervisor}");
        // Before that it has not begun to be one, and its supervisor waits for it.
        read("cmdline").starts_with("underpass-worker") && read("status").lines().any(|line| line == parent)
    })
    .collect()
}

#[track_caller]
fn fetch(proxy: &Proxy) {
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
}

#[test]
fn a_successor_that_dies_before_it_is_ready_changes_nothing() {
    let backend = Backend::answering(HELLO);
    let proxy = start(&backend, &["successor ended before it was ready"]);
    let stopped = Stopped::start(&proxy);
    let before = proxy.status().workers[0].clone();
    fetch(&proxy);
    send_signal(stopped.pid, Signal::SIGKILL);
    let (status, text) = stopped.refused();
    assert!(status == 500 && text.contains("ended before it was ready: killed by signal SIGKILL"), "{text}");
    let after = proxy.status().workers[0].clone();
    assert_eq!((after.pid, after.state, after.restarts), (before.pid, WorkerState::Running, 0));
    fetch(&proxy);
    // And it can be tried again.
    proxy.client().drain_worker(0, WorkerDrain::default()).unwrap_or_else(|error| panic!("{error}"));
    assert_ne!(proxy.status().workers[0].pid, before.pid);
    until("it has drained", || proxy.status().workers[0].draining.is_none().then_some(()));
    proxy.stop();
}

#[test]
fn a_successor_takes_the_place_of_a_worker_that_dies_before_it_is_ready() {
    let backend = Backend::answering(HELLO);
    let proxy = start(&backend, &["its successor follows at once"]);
    let stopped = Stopped::start(&proxy);
    let pid = stopped.pid;
    // In the accept queue of a worker that dies.
    signal_worker(&proxy, 0, Signal::SIGSTOP);
    let mut waiting = Peer::connect(proxy.address());
    waiting.send(GET);
    signal_worker(&proxy, 0, Signal::SIGKILL);
    let (status, text) = stopped.refused();
    assert!(status == 500 && text.contains("ended before its successor was ready"), "{text}");
    let worker = proxy.status().workers[0].clone();
    assert_eq!((worker.pid, worker.state, worker.restarts), (Some(pid), WorkerState::Starting, 1));
    send_signal(pid, Signal::SIGCONT);
    assert_eq!(waiting.response().text(), "hello");
    drop(waiting);
    if proxy.status().steering.active {
        let own = || proxy.status().steering.outcomes.get("own").copied().unwrap_or(0);
        let before = own();
        until("connections are steered to it", || {
            fetch(&proxy);
            (own() > before).then_some(())
        });
    }
    proxy.stop();
}

#[test]
fn the_proxy_ends_while_a_successor_is_not_ready() {
    let backend = Backend::answering(HELLO);
    let mut proxy = start(&backend, &[]);
    let stopped = Stopped::start(&proxy);
    let pid = stopped.pid;
    proxy.signal(Signal::SIGTERM);
    let (status, text) = stopped.refused();
    assert!(status == 503 && text.contains("the proxy drains"), "{text}");
    send_signal(pid, Signal::SIGCONT);
    assert!(proxy.wait().success());
    assert!(!proxy.log().contains("killed"), "{}", proxy.log());
    assert!(workers(proxy.pid()).is_empty());
}
