//! TCP listeners: bytes and ends both ways, backends that fail, bounds, and what an idle connection holds.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};

use underpass::http1::Reason;
use underpass::ipc::ToWorker;
use underpass::metrics::Counter;
use underpass::worker::Ended;
use underpass_command::state::{AtLimit, Balance, Protocol, RedirectMode, Route};
use underpass_tests::body::Content;
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, PATIENCE, Peer, until};

use underpass_tests::worker::Worker;

fn tcp(backends: &[SocketAddr]) -> Setup {
    Setup::to(backends).with(|state| state.listeners[0].protocol = Protocol::Tcp)
}

/// Greets, sends back what comes until its end, then says goodbye.
fn echo() -> Backend {
    Backend::start(|connection| {
        connection.peer.send("hello");
        while let Ok(bytes) = connection.peer.some() {
            if bytes.is_empty() {
                connection.peer.send("goodbye");
                return;
            }
            connection.peer.send(bytes);
        }
    })
}

/// Connects, and expects nothing but a reset; it may come before connect(2) has looked.
#[track_caller]
fn expect_reset(address: SocketAddr) {
    let end = TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read(&mut [0])
    });
    assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn bytes_pass_both_ways_and_either_side_may_speak_first() {
    for &mode in RedirectMode::ALL {
        let backend = echo();
        let worker = Worker::start(tcp(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        assert_eq!(client.bytes(5), b"hello", "{mode}");
        for size in [1, 100, 16 * 1024, 100_000] {
            let sent = Content::new(size, size).to_vec();
            client.send(&sent);
            assert!(client.bytes(sent.len()) == sent, "{mode}: {size} bytes");
        }
        worker.until(Counter::TunnelsActive, 1);
        assert_eq!(worker.counter(Counter::RequestsActive), 0);
        // The other direction is still open when the client has finished.
        client.finish();
        assert_eq!(client.rest(), b"goodbye", "{mode}");
        let mut client = Peer::connect(worker.address());
        client.send("first");
        assert_eq!(client.bytes(10), b"hellofirst", "{mode}");
        client.finish();
        assert_eq!(client.rest(), b"goodbye", "{mode}");
        worker.until(Counter::TcpConnections, 2);
        worker.stop();
    }
}

#[test]
fn a_server_may_end_first() {
    for &mode in RedirectMode::ALL {
        let (got, gets) = mpsc::channel();
        let got = Mutex::new(got);
        let backend = Backend::start(move |connection| {
            connection.peer.send(vec![b'b'; 300_000]);
            connection.peer.finish();
            let size = connection.peer.rest().len();
            got.lock().expect("one connection").send(size).expect("the test goes on");
        });
        let worker = Worker::start(tcp(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        assert_eq!(client.rest().len(), 300_000, "{mode}");
        client.send(vec![b'c'; 500_000]);
        drop(client);
        assert_eq!(gets.recv_timeout(PATIENCE), Ok(500_000), "{mode}");
        worker.stop();
    }
}

#[test]
fn a_reset_of_either_side_is_a_reset_at_the_other() {
    for &mode in RedirectMode::ALL {
        let (ended, ends) = mpsc::channel();
        let ended = Mutex::new(ended);
        let backend = Backend::start(move |connection| {
            connection.peer.send("hello");
            assert_eq!(connection.peer.bytes(4), b"half");
            let ended = ended.lock().expect("one at a time");
            if connection.number == 0 {
                ended.send(Ok(Vec::new())).expect("the test goes on");
                let end = connection.peer.try_rest().map_err(|error| error.kind());
                ended.send(end).expect("the test goes on");
            } else {
                connection.peer.reset_on_close();
            }
        });
        let worker = Worker::start(tcp(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        assert_eq!(client.bytes(5), b"hello");
        client.send("half");
        // The backend has it all before the reset can overtake it.
        assert_eq!(ends.recv_timeout(PATIENCE), Ok(Ok(Vec::new())));
        client.reset();
        assert_eq!(ends.recv_timeout(PATIENCE), Ok(Err(ErrorKind::ConnectionReset)), "{mode}");
        worker.until(Counter::AbortsClient, 1);

        let mut client = Peer::connect(worker.address());
        client.send("half");
        let end = client.try_rest().map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{mode}");
        worker.until(Counter::AbortsBackend, 1);
        worker.stop();
    }
}

#[test]
fn backends_that_are_down_are_passed_over_and_without_any_the_client_is_reset() {
    let (down, gone) = (ReservedPort::new(), ReservedPort::new());
    let backend = echo();
    let worker = Worker::start(tcp(&[down.address(), gone.address(), backend.address()]));
    for _ in 0..6 {
        let mut client = Peer::connect(worker.address());
        client.send("x");
        assert_eq!(client.bytes(6), b"hellox");
    }
    worker.stop();
    for backends in [&[down.address()][..], &[down.address(), gone.address()], &[]] {
        let worker = Worker::start(tcp(backends));
        expect_reset(worker.address());
        worker.until(Counter::ClientsActive, 0);
        // Where every backend has failed, those that are left of the tries begin anew.
        let tries = [0, 1, 3][backends.len()];
        assert_eq!(worker.counter(Counter::BackendConnectsFailed), tries);
        assert_eq!(worker.counter(Counter::TcpConnections), 0);
        worker.stop();
    }
}

#[test]
fn the_least_loaded_backend_is_chosen_by_the_connections_it_has() {
    let backends = [echo(), echo()];
    let addresses = backends.each_ref().map(Backend::address);
    let worker =
        Worker::start(tcp(&addresses).with(|state| state.clusters[0].balance = Balance::LeastLoaded));
    let mut clients: Vec<Peer> = (0..6).map(|_| Peer::connect(worker.address())).collect();
    for client in &mut clients {
        assert_eq!(client.bytes(5), b"hello");
    }
    assert_eq!(backends.each_ref().map(Backend::connections), [3, 3]);
    drop(clients);
    worker.stop();
}

#[test]
fn beyond_the_limit_a_connection_is_reset_or_waits() {
    for at_limit in [AtLimit::Refuse, AtLimit::Wait] {
        let backend = echo();
        let worker = Worker::start(tcp(&[backend.address()]).with(|state| {
            state.settings.limits.connections = 1;
            state.listeners[0].at_limit = at_limit;
        }));
        let mut first = Peer::connect(worker.address());
        assert_eq!(first.bytes(5), b"hello");
        if at_limit == AtLimit::Refuse {
            expect_reset(worker.address());
            assert_eq!(worker.refused_requests(Reason::LimitReached), 1);
            drop(first);
        } else {
            let mut second = Peer::connect(worker.address());
            until("the limit to be noticed", || (worker.counter(Counter::LimitReached) > 0).then_some(()));
            drop(first);
            assert_eq!(second.bytes(5), b"hello");
        }
        worker.stop();
    }
}

#[test]
fn a_connection_on_which_nothing_moves_is_reset_at_its_deadline() {
    for &mode in RedirectMode::ALL {
        let backend = Backend::start(|connection| {
            // On a busy machine the deadline may come first.
            let _ = connection.peer.try_send("hello");
            let _ = connection.peer.try_rest();
        });
        let worker = Worker::start(
            tcp(&[backend.address()]).redirect(mode).with(|state| state.settings.timeouts.tcp_idle_ms = 500),
        );
        let mut client = Peer::connect(worker.address());
        let end = client.try_rest().map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{mode}");
        worker.until(Counter::TimeoutTcp, 1);
        assert_eq!(worker.counter(Counter::TimeoutTunnel), 0);
        worker.stop();
    }
}

#[test]
fn a_drain_lets_connections_finish_and_cuts_them_at_its_deadline() {
    let backend = echo();
    let worker = Worker::start(tcp(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    assert_eq!(client.bytes(5), b"hello");
    worker.order(&ToWorker::Drain { deadline_ms: 20_000 });
    for _ in 0..3 {
        client.send("still here");
        assert_eq!(client.bytes(10), b"still here");
    }
    client.finish();
    assert_eq!(client.rest(), b"goodbye");
    assert_eq!(worker.join(), Ended::Drained);

    let worker = Worker::start(tcp(&[backend.address()]));
    let mut client = Peer::connect(worker.address());
    assert_eq!(client.bytes(5), b"hello");
    worker.cut(1);
    assert_eq!(client.try_rest().map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

/// However few buffers there are, there may be any number of connections on which nothing moves.
#[test]
fn idle_connections_hold_no_buffer_and_no_promise_of_one() {
    for &mode in RedirectMode::ALL {
        let backend = echo();
        let worker = Worker::start(
            tcp(&[backend.address()]).redirect(mode).with(|state| state.settings.limits.buffers = 4),
        );
        let mut clients: Vec<Peer> = (0..20).map(|_| Peer::connect(worker.address())).collect();
        for round in 0..3 {
            for client in &mut clients {
                if round == 0 {
                    assert_eq!(client.bytes(5), b"hello");
                }
                client.send([b'x'; 1000]);
            }
            for client in &mut clients {
                assert_eq!(client.bytes(1000), [b'x'; 1000], "{mode}");
            }
        }
        worker.until(Counter::BuffersUsed, 0);
        worker.until(Counter::PipesUsed, 0);
        drop(clients);
        worker.stop();
    }
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const CONNECT: &str = "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n";

/// The same of tunnels that began as requests: what a request was promised goes back while nothing moves.
#[test]
fn idle_upgraded_connections_hold_no_buffer_and_no_promise_of_one() {
    for &mode in RedirectMode::ALL {
        let backend = Backend::start(|connection| {
            let Some(request) = connection.request() else { return };
            if request.value("Upgrade").is_none() {
                return connection.peer.send(OK);
            }
            connection.peer.send(SWITCHED);
            while let Ok(bytes) = connection.peer.some()
                && !bytes.is_empty()
            {
                connection.peer.send(bytes);
            }
        });
        let database = echo();
        let setup = Setup::to(&[backend.address()]).cluster("db", &[database.address()]).redirect(mode);
        let worker = Worker::start(setup.with(|state| {
            state.settings.limits.buffers = 4;
            let mut route = Route::new("db");
            route.host = Some("db.example".into());
            route.allow_connect = true;
            state.routes.push(route);
        }));
        let mut clients: Vec<Peer> = (0..10)
            .map(|number| {
                let mut client = Peer::connect(worker.address());
                let (head, status) = if number % 2 == 0 { (UPGRADE, 101) } else { (CONNECT, 200) };
                client.send(head);
                assert_eq!(client.head().status(), status);
                if status == 200 {
                    assert_eq!(client.bytes(5), b"hello");
                }
                worker.until(Counter::BuffersUsed, 0);
                client
            })
            .collect();
        // And there is room for a request.
        let mut other = Peer::connect(worker.address());
        other.send(GET);
        assert_eq!(other.response().text(), "ok");
        for client in &mut clients {
            client.send([b'x'; 1000]);
        }
        for client in &mut clients {
            assert_eq!(client.bytes(1000), [b'x'; 1000], "{mode}");
        }
        drop((clients, other));
        worker.stop();
    }
}

/// Readers that do not read hold all buffers; whoever comes then waits, and goes on as soon as one of them does.
#[test]
fn a_connection_whose_bytes_find_no_buffer_waits_and_goes_on() {
    const FLOOD: usize = 8 << 20;
    for mode in [RedirectMode::Copy, RedirectMode::Splice] {
        let backend = Backend::start(|connection| {
            // The one who goes before it is heard.
            let Ok(asked) = connection.peer.try_bytes(5) else { return };
            if asked == b"flood" {
                connection.peer.send(vec![b'f'; FLOOD]);
            } else {
                connection.peer.send("pong!");
            }
            let _ = connection.peer.try_rest();
        });
        let worker = Worker::start(
            tcp(&[backend.address()]).redirect(mode).with(|state| state.settings.limits.buffers = 4),
        );
        let mut slow: Vec<Peer> = (0..2)
            .map(|_| {
                let mut peer = Peer::connect_with_small_window(worker.address());
                peer.send("flood");
                peer
            })
            .collect();
        // When both floods stand still with their promises, the bytes of the others wait in the kernel.
        let mut others = Vec::new();
        until("somebody waits", || {
            let mut peer = Peer::connect(worker.address());
            peer.send("ping!");
            others.push(peer);
            (worker.counter(Counter::BuffersExhausted) > 0).then_some(())
        });
        // One who waits may go.
        others.pop().expect("one who waits").reset();
        assert_eq!(slow[0].bytes(FLOOD).len(), FLOOD, "{mode}");
        for client in &mut others {
            assert_eq!(client.bytes(5), b"pong!", "{mode}");
        }
        assert_eq!(slow[1].bytes(FLOOD).len(), FLOOD, "{mode}");
        drop((slow, others));
        worker.stop();
    }
}
