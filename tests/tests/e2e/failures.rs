//! Peers that die or stall at the worst moment: nothing hangs past its deadline, nothing leaks, nobody takes a part for the
//! whole.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use underpass_tests::body::Content;
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, OK, Peer, until};

/// More than all buffers, pipes and socket queues on the way hold.
const LARGE: usize = 64 * 1024 * 1024;

/// How a peer leaves.
#[derive(Clone, Copy, Debug)]
enum Exit {
    /// It closes.
    End,
    /// It resets.
    Reset,
}

const EXITS: [Exit; 2] = [Exit::End, Exit::Reset];

/// A backend that begins a response of `LARGE` bytes and leaves after `sent` bytes of its body.
fn dying(chunked: bool, sent: usize, exit: Exit) -> Backend {
    Backend::start(move |connection| {
        if connection.request().is_none() {
            return;
        }
        let head = if chunked {
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{LARGE:x}\r\n")
        } else {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")
        };
        connection.peer.send(head);
        connection.peer.send(Content::new(1, sent as u64).to_vec());
        if let Exit::Reset = exit {
            connection.peer.reset_on_close();
        }
    })
}

#[test]
fn a_backend_that_dies_in_its_body() {
    for mode in MODES {
        for exit in EXITS {
            for (chunked, sent) in
                [(false, 0), (false, 100), (false, 1_000_000), (true, 0), (true, 1_000_000)]
            {
                let what = format!("{mode}, {exit:?}, chunked {chunked}, after {sent} bytes");
                let backend = dying(chunked, sent, exit);
                let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
                let mut client = Peer::connect(proxy.address());
                client.send(GET);
                match client.try_response_to("GET") {
                    // The head need not have gone out yet.
                    Ok(response) => assert_eq!(response.status(), 502, "{what}"),
                    Err(error) => {
                        let ended =
                            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
                        assert!(ended, "{what}: {error}");
                    }
                }
                drop(client);
                proxy.until_counter("aborts_backend", 1);
                proxy.stop();
            }
        }
    }
}

#[test]
fn a_client_that_dies_in_a_download() {
    for mode in MODES {
        for exit in EXITS {
            let backend = Backend::start(|connection| {
                if connection.request().is_some() {
                    connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
                    // The proxy ends this connection when its client has gone.
                    let error = connection.peer.try_send(vec![b'x'; LARGE]);
                    assert!(error.is_err(), "all of the body was taken although the client has gone");
                }
            });
            let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
            let mut client = Peer::connect(proxy.address());
            client.send(GET);
            client.bytes(200_000);
            match exit {
                Exit::End => drop(client),
                Exit::Reset => client.reset(),
            }
            proxy.until_counter("aborts_client", 1);
            proxy.stop();
        }
    }
}

#[test]
fn a_client_that_dies_in_an_upload() {
    for mode in MODES {
        for exit in EXITS {
            for chunked in [false, true] {
                let backend = Backend::start(|connection| {
                    let request = connection.peer.try_request();
                    assert!(!matches!(request, Ok(Some(_))), "half an upload arrived as a whole one");
                });
                let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
                let mut client = Peer::connect(proxy.address());
                let framing = if chunked {
                    format!("Transfer-Encoding: chunked\r\n\r\n{LARGE:x}\r\n")
                } else {
                    format!("Content-Length: {LARGE}\r\n\r\n")
                };
                client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"));
                client.send(vec![b'x'; 300_000]);
                until("the backend is asked", || (backend.connections() > 0).then_some(()));
                match exit {
                    Exit::End => drop(client),
                    Exit::Reset => client.reset(),
                }
                proxy.until_counter("aborts_client", 1);
                proxy.stop();
            }
        }
    }
}

#[test]
fn a_client_that_ends_its_side_in_an_upload() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let request = connection.peer.try_request();
            assert!(!matches!(request, Ok(Some(_))), "half an upload arrived as a whole one");
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello");
        client.finish();
        // It can still read why, if the proxy says so.
        let answer = client.rest();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
        drop(client);
        proxy.stop();
    }
}

