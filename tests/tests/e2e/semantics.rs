//! What a message keeps and loses on its way, to the byte.

use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, OK, Peer, Proxy};

/// A setup that adds no fields of its own.
fn transparent(backend: &Backend) -> Setup {
    use underpass_command::state::{ForwardedFields, RequestId};
    Setup::to(&[backend.address()]).with(|state| {
        state.settings.via.clear();
        state.listeners[0].x_forwarded = ForwardedFields::Off;
        state.listeners[0].request_id = RequestId::Off;
    })
}

#[test]
fn a_head_that_needs_no_edit_arrives_byte_for_byte() {
    let response = "HTTP/1.1 299 Nearly  OK \r\nserver:  x\t\r\nX-EMPTY:\r\nx-empty: \r\nSet-Cookie: a=1\r\n\
        Set-Cookie: b=2\r\nX-Latin: \u{e9}\r\nContent-Length: 2\r\n\r\nok";
    let backend = Backend::answering(response);
    let proxy = transparent(&backend).start();
    let request = "GET /a%2Fb/../c?d=e&f HTTP/1.1\r\nhost:  a.example \r\nUSER-agent: t\r\nX-EMPTY:\r\n\
        X-Tab:\ta\tb\t\r\nCookie: a=1\r\nCookie: b=2\r\nX-Latin: \u{e9}\r\n~!#$%&'*+-.^_`|: token\r\n\r\n";
    let mut client = Peer::connect(proxy.address());
    client.send(request);
    let head = &response[..response.len() - 2];
    assert_eq!(String::from_utf8(client.bytes(head.len())).unwrap(), head);
    assert_eq!(client.bytes(2), b"ok");
    drop(client);
    let seen = &backend.requests()[0];
    assert_eq!(String::from_utf8_lossy(&seen.head), request);
    proxy.stop();
}

#[test]
fn the_way_the_bytes_are_cut_into_segments_changes_nothing() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            while let Some(request) = connection.request() {
                let body = request.text().to_uppercase();
                let half = body.len() / 2;
                let response = format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};x=y\r\n{}\r\n{:X}\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
                    half,
                    &body[..half],
                    body.len() - half,
                    &body[half..]
                );
                for byte in response.bytes() {
                    connection.peer.send([byte]);
                }
            }
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        let chunked = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;e=\"f\"\r\n world\r\n0\r\nA: b\r\n\r\n";
        let sized = "POST /l HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world";
        for request in [chunked, sized, chunked] {
            for byte in request.bytes() {
                client.send([byte]);
            }
            let response = client.response();
            assert_eq!(response.text(), "HELLO WORLD");
            assert_eq!(response.trailers, [("X-Sum".to_owned(), "1".to_owned())]);
        }
        drop(client);
        let requests = backend.requests();
        assert!(requests.iter().all(|request| request.text() == "hello world"), "{requests:?}");
        proxy.stop();
    }
}

#[test]
fn trailers_pass_in_both_directions() {
    for mode in MODES {
        let backend = Backend::answering(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Other\r\n\r\n\
            2\r\nok\r\n0\r\nX-Sum: abc\r\nX-Other:\r\n\r\n",
        );
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        for _ in 0..2 {
            client.send(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Up\r\n\r\n\
                5\r\nhello\r\n0\r\nX-Up: 1\r\nX-Up: 2\r\n\r\n",
            );
            let response = client.response();
            assert_eq!(response.text(), "ok");
            let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            assert_eq!(response.trailers, [pair("X-Sum", "abc"), pair("X-Other", "")]);
        }
        drop(client);
        for request in backend.requests() {
            assert_eq!(request.text(), "hello");
            assert_eq!(request.trailers.len(), 2);
        }
        proxy.stop();
    }
}

#[test]
fn what_the_client_says_of_itself_stands_before_what_the_proxy_says() {
    use underpass_command::state::ForwardedFields;
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| state.listeners[0].forwarded = ForwardedFields::Append)
        .start();
    let mut client = Peer::connect(proxy.address());
    client.send(
        "GET / HTTP/1.1\r\nHost: a\r\nForwarded: for=192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\n\
        Forwarded: for=\"[2001:db8::1]\"\r\nX-Forwarded-For: 192.0.2.2\r\nVia: 1.0 fred\r\nVia: 1.1 ted\r\n\r\n",
    );
    assert_eq!(client.response().text(), "ok");
    drop(client);
    let request = &backend.requests()[0];
    // RFC 9110 section 5.3: lines of one name are one list, in their order.
    let list = |name: &str| request.values(name).join(", ");
    assert_eq!(list("X-Forwarded-For"), "192.0.2.1, 192.0.2.2, 127.0.0.1");
    assert_eq!(list("Via"), "1.0 fred, 1.1 ted, 1.1 underpass");
    let forwarded = list("Forwarded");
    assert!(
        forwarded.starts_with("for=192.0.2.1, for=\"[2001:db8::1]\", ")
            && forwarded.contains("for=127.0.0.1"),
        "{forwarded}"
    );
    proxy.stop();
}

