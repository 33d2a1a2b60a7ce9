//! Requests that could be understood in two ways, or that ask for what is not served: refused with the right status,
//! counted by reason, the connection closed, and nothing of them reaches a backend.

use std::time::Duration;

use underpass_command::state::{PathMatch, Route};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, OK, Peer, Proxy};

/// A request, and what it is refused with.
struct Case {
    request: Vec<u8>,
    status: u16,
    reason: &'static str,
}

fn case(request: impl AsRef<[u8]>, status: u16, reason: &'static str) -> Case {
    Case { request: request.as_ref().to_vec(), status, reason }
}

/// A request with these field lines besides Host.
fn with(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")
}

/// Sends each request on a connection of its own to a proxy whose backend must see none of them.
#[track_caller]
fn refused_by(setup: impl FnOnce(Setup) -> Setup, cases: &[Case]) {
    let backend = Backend::answering(OK);
    let proxy = setup(Setup::to(&[backend.address()])).start();
    for case in cases {
        expect_refusal(&proxy, case);
    }
    backend.expect_untouched();
    proxy.stop();
}

/// The request is answered as the case says, counted once, and the connection ends in order.
#[track_caller]
fn expect_refusal(proxy: &Proxy, Case { request, status, reason }: &Case) {
    let text = String::from_utf8_lossy(&request[..request.len().min(300)]).into_owned();
    let before = proxy.refused_requests(reason);
    let mut client = Peer::connect(proxy.address());
    client.send(request);
    let response = client.try_response_to("GET").unwrap_or_else(|error| panic!("{error}: {text:?}"));
    assert_eq!(response.status(), *status, "{text:?}");
    assert_eq!(response.value("Connection"), Some("close"), "{text:?}");
    client.expect_end();
    let counted = proxy.refused_requests(reason) - before;
    assert_eq!(counted, 1, "{text:?} counted as {reason}: {:?}", proxy.status().total.refused_requests);
}

#[track_caller]
fn refused(cases: &[Case]) {
    refused_by(|setup| setup, cases);
}

#[test]
fn a_request_line_that_is_none() {
    let line = |line: &str, status, reason| case(format!("{line}\r\nHost: a\r\n\r\n"), status, reason);
    refused(&[
        line("GE(T / HTTP/1.1", 400, "method_invalid"),
        line(" GET / HTTP/1.1", 400, "method_invalid"),
        line("\tGET / HTTP/1.1", 400, "method_invalid"),
        line("GET  / HTTP/1.1", 400, "target_invalid"),
        line("GET /\tHTTP/1.1", 400, "target_invalid"),
        line("GET /a b HTTP/1.1", 400, "version_malformed"),
        line("GET / HTTP/1.1 ", 400, "start_line_malformed"),
        line("GET / HTTP/1.1 x", 400, "start_line_malformed"),
        line("GET /", 400, "start_line_malformed"),
        line("GET", 400, "method_invalid"),
        line("GET / ", 400, "version_malformed"),
    ]);
}

#[test]
fn a_version_that_is_not_spoken() {
    let version =
        |version: &str, status, reason| case(format!("GET / {version}\r\nHost: a\r\n\r\n"), status, reason);
    refused(&[
        version("HTTP/1.2", 505, "version_unsupported"),
        version("HTTP/2.0", 505, "version_unsupported"),
        version("HTTP/0.9", 505, "version_unsupported"),
        version("HTTP/3.1", 505, "version_unsupported"),
        version("http/1.1", 400, "version_malformed"),
        version("HTTP/1", 400, "version_malformed"),
        version("HTTP/1.", 400, "version_malformed"),
        version("HTTP/11.1", 400, "version_malformed"),
        version("HTTP/1.10", 400, "start_line_malformed"),
        version("HTTP 1.1", 400, "version_malformed"),
        version("ICY/1.1", 400, "version_malformed"),
        case("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http2_preface"),
    ]);
}

