//! The process of a worker is replaced by another, and nothing is lost.

use std::process::Command;

use nix::sys::signal::Signal;
use underpass_command::api::{
    ChangeRequest, EventKind, Predecessor, SessionSelect, WorkerDrain, WorkerDraining,
};
use underpass_command::live::Operation;
use underpass_command::state::{
    AccessLogFormat, Backend as Configured, Listener, RedirectMode, SteeringPolicy,
};
use underpass_command::{ClientError, Events};
use underpass_tests::body::Content;
use underpass_tests::proxy::{MODES, Setup, send_signal};
use underpass_tests::{Backend, Peer, Proxy, is_root, skip, until};

use crate::lifecycle::Held;
use crate::{GET, HELLO, signal_worker, until_restarted};

/// No test waits so long.
pub(crate) const LONG_MS: u64 = 3_600_000;

#[track_caller]
pub(crate) fn drain(proxy: &Proxy, worker: u16, deadline_ms: u64) -> WorkerDraining {
    let order = WorkerDrain { deadline_ms: Some(deadline_ms) };
    proxy.client().drain_worker(worker, order).unwrap_or_else(|error| panic!("{error}\n{}", proxy.log()))
}

#[track_caller]
fn refused(proxy: &Proxy, worker: u16, order: WorkerDrain) -> (u16, String) {
    let error = proxy.client().drain_worker(worker, order).expect_err("it cannot be done");
    let ClientError::Refused { status, .. } = &error else { panic!("{error}") };
    (*status, error.to_string())
}

