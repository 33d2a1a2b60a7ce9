//! Messages at the bounds: heads as large as they may be, interim responses, trailers.

use underpass_command::state::ForwardedFields;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, OK, Peer};

use underpass_tests::worker::Worker;

const BUFFER: u32 = 8 * 1024;

fn tight(setup: Setup) -> Setup {
    setup.with(|state| {
        state.settings.limits.buffers = 4;
        state.settings.limits.buffer_size = BUFFER;
        state.settings.limits.head_size_max = BUFFER;
        state.settings.limits.target_size_max = BUFFER - 1;
        state.settings.via = "v".repeat(255);
        state.listeners[0].forwarded = ForwardedFields::Append;
    })
}

/// A head of exactly this size, with fields that the edit takes out between such that it keeps, so that the edited head is
/// in many pieces and can't be sent from where it lies.
fn head(start: &str, size: usize) -> String {
    let mut head = format!("{start}Connection: drop\r\n");
    for number in 0..20 {
        head.push_str(&format!("Drop: {number}\r\nKeep: {number}\r\n"));
    }
    let rest = size - head.len() - "X: \r\n\r\n".len();
    head.push_str(&format!("X: {}\r\n\r\n", "x".repeat(rest)));
    assert_eq!(head.len(), size);
    head
}

#[test]
fn a_head_as_large_as_its_buffer_grows_by_what_the_proxy_adds() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(tight(Setup::to(&[backend.address()])));
    let host = "h".repeat(255);
    let starts = [
        "GET / HTTP/1.0\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: {host}:65535\r\n"),
        format!("GET http://{host}:65535/ HTTP/1.1\r\nHost: other\r\nVia: 1.1 other\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding:chunked\r\n"),
    ];
    for start in &starts {
        let mut client = Peer::connect(worker.address());
        client.send(head(start, BUFFER as usize));
        if start.starts_with("POST") {
            client.send("0\r\n\r\n");
        }
        assert_eq!(client.response().text(), "ok", "{start}");
        drop(client);
        let mut client = Peer::connect(worker.address());
        client.send(&head(start, BUFFER as usize + 1)[..BUFFER as usize]);
        assert_eq!(client.response().status(), 431, "{start}");
        drop(client);
        worker.expect_quiet();
    }
    for request in backend.requests() {
        assert_eq!(request.values("Keep").len(), 20);
        assert_eq!(request.values("Drop").len(), 0);
    }
    worker.stop();
}

/// What stands in the Host field is written several times.
#[test]
fn a_port_of_thousands_of_zeros_is_none() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(tight(Setup::to(&[backend.address()])));
    let mut client = Peer::connect(worker.address());
    let zeros = "0".repeat(6000);
    client.send(head(&format!("GET / HTTP/1.1\r\nHost: a:{zeros}80\r\n"), BUFFER as usize));
    assert_eq!(client.response().status(), 400);
    drop(client);
    worker.stop();
}

#[test]
fn a_response_head_as_large_as_its_buffer() {
    for (extra, status) in [(0, 200), (1, 502)] {
        let backend = Backend::start(move |connection| {
            // Where the head is refused the proxy ends the connection with a reset.
            while let Ok(Some(_)) = connection.peer.try_request() {
                let start = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nVia: 1.1 other\r\n";
                connection.peer.send(head(start, BUFFER as usize + extra));
                // The proxy may have gone already.
                let _ = connection.peer.try_send(vec![b'x'; 100_000]);
            }
        });
        let worker = Worker::start(tight(Setup::to(&[backend.address()])));
        let mut client = Peer::connect(worker.address());
        client.send(GET);
        let response = client.response();
        assert_eq!(response.status(), status);
        if status == 200 {
            assert_eq!(response.values("Keep").len(), 20);
            assert_eq!(response.body.len(), 100_000);
        }
        drop(client);
        worker.stop();
    }
}