/// RFC 9112 section 2.2: an empty line before a request line is the end of an old client's body.
#[test]
fn an_empty_line_before_a_request_is_skipped() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send(
        "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.response().text(), "ok");
    assert_eq!(client.response().text(), "ok");
    drop(client);
    let targets: Vec<String> = backend.requests().iter().map(|request| request.target().to_owned()).collect();
    assert_eq!(targets, ["/1", "/2"]);
    proxy.stop();
}

#[test]
fn an_old_client_may_keep_its_connection() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let response = client.response();
        assert_eq!(response.text(), "ok");
        // Without this field a client of HTTP/1.0 would wait for the end of the connection.
        let connection = response.value("Connection").unwrap_or_default();
        assert!(connection.eq_ignore_ascii_case("keep-alive"), "{:?}", response.fields);
    }
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    client.expect_end();
    drop(client);
    proxy.stop();
}

#[test]
fn a_client_that_has_sent_all_it_will_send_still_gets_its_answer() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.finish();
    assert_eq!(client.response().text(), "ok");
    assert_eq!(client.response().text(), "ok");
    client.expect_end();
    drop(client);
    proxy.stop();
}

/// The connection cannot be kept, since the rest of the upload was never read; the answer must arrive all the same.
#[test]
fn an_answer_before_the_end_of_the_upload_is_delivered() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let head = connection.peer.head();
            assert_eq!(head.method(), "POST");
            connection.peer.send("HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
            // Reads what was under way, so that no reset destroys the answer.
            connection.peer.finish();
            let _ = connection.peer.try_rest();
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
        client.send(vec![b'x'; 200_000]);
        let response = client.response();
        assert_eq!((response.status(), response.text()), (413, "no"));
        assert_eq!(response.value("Connection"), Some("close"));
        client.expect_gone();
        drop(client);
        proxy.stop();
    }
}

/// A backend that answers early but goes on reading: the upload may go on, or the connection may end, but the answer arrives and
/// the next request is not confused with the rest of this body.
#[test]
fn an_early_answer_with_the_rest_of_the_body_to_come() {
    let backend = Backend::start(|connection| {
        while let Ok(Some(head)) = connection.peer.try_head() {
            connection.peer.send(OK);
            if head.method() == "POST" && connection.peer.try_bytes(200_000).is_err() {
                return;
            }
        }
    });
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n");
    client.send(vec![b'x'; 100_000]);
    assert_eq!(client.response().text(), "ok");
    // The connection may be closed at any time from here.
    let rest = vec![b'x'; 100_000];
    let sent = client.try_send(&rest).and_then(|()| client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    if sent.is_ok()
        && let Ok(response) = client.try_response_to("GET")
    {
        assert_eq!(response.text(), "ok");
    }
    drop(client);
    let mut next = Peer::connect(proxy.address());
    next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(next.response().text(), "ok");
    drop(next);
    proxy.stop();
}

/// An old client gets no interim response, and waits for none; its expectation is ignored (RFC 9110 section 10.1.1).
#[test]
fn the_expectation_of_an_old_client_is_ignored() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.response().text(), "ok");
    client.expect_end();
    drop(client);
    assert_eq!(backend.requests()[0].value("Expect"), None);
    proxy.stop();
}

#[test]
fn a_connection_ends_after_its_last_allowed_request() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| state.settings.limits.requests_per_connection = 3)
        .start();
    let mut client = Peer::connect(proxy.address());
    for number in 1..=3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        assert_eq!(response.value("Connection") == Some("close"), number == 3, "request {number}");
    }
    client.expect_end();
    drop(client);
    proxy.stop();
}

#[test]
fn backends_take_turns() {
    let name = |name: &'static str| {
        Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}"))
    };
    let (one, two) = (name("1"), name("2"));
    let proxy = Proxy::to(&[one.address(), two.address()]);
    let mut client = Peer::connect(proxy.address());
    let mut order = String::new();
    for _ in 0..6 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        order += client.response().text();
    }
    drop(client);
    assert!(order == "121212" || order == "212121", "{order}");
    // Each has one connection, used three times.
    assert_eq!((one.connections(), two.connections()), (1, 1));
    assert_eq!(proxy.counter("backend_reuses"), 4);
    proxy.stop();
}

