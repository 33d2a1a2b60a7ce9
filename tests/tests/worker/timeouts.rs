//! Every wait ends: whoever stops in the middle of whatever is cut at the deadline of that wait, and all it held is back.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::{Mutex, mpsc};

use underpass::metrics::Counter;
use underpass_command::state::Timeouts;
use underpass_tests::backend::Connection;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, OK, PATIENCE, Peer};

use underpass_tests::worker::Worker;

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
const UPLOAD: &str = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";

/// Deadlines so far away that they do not come in a test.
fn patient() -> Timeouts {
    let far = 3_600_000;
    Timeouts {
        head_ms: far,
        body_idle_ms: far,
        connect_ms: far,
        response_ms: far,
        keep_alive_ms: far,
        backend_keep_alive_ms: far,
        tunnel_idle_ms: far,
        tcp_idle_ms: far,
        linger_ms: far,
        drain_ms: far,
    }
}

/// A backend plays its script and then holds still; so does a client. The deadline under test ends it, and no other.
fn ends(
    deadline: fn(&mut Timeouts) -> &mut u64,
    counter: Counter,
    script: fn(&mut Connection),
    client: fn(&mut Peer),
) {
    ends_after(100, deadline, counter, script, client);
}

/// The same for a client that has to do something before the deadline comes, on however busy a machine.
fn ends_after(
    deadline_ms: u64,
    deadline: fn(&mut Timeouts) -> &mut u64,
    counter: Counter,
    script: fn(&mut Connection),
    client: fn(&mut Peer),
) {
    for mode in MODES {
        let (over, overs) = mpsc::channel::<()>();
        let overs = Mutex::new(overs);
        let backend = Backend::start(move |connection| {
            script(connection);
            // Until the test is over.
            let _ = overs.lock().expect("one connection").recv_timeout(PATIENCE);
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode).with(|state| {
            state.settings.timeouts = patient();
            *deadline(&mut state.settings.timeouts) = deadline_ms;
            state.settings.limits.buffers = 4;
        }));
        let mut peer = Peer::connect_with_small_window(worker.address());
        client(&mut peer);
        worker.until(counter, 1);
        worker.until(Counter::ClientsActive, 0);
        worker.expect_quiet();
        drop((peer, over));
        worker.stop();
    }
}

fn nothing(_: &mut Connection) {}

fn request(connection: &mut Connection) {
    connection.peer.try_head().expect("a request");
}

#[test]
fn a_client_that_says_nothing() {
    ends(|t| &mut t.head_ms, Counter::TimeoutHead, nothing, Peer::expect_end);
}

#[test]
fn a_client_that_says_half() {
    ends_after(
        2000,
        |t| &mut t.head_ms,
        Counter::TimeoutHead,
        nothing,
        |client| {
            client.send("GET / HTTP/1.1\r\nHos");
            assert_eq!(client.response().status(), 408);
            // It lingers until it knows that the answer has arrived.
            client.finish();
        },
    );
}

#[test]
fn a_client_that_says_no_more() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send(OK);
    };
    ends(
        |t| &mut t.keep_alive_ms,
        Counter::TimeoutKeepAlive,
        script,
        |client| {
            client.send(GET);
            assert_eq!(client.response().text(), "ok");
            client.expect_end();
        },
    );
}

#[test]
fn an_upload_that_stops() {
    ends(
        |t| &mut t.body_idle_ms,
        Counter::TimeoutBody,
        request,
        |client| {
            client.send(UPLOAD);
            client.send(vec![b'x'; 100_000]);
            assert_eq!(client.response().status(), 408);
            client.finish();
        },
    );
}

#[test]
fn a_backend_that_does_not_answer() {
    ends(
        |t| &mut t.response_ms,
        Counter::TimeoutResponse,
        request,
        |client| {
            client.send(GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
            assert_eq!(client.response().status(), 504);
            client.finish();
        },
    );
}

#[test]
fn a_backend_that_says_half() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 O");
    };
    ends(
        |t| &mut t.response_ms,
        Counter::TimeoutResponse,
        script,
        |client| {
            client.send(GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
            assert_eq!(client.head().status(), 103);
            assert_eq!(client.response().status(), 504);
            client.finish();
        },
    );
}

#[test]
fn a_response_that_stops() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send("HTTP/1.1 200 OK\r\n\r\nhalf");
    };
    ends(
        |t| &mut t.body_idle_ms,
        Counter::TimeoutBody,
        script,
        |client| {
            client.send(GET);
            assert_eq!(client.head().status(), 200);
            assert_eq!(client.bytes(4), b"half");
            assert_eq!(
                client.try_rest().expect_err("the end of half a body").kind(),
                ErrorKind::ConnectionReset
            );
        },
    );
}

#[test]
fn a_client_that_does_not_read() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        // The proxy goes at its deadline.
        while connection.peer.try_send([b'x'; 10_000]).is_ok() {}
    };
    ends(|t| &mut t.body_idle_ms, Counter::TimeoutBody, script, |client| client.send(GET));
}

#[test]
fn a_refused_client_that_does_not_go() {
    ends(
        |t| &mut t.linger_ms,
        Counter::TimeoutLinger,
        nothing,
        |client| {
            client.send("GET / HTTP/1.1\r\n\r\n");
            assert_eq!(client.response().status(), 400);
            client.expect_end();
        },
    );
}

#[test]
fn an_early_answer_to_an_upload_that_goes_on() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n");
    };
    ends(
        |t| &mut t.linger_ms,
        Counter::TimeoutLinger,
        script,
        |client| {
            client.send(UPLOAD);
            assert_eq!(client.response().status(), 413);
            // On a busy machine the deadline may have come by now.
            let _ = client.try_send("x");
            client.expect_end();
            let _ = client.try_send("x");
        },
    );
}

#[test]
fn a_tunnel_in_which_nothing_moves() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send(SWITCHED);
    };
    ends(
        |t| &mut t.tunnel_idle_ms,
        Counter::TimeoutTunnel,
        script,
        |client| {
            client.send(UPGRADE);
            assert_eq!(client.head().status(), 101);
            // On a busy machine the deadline may have come by now.
            let _ = client.stream().shutdown(Shutdown::Write);
        },
    );
}

#[test]
fn a_tunnel_whose_client_does_not_read() {
    let script = |connection: &mut Connection| {
        request(connection);
        connection.peer.send(SWITCHED);
        while connection.peer.try_send([b'x'; 10_000]).is_ok() {}
    };
    ends(|t| &mut t.tunnel_idle_ms, Counter::TimeoutTunnel, script, |client| client.send(UPGRADE));
}

#[test]
fn a_connection_that_stays_in_its_pool() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]).with(|state| {
        state.settings.timeouts = patient();
        state.settings.timeouts.backend_keep_alive_ms = 100;
    }));
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    worker.until(Counter::BackendsOpen, 0);
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    assert_eq!(worker.counter(Counter::BackendConnects), 2);
    drop(client);
    worker.stop();
}