/// The next head begins near the end of the buffer, at every distance from it.
#[test]
fn a_pipelined_head_across_the_end_of_the_buffer() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(tight(Setup::to(&[backend.address()])));
    let mut client = Peer::connect(worker.address());
    for distance in (0..GET.len() + 2).chain([BUFFER as usize - 500]) {
        client.send(head("GET /1 HTTP/1.1\r\nHost: a\r\n", BUFFER as usize - distance) + GET + GET);
        for _ in 0..3 {
            assert_eq!(client.response().text(), "ok", "{distance} bytes before the end");
        }
    }
    drop(client);
    worker.stop();
}

#[test]
fn interim_responses_up_to_their_bound_and_beyond() {
    for (count, status) in [(32, 200), (33, 502), (10_000, 502)] {
        let backend = Backend::start(move |connection| {
            // Where the response is refused the proxy may end the connection with a reset.
            while let Ok(Some(_)) = connection.peer.try_request() {
                let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n", "x".repeat(1000));
                for _ in 0..count {
                    if connection.peer.try_send(&hint).is_err() {
                        return;
                    }
                }
                let _ = connection.peer.try_send(OK);
            }
        });
        for version in ["1.1", "1.0"] {
            let worker = Worker::start(tight(Setup::to(&[backend.address()])));
            let mut client = Peer::connect(worker.address());
            client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"));
            let mut interim = 0;
            let last = loop {
                let response = client.response();
                if response.status() != 103 {
                    break response;
                }
                interim += 1;
            };
            assert_eq!(last.status(), status);
            assert_eq!(interim, if version == "1.0" { 0 } else { count.min(32) });
            drop(client);
            worker.stop();
        }
    }
}

/// Interim responses that the client does not read have to wait, and pass whole.
#[test]
fn interim_responses_to_a_client_that_does_not_read() {
    let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n", "x".repeat(7000));
    let backend = Backend::start({
        let hint = hint.clone();
        move |connection| {
            while connection.request().is_some() {
                for _ in 0..32 {
                    connection.peer.send(&hint);
                }
                connection.peer.send(OK);
            }
        }
    });
    let worker = Worker::start(tight(Setup::to(&[backend.address()])));
    let mut client = Peer::connect_with_small_window(worker.address());
    client.send(GET);
    client.send(GET);
    for _ in 0..2 {
        for _ in 0..32 {
            assert_eq!(client.head().value("Link").map(str::len), Some(7002));
        }
        assert_eq!(client.response().text(), "ok");
    }
    drop(client);
    worker.stop();
}

#[test]
fn the_expectation_of_a_client_is_met_by_the_backend() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            while let Ok(Some(head)) = connection.peer.try_head() {
                assert_eq!(head.value("Expect"), Some("100-continue"));
                connection.peer.send("HTTP/1.1 100 Continue\r\n\r\n");
                assert_eq!(connection.peer.bytes(200_000).len(), 200_000);
                connection.peer.send(OK);
            }
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let mut client = Peer::connect(worker.address());
        for _ in 0..2 {
            client
                .send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n\r\n");
            assert_eq!(client.head().status(), 100);
            client.send(vec![b'x'; 200_000]);
            assert_eq!(client.response().text(), "ok");
        }
        drop(client);
        worker.stop();
    }
}

/// Every piece arrives alone; the trailer section is as large as it may be.
#[test]
fn chunks_and_trailers_in_small_pieces() {
    let trailer = format!("X-Trailer: {}\r\n", "t".repeat(1000)).repeat(7);
    let chunked = format!("1;x=\"a b\"\r\na\r\n10\r\n0123456789abcdef\r\n0\r\n{trailer}\r\n");
    let backend = Backend::start({
        let response = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}");
        move |connection| {
            while let Some(request) = connection.request() {
                assert_eq!((request.text(), request.trailers.len()), ("a0123456789abcdef", 7));
                for piece in response.as_bytes().chunks(97) {
                    connection.peer.send(piece);
                }
            }
        }
    });
    for mode in MODES {
        let worker = Worker::start(tight(Setup::to(&[backend.address()]).redirect(mode)));
        let mut client = Peer::connect(worker.address());
        for _ in 0..2 {
            let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}");
            for piece in request.as_bytes().chunks(89) {
                client.send(piece);
            }
            let response = client.response();
            assert_eq!((response.text(), response.trailers.len()), ("a0123456789abcdef", 7));
        }
        drop(client);
        worker.stop();
    }
}
