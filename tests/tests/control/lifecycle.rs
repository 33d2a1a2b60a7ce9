//! Workers that die, signals, and the end.

use std::fs;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};

use nix::sys::signal::Signal;
use underpass_command::api::{RedirectChange, RedirectScope};
use underpass_command::state::{AccessLogFormat, RedirectMode, SteeringPolicy};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, Peer, Proxy, until};

use crate::{GET, HELLO, signal_worker, until_restarted};

fn hello() -> Backend {
    Backend::answering(HELLO)
}

/// A backend that answers when it is told to.
pub(crate) struct Held {
    pub(crate) backend: Backend,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Held {
    pub(crate) fn start() -> Self {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let waiting = Arc::clone(&gate);
        let backend = Backend::start(move |connection| {
            while connection.request().is_some() {
                let (open, changed) = &*waiting;
                let guard = open.lock().expect("the gate");
                drop(changed.wait_while(guard, |open| !*open).expect("the gate"));
                // The proxy may have given up meanwhile.
                if connection.peer.try_send(HELLO).is_err() {
                    return;
                }
            }
        });
        Self { backend, gate }
    }

    pub(crate) fn release(&self) {
        let (open, changed) = &*self.gate;
        *open.lock().expect("the gate") = true;
        changed.notify_all();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Its connections' threads end with the test, whether it fails or not.
        if let Ok(mut open) = self.gate.0.lock() {
            *open = true;
        }
        self.gate.1.notify_all();
    }
}

#[test]
fn a_killed_worker_is_replaced_and_its_sockets_stay() {
    kill_and_replace(SteeringPolicy::Off);
}

/// Where BPF can be had: else the policy makes no difference, which is a result too.
#[test]
fn a_killed_worker_is_replaced_under_steering() {
    kill_and_replace(SteeringPolicy::Cpu);
}

#[track_caller]
fn kill_and_replace(policy: SteeringPolicy) {
    let backend = hello();
    let setup = Setup::to(&[backend.address()])
        .with(|state| state.settings.steering = policy)
        .expect_log("worker died: killed by signal SIGKILL")
        .expect_log("steering: ");
    let proxy = setup.start();
    let before = proxy.worker_pids();
    signal_worker(&proxy, 0, Signal::SIGSTOP);
    // In the accept queue of a worker that will never take it.
    let mut early = Peer::connect(proxy.address());
    early.send(GET);
    signal_worker(&proxy, 0, Signal::SIGKILL);
    assert_eq!(early.response().text(), "hello");
    until_restarted(&proxy, 0, 1);
    assert_ne!(proxy.worker_pids(), before);
    assert_eq!(proxy.status().workers[0].last_exit.as_deref(), Some("killed by signal SIGKILL"));
    let mut late = Peer::connect(proxy.address());
    late.send(GET);
    assert_eq!(late.response().text(), "hello");
    drop(early);
    drop(late);
    proxy.stop();
}

#[test]
fn counters_survive_a_worker_and_gauges_do_not() {
    let backend = hello();
    let proxy = Setup::to(&[backend.address()]).expect_log("worker died").start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    client.response();
    proxy.until_counter("requests", 1);
    assert_eq!(proxy.counter("connections_active"), 1);
    signal_worker(&proxy, 0, Signal::SIGKILL);
    until_restarted(&proxy, 0, 1);
    assert_eq!(proxy.counter("requests"), 1);
    assert_eq!(proxy.counter("connections_active"), 0);
    client.expect_gone();
    proxy.stop();
}

#[test]
fn a_worker_that_dies_again_and_again_comes_back() {
    let backend = hello();
    let proxy = Setup::to(&[backend.address()]).expect_log("worker died").start();
    for death in 1..=6 {
        signal_worker(&proxy, 0, Signal::SIGKILL);
        until_restarted(&proxy, 0, death);
    }
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
    drop(client);
    proxy.stop();
}

#[test]
fn a_replaced_worker_has_the_current_redirect_mode() {
    let body = vec![b'x'; 1_000_000];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let backend = Backend::answering([head.as_bytes(), &body].concat());
    let setup = Setup::to(&[backend.address()]).redirect(RedirectMode::Copy).expect_log("worker died");
    let proxy = setup.start();
    let fetch = || {
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        client.response();
    };
    fetch();
    proxy.until_counter("bodies_copied", 1);
    let scope = RedirectScope::Cluster("app".into());
    let change = RedirectChange { mode: Some(RedirectMode::Splice), scope };
    proxy.client().set_redirect(&change).expect("known cluster");
    signal_worker(&proxy, 0, Signal::SIGKILL);
    until_restarted(&proxy, 0, 1);
    fetch();
    proxy.until_counter("bodies_spliced", 1);
    assert_eq!(proxy.client().redirect().expect("answers").clusters["app"], Some(RedirectMode::Splice));
    proxy.stop();
}

#[test]
fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
    let held = Held::start();
    let mut proxy = Proxy::to(&[held.backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    proxy.until_counter("requests_active", 1);
    proxy.signal(Signal::SIGTERM);
    until("no new connection is taken", || TcpStream::connect(proxy.address()).is_err().then_some(()));
    assert!(proxy.status().draining);
    held.release();
    assert_eq!(client.response().text(), "hello");
    client.expect_end();
    assert!(proxy.wait().success());
    assert!(!proxy.client().socket().exists(), "the admin socket goes with its proxy");
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let held = Held::start();
    let setup = Setup::to(&[held.backend.address()]).with(|state| state.settings.timeouts.drain_ms = 100);
    let mut proxy = setup.start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    proxy.until_counter("requests_active", 1);
    proxy.signal(Signal::SIGINT);
    client.expect_gone();
    assert!(proxy.wait().success());
}

#[test]
fn a_worker_that_does_not_drain_is_killed() {
    let backend = hello();
    let setup = Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.drain_ms = 100);
    let mut proxy = setup.start();
    signal_worker(&proxy, 0, Signal::SIGSTOP);
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait().success());
    assert!(proxy.log().contains("killed"), "{}", proxy.log());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let held = Held::start();
    let setup =
        Setup::to(&[held.backend.address()]).with(|state| state.settings.timeouts.drain_ms = 3_600_000);
    let mut proxy = setup.start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    proxy.until_counter("requests_active", 1);
    proxy.signal(Signal::SIGTERM);
    until("it drains", || proxy.status().draining.then_some(()));
    proxy.signal(Signal::SIGTERM);
    assert!(proxy.wait().success());
    client.expect_gone();
}

