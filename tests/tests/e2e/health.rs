//! Backends that die and come back while requests go on: the checks see it, all workers follow, and no client is hurt.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use underpass_command::api::{BackendHealth, EventKind, HealthState, Select};
use underpass_command::state::{Check, Protocol, RedirectMode, RetryOn, State};
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::{Proxy, Setup, send_signal};
use underpass_tests::{Backend, GET, OK, PATIENCE, Peer, until};

/// Answers requests and checks alike, and dies without complaint.
fn serving(port: &ReservedPort) -> Backend {
    let listener = TcpListener::bind(port.address()).expect("a reserved port");
    Backend::on(listener, |connection| {
        while let Ok(Some(_)) = connection.peer.try_request() {
            if connection.peer.try_send(OK).is_err() {
                return;
            }
        }
    })
}

/// Checks often.
fn checked(state: &mut State, check: Check) {
    let cluster = &mut state.clusters[0];
    cluster.check = check;
    cluster.check_interval_ms = 100;
    (cluster.check_rise, cluster.check_fall) = (2, 2);
}

/// The backends that the proxy says are down.
fn down(proxy: &Proxy) -> Vec<SocketAddr> {
    proxy.status().clusters[0].down.iter().map(|backend| backend.address).collect()
}

fn until_down(proxy: &Proxy, expected: &[SocketAddr]) {
    until("the checks find it", || (down(proxy) == expected).then_some(()));
}

/// Waits until every worker knows that a backend is down: what the log tells was sent to them before, and a change is
/// answered when they have taken it and all that was sent before.
fn until_known(proxy: &Proxy, backend: SocketAddr) {
    let said = format!("backend {backend} is down");
    until(&said, || proxy.log().contains(&said).then_some(()));
    assert_eq!(down(proxy), [backend]);
    proxy.set_redirect(RedirectMode::Copy);
}

/// Requests from several clients at once, until they are told to stop; counts those that failed.
struct Load {
    stop: AtomicBool,
    served: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    fn run(&self, address: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let mut client = Peer::connect(address);
            // Connections are kept for a while, and new ones come.
            for _ in 0..50 {
                client.send(GET);
                let served = client.try_response_to("GET").is_ok_and(|response| response.status() == 200);
                let counter = if served { &self.served } else { &self.failed };
                counter.fetch_add(1, Ordering::Relaxed);
                if !served {
                    break;
                }
            }
        }
    }

    /// Waits until so many more requests have been served.
    fn until_more(&self, more: u64) {
        let before = self.served.load(Ordering::Relaxed);
        until("requests are served", || (self.served.load(Ordering::Relaxed) >= before + more).then_some(()));
    }
}

#[test]
fn a_backend_dies_under_load_and_comes_back_and_no_request_fails() {
    let (port, other) = (ReservedPort::new(), Backend::answering(OK));
    let mortal = serving(&port);
    let proxy = Setup::to(&[port.address(), other.address()])
        .with(|state| {
            state.settings.workers = 2;
            checked(state, Check::Http);
            state.clusters[0].retry_on = RetryOn::Idempotent;
        })
        .expect_log("is down")
        .start();
    let load = Load { stop: AtomicBool::new(false), served: AtomicU64::new(0), failed: AtomicU64::new(0) };
    let events = proxy.client().events(None).expect("events");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.run(proxy.address()));
        }
        load.until_more(200);
        drop(mortal);
        until_known(&proxy, port.address());
        load.until_more(100); // those that were on their way
        let tried = proxy.counter("backend_connects_failed");
        load.until_more(400);
        assert_eq!(proxy.counter("backend_connects_failed"), tried, "requests still go to what is down");
        let back = serving(&port);
        until_down(&proxy, &[]);
        let checks_and_requests = back.connections();
        until("it is used again", || (back.connections() > checks_and_requests + 1).then_some(()));
        load.until_more(200);
        load.stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(load.failed.load(Ordering::Relaxed), 0);
    let told: Vec<bool> = events
        .filter_map(|event| match event.expect("an event").kind {
            EventKind::BackendDown { backend, .. } if backend == port.address() => Some(false),
            EventKind::BackendUp { backend, .. } if backend == port.address() => Some(true),
            _ => None,
        })
        .take(2)
        .collect();
    assert_eq!(told, [false, true]);
    proxy.stop();
}

#[test]
fn the_successor_of_a_worker_knows_what_is_down() {
    let (port, other) = (ReservedPort::new(), Backend::answering(OK));
    let proxy = Setup::to(&[port.address(), other.address()])
        .with(|state| {
            checked(state, Check::Tcp);
            state.clusters[0].retry_on = RetryOn::Never;
        })
        .expect_log("is down")
        .expect_log("worker died")
        .start();
    until_known(&proxy, port.address());
    let status = proxy.client().status().expect("a status");
    let reason = &status.clusters[0].down[0].reason;
    assert!(reason.starts_with("cannot be connected to: "), "{reason}");
    let pid = proxy.worker_pids()[0];
    send_signal(pid, Signal::SIGKILL);
    until("its successor runs", || {
        let running = proxy.status().workers[0].pid.is_some_and(|new| new != pid);
        running.then_some(())
    });
    for _ in 0..10 {
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        assert_eq!(client.response().status(), 200);
    }
    proxy.stop();
}

