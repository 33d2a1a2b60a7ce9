//! Connections to backends: what may be used again, and what becomes of a request when one is stale.

use underpass::metrics::Counter;
use underpass_command::state::{Balance, PathMatch, RedirectMode, Route};
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer};

use underpass_tests::worker::Worker;

/// A response nobody asked for.
const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";

/// The first connection sends one response of this size, head included, with another one behind it.
fn poisoning(size: usize) -> Backend {
    Backend::start(move |connection| {
        if connection.number > 0 {
            return connection.answer_all(OK);
        }
        let Some(_) = connection.request() else { return };
        let body = size - "HTTP/1.1 200 OK\r\nContent-Length: 000000\r\n\r\n".len();
        let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {body:06}\r\n\r\n").into_bytes();
        bytes.resize(size, b'x');
        bytes.extend_from_slice(POISON.as_bytes());
        connection.peer.send(bytes);
        // The proxy ends the connection with a reset, because it leaves bytes unread.
        while let Ok(Some(_)) = connection.peer.try_request() {}
    })
}

#[test]
fn what_is_left_unread_behind_a_response_that_the_kernel_moved_is_not_the_next_response() {
    for mode in [RedirectMode::Splice, RedirectMode::Sockmap] {
        let backend = poisoning(100_000);
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        client.send(GET);
        assert_eq!(client.response().status(), 200, "{mode}");
        client.send(GET);
        assert_eq!(client.response().text(), "ok", "{mode}");
        assert_eq!(worker.counter(Counter::BackendUnsolicited), 1, "{mode}");
        drop(client);
        worker.stop();
    }
}

/// A read that fills the buffer to its last byte does not tell whether more is there.
#[test]
fn what_is_left_unread_behind_a_full_buffer_is_not_the_next_response() {
    let backend = poisoning(16 * 1024);
    let worker = Worker::start(
        Setup::to(&[backend.address()])
            .redirect(RedirectMode::Copy)
            .with(|state| state.settings.limits.buffer_size = 16 * 1024),
    );
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().status(), 200);
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    assert_eq!(worker.counter(Counter::BackendUnsolicited), 1);
    drop(client);
    worker.stop();
}

/// Idle connections must not keep those out that a request needs.
#[test]
fn idle_connections_make_room_for_those_to_another_backend() {
    let backends: Vec<Backend> = (0..5).map(|_| Backend::answering(OK)).collect();
    let mut setup = Setup::to(&[]).with(|state| state.settings.limits.connections = 1);
    for (number, backend) in backends.iter().enumerate() {
        let name = format!("cluster-{number}");
        setup = setup.cluster(&name, &[backend.address()]).with(|state| {
            let mut route = Route::new(&name);
            route.path = PathMatch::Exact(format!("/{number}"));
            state.routes.push(route);
        });
    }
    let worker = Worker::start(setup);
    let mut client = Peer::connect(worker.address());
    for _ in 0..2 {
        for number in 0..backends.len() {
            client.send(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(client.response().status(), 200, "backend {number}");
        }
    }
    drop(client);
    worker.stop();
}

/// Ends its first connection when a second request comes on it.
fn stale() -> Backend {
    Backend::start(|connection| {
        if connection.number > 0 {
            return connection.answer_all(OK);
        }
        if connection.request().is_some() {
            connection.peer.send(OK);
        }
        let _ = connection.request();
    })
}

#[test]
fn a_stale_connection_costs_a_request_nothing_whatever_the_balance() {
    for balance in [Balance::RoundRobin, Balance::LeastLoaded] {
        let backend = stale();
        let worker =
            Worker::start(Setup::to(&[backend.address()]).with(|state| state.clusters[0].balance = balance));
        let mut client = Peer::connect(worker.address());
        for _ in 0..2 {
            client.send(GET);
            assert_eq!(client.response().text(), "ok", "{balance}");
        }
        assert_eq!(worker.counter(Counter::Retries), 1);
        drop(client);
        worker.stop();
    }
}

/// What is sent again is the request, and nothing of what is behind it.
#[test]
fn the_requests_behind_it_survive_a_stale_connection() {
    let backend = stale();
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.send(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nworld\
         GET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    for _ in 0..3 {
        assert_eq!(client.response().text(), "ok");
    }
    drop(client);
    worker.stop();
    // The script that ended its connection has read the request too.
    let expected = [("/", ""), ("/1", ""), ("/1", ""), ("/2", "world"), ("/3", "")];
    assert_eq!(seen(&backend), expected.map(|(target, body)| (target.to_owned(), body.to_owned())));
}

fn seen(backend: &Backend) -> Vec<(String, String)> {
    let requests = backend.requests();
    requests.iter().map(|request| (request.target().to_owned(), request.text().to_owned())).collect()
}

/// PUT may be repeated, but no body is sent twice: it may be large, and come from a client that does not expect it.
#[test]
fn a_body_that_may_have_arrived_is_not_sent_again() {
    let backend = stale();
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.send("PUT /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.response().status(), 502);
    assert_eq!(worker.counter(Counter::Retries), 0);
    drop(client);
    worker.stop();
    assert_eq!(seen(&backend), [("/".to_owned(), String::new()), ("/1".to_owned(), "hello".to_owned())]);
}

/// What is not idempotent is not sent twice; the client is told, and its connection goes on where that is safe.
#[test]
fn a_post_that_may_have_arrived_is_not_sent_again() {
    let backend = stale();
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().status(), 502);
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    assert_eq!(worker.counter(Counter::Retries), 0);
    drop(client);
    worker.stop();
}

/// Dead backends have the fewest requests under way, and so the balancer likes them best.
#[test]
fn a_request_finds_the_backend_that_lives_among_dead_ones() {
    for balance in [Balance::RoundRobin, Balance::LeastLoaded] {
        let (busy, permit) = Backend::holding(OK);
        let dead = [ReservedPort::new(), ReservedPort::new()];
        let worker = Worker::start(
            Setup::to(&[dead[0].address(), busy.address(), dead[1].address()])
                .with(|state| state.clusters[0].balance = balance),
        );
        let mut clients: Vec<Peer> = (0..6).map(|_| Peer::connect(worker.address())).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(GET);
            worker.until(Counter::RequestsActive, number as u64 + 1);
        }
        for _ in &clients {
            permit.send(()).expect("the backend runs");
        }
        for client in &mut clients {
            assert_eq!(client.response().text(), "ok", "{balance}");
        }
        drop(clients);
        worker.stop();
    }
}