#[test]
fn workers_end_when_the_supervisor_is_killed() {
    let backend = hello();
    let mut proxy = Proxy::to(&[backend.address()]);
    let workers = proxy.worker_pids();
    proxy.signal(Signal::SIGKILL);
    proxy.wait();
    for pid in workers {
        until("the worker has ended", || (!fs::exists(format!("/proc/{pid}")).unwrap_or(true)).then_some(()));
    }
}

#[test]
fn a_hangup_is_ignored_and_said() {
    let backend = hello();
    let proxy = Setup::to(&[backend.address()]).expect_log("SIGHUP is ignored").start();
    proxy.signal(Signal::SIGHUP);
    until("it is said", || proxy.log().contains("SIGHUP is ignored").then_some(()));
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
    drop(client);
    proxy.stop();
}

#[test]
fn the_access_log_can_be_the_standard_output() {
    let backend = hello();
    let setup =
        Setup::to(&[backend.address()]).with(|state| state.settings.log.access = AccessLogFormat::Text);
    let proxy = setup.start();
    let mut client = Peer::connect(proxy.address());
    client.send("GET /printed HTTP/1.1\r\nHost: test\r\n\r\n");
    client.response();
    until("the line is printed", || proxy.log().contains("/printed").then_some(()));
    drop(client);
    proxy.stop();
}

#[test]
fn the_access_log_survives_a_worker_and_is_opened_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let backend = hello();
    let setup = Setup::to(&[backend.address()]).expect_log("worker died").with(|state| {
        state.settings.log.access = AccessLogFormat::Json;
        state.settings.log.access_file.clone_from(&path);
    });
    let proxy = setup.start();
    let get = |target: &str| {
        let mut client = Peer::connect(proxy.address());
        client.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"));
        client.response();
    };
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    get("/first");
    until("the line is written", || read(&path).contains("/first").then_some(()));
    signal_worker(&proxy, 0, Signal::SIGKILL);
    until_restarted(&proxy, 0, 1);
    get("/second");
    until("the line is written", || read(&path).contains("/second").then_some(()));
    fs::rename(&path, &old).expect("rotated");
    proxy.signal(Signal::SIGUSR1);
    until("the file is there again", || path.exists().then_some(()));
    get("/third");
    until("the line is written", || read(&path).contains("/third").then_some(()));
    assert_eq!(read(&old).lines().count(), 2, "{}", read(&old));
    assert!(read(&path).lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{}", read(&path));
    proxy.stop();
}