#[test]
fn a_backend_that_does_not_answer_its_checks_is_down() {
    let silent = Backend::start(|connection| while let Ok(Some(_)) = connection.peer.try_request() {});
    let proxy = Setup::to(&[silent.address()])
        .with(|state| {
            checked(state, Check::Http);
            state.clusters[0].check_timeout_ms = 50;
        })
        .expect_log("is down")
        .start();
    until_known(&proxy, silent.address());
    assert_eq!(proxy.status().clusters[0].down[0].reason, "no answer within 50 ms");
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    let refusal = client.response();
    assert_eq!((refusal.status(), refusal.value("Retry-After")), (503, Some("1")));
    drop(client);
    proxy.stop();
}

#[test]
fn connections_of_a_tcp_listener_go_to_what_is_up() {
    let (port, other) = (ReservedPort::new(), Backend::answering(OK));
    let proxy = Setup::to(&[port.address(), other.address()])
        .with(|state| {
            checked(state, Check::Tcp);
            state.listeners[0].protocol = Protocol::Tcp;
            state.clusters[0].retry_on = RetryOn::Never;
        })
        .expect_log("is down")
        .start();
    until_known(&proxy, port.address());
    for _ in 0..6 {
        let mut client = Peer::connect(proxy.address());
        client.set_patience(PATIENCE);
        client.send(GET);
        assert_eq!(client.response().status(), 200);
    }
    proxy.stop();
}

#[test]
fn sticky_clients_move_when_their_backend_dies_and_all_workers_agree() {
    let (port, other) = (ReservedPort::new(), Backend::answering(OK));
    let mortal = serving(&port);
    let proxy = Setup::to(&[port.address(), other.address()])
        .with(|state| {
            state.settings.workers = 2;
            checked(state, Check::Http);
            state.clusters[0].sticky_cookie = Some("at".into());
            // Its cookie outlives its address.
            state.clusters[0].backends[1].name = Some("other".into());
        })
        .expect_log("is down")
        .start();
    let ask = |cookie: &str| {
        let mut client = Peer::connect(proxy.address());
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status(), 200);
        response.value("Set-Cookie").map(|set| set.split(';').next().unwrap_or_default().to_owned())
    };
    let own = until("a client of the one that will die", || {
        let before = other.requests().len();
        let cookie = ask("none=1").expect("a new client gets a cookie");
        // Checks of the other add to its requests; whoever added none was not there.
        (other.requests().len() == before).then_some(cookie)
    });
    assert!((0..20).all(|_| ask(&own).is_none()), "the cookie is known to all workers");
    drop(mortal);
    until_known(&proxy, port.address());
    let moved = ask(&own).expect("another backend, another cookie");
    assert_ne!(moved, own);
    assert!((0..20).all(|_| ask(&moved).is_none()));
    proxy.stop();
}

#[test]
fn the_list_of_backends_tells_how_each_of_them_is() {
    let (gone, idle) = (ReservedPort::new(), Backend::answering(OK));
    // Says nothing, so that requests stay under way.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let busy = Backend::start(move |connection| {
        if connection.peer.try_request().is_ok_and(|request| request.is_some()) {
            let _ = held.lock().expect("no panic").recv();
            let _ = connection.peer.try_send(OK);
        }
    });
    let proxy = Setup::to(&[gone.address(), busy.address()])
        .cluster("other", &[idle.address()])
        .with(|state| {
            state.settings.workers = 2;
            checked(state, Check::Tcp);
            state.clusters[1].backends[0].drain = true;
        })
        .expect_log("is down")
        .expect_log("no route and no listener leads to it")
        .start();
    until_down(&proxy, &[gone.address()]);
    let mut clients = [Peer::connect(proxy.address()), Peer::connect(proxy.address())];
    clients.iter_mut().for_each(|client| client.send(GET));
    let list = || proxy.client().backends(&Select::default()).expect("a list").items;
    let entries = until("both requests are under way", || {
        let entries = list();
        let busy = entries.iter().find(|entry| entry.backend.address == busy.address())?;
        (busy.active == 2 && busy.health.state == HealthState::Up).then_some(entries)
    });
    let of = |address| entries.iter().find(|entry| entry.backend.address == address).expect("an entry");
    let down = of(gone.address());
    assert_eq!((down.cluster.as_str(), down.health.state, down.active), ("app", HealthState::Down, 0));
    assert!(down.health.reason.as_ref().is_some_and(|reason| !reason.is_empty()), "{down:?}");
    let started_ms = down.health.since_ms.expect("a time");
    assert!(
        of(busy.address()).health.since_ms.is_some_and(|since_ms| since_ms.abs_diff(started_ms) < 600_000)
    );
    let idle = of(idle.address());
    assert!(idle.backend.drain && idle.cluster == "other" && idle.health == BackendHealth::default());
    drop(release);
    clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "ok"));
    until("nothing is under way", || list().iter().all(|entry| entry.active == 0).then_some(()));
    drop(clients);
    proxy.stop();
}