#[test]
fn the_least_loaded_backend_is_chosen() {
    let (one, permit_one) = Backend::holding(OK);
    let (two, permit_two) = Backend::holding(OK);
    let proxy = Setup::to(&[one.address(), two.address()])
        .with(|state| state.clusters[0].balance = underpass_command::state::Balance::LeastLoaded)
        .start();
    let mut held = Peer::connect(proxy.address());
    held.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let first_is_busy = underpass_tests::until("the first request arrives", || {
        let (one, two) = (one.requests().len(), two.requests().len());
        (one + two > 0).then_some(one == 1)
    });
    let (busy, idle, permit_busy, permit_idle) = if first_is_busy {
        (&one, &two, &permit_one, &permit_two)
    } else {
        (&two, &one, &permit_two, &permit_one)
    };
    let mut free = Peer::connect(proxy.address());
    for _ in 0..4 {
        permit_idle.send(()).expect("the backend lives");
        free.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(free.response().text(), "ok");
    }
    assert_eq!((busy.requests().len(), idle.requests().len()), (1, 4));
    permit_busy.send(()).expect("the backend lives");
    assert_eq!(held.response().text(), "ok");
    drop((held, free));
    proxy.stop();
}

#[test]
fn ipv6_on_both_sides() {
    use underpass_command::state::ForwardedFields;
    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
        underpass_tests::skip("this machine has no IPv6");
        return;
    };
    let backend = Backend::on(listener, |connection| connection.answer_all(OK));
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.listeners[0].address = "[::1]:0".parse().expect("an address");
            state.listeners[0].forwarded = ForwardedFields::Append;
        })
        .start();
    let mut client = Peer::connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    drop(client);
    let request = &backend.requests()[0];
    assert_eq!(request.value("X-Forwarded-For"), Some("::1"));
    // RFC 7239 section 6: an IPv6 address is quoted and in brackets.
    assert!(
        request.value("Forwarded").is_some_and(|value| value.contains("for=\"[::1]\"")),
        "{:?}",
        request.fields
    );
    proxy.stop();
}

#[test]
fn an_answer_of_the_proxy_to_head_has_no_body() {
    let proxy = Setup::to(&[]).expect_log("has no backend").start();
    let mut client = Peer::connect(proxy.address());
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let response = client.response_to("HEAD");
    assert_eq!(response.status(), 503);
    client.expect_end();
    drop(client);
    proxy.stop();
}

/// RFC 9110 section 7.6.2: a request that may not be passed on any more is answered here.
#[test]
fn a_request_goes_no_further_than_it_may() {
    let backend = Backend::answering(OK);
    let proxy = transparent(&backend).start();
    let mut client = Peer::connect(proxy.address());
    let request =
        |method: &str, left: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {left}\r\n\r\n");
    client.send(request("OPTIONS", "0"));
    let response = client.response_to("OPTIONS");
    assert_eq!((response.status(), response.value("Content-Length")), (200, Some("0")));
    assert!(response.value("Allow").is_some_and(|methods| methods.contains("OPTIONS")));
    client.send(request("TRACE", "0"));
    let response = client.response_to("TRACE");
    assert_eq!(response.status(), 405);
    assert!(response.value("Allow").is_some_and(|methods| !methods.contains("TRACE")));
    assert!(!response.text().contains("Max-Forwards"), "what was sent is sent back: {}", response.text());
    backend.expect_untouched();
    assert_eq!(proxy.refused_requests("trace_refused"), 1);
    for (method, left) in [("OPTIONS", "3"), ("TRACE", "70000000000"), ("GET", "0"), ("PUT", "x")] {
        client.send(request(method, left));
        assert_eq!(client.response_to(method).text(), "ok");
    }
    // What follows the head is not read, so the connection cannot go on.
    client.send("OPTIONS / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\nContent-Length: 5\r\n\r\nhello");
    let response = client.response_to("OPTIONS");
    assert_eq!((response.status(), response.value("Connection")), (200, Some("close")));
    client.expect_end();
    drop(client);
    let seen: Vec<_> =
        backend.requests().iter().map(|request| request.value("Max-Forwards").map(str::to_owned)).collect();
    assert_eq!(seen, ["2", "255", "0", "x"].map(|left| Some(left.to_owned())));
    proxy.stop();
}