#[test]
fn a_target_that_is_none() {
    let target =
        |target: &str, reason| case(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), 400, reason);
    refused(&[
        target("foo", "target_invalid"),
        target("*", "target_invalid"),
        target("/a#fragment", "target_invalid"),
        target("/a\u{7f}", "target_invalid"),
        target("/a\u{1}", "target_invalid"),
        target("ftp://a/", "target_invalid"),
        target("http://", "host_invalid"),
        target("http:///a", "host_invalid"),
        target("http://user@a/", "host_invalid"),
        target("http://a:99999/", "host_invalid"),
        case("OPTIONS a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target_invalid"),
        case("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "host_invalid"),
        case("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target_invalid"),
    ]);
}

#[test]
fn connect_where_no_route_allows_it() {
    refused(&[case("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, "connect_refused")]);
}

#[test]
fn a_line_that_could_end_elsewhere() {
    refused(&[
        case("GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bare_lf"),
        case("GET / HTTP/1.1\r\nHost: a\n\r\n", 400, "bare_lf"),
        case("GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "bare_lf"),
        case("GET / HTTP/1.1\r\nHost: a\r\nX: 1\n2\r\n\r\n", 400, "bare_lf"),
        case("GET / HTTP/1.1\rHost: a\r\n\r\n", 400, "bare_cr"),
        case("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", 400, "bare_cr"),
        case("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\r\n\r\n", 400, "bare_cr"),
        case("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400, "obs_fold"),
        case("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\t2\r\n\r\n", 400, "obs_fold"),
        case("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "obs_fold"),
    ]);
}

#[test]
fn a_field_that_is_none() {
    let line = |line: &str, reason| case(format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n"), 400, reason);
    refused(&[
        line("X : 1", "space_before_colon"),
        line("X\t: 1", "space_before_colon"),
        line(": 1", "field_name_empty"),
        line("X Y: 1", "space_before_colon"),
        line("X(: 1", "field_name_invalid"),
        line("X\0: 1", "field_name_invalid"),
        line("X", "field_name_invalid"),
        line("X\u{e9}: 1", "field_name_invalid"),
        line("X: 1\0", "field_value_invalid"),
        line("X: \u{1}", "field_value_invalid"),
        line("X: \u{7f}", "field_value_invalid"),
    ]);
}

#[test]
fn a_host_that_is_missing_repeated_or_none() {
    let host = |fields: &str, reason| case(format!("GET / HTTP/1.1\r\n{fields}\r\n"), 400, reason);
    refused(&[
        host("", "host_missing"),
        host("Host: a\r\nHost: b\r\n", "host_repeated"),
        host("Host: a\r\nX: 1\r\nhost: a\r\n", "host_repeated"),
        host("Host:\r\n", "host_invalid"),
        host("Host: a b\r\n", "host_invalid"),
        host("Host: a/b\r\n", "host_invalid"),
        host("Host: user@a\r\n", "host_invalid"),
        host("Host: a, b\r\n", "host_invalid"),
        host("Host: a:port\r\n", "host_invalid"),
        host("Host: a:65536\r\n", "host_invalid"),
        host("Host: [::1\r\n", "host_invalid"),
        host("Host: http://a\r\n", "host_invalid"),
    ]);
}

#[test]
fn a_content_length_that_is_malformed_or_differs() {
    let length = |fields: &str, reason| case(format!("{}hello", with(fields)), 400, reason);
    refused(&[
        length("Content-Length: +5", "content_length_malformed"),
        length("Content-Length: -5", "content_length_malformed"),
        length("Content-Length: 0x5", "content_length_malformed"),
        length("Content-Length: 5 5", "content_length_malformed"),
        length("Content-Length: 5.0", "content_length_malformed"),
        length("Content-Length:", "content_length_malformed"),
        length("Content-Length: ,", "content_length_malformed"),
        length("Content-Length: \"5\"", "content_length_malformed"),
        length("Content-Length: 18446744073709551616", "content_length_malformed"),
        length("Content-Length: 99999999999999999999999", "content_length_malformed"),
        length("Content-Length: 5, 6", "content_length_differs"),
        length("Content-Length: 5\r\nContent-Length: 6", "content_length_differs"),
        length("Content-Length: 5\r\nX: 1\r\ncontent-length: 4", "content_length_differs"),
    ]);
}

#[test]
fn a_transfer_encoding_other_than_one_final_chunked() {
    let coding = |fields: &str, status, reason| {
        case(format!("{}5\r\nhello\r\n0\r\n\r\n", with(fields)), status, reason)
    };
    refused(&[
        coding("Content-Length: 5\r\nTransfer-Encoding: chunked", 400, "length_and_encoding"),
        coding("Transfer-Encoding: chunked\r\nContent-Length: 5", 400, "length_and_encoding"),
        coding("Transfer-Encoding: gzip, chunked", 501, "transfer_encoding_unknown"),
        coding("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501, "transfer_encoding_unknown"),
        coding("Transfer-Encoding: xchunked, chunked", 501, "transfer_encoding_unknown"),
        coding("Transfer-Encoding: chunked, chunked", 400, "transfer_encoding_malformed"),
        coding(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
            "transfer_encoding_malformed",
        ),
        coding("Transfer-Encoding: chunked, gzip", 400, "transfer_encoding_malformed"),
        coding("Transfer-Encoding:", 400, "transfer_encoding_malformed"),
        coding("Transfer-Encoding: \u{b}chunked", 400, "field_value_invalid"),
        case(
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "transfer_encoding_old_version",
        ),
    ]);
}

#[test]
fn an_expectation_that_is_unknown() {
    refused(&[
        case(format!("{}hello", with("Content-Length: 5\r\nExpect: 200-ok")), 417, "expectation_unknown"),
        case(with("Expect: 100-continue, x"), 417, "expectation_unknown"),
    ]);
}

#[test]
fn a_bound_of_forwards_that_is_none() {
    let options = |fields: &str| {
        case(format!("OPTIONS / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n"), 400, "max_forwards_malformed")
    };
    refused(&[options("Max-Forwards: many"), options("Max-Forwards: 0\r\nMax-Forwards: 1")]);
}

#[test]
fn a_head_above_its_bounds() {
    let limits = |setup: Setup| {
        setup.with(|state| {
            state.settings.limits.head_size_max = 4096;
            state.settings.limits.header_count_max = 20;
            state.settings.limits.target_size_max = 1024;
        })
    };
    let fields = |count: usize| (0..count).map(|index| format!("X-{index}: 1\r\n")).collect::<String>();
    let target = |size: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(size - 1));
    let value = |size: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "v".repeat(size));
    refused_by(
        limits,
        &[
            case(target(1025), 414, "target_too_long"),
            case(target(4000), 414, "target_too_long"),
            case(target(100_000), 414, "target_too_long"),
            case(value(4096), 431, "head_too_large"),
            case(value(100_000), 431, "head_too_large"),
            case(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(20)), 431, "too_many_fields"),
            case(format!("GET / HTTP/1.1\r\nHost: a\r\n{}", fields(500)), 431, "too_many_fields"),
        ],
    );
}

#[test]
fn a_head_at_its_bounds_is_taken() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.limits.head_size_max = 4096;
            state.settings.limits.header_count_max = 20;
            state.settings.limits.target_size_max = 1024;
        })
        .start();
    let fields: String = (1..20).map(|index| format!("X-{index}: 1\r\n")).collect();
    let longest_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(1023));
    let most_fields = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let rest = 4096 - "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    let largest_head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "v".repeat(rest));
    assert_eq!(largest_head.len(), 4096);
    let mut client = Peer::connect(proxy.address());
    for request in [longest_target, most_fields, largest_head] {
        client.send(&request);
        assert_eq!(client.response().text(), "ok");
    }
    drop(client);
    assert_eq!(backend.requests().len(), 3);
    proxy.stop();
}

#[test]
fn a_host_name_above_its_bound() {
    let get = |size: usize| format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "h".repeat(size));
    refused(&[case(get(256), 400, "host_invalid")]);
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send(get(255));
    assert_eq!(client.response().text(), "ok");
    drop(client);
    proxy.stop();
}

