//! How connections end: half a response never looks like a whole one, and a whole one is not lost.

use std::io::ErrorKind;
use std::sync::mpsc;
use std::thread;

use underpass::metrics::Counter;
use underpass_tests::body::Content;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, OK, PATIENCE, Peer};

use underpass_tests::worker::Worker;

/// A body that only the end of the connection ends must not seem to end at a cut.
#[test]
fn a_response_cut_at_the_end_of_a_drain_is_reset() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send("HTTP/1.1 200 OK\r\n\r\nhalf");
            let _ = connection.peer.try_rest();
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        client.send(GET);
        assert_eq!(client.head().status(), 200);
        assert_eq!(client.bytes(4), b"half");
        worker.cut(1);
        assert_eq!(client.try_rest().expect_err("the end of half a body").kind(), ErrorKind::ConnectionReset);
    }
}

/// The proxy's own write can be what takes note of the backend's reset. Reading then ends as if the backend had closed in
/// order.
#[test]
fn a_backend_that_resets_while_an_upload_is_under_way_has_not_ended_its_response() {
    for mode in MODES {
        let (reset, resets) = mpsc::channel::<()>();
        let resets = std::sync::Mutex::new(resets);
        let backend = Backend::start(move |connection| {
            let head = connection.peer.try_head().expect("a request").expect("a request");
            assert_eq!(head.method(), "POST");
            connection.peer.send("HTTP/1.1 200 OK\r\n\r\nhalf");
            resets.lock().expect("one connection").recv_timeout(PATIENCE).expect("the test goes on");
            connection.peer.reset_on_close();
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        assert_eq!(client.bytes(4), b"half");
        // Upload until both sides are full, so that the worker stands before a write.
        client.stream().set_nonblocking(true).expect("non-blocking");
        let block = vec![b'x'; 1 << 20];
        let mut sent = worker.counter(Counter::BytesCopied) + worker.counter(Counter::BytesSpliced);
        loop {
            while client.try_send(&block).is_ok() {}
            let now = worker.counter(Counter::BytesCopied) + worker.counter(Counter::BytesSpliced);
            if now == sent && now > 0 {
                break;
            }
            sent = now;
            thread::yield_now();
        }
        client.stream().set_nonblocking(false).expect("blocking");
        reset.send(()).expect("the backend runs");
        assert_eq!(
            client.try_rest().expect_err("the end of half a body").kind(),
            ErrorKind::ConnectionReset,
            "{mode}"
        );
        drop(client);
        worker.stop();
    }
}

/// A client that has seen the early answer may stop its upload, and still wants the whole answer.
#[test]
fn an_early_answer_is_not_cut_when_the_client_gives_up_its_upload() {
    for mode in MODES {
        let body = Content::new(3, 300_000).to_vec();
        let (rest, rests) = mpsc::channel::<()>();
        let rests = std::sync::Mutex::new(rests);
        let backend = Backend::start({
            let body = body.clone();
            move |connection| {
                connection.peer.try_head().expect("a request").expect("a request");
                connection.peer.send(format!("HTTP/1.1 413 No\r\nContent-Length: {}\r\n\r\n", body.len()));
                connection.peer.send(&body[..1000]);
                rests.lock().expect("one connection").recv_timeout(PATIENCE).expect("the test goes on");
                connection.peer.send(&body[1000..]);
                let _ = connection.peer.try_rest();
            }
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello");
        assert_eq!(client.head().status(), 413);
        assert_eq!(client.bytes(1000), &body[..1000]);
        client.finish();
        client.expect_silence(std::time::Duration::from_millis(50));
        rest.send(()).expect("the backend runs");
        assert!(client.rest() == body[1000..], "{mode}: the answer is not what the backend sent");
        drop(client);
        worker.stop();
    }
}

/// The proxy ends the connection on its own account, and the client does not know yet: what it sends meanwhile must not turn
/// the end into a reset that takes the response away.
#[test]
fn a_request_behind_the_last_response_does_not_destroy_it() {
    let body = Content::new(4, 1_000_000).to_vec();
    let response =
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let backend = Backend::answering(response);
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.limits.requests_per_connection = 1;
        state.settings.timeouts.linger_ms = 20_000;
    }));
    // What the client does not read lies in the proxy's socket.
    let mut client = Peer::connect_with_small_window(worker.address());
    client.send(GET);
    let head = client.head();
    assert_eq!(head.value("Connection"), Some("close"));
    worker.until(Counter::RequestsActive, 0);
    client.send(GET);
    assert!(client.rest() == body, "the response is not what the backend sent");
    drop(client);
    worker.stop();
}

#[test]
fn a_client_that_goes_while_it_waits_is_counted() {
    let (backend, _permit) = Backend::holding(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    worker.until(Counter::RequestsActive, 1);
    client.reset();
    worker.until(Counter::AbortsClient, 1);
    worker.stop();
}

/// An HTTP/1.0 client takes a connection for closed unless it is told otherwise, by the proxy's own answers too.
#[test]
fn an_old_client_is_told_that_its_connection_goes_on_after_a_refusal() {
    let worker = Worker::start(Setup::to(&[]));
    let mut client = Peer::connect(worker.address());
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status(), response.value("Connection")), (503, Some("keep-alive")));
    }
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response().value("Connection"), Some("close"));
    client.expect_end();
    drop(client);
    worker.stop();
}