#[track_caller]
pub(crate) fn events(proxy: &Proxy) -> Events {
    proxy.client().events(None).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads events up to the first that is meant; returns all of them.
#[track_caller]
fn events_until(events: &mut Events, wanted: impl Fn(&EventKind) -> bool) -> Vec<EventKind> {
    let mut seen = Vec::new();
    loop {
        let event = events.next().expect("the proxy runs").unwrap_or_else(|error| panic!("{error}"));
        seen.push(event.kind);
        if seen.last().is_some_and(&wanted) {
            return seen;
        }
    }
}

/// How the drain of a worker has ended.
#[track_caller]
pub(crate) fn drained(events: &mut Events, number: u16) -> Option<String> {
    let is_end =
        |kind: &EventKind| matches!(kind, EventKind::WorkerDrained { worker, .. } if *worker == number);
    match events_until(events, is_end).pop() {
        Some(EventKind::WorkerDrained { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn predecessor(proxy: &Proxy) -> Option<Predecessor> {
    proxy.status().workers[0].draining.clone()
}

#[track_caller]
fn fetch(proxy: &Proxy) {
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
}

/// A client whose request is under way.
#[track_caller]
fn under_way(proxy: &Proxy) -> Peer {
    let before = proxy.counter("requests_active");
    let mut client = Peer::connect(proxy.address());
    client.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
    proxy.until_counter("requests_active", before + 1);
    client
}

/// A backend that answers at once, but for `/held`, which waits.
struct Two {
    held: Held,
    quick: Backend,
}

impl Two {
    fn start() -> Self {
        Self { held: Held::start(), quick: Backend::answering(HELLO) }
    }

    fn setup(&self) -> Setup {
        let held = self.held.backend.address();
        Setup::to(&[self.quick.address()]).cluster("held", &[held]).with(|state| {
            state.routes.push(underpass_command::state::Route {
                path: underpass_command::state::PathMatch::Exact("/held".into()),
                ..underpass_command::state::Route::new("held")
            });
        })
    }
}

#[test]
fn a_download_under_way_ends_whole_while_another_process_serves() {
    for mode in MODES {
        if mode == RedirectMode::Sockmap && !is_root() {
            skip("mode sockmap needs root, to load BPF programs");
            continue;
        }
        let body = Content::new(7, 4_000_000).to_vec();
        let (permit, permits) = std::sync::mpsc::channel::<()>();
        let (sent, permits) = (body.clone(), std::sync::Mutex::new(permits));
        let backend = Backend::start(move |connection| {
            while let Some(request) = connection.request() {
                if request.target() != "/long" {
                    connection.peer.send(HELLO);
                    continue;
                }
                connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()));
                connection.peer.send(&sent[..1_000_000]);
                let _ = permits.lock().expect("no panic").recv();
                connection.peer.send(&sent[1_000_000..]);
            }
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut events = events(&proxy);
        let mut client = Peer::connect(proxy.address());
        client.send("GET /long HTTP/1.1\r\nHost: test\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        let first = client.bytes(1_000_000);
        let draining = drain(&proxy, 0, LONG_MS);
        for _ in 0..20 {
            fetch(&proxy);
        }
        // One of the first may have been accepted by either of them.
        let left = until("the one before has only this", || {
            predecessor(&proxy).filter(|left| left.connections == 1)
        });
        assert_eq!(left.pid, Some(draining.pid), "{mode}");
        // A list of connections has those of both processes.
        let sessions = proxy.client().sessions(&SessionSelect::default()).expect("both answer");
        assert!(sessions.missing.is_empty() && sessions.sessions.iter().any(|s| s.active_ms.is_some()));
        // While it drains, changes reach it, new listeners with their sockets too.
        let other = Listener {
            default_cluster: Some("app".into()),
            ..Listener::new("other", ([127, 0, 0, 1], 0).into())
        };
        change(&proxy, vec![Operation::AddListener { listener: other }]);
        change(&proxy, vec![Operation::RemoveListener { name: "other".into() }]);
        permit.send(()).expect("the backend waits");
        let rest = client.bytes(3_000_000);
        assert!([first, rest].concat() == body, "{mode}");
        // It was not told to close, and may ask once more.
        client.send(GET);
        let response = client.response();
        assert_eq!((response.text(), response.value("Connection")), ("hello", Some("close")));
        client.expect_end();
        assert_eq!(drained(&mut events, 0), None);
        assert_eq!(predecessor(&proxy), None);
        assert_eq!(proxy.counter("requests"), 22, "{mode}");
        proxy.stop();
    }
}

#[track_caller]
fn change(proxy: &Proxy, operations: Vec<Operation>) {
    let request = ChangeRequest { operations, ..ChangeRequest::default() };
    proxy.client().change(&request).unwrap_or_else(|error| panic!("{error}\n{}", proxy.log()));
}

#[test]
fn what_cannot_be_drained_is_refused_with_a_remedy() {
    let two = Two::start();
    let proxy = two.setup().expect_log("audit").expect_log("drain of worker").start();
    let mut events = events(&proxy);
    let mut client = under_way(&proxy);
    let (status, text) = refused(&proxy, 1, WorkerDrain::default());
    assert!(status == 404 && text.contains("there is no worker 1") && text.contains("0 to 0"), "{text}");
    let (status, text) = refused(&proxy, 0, WorkerDrain { deadline_ms: Some(u64::MAX) });
    assert!(status == 422 && text.contains("above 2592000000"), "{text}");
    let draining = proxy.client().drain_worker(0, WorkerDrain::default()).expect("it runs");
    assert_eq!(draining.deadline_ms, 30_000, "that of the settings");
    let (status, text) = refused(&proxy, 0, WorkerDrain::default());
    assert!(status == 409 && text.contains("drains already: 1 connections are left"), "{text}");
    assert!(text.contains("worker_drained") && text.contains("deadline_ms"), "{text}");
    two.held.release();
    assert_eq!(client.response().text(), "hello");
    client.expect_end();
    assert_eq!(drained(&mut events, 0), None);
    // The next one gets the block of counters that the first had.
    let again = drain(&proxy, 0, LONG_MS);
    assert_eq!(again.pid, draining.successor);
    assert_eq!(drained(&mut events, 0), None);
    assert_eq!(proxy.counter("requests"), 1);
    fetch(&proxy);
    proxy.until_counter("requests", 2);
    proxy.stop();
}

#[test]
fn a_removed_backend_is_drained_only_when_the_process_before_is_done_with_it() {
    let two = Two::start();
    let proxy = two.setup().start();
    let mut events = events(&proxy);
    let mut client = under_way(&proxy);
    drain(&proxy, 0, LONG_MS);
    let green = Backend::answering(HELLO);
    let (held, cluster) = (two.held.backend.address(), || "held".to_owned());
    change(&proxy, vec![Operation::RemoveBackend { cluster: cluster(), address: held }]);
    change(
        &proxy,
        vec![Operation::AddBackend { cluster: cluster(), backend: Configured::new(green.address()) }],
    );
    let mut other = Peer::connect(proxy.address());
    other.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(other.response().text(), "hello");
    drop(other);
    let last = proxy.client().state().expect("it runs").revision;
    let is_last = |kind: &EventKind| matches!(kind, EventKind::Changed { revision, .. } if *revision == last);
    let is_drained =
        |kind: &EventKind| matches!(kind, EventKind::BackendDrained { backend, .. } if *backend == held);
    let seen = events_until(&mut events, is_last);
    assert!(!seen.iter().any(is_drained), "{seen:?}");
    two.held.release();
    assert_eq!(client.response().text(), "hello");
    events_until(&mut events, is_drained);
    drop(client);
    proxy.stop();
}

#[test]
fn a_process_that_is_killed_while_it_drains_is_not_started_again() {
    let two = Two::start();
    let proxy = two.setup().expect_log("worker ended while draining: killed by signal SIGKILL").start();
    let mut events = events(&proxy);
    let mut client = under_way(&proxy);
    let draining = drain(&proxy, 0, LONG_MS);
    send_signal(draining.pid, Signal::SIGKILL);
    let reason = drained(&mut events, 0);
    assert_eq!(reason.as_deref(), Some("killed by signal SIGKILL"));
    client.expect_gone();
    let worker = proxy.status().workers[0].clone();
    assert_eq!((worker.pid, worker.restarts, worker.draining), (Some(draining.successor), 0, None));
    assert_eq!(proxy.counter("requests_active"), 0);
    fetch(&proxy);
    // It is gone with its process, so the next drain finds nothing in its way.
    drain(&proxy, 0, LONG_MS);
    assert_eq!(drained(&mut events, 0), None);
    proxy.stop();
}

#[test]
fn a_backend_is_drained_when_the_process_that_used_it_is_killed() {
    let two = Two::start();
    let proxy = two.setup().expect_log("worker ended while draining").start();
    let mut events = events(&proxy);
    let mut client = under_way(&proxy);
    let draining = drain(&proxy, 0, LONG_MS);
    let held = two.held.backend.address();
    change(&proxy, vec![Operation::RemoveBackend { cluster: "held".into(), address: held }]);
    send_signal(draining.pid, Signal::SIGKILL);
    events_until(
        &mut events,
        |kind| matches!(kind, EventKind::BackendDrained { backend, .. } if *backend == held),
    );
    client.expect_gone();
    assert_eq!(drained(&mut events, 0).as_deref(), Some("killed by signal SIGKILL"));
    proxy.stop();
}

#[test]
fn a_successor_that_dies_is_started_again_while_the_process_before_goes_on() {
    for policy in [SteeringPolicy::Off, SteeringPolicy::Cpu] {
        let two = Two::start();
        let setup = two.setup().expect_log("worker died").expect_log("steering: ");
        let proxy = setup.with(|state| state.settings.steering = policy).start();
        let mut events = events(&proxy);
        let mut client = under_way(&proxy);
        drain(&proxy, 0, LONG_MS);
        fetch(&proxy);
        proxy.until_counter("requests", 1);
        signal_worker(&proxy, 0, Signal::SIGKILL);
        until_restarted(&proxy, 0, 1);
        fetch(&proxy);
        until("the one before has only this", || predecessor(&proxy).filter(|left| left.connections == 1));
        two.held.release();
        assert_eq!(client.response().text(), "hello");
        client.expect_end();
        assert_eq!(drained(&mut events, 0), None);
        proxy.until_counter("requests", 3);
        proxy.stop();
    }
}

#[test]
fn what_is_left_at_the_deadline_of_a_worker_is_cut() {
    let two = Two::start();
    let proxy = two.setup().start();
    let mut events = events(&proxy);
    let mut client = under_way(&proxy);
    drain(&proxy, 0, 50);
    client.expect_gone();
    assert_eq!(drained(&mut events, 0), None);
    assert_eq!(proxy.counter("drain_cut"), 1);
    fetch(&proxy);
    proxy.stop();
}

#[test]
fn a_process_that_hangs_while_it_drains_is_killed() {
    // With an hour's deadline it is the hand-over that does not come in time.
    for (policy, deadline_ms) in [(SteeringPolicy::Off, 50), (SteeringPolicy::Hash, 3_600_000)] {
        let two = Two::start();
        let setup = two.setup().expect_log("has not left in time").expect_log("ended while draining");
        let setup = setup.expect_log("steering: ").with(|state| state.settings.steering = policy);
        let proxy = setup.start();
        let steered = proxy.status().steering.active;
        let mut events = events(&proxy);
        let hanging = proxy.worker_pids()[0];
        let mut client = under_way(&proxy);
        send_signal(hanging, Signal::SIGSTOP);
        drain(&proxy, 0, deadline_ms);
        // Its successor does not wait for it.
        fetch(&proxy);
        assert_eq!(drained(&mut events, 0).as_deref(), Some("killed by signal SIGKILL"));
        client.expect_gone();
        if steered {
            // What the dead one left in its slot is no more; its successor publishes.
            let own = outcome(&proxy, "own");
            until("connections are steered to the successor", || {
                fetch(&proxy);
                (outcome(&proxy, "own") > own).then_some(())
            });
        }
        fetch(&proxy);
        proxy.stop();
    }
}

/// Connections that found their worker in this way.
#[track_caller]
pub(crate) fn outcome(proxy: &Proxy, name: &str) -> u64 {
    proxy.status().steering.outcomes.get(name).copied().unwrap_or(0)
}

#[test]
fn a_successor_tells_steering_how_it_is() {
    let two = Two::start();
    let setup = two.setup().expect_log("steering: ").with(|state| {
        state.settings.steering = SteeringPolicy::Hash;
        state.settings.limits.connections = 16;
    });
    let proxy = setup.start();
    if proxy.status().steering.active {
        let mut events = events(&proxy);
        drain(&proxy, 0, LONG_MS);
        assert_eq!(drained(&mut events, 0), None);
        // Fifteen of sixteen are too many for steering; only what the successor publishes can tell.
        let clients: Vec<Peer> = (0..15).map(|_| Peer::connect(proxy.address())).collect();
        proxy.until_counter("connections_active", 15);
        assert_eq!((outcome(&proxy, "own"), outcome(&proxy, "overloaded")), (15, 0));
        until("steering finds the worker overloaded", || {
            fetch(&proxy);
            (outcome(&proxy, "overloaded") > 0).then_some(())
        });
        assert_eq!(outcome(&proxy, "down"), 0);
        drop(clients);
    } else {
        skip("steering by BPF cannot be had here");
    }
    proxy.stop();
}

#[test]
fn the_proxy_ends_properly_while_a_worker_drains() {
    let two = Two::start();
    let mut proxy = two.setup().start();
    let mut client = under_way(&proxy);
    drain(&proxy, 0, LONG_MS);
    let mut newer = under_way(&proxy);
    proxy.signal(Signal::SIGTERM);
    until("it drains", || proxy.status().draining.then_some(()));
    let (status, text) = refused(&proxy, 0, WorkerDrain::default());
    assert!(status == 503 && text.contains("the proxy is draining"), "{text}");
    two.held.release();
    for client in [&mut client, &mut newer] {
        assert_eq!(client.response().text(), "hello");
        client.expect_end();
    }
    assert!(proxy.wait().success());
}

#[test]
fn the_deadline_of_the_whole_proxy_holds_for_a_worker_that_drains_too() {
    let two = Two::start();
    let mut proxy = two.setup().with(|state| state.settings.timeouts.drain_ms = 100).start();
    let mut client = under_way(&proxy);
    drain(&proxy, 0, LONG_MS);
    proxy.signal(Signal::SIGTERM);
    client.expect_gone();
    assert!(proxy.wait().success());
    assert!(!proxy.log().contains("killed"), "{}", proxy.log());
}

/// Where no process can be started, the one that serves stays.
#[test]
fn without_a_successor_a_worker_goes_on_as_it_was() {
    let two = Two::start();
    let proxy = two.setup().expect_log("drain of worker").start();
    let mut client = under_way(&proxy);
    let before = proxy.worker_pids();
    let limit = |soft: &str| {
        let limit = Command::new("prlimit")
            .args(["--pid", &proxy.pid().to_string(), &format!("--nofile={soft}:")])
            .output()
            .expect("prlimit is part of util-linux");
        assert!(limit.status.success(), "{limit:?}");
    };
    // What is open stays open; the client of the admin API keeps its connection.
    limit("3");
    let (status, text) = refused(&proxy, 0, WorkerDrain::default());
    limit("1024");
    assert!(
        status == 500 && text.contains("cannot be started") && text.contains("goes on as before"),
        "{text}"
    );
    assert_eq!((proxy.worker_pids(), predecessor(&proxy)), (before.clone(), None));
    fetch(&proxy);
    let draining = drain(&proxy, 0, LONG_MS);
    assert_eq!(draining.pid, before[0]);
    two.held.release();
    assert_eq!(client.response().text(), "hello");
    drop(client);
    until("it has drained", || predecessor(&proxy).is_none().then_some(()));
    proxy.stop();
}

#[test]
fn neither_process_waits_for_the_other_to_write_its_access_log() {
    let two = Two::start();
    let setup = two.setup().with(|state| state.settings.log.access = AccessLogFormat::Text);
    let proxy = setup.start();
    let mut client = under_way(&proxy);
    drain(&proxy, 0, LONG_MS);
    // The first may still be accepted by either of them.
    for number in 0..20 {
        let mut newer = Peer::connect(proxy.address());
        newer.send(format!("GET /newer/{number}. HTTP/1.1\r\nHost: test\r\n\r\n"));
        newer.response();
    }
    until("the line of the newer process is printed", || proxy.log().contains("/newer/19.").then_some(()));
    assert!(!proxy.log().contains("/held"), "it is still under way");
    two.held.release();
    client.response();
    until("the line of the older process is printed", || proxy.log().contains("/held").then_some(()));
    drop(client);
    until("it has drained", || predecessor(&proxy).is_none().then_some(()));
    proxy.stop();
}