#[test]
fn a_chunk_line_above_its_bound() {
    let chunk = |size: usize| {
        let extension = "e".repeat(size - 2);
        format!("{}5;{extension}\r\nhello\r\n0\r\n\r\n", with("Transfer-Encoding: chunked"))
    };
    let backend = Backend::start(|connection| {
        // The first request arrives whole, the second one does not.
        while let Ok(Some(request)) = connection.peer.try_request() {
            assert_eq!(request.text(), "hello");
            connection.peer.send(OK);
        }
    });
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send(chunk(1000));
    assert_eq!(client.response().text(), "ok");
    drop(client);
    expect_refusal(&proxy, &case(chunk(1100), 400, "chunk_extension_malformed"));
    proxy.stop();
}

#[test]
fn a_body_above_its_bound() {
    let limit = |setup: Setup| setup.with(|state| state.settings.limits.request_body_size_max = 10);
    refused_by(limit, &[case(format!("{}hello, world", with("Content-Length: 12")), 413, "body_too_large")]);
}

/// The length of a chunked body shows only while it is forwarded, so the backend may have seen its begin, never its end.
#[test]
fn a_chunked_body_above_its_bound_or_broken_never_reaches_the_backend_whole() {
    let chunked = with("Transfer-Encoding: chunked");
    let broken = |body: &str, status, reason| case(format!("{chunked}{body}"), status, reason);
    let cases = [
        broken("5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n", 413, "body_too_large"),
        broken("b\r\nhello world\r\n0\r\n\r\n", 413, "body_too_large"),
        broken("x\r\n", 400, "chunk_size_malformed"),
        broken("\r\n", 400, "chunk_size_malformed"),
        broken("-5\r\nhello\r\n0\r\n\r\n", 400, "chunk_size_malformed"),
        broken("+5\r\nhello\r\n0\r\n\r\n", 400, "chunk_size_malformed"),
        broken("0x5\r\nhello\r\n0\r\n\r\n", 400, "chunk_size_malformed"),
        broken(" 5\r\nhello\r\n0\r\n\r\n", 400, "chunk_size_malformed"),
        broken("10000000000000000\r\n", 400, "chunk_size_overflow"),
        broken("fffffffffffffffffffffff\r\n", 400, "chunk_size_overflow"),
        broken("5\nhello\r\n0\r\n\r\n", 400, "bare_lf"),
        broken("5\rhello\r\n0\r\n\r\n", 400, "bare_cr"),
        broken("5\r\nhello0\r\n\r\n", 400, "chunk_end_missing"),
        broken("5\r\nhello\n0\r\n\r\n", 400, "chunk_end_missing"),
        broken("5\r\nhello\r\n0\r\nContent-Length: 7\r\n\r\n", 400, "trailer_forbidden"),
        broken("5\r\nhello\r\n0\r\nTransfer-Encoding: x\r\n\r\n", 400, "trailer_forbidden"),
        broken("5\r\nhello\r\n0\r\nHost: x\r\n\r\n", 400, "trailer_forbidden"),
        broken("5\r\nhello\r\n0\r\nX : 1\r\n\r\n", 400, "space_before_colon"),
        broken("5\r\nhello\r\n0\r\nX: 1\n\r\n", 400, "bare_lf"),
    ];
    let backend = Backend::start(|connection| {
        // An error is what should happen: the request has no end.
        if let Ok(Some(request)) = connection.peer.try_request() {
            panic!("a broken request arrived whole: {request:?}");
        }
    });
    let proxy = Setup::to(&[backend.address()])
        .with(|state| state.settings.limits.request_body_size_max = 10)
        .start();
    for case in &cases {
        expect_refusal(&proxy, case);
    }
    proxy.stop();
}

