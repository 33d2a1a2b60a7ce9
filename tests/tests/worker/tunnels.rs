//! Tunnels: ends, resets, and what comes too early.

use std::io::{ErrorKind, Read};
use std::sync::{Mutex, mpsc};

use underpass::metrics::Counter;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, OK, PATIENCE, Peer};

use underpass_tests::worker::Worker;

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

/// A tunnel has no framing of its own: a reset that arrives as a FIN makes half a stream look whole.
#[test]
fn a_reset_of_either_side_is_a_reset_at_the_other() {
    for mode in MODES {
        let (ended, ends) = mpsc::channel();
        let ended = Mutex::new(ended);
        let backend = Backend::start(move |connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send(SWITCHED);
            connection.peer.send("hello");
            if connection.number == 0 {
                let end = connection.peer.try_rest().map_err(|error| error.kind());
                ended.lock().expect("one at a time").send(end).expect("the test goes on");
            } else {
                assert_eq!(connection.peer.bytes(4), b"half");
                connection.peer.reset_on_close();
            }
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        client.send(UPGRADE);
        assert_eq!(client.head().status(), 101);
        assert_eq!(client.bytes(5), b"hello");
        client.send("half");
        client.reset();
        assert_eq!(ends.recv().expect("the backend runs"), Err(ErrorKind::ConnectionReset), "{mode}");

        let mut client = Peer::connect(worker.address());
        client.send(UPGRADE);
        assert_eq!(client.head().status(), 101);
        assert_eq!(client.bytes(5), b"hello");
        client.send("half");
        assert_eq!(
            client.try_rest().map_err(|error| error.kind()),
            Err(ErrorKind::ConnectionReset),
            "{mode}"
        );
        worker.stop();
    }
}

/// What the server sent before it went is delivered though the client is still sending.
#[test]
fn the_last_words_of_a_server_that_has_gone_are_delivered() {
    for mode in MODES {
        let backend = Backend::start(move |connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send(SWITCHED);
            connection.peer.stream().read_exact(&mut [0; 5]).expect("five bytes");
            // Closed with bytes unread: the kernel resets, and what the client goes on sending fails to be written.
            connection.peer.send("bye");
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        for _ in 0..20 {
            let mut client = Peer::connect(worker.address());
            client.send(UPGRADE);
            assert_eq!(client.head().status(), 101);
            client.send("hello, and more");
            while client.try_send([b'x'; 1000]).is_ok() && worker.counter(Counter::TunnelsActive) > 0 {}
            let mut heard = Vec::new();
            while let Ok(some) = client.some() {
                if some.is_empty() {
                    break;
                }
                heard.extend_from_slice(&some);
            }
            assert_eq!(heard, b"bye", "{mode}");
            drop(client);
            worker.until(Counter::TunnelsActive, 0);
        }
        worker.stop();
    }
}

/// A backend that switches before it can have read the request has not understood it.
#[test]
fn a_switch_before_the_request_was_sent_is_refused() {
    let size = 8 << 20;
    let (end, ends) = mpsc::channel::<()>();
    let ends = Mutex::new(ends);
    let backend = Backend::start(move |connection| {
        // Nothing is read.
        connection.peer.send(SWITCHED);
        let _ = ends.lock().expect("one connection").recv_timeout(PATIENCE);
    });
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.limits.buffers = 4;
        state.settings.limits.buffer_size = size;
        state.settings.limits.head_size_max = size;
    }));
    let mut client = Peer::connect(worker.address());
    let filler = "x".repeat(size as usize - 1000);
    client.send(format!(
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX: {filler}\r\n\r\n"
    ));
    assert_eq!(client.response().status(), 502);
    drop(client);
    worker.stop();
    drop(end);
}

/// Either side may stop sending and still listen, and both modes carry what comes after.
#[test]
fn each_side_may_end_first() {
    for mode in MODES {
        let (got, gets) = mpsc::channel();
        let got = Mutex::new(got);
        let backend = Backend::start(move |connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send(format!("{SWITCHED}early"));
            if connection.number == 0 {
                // The client ends first.
                assert_eq!(connection.peer.rest(), b"from the client");
                connection.peer.send(vec![b'b'; 300_000]);
            } else {
                connection.peer.send(vec![b'b'; 300_000]);
                connection.peer.finish();
                let size = connection.peer.rest().len();
                got.lock().expect("one at a time").send(size).expect("the test goes on");
            }
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        // Bytes behind the head of the request, and behind that of the response.
        client.send(format!("{UPGRADE}from the client"));
        client.finish();
        assert_eq!(client.head().status(), 101);
        assert_eq!(client.rest().len(), 5 + 300_000);
        worker.until(Counter::TunnelsActive, 0);

        let mut client = Peer::connect(worker.address());
        client.send(UPGRADE);
        assert_eq!(client.head().status(), 101);
        assert_eq!(client.rest().len(), 5 + 300_000);
        client.send(vec![b'c'; 500_000]);
        drop(client);
        assert_eq!(gets.recv_timeout(PATIENCE), Ok(500_000), "{mode}");
        worker.stop();
    }
}

/// A turn of a flow has a bounded number of rounds; the end of the stream may come with the last of them.
#[test]
fn an_end_at_any_round_of_a_turn_is_passed_on() {
    for mode in MODES {
        let (sent, sents) = mpsc::channel::<()>();
        let sents = Mutex::new(sents);
        let backend = Backend::start(move |connection| {
            let Some(_) = connection.request() else { return };
            // All of the stream and its end wait in the proxy's socket.
            sents.lock().expect("one at a time").recv_timeout(PATIENCE).expect("the test goes on");
            connection.peer.send(SWITCHED);
            let heard = connection.peer.rest();
            connection.peer.send(heard);
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode).with(|state| {
            let limits = &mut state.settings.limits;
            (limits.buffer_size, limits.head_size_max, limits.target_size_max) = (4096, 4096, 1000);
            limits.pipe_size = 4096;
        }));
        for size in (13 * 4096..17 * 4096).step_by(512) {
            let mut client = Peer::connect(worker.address());
            client.send([UPGRADE.as_bytes(), &vec![b'x'; size]].concat());
            client.finish();
            sent.send(()).expect("the backend runs");
            assert_eq!(client.head().status(), 101);
            assert_eq!(client.rest().len(), size, "{mode}");
        }
        worker.stop();
    }
}

#[test]
fn a_declined_upgrade_and_the_request_behind_it() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    client.send(format!("{UPGRADE}{GET}"));
    assert_eq!(client.response().text(), "ok");
    assert_eq!(client.response().text(), "ok");
    drop(client);
    worker.stop();
}
