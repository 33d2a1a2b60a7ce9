//! Backends that take only so much at a time, and clients that belong to one.

use std::net::TcpStream;

use underpass::http1::Reason;
use underpass::ipc::{Step, ToWorker};
use underpass::metrics::Counter;
use underpass_command::state::{Backend as Configured, Balance, Cluster, HashKey, Protocol, SameSite};
use underpass_tests::message::Message;
use underpass_tests::proxy::Setup;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, OK, Peer};

/// A cluster of this one backend, with room for one request, and for `length` that wait.
fn narrow(backend: &Backend, length: u32, timeout_ms: u64) -> Setup {
    Setup::to(&[backend.address()]).with(|state| {
        let cluster = &mut state.clusters[0];
        cluster.backends[0].in_flight_max = 1;
        (cluster.queue_length, cluster.queue_timeout_ms) = (length, timeout_ms);
    })
}

/// A client whose request has been taken by the backend, or waits for it.
fn client(worker: &Worker, under_way: u64) -> Peer {
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    worker.until(Counter::RequestsActive, under_way);
    client
}

#[test]
fn requests_beyond_what_a_backend_takes_wait_in_line() {
    let (backend, permit) = Backend::holding(OK);
    let worker = Worker::start(narrow(&backend, 2, 60_000));
    let mut clients: Vec<Peer> = (1..=3).map(|number| client(&worker, number)).collect();
    worker.until(Counter::QueueActive, 2);
    // The line is full.
    let mut late = Peer::connect(worker.address());
    late.send(GET);
    let refusal = late.response();
    assert_eq!((refusal.status(), refusal.value("Retry-After")), (503, Some("1")));
    assert_eq!(worker.refused_requests(Reason::QueueFull), 1);
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(backend.requests().len(), number + 1, "one at a time");
        permit.send(()).expect("the backend runs");
        assert_eq!(client.response().text(), "ok");
        worker.until(Counter::QueueActive, 1_u64.saturating_sub(number as u64));
        underpass_tests::until("the next one's turn", || {
            (backend.requests().len() == (number + 2).min(3)).then_some(())
        });
    }
    assert_eq!((worker.counter(Counter::Queued), worker.counter(Counter::QueueFull)), (2, 1));
    assert_eq!(backend.connections(), 1, "the connection was used again");
    drop((clients, late));
    worker.stop();
}

#[test]
fn who_waits_too_long_is_refused_and_the_connection_goes_on() {
    let (backend, permit) = Backend::holding(OK);
    let worker = Worker::start(narrow(&backend, 10, 100));
    let mut first = client(&worker, 1);
    let mut second = Peer::connect(worker.address());
    second.send(GET);
    let refusal = second.response();
    assert_eq!((refusal.status(), refusal.value("Retry-After")), (503, Some("1")));
    assert_eq!(worker.refused_requests(Reason::QueueTimeout), 1);
    assert_eq!((worker.counter(Counter::TimeoutQueue), worker.counter(Counter::QueueActive)), (1, 0));
    permit.send(()).expect("the backend runs");
    assert_eq!(first.response().text(), "ok");
    second.send(GET);
    permit.send(()).expect("the backend runs");
    assert_eq!(second.response().text(), "ok");
    drop((first, second));
    worker.stop();
}

#[test]
fn who_leaves_the_line_delays_nobody() {
    let (backend, permit) = Backend::holding(OK);
    let worker = Worker::start(narrow(&backend, 10, 60_000));
    let mut first = client(&worker, 1);
    let leaving = client(&worker, 2);
    let mut last = client(&worker, 3);
    worker.until(Counter::QueueActive, 2);
    leaving.reset();
    worker.until(Counter::QueueActive, 1);
    for client in [&mut first, &mut last] {
        permit.send(()).expect("the backend runs");
        assert_eq!(client.response().text(), "ok");
    }
    assert_eq!(backend.requests().len(), 2);
    assert_eq!(worker.counter(Counter::AbortsClient), 1);
    drop((first, last));
    worker.stop();
}