fn served_below_one_path(setup: Setup) -> Setup {
    setup.with(|state| {
        state.listeners[0].default_cluster = None;
        let mut route = Route::new("app");
        route.host = Some("known.example".into());
        route.path = PathMatch::Prefix("/served".into());
        state.routes.push(route);
    })
}

#[test]
fn a_host_that_is_not_served() {
    let get = |host: &str| format!("GET /served HTTP/1.1\r\nHost: {host}\r\n\r\n");
    refused_by(
        served_below_one_path,
        &[
            case(get("unknown.example"), 421, "misdirected"),
            case(get("known.example.org"), 421, "misdirected"),
            case(get("x.known.example"), 421, "misdirected"),
        ],
    );
}

/// There is nothing wrong with such a request, so its connection may go on.
#[test]
fn a_path_that_is_not_served() {
    let backend = Backend::answering(OK);
    let proxy = served_below_one_path(Setup::to(&[backend.address()])).start();
    let mut client = Peer::connect(proxy.address());
    for path in ["/other", "/served-not", "/"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: known.example\r\n\r\n"));
        assert_eq!(client.response().status(), 404, "{path}");
    }
    backend.expect_untouched();
    client.send("GET /served/x HTTP/1.1\r\nHost: known.example\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    drop(client);
    assert_eq!(proxy.refused_requests("route_missing"), 3);
    proxy.stop();
}

#[test]
fn a_body_of_unknown_length_where_the_cluster_wants_one() {
    let length_only = |setup: Setup| setup.with(|state| state.clusters[0].chunked_requests = false);
    let chunked = format!("{}0\r\n\r\n", with("Transfer-Encoding: chunked"));
    refused_by(length_only, &[case(chunked, 411, "length_required")]);
}

#[test]
fn a_cluster_without_backends() {
    let proxy = Setup::to(&[]).expect_log("has no backend").start();
    let mut client = Peer::connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().status(), 503);
    assert_eq!(proxy.refused_requests("backend_missing"), 1);
    drop(client);
    proxy.stop();
}

