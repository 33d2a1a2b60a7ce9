//! Responses of backends that are held to the same rules: 502 to the client, nothing of them forwarded.

use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, Peer};

/// The proxy answers for a backend that sends these bytes and then closes.
#[track_caller]
fn refused(cases: &[(&[u8], &str)]) {
    for (bytes, reason) in cases {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let response = bytes.to_vec();
        let backend = Backend::start(move |connection| {
            if connection.request().is_some() {
                // The proxy closes when it has seen enough.
                let _ = connection.peer.try_send(&response);
            }
        });
        let proxy = Setup::to(&[backend.address()]).start();
        let mut client = Peer::connect(proxy.address());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.try_response_to("GET").unwrap_or_else(|error| panic!("{error}: {text:?}"));
        assert_eq!(response.status(), 502, "{text:?}");
        assert!(!response.text().contains("SECRET"), "{text:?}: {:?}", response.text());
        // What a backend failed to send is no response: it counts as the request that could not be served.
        let counted = proxy.refused_responses(reason) + proxy.refused_requests(reason);
        assert_eq!(counted, 1, "{text:?} counted as {reason}: {:?}", proxy.status().total);
        drop(client);
        assert_eq!(backend.connections(), 1, "{text:?}: asked again");
        proxy.stop();
    }
}

#[test]
fn a_status_line_that_is_none() {
    refused(&[
        (b"SECRET\r\n\r\n", "version_malformed"),
        (b"HTTP/2.0 200 OK\r\nContent-Length: 6\r\n\r\nSECRET", "version_unsupported"),
        (b"HTTP/1.1 20 OK\r\nContent-Length: 6\r\n\r\nSECRET", "status_malformed"),
        (b"HTTP/1.1 2000 OK\r\nContent-Length: 6\r\n\r\nSECRET", "start_line_malformed"),
        (b"HTTP/1.1 099 OK\r\nContent-Length: 6\r\n\r\nSECRET", "status_malformed"),
        (b"HTTP/1.1 abc OK\r\nContent-Length: 6\r\n\r\nSECRET", "status_malformed"),
        (b"HTTP/1.1 200 OK\nContent-Length: 6\r\n\r\nSECRET", "bare_lf"),
        (b"HTTP/1.1 200 O\0K\r\nContent-Length: 6\r\n\r\nSECRET", "start_line_malformed"),
    ]);
}

#[test]
fn framing_that_can_be_understood_in_two_ways() {
    refused(&[
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nSECRET\r\n0\r\n\r\n",
            "length_and_encoding",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 7\r\n\r\nSECRET", "content_length_differs"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +6\r\n\r\nSECRET", "content_length_malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nSECRET", "content_length_malformed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n6\r\nSECRET", "transfer_encoding_unknown"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\nSECRET", "transfer_encoding_malformed"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSECRET", "transfer_encoding_old_version"),
    ]);
}

#[test]
fn fields_that_are_none() {
    refused(&[
        (b"HTTP/1.1 200 OK\r\nX : 1\r\nContent-Length: 6\r\n\r\nSECRET", "space_before_colon"),
        (b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 6\r\n\r\nSECRET", "obs_fold"),
        (b"HTTP/1.1 200 OK\r\nX: 1\nContent-Length: 6\r\n\r\nSECRET", "bare_lf"),
        (b"HTTP/1.1 200 OK\r\nX: 1\0\r\nContent-Length: 6\r\n\r\nSECRET", "field_value_invalid"),
        (b"HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 6\r\n\r\nSECRET", "field_name_empty"),
    ]);
}

#[test]
fn no_answer_half_an_answer_or_one_too_large() {
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 6\r\n\r\nSECRET", "v".repeat(20_000));
    refused(&[
        (b"", "backend_closed"),
        (b"HTTP/1.1 200 OK\r\nConte", "head_truncated"),
        (large.as_bytes(), "head_too_large"),
    ]);
}

#[test]
fn another_protocol_that_nobody_asked_for() {
    refused(&[(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nSECRET",
        "upgrade_unexpected",
    )]);
}

/// A chunk that is broken after the head has gone out: the client must not take the body for whole.
#[test]
fn a_chunked_body_that_breaks_is_cut() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for broken in ["5\r\nhello\r\nx\r\n", "5\r\nhello\r\n5\r\nhello!\r\n0\r\n\r\n", "5\r\nhello\r\n5\r\nhel"]
    {
        let bytes = format!("{head}{broken}");
        let backend = Backend::start(move |connection| {
            if connection.request().is_some() {
                let _ = connection.peer.try_send(&bytes);
            }
        });
        let proxy = Setup::to(&[backend.address()]).start();
        let mut client = Peer::connect(proxy.address());
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        match client.try_response_to("GET") {
            // The begin need not have gone out yet.
            Ok(response) => assert_eq!(response.status(), 502, "{broken:?} arrived whole: {response:?}"),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{broken:?}: nothing more came");
            }
        }
        drop(client);
        proxy.stop();
    }
}

/// The same when the kernel has moved the body, so that nobody has seen what follows it, and when the next request is
/// there already, so that no event comes between.
#[test]
fn bytes_behind_a_large_response_are_not_the_next_response() {
    const SIZE: usize = 300_000;
    let backend = Backend::start(|connection| {
        // The proxy closes the connection, by a reset, when it sees what is too much.
        while let Ok(Some(request)) = connection.peer.try_request() {
            let large = request.target() == "/large";
            let body = if large { "x".repeat(SIZE) } else { "ok".into() };
            let poison = if large { "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON" } else { "" };
            let length = body.len();
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}{poison}");
            if connection.peer.try_send(response).is_err() {
                return;
            }
        }
    });
    for mode in MODES {
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        for _ in 0..5 {
            client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\nGET /small HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().body.len(), SIZE, "{mode}");
            assert_eq!(client.response().text(), "ok", "{mode}");
        }
        drop(client);
        proxy.stop();
    }
}

/// What comes behind a response belongs to no request: the next one must not get it.
#[test]
fn bytes_behind_a_response_are_not_the_next_response() {
    let backend = Backend::start(|connection| {
        if connection.request().is_some() {
            let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON";
            connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{poison}"));
            while connection.request().is_some() {
                connection.peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let proxy = Setup::to(&[backend.address()]).start();
    for _ in 0..3 {
        let mut client = Peer::connect(proxy.address());
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().text(), "ok");
        }
    }
    proxy.stop();
}