#[test]
fn a_new_backend_serves_those_who_wait_and_the_last_one_that_goes_refuses_them() {
    let (busy, permit) = Backend::holding(OK);
    let fresh = Backend::answering(OK);
    let worker = Worker::start(narrow(&busy, 10, 60_000));
    let mut first = client(&worker, 1);
    let mut waiting = client(&worker, 2);
    worker.until(Counter::QueueActive, 1);
    let added = Configured { in_flight_max: 1, ..Configured::new(fresh.address()) };
    worker.change(2, &[Step::AddBackend { number: 5, cluster: 0, backend: added }], &[]);
    assert_eq!(waiting.response().text(), "ok");
    assert_eq!(fresh.requests().len(), 1);
    worker.change(2, &[Step::RemoveBackend { number: 5 }], &[]);
    waiting.send(GET);
    worker.until(Counter::QueueActive, 1);
    worker.change(2, &[Step::RemoveBackend { number: 0 }], &[]);
    assert_eq!(waiting.response().status(), 503);
    assert_eq!(worker.refused_requests(Reason::BackendMissing), 1);
    // What is under way there is finished.
    permit.send(()).expect("the backend runs");
    assert_eq!(first.response().text(), "ok");
    drop((first, waiting));
    worker.stop();
}

#[test]
fn connections_of_a_tcp_listener_wait_too() {
    let backend = Backend::start(|connection| {
        while let Ok(bytes) = connection.peer.some()
            && !bytes.is_empty()
        {
            connection.peer.send(bytes);
        }
    });
    let setup = narrow(&backend, 1, 60_000).with(|state| state.listeners[0].protocol = Protocol::Tcp);
    let worker = Worker::start(setup);
    let mut first = Peer::connect(worker.address());
    first.send("one");
    assert_eq!(first.bytes(3), b"one");
    let mut second = Peer::connect(worker.address());
    second.send("two");
    worker.until(Counter::QueueActive, 1);
    // Nothing can be answered, so who finds the line full is reset, perhaps before it knows that it was connected.
    let third = TcpStream::connect(worker.address());
    worker.until(Counter::QueueFull, 1);
    first.finish();
    first.expect_end();
    assert_eq!(second.bytes(3), b"two");
    second.finish();
    second.expect_end();
    drop((first, second, third));
    worker.stop();
}

/// Answers with its own name.
fn named(name: &'static str) -> Backend {
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// Asks once on a new connection, with this field line.
fn ask(worker: &Worker, field: &str) -> Message {
    let mut client = Peer::connect(worker.address());
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"));
    client.response()
}

fn sticky(backends: &[&Backend]) -> Setup {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address()).collect();
    Setup::to(&addresses).with(|state| {
        state.settings.sticky_secret = "secret".into();
        state.clusters[0].sticky_cookie = Some("at".into());
    })
}

/// The name and value of the cookie that a response sets.
fn cookie(response: &Message) -> String {
    let set = response.value("Set-Cookie").expect("a cookie");
    let (cookie, attributes) = set.split_once("; ").expect("attributes");
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    cookie.to_owned()
}

#[test]
fn a_cookie_for_other_sites_is_secure() {
    let one = named("one");
    let setup = sticky(&[&one]).with(|state| state.clusters[0].sticky_same_site = SameSite::None);
    let worker = Worker::start(setup);
    let response = ask(&worker, "X-A: 1");
    let set = response.value("Set-Cookie").expect("a cookie");
    assert!(set.ends_with("; Path=/; HttpOnly; SameSite=None; Secure"), "{set}");
    worker.stop();
}

#[test]
fn a_cookie_keeps_a_client_at_its_backend_also_after_a_restart() {
    let (one, two) = (named("one"), named("two"));
    let worker = Worker::start(sticky(&[&one, &two]));
    let first = ask(&worker, "X-A: 1");
    let cookie = cookie(&first);
    assert!(cookie.starts_with("at=") && cookie.len() == 3 + 16, "{cookie}");
    for _ in 0..10 {
        let again = ask(&worker, &format!("Cookie: a=b; {cookie}"));
        assert_eq!((again.text(), again.value("Set-Cookie")), (first.text(), None));
    }
    // What nobody has given out is no reason to fail.
    let forged = ask(&worker, "Cookie: at=0000000000000000");
    assert!(forged.status() == 200 && forged.value("Set-Cookie").is_some());
    worker.stop();
    // The order of the configuration, and the numbers with it, are another.
    let successor = Worker::start(sticky(&[&two, &one]));
    for _ in 0..10 {
        assert_eq!(ask(&successor, &format!("Cookie: {cookie}")).text(), first.text());
    }
    successor.stop();
}