#[test]
fn a_backend_that_dies_in_an_upload() {
    for mode in MODES {
        for exit in EXITS {
            let backend = Backend::start(move |connection| {
                if connection.peer.try_head().is_ok_and(|head| head.is_some()) {
                    let _ = connection.peer.try_bytes(100_000);
                    if let Exit::Reset = exit {
                        connection.peer.reset_on_close();
                    }
                }
            });
            let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
            let mut client = Peer::connect(proxy.address());
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
            // Fails when the proxy has closed; the answer is there to be read all the same.
            let _ = client.try_send(vec![b'x'; 1_000_000]);
            let response = client.response();
            assert_eq!(
                (response.status(), response.value("Connection")),
                (502, Some("close")),
                "{mode}, {exit:?}"
            );
            client.expect_gone();
            drop(client);
            proxy.stop();
        }
    }
}

#[test]
fn a_reader_that_stops_reading_is_cut_at_its_deadline() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            if connection.request().is_some() {
                connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
                let _ = connection.peer.try_send(vec![b'x'; LARGE]);
            }
        });
        let proxy = Setup::to(&[backend.address()])
            .redirect(mode)
            .with(|state| state.settings.timeouts.body_idle_ms = 300)
            .start();
        let mut client = Peer::connect_with_small_window(proxy.address());
        client.send(GET);
        // Nothing is read.
        proxy.until_counter("timeout_body_idle", 1);
        proxy.expect_quiet();
        drop(client);
        proxy.stop();
    }
}

/// A slow reader is not a dead one: as long as something moves, the deadline is renewed.
#[test]
fn a_reader_that_is_slow_gets_everything() {
    const SIZE: usize = 8 * 1024 * 1024;
    for mode in MODES {
        let body = Content::new(3, SIZE as u64).to_vec();
        let response =
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes(), body.clone()];
        let backend = Backend::answering(response.concat());
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect_with_small_window(proxy.address());
        client.send(GET);
        let head = client.head();
        assert_eq!(head.status(), 200);
        let mut received = Vec::new();
        while received.len() < SIZE {
            // The window is a few KiB, so the proxy has to wait for room a thousand times.
            received.extend(client.bytes((SIZE - received.len()).min(4096)));
        }
        assert!(received == body, "{mode}: the body differs");
        drop(client);
        proxy.stop();
    }
}

#[test]
fn a_backend_that_stalls_in_its_body_is_cut_at_its_deadline() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            if connection.request().is_some() {
                connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\nbegin"));
                let _ = connection.peer.try_rest();
            }
        });
        let proxy = Setup::to(&[backend.address()])
            .redirect(mode)
            .with(|state| state.settings.timeouts.body_idle_ms = 300)
            .start();
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        assert_eq!(client.head().status(), 200);
        let rest = client.try_rest();
        assert!(!matches!(&rest, Err(error) if error.kind() == ErrorKind::WouldBlock), "{mode}: never cut");
        drop(client);
        proxy.until_counter("timeout_body_idle", 1);
        proxy.stop();
    }
}

#[test]
fn an_upload_that_stalls_is_cut_at_its_deadline() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let request = connection.peer.try_request();
            assert!(!matches!(request, Ok(Some(_))), "half an upload arrived as a whole one");
        });
        let proxy = Setup::to(&[backend.address()])
            .redirect(mode)
            .with(|state| state.settings.timeouts.body_idle_ms = 300)
            .start();
        let mut client = Peer::connect(proxy.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhello");
        let response = client.response();
        assert_eq!((response.status(), response.value("Connection")), (408, Some("close")), "{mode}");
        client.expect_gone();
        drop(client);
        assert_eq!(proxy.counter("timeout_body_idle"), 1);
        proxy.stop();
    }
}

#[test]
fn a_backend_that_never_answers() {
    let backend = Backend::start(|connection| {
        connection.request();
        let _ = connection.peer.try_rest();
    });
    let proxy =
        Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.response_ms = 300).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().status(), 504);
    drop(client);
    assert_eq!(proxy.counter("timeout_response"), 1);
    assert_eq!(backend.connections(), 1, "asked again although the request may have been carried out");
    proxy.stop();
}