/// The answer must arrive although the client has sent more than the proxy will ever read.
#[test]
fn the_answer_is_not_lost_to_a_reset_when_more_was_sent() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n");
    // The proxy may close for good while this is still on its way.
    let _ = client.try_send(vec![b'x'; 256 * 1024]);
    assert_eq!(client.response().status(), 400);
    client.expect_gone();
    backend.expect_untouched();
    proxy.stop();
}

/// Requests before the refused one on the same connection are answered, those after it are not read.
#[test]
fn only_the_refused_request_and_what_follows_it_is_lost() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mut client = Peer::connect(proxy.address());
    let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(format!("{good}{good}GET /bad HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n{good}"));
    assert_eq!(client.response().status(), 200);
    assert_eq!(client.response().status(), 200);
    let refusal = client.response();
    assert_eq!((refusal.status(), refusal.value("Connection")), (400, Some("close")));
    client.expect_end();
    drop(client);
    assert_eq!(backend.requests().len(), 2);
    proxy.stop();
}

/// What would be a request of its own if the framing were read another way stays part of the refused one.
#[test]
fn nothing_is_smuggled_behind_a_refused_request() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = 5 + smuggled.len();
    for fields in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length : {length}"),
        format!("Transfer-Encoding : chunked\r\nContent-Length: {length}"),
        "Transfer-Encoding: chunked\r\n Content-Length: 0".to_owned(),
        "Transfer-Encoding: chunked, identity".to_owned(),
    ] {
        let mut client = Peer::connect(proxy.address());
        client.send(format!("{}0\r\n\r\n{smuggled}", with(&fields)));
        let response = client.response();
        assert!((400..=501).contains(&response.status()), "{fields:?}: {}", response.start);
        client.expect_end();
    }
    backend.expect_untouched();
    proxy.stop();
}

/// A connection on which nothing comes is closed without an answer; one on which half a head came, with 408.
#[test]
fn a_head_that_does_not_come_in_time() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.head_ms = 200).start();
    let mut silent = Peer::connect(proxy.address());
    let mut slow = Peer::connect(proxy.address());
    slow.send("GET / HTTP/1.1\r\nHos");
    let response = slow.response();
    assert_eq!((response.status(), response.value("Connection")), (408, Some("close")));
    slow.expect_end();
    silent.set_patience(Duration::from_secs(10));
    let rest = String::from_utf8(silent.rest()).unwrap();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408 "), "{rest:?}");
    drop((silent, slow));
    proxy.until_counter("timeout_head", 2);
    backend.expect_untouched();
    proxy.stop();
}