#[test]
fn a_client_of_a_backend_that_drains_or_is_down_gets_another() {
    let (one, two) = (named("one"), named("two"));
    let worker = Worker::start(sticky(&[&one, &two]));
    let first = ask(&worker, "X-A: 1");
    let field = format!("Cookie: {}", cookie(&first));
    let (own, number, address) = match first.text() {
        "one" => ("one", 0, one.address()),
        _ => ("two", 1, two.address()),
    };
    let backend = |drain| Configured { drain, ..Configured::new(address) };
    worker.change(2, &[Step::ChangeBackend { number, backend: backend(true) }], &[]);
    let moved = ask(&worker, &field);
    assert_ne!(moved.text(), own);
    assert_ne!(format!("Cookie: {}", cookie(&moved)), field);
    worker.change(2, &[Step::ChangeBackend { number, backend: backend(false) }], &[]);
    assert_eq!(ask(&worker, &field).text(), own);
    worker.order(&ToWorker::Health { backends: vec![(number, false)] });
    worker.change(2, &[], &[]);
    assert_ne!(ask(&worker, &field).text(), own);
    worker.stop();
}

#[test]
fn a_client_of_a_busy_backend_is_served_elsewhere_and_stays() {
    let (busy, permit) = Backend::holding("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbusy");
    let other = named("other");
    let setup = sticky(&[&busy, &other]).with(|state| state.clusters[0].backends[0].in_flight_max = 1);
    let worker = Worker::start(setup);
    permit.send(()).expect("the backend runs");
    let first = [ask(&worker, "X-A: 1"), ask(&worker, "X-A: 1")].into_iter().find(|r| r.text() == "busy");
    let field = format!("Cookie: {}", cookie(&first.expect("one of two in turn")));
    let mut holder = Peer::connect(worker.address());
    holder.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"));
    underpass_tests::until("the backend is busy", || (busy.requests().len() == 2).then_some(()));
    let elsewhere = ask(&worker, &field);
    assert_eq!((elsewhere.text(), elsewhere.value("Set-Cookie")), ("other", None));
    permit.send(()).expect("the backend runs");
    assert_eq!(holder.response().text(), "busy");
    drop(holder);
    worker.stop();
}

#[test]
fn a_header_or_cookie_leads_to_the_same_backend_always() {
    let backends = [named("one"), named("two"), named("three"), named("four")];
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    for (hash, field) in [("header:X-User", "X-User: "), ("cookie:user", "Cookie: user=")] {
        let hash: HashKey = hash.parse().expect("valid");
        let setup = || {
            Setup::to(&addresses).with(|state| {
                state.clusters[0].balance = Balance::Maglev;
                state.clusters[0].hash = hash.clone();
            })
        };
        let worker = Worker::start(setup());
        let field = |user: u32| format!("{field}{user}");
        let first: Vec<Message> = (0..20).map(|user| ask(&worker, &field(user))).collect();
        let mut names: Vec<_> = first.iter().map(|response| response.text().to_owned()).collect();
        worker.stop();
        let successor = Worker::start(setup());
        for (user, before) in (0..).zip(&first) {
            assert_eq!(ask(&successor, &field(user)).text(), before.text());
        }
        successor.stop();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() > 1, "all went to {names:?}");
    }
}

#[test]
fn each_policy_serves_all_backends_of_a_cluster_that_changes() {
    for balance in Balance::ALL {
        let backends = [named("one"), named("two"), named("three")];
        let addresses: Vec<_> = backends[..2].iter().map(Backend::address).collect();
        let own = Cluster {
            balance: *balance,
            hash: "header:X-User".parse().expect("valid"),
            ..Cluster::new("app")
        };
        let setup = Setup::to(&addresses).with(|state| {
            let backends = std::mem::take(&mut state.clusters[0].backends);
            state.clusters[0] = Cluster { backends, ..own.clone() };
        });
        let worker = Worker::start(setup);
        let expect = |expected: &[&str]| {
            let mut names: Vec<_> =
                (0..60).map(|user| ask(&worker, &format!("X-User: {user}")).text().to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            match balance {
                // One after the other they may all go to the fastest.
                Balance::PeakEwma => assert!(names.iter().all(|name| expected.contains(&name.as_str()))),
                _ => assert_eq!(names, expected, "{balance}"),
            }
        };
        expect(&["one", "two"]);
        let added = Configured::new(backends[2].address());
        worker.change(2, &[Step::AddBackend { number: 2, cluster: 0, backend: added }], &[]);
        expect(&["one", "three", "two"]);
        worker.change(2, &[Step::RemoveBackend { number: 0 }], &[]);
        expect(&["three", "two"]);
        worker.stop();
    }
}
