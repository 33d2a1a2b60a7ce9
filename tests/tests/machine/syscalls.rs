//! How many system calls a request costs.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;

use nix::sys::signal::Signal;
use underpass_tests::proxy::{Setup, send_signal};
use underpass_tests::{Backend, GET, OK, Peer, until};

const CONNECTIONS: u64 = 64;
const REQUESTS: u64 = 100;

/// The floor is two reads and two writes; waiting is shared by all connections that are ready at once.
const CALLS_PER_100_REQUESTS_MAX: u64 = 450;

/// Counts the system calls of a process until it is told to stop.
struct Strace {
    child: Child,
    folder: tempfile::TempDir,
}

impl Strace {
    fn attach(pid: u32) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let child = Command::new("strace")
            .args(["-c", "-f", "-U", "calls,errors,name", "-p", &pid.to_string(), "-o"])
            .arg(folder.path().join("counts"))
            .stderr(Stdio::null())
            .spawn()
            .expect("strace can be started; on Debian: apt-get install strace");
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
            (tracer.trim() != "0").then_some(())
        };
        until("strace has attached", traced);
        Self { child, folder }
    }

    /// Calls by name.
    fn finish(mut self) -> BTreeMap<String, u64> {
        send_signal(self.child.id(), Signal::SIGINT);
        until("strace ends", || self.child.try_wait().expect("waiting for a child"));
        let text = fs::read_to_string(self.folder.path().join("counts")).expect("what strace counted");
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [first, .., name] = words[..]
                && let Ok(count) = first.parse()
                && name != "total"
            {
                calls.insert(name.to_owned(), count);
            }
        }
        assert!(!calls.is_empty(), "nothing counted: {text}");
        calls
    }
}

#[test]
fn a_keep_alive_request_costs_few_system_calls() {
    let _alone = crate::alone();
    if !underpass_tests::is_root() {
        underpass_tests::skip("needs root, to trace a worker that has dropped its privileges");
        return;
    }
    let backend = Backend::start(|connection| {
        while connection.request_without_copy().is_some() {
            connection.peer.send(OK);
        }
    });
    let proxy = Setup::to(&[backend.address()]).start();
    let pid = proxy.worker_pids()[0];
    let (warm, counted, over) = (barrier(), barrier(), barrier());
    let calls = thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = Peer::connect(proxy.address());
                let mut request = |count: u64| {
                    for _ in 0..count {
                        client.send(GET);
                        assert_eq!(client.response().text(), "ok");
                    }
                };
                request(10);
                warm.wait();
                counted.wait();
                request(REQUESTS);
                over.wait();
            });
        }
        warm.wait();
        let strace = Strace::attach(pid);
        counted.wait();
        over.wait();
        strace.finish()
    });
    let total: u64 = calls.values().sum();
    let requests = CONNECTIONS * REQUESTS;
    assert!(
        total * 100 <= requests * CALLS_PER_100_REQUESTS_MAX,
        "{total} calls for {requests} requests: {calls:?}"
    );
    // Connections, timers and memory are not touched for a request.
    for name in
        ["epoll_ctl", "timerfd_settime", "mmap", "brk", "socket", "connect", "accept4", "setsockopt", "fcntl"]
    {
        let count = calls.get(name).copied().unwrap_or(0);
        assert!(count < requests / 100, "{count} calls of {name} for {requests} requests: {calls:?}");
    }
    proxy.stop();
}

/// All clients and the test itself.
fn barrier() -> Barrier {
    Barrier::new(usize::try_from(CONNECTIONS).expect("a small number") + 1)
}
