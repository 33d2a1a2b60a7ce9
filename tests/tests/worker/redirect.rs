//! Redirection by sockmap: its bounds, and what it leaves to userspace.

use std::thread::sleep;
use std::time::Duration;

use underpass::metrics::Counter;
use underpass_command::state::{Protocol, RedirectMode};
use underpass_tests::body::Content;
use underpass_tests::proxy::Setup;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, Peer, is_root, skip, until};

const LARGE: usize = 300_000;

const HUGE: usize = 8 << 20;

/// Answers `GET /large` and `GET /huge` with such a body, everything else with the size of the request's body.
fn backend() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request_without_copy() {
            let body = match request.target() {
                "/large" => Content::new(1, LARGE as u64).to_vec(),
                "/huge" => Content::new(2, HUGE as u64).to_vec(),
                _ => request.body.len().to_string().into_bytes(),
            };
            let mut response =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            response.extend(body);
            connection.peer.send(response);
        }
    })
}

/// A setup in mode sockmap; `None` where it cannot be had.
fn redirecting(backend: &Backend) -> Option<Setup> {
    if !is_root() {
        skip("loading BPF programs needs root");
        return None;
    }
    Some(Setup::to(&[backend.address()]).redirect(RedirectMode::Sockmap))
}

fn upload(size: usize) -> Vec<u8> {
    let mut request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    request.resize(request.len() + size, b'u');
    request
}

#[test]
fn bodies_both_ways_are_redirected_and_a_request_right_behind_one_is_served() {
    let backend = backend();
    let Some(setup) = redirecting(&backend) else { return };
    let worker = Worker::start(setup);
    let mut client = Peer::connect(worker.address());
    let large = Content::new(1, LARGE as u64).to_vec();
    for round in 1..=3 {
        let mut requests = upload(LARGE);
        requests.extend(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
        requests.extend(upload(LARGE));
        requests.extend(GET.as_bytes());
        client.send(requests);
        assert_eq!(client.response().text(), "300000");
        assert!(client.response().body == large);
        assert_eq!(client.response().text(), "300000");
        assert_eq!(client.response().text(), "0");
        assert!(worker.counter(Counter::BytesRequestRedirected) >= round * 2 * (LARGE as u64 - 40_000));
        assert!(worker.counter(Counter::BytesResponseRedirected) >= round * (LARGE as u64 - 40_000));
    }
    assert_eq!(worker.counter(Counter::FallbackSockmapRefused), 0);
    drop(client);
    worker.stop();
}

#[test]
fn a_body_that_finds_no_account_is_spliced_and_counted() {
    let backend = backend();
    let Some(setup) = redirecting(&backend) else { return };
    let worker = Worker::start(setup.with(|state| state.settings.limits.redirect_flows = 1));
    // The first keeps its account as long as its connection to the backend is open.
    for _ in 0..2 {
        let mut client = Peer::connect(worker.address());
        client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().body.len(), LARGE);
        client.send(upload(LARGE));
        assert_eq!(client.response().text(), "300000");
    }
    assert!(worker.counter(Counter::FallbackSockmapNoFlow) >= 1);
    assert!(worker.counter(Counter::BytesRequestSpliced) >= LARGE as u64 - 40_000);
    assert!(worker.counter(Counter::BytesResponseRedirected) >= LARGE as u64 - 40_000);
    worker.stop();
}

/// Mode auto learns from a client that reads nothing for a while: the rest of that body and the next ones are spliced, then the
/// kernel is tried again. Others don't suffer from that.
#[test]
fn auto_splices_the_next_bodies_of_a_client_that_was_slow() {
    const SPARED: u64 = 8;
    /// Well above what counts as slow, a second: the worker may begin to count late.
    const STALL: Duration = Duration::from_millis(2500);
    let backend = backend();
    let Some(setup) = redirecting(&backend) else { return };
    let worker = Worker::start(setup.redirect(RedirectMode::Auto).with(|state| {
        state.settings.sockmap_size_min = 128 * 1024;
        state.settings.sockmap_size_max = 1 << 40;
        state.settings.limits.redirect_credit = 512 * 1024;
    }));
    let redirected = || worker.counter(Counter::BytesResponseRedirected);
    // What the kernel has passed on is counted when the worker has looked at it, which may be after the client has it.
    let until_redirected = |before: u64, what: &str| {
        let is_counted = || redirected() > before && worker.counter(Counter::SockmapFlows) == 0;
        until(what, || is_counted().then_some(()));
    };
    let spared = || worker.counter(Counter::FallbackSockmapRecent);
    let large = Content::new(1, LARGE as u64).to_vec();
    let get_large = |client: &mut Peer| {
        client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.response().body == large);
    };
    let mut slow = Peer::connect_with_small_window(worker.address());
    slow.send("GET /huge HTTP/1.1\r\nHost: a\r\n\r\n");
    let _ = slow.head();
    // It reads nothing until the credit is spent, and nothing for a while then.
    until("the kernel stops", || (worker.counter(Counter::SockmapStops) > 0).then_some(()));
    sleep(STALL);
    let body = slow.bytes(HUGE);
    assert!(body == Content::new(2, HUGE as u64).to_vec());
    assert_eq!(spared(), 1, "its rest");
    let before = redirected();
    get_large(&mut Peer::connect(worker.address()));
    until_redirected(before, "another client's body");

    let before = redirected();
    for number in 1..=SPARED {
        get_large(&mut slow);
        assert_eq!((spared(), redirected()), (1 + number, before));
    }
    get_large(&mut slow);
    until_redirected(before, "tried again");
    assert_eq!(spared(), 1 + SPARED);
    drop(slow);
    worker.stop();
}

/// The kernel goes on reading the client when nobody is left to send to; the answer must reach it all the same.
#[test]
fn an_upload_whose_backend_dies_is_answered() {
    let dying = Backend::start(|connection| {
        let Ok(Some(_)) = connection.peer.try_head() else { return };
        let _ = connection.peer.try_bytes(200_000);
        connection.peer.reset_on_close();
    });
    let Some(setup) = redirecting(&dying) else { return };
    let worker = Worker::start(setup);
    for _ in 0..10 {
        let mut client = Peer::connect(worker.address());
        // What the proxy does not take any more may fail.
        let _ = client.try_send(upload(2_000_000));
        assert_eq!(client.response().status(), 502);
        drop(client);
    }
    worker.until(Counter::SockmapFlows, 0);
    worker.stop();
}

/// Nothing wakes the worker for a few bytes; they count as a sign of life all the same.
#[test]
fn a_tunnel_on_which_little_moves_is_not_idle() {
    const IDLE_MS: u64 = 400;
    let echo = Backend::start(|connection| {
        while let Ok(bytes) = connection.peer.some() {
            if bytes.is_empty() {
                return;
            }
            connection.peer.send(bytes);
        }
    });
    let Some(setup) = redirecting(&echo) else { return };
    let worker = Worker::start(setup.with(|state| {
        state.listeners[0].protocol = Protocol::Tcp;
        state.settings.timeouts.tcp_idle_ms = IDLE_MS;
    }));
    let mut client = Peer::connect(worker.address());
    for _ in 0..12 {
        client.send("ping");
        assert_eq!(client.bytes(4), b"ping");
        sleep(Duration::from_millis(IDLE_MS / 4)); // three times the deadline, in all
    }
    assert!(worker.counter(Counter::BytesTcpRedirected) > 0);
    worker.until(Counter::TimeoutTcp, 1);
    client.expect_gone();
    worker.stop();
}