/// A listener whose accept queue is full: the kernel drops connection requests, as if the host were gone.
pub(crate) struct Unreachable {
    pub(crate) address: SocketAddr,
    _listener: Socket,
    _queued: Vec<TcpStream>,
}

impl Unreachable {
    pub(crate) fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.expect("the address of a bound socket");
        let mut queued = Vec::new();
        // The queue has room for one more than was asked for; the first that gets no answer shows that it is full.
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
        }
        Self { address, _listener: listener, _queued: queued }
    }
}

#[test]
fn a_backend_that_cannot_be_reached_in_time() {
    let unreachable = Unreachable::new();
    let proxy =
        Setup::to(&[unreachable.address]).with(|state| state.settings.timeouts.connect_ms = 300).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().status(), 504);
    drop(client);
    assert_eq!(proxy.counter("timeout_connect"), 1);
    proxy.stop();
}

#[test]
fn a_client_that_goes_while_its_backend_is_being_reached() {
    let unreachable = Unreachable::new();
    let proxy = Setup::to(&[unreachable.address]).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    until("the request is under way", || (proxy.counter("requests_active") == 1).then_some(()));
    client.reset();
    proxy.stop();
}

#[test]
fn backends_that_are_down_are_passed_over() {
    let good = Backend::answering(OK);
    let down = [(); 4].map(|()| ReservedPort::new());
    let [one, two, three, four] = down.each_ref().map(ReservedPort::address);
    let proxy = Setup::to(&[one, two, good.address()]).start();
    for _ in 0..6 {
        let mut client = Peer::connect(proxy.address());
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
    }
    proxy.stop();
    // No request goes on trying for long.
    let proxy = Setup::to(&[one, two, three, four]).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().status(), 502);
    drop(client);
    assert_eq!(proxy.counter("backend_connects_failed"), 3);
    proxy.stop();
}

#[test]
fn an_idle_client_connection_ends_at_its_deadline() {
    let backend = Backend::answering(OK);
    let proxy =
        Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.keep_alive_ms = 300).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.expect_end();
    drop(client);
    assert_eq!(proxy.counter("timeout_keep_alive"), 1);
    proxy.stop();
}

#[test]
fn an_idle_backend_connection_ends_at_its_deadline() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| state.settings.timeouts.backend_keep_alive_ms = 300)
        .start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    until("the pool is empty", || (proxy.counter("backend_connections_open") == 0).then_some(()));
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    drop(client);
    assert_eq!(backend.connections(), 2);
    proxy.stop();
}

#[test]
fn an_idle_backend_connection_that_the_backend_ends_is_not_used() {
    let backend = Backend::start(|connection| {
        if connection.request().is_some() {
            connection.peer.send(OK);
        }
    });
    let proxy = Setup::to(&[backend.address()]).start();
    let mut client = Peer::connect(proxy.address());
    for number in 1..=3 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.response().text(), "ok");
        until("the pool is empty", || (proxy.counter("backend_connections_open") == 0).then_some(()));
        assert_eq!(backend.connections(), number);
    }
    drop(client);
    assert_eq!(proxy.counter("retries"), 0);
    proxy.stop();
}

#[test]
fn what_an_idle_backend_connection_says_by_itself_ends_it() {
    let backend = Backend::start(|connection| {
        if connection.request().is_some() {
            connection.peer.send(OK);
            if connection.number == 0 {
                connection.peer.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
            }
            let _ = connection.peer.try_rest();
        }
    });
    let proxy = Setup::to(&[backend.address()]).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    until("the pool is empty", || (proxy.counter("backend_connections_open") == 0).then_some(()));
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    drop(client);
    proxy.stop();
}

/// A client that is refused and never closes may not keep its place for long.
#[test]
fn a_refused_client_that_does_not_go_is_cut_at_its_deadline() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.linger_ms = 200).start();
    let mut client = Peer::connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nX : 1\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    proxy.until_counter("timeout_linger", 1);
    proxy.expect_quiet();
    drop(client);
    proxy.stop();
}
