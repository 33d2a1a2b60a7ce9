//! Request heads that are accepted, and what is read from them.

use super::super::{Framing, Known, Method, Target, Version};
use super::{accepted, get, request};

#[test]
fn spans_name_the_parts() {
    let text = "POST /p?q HTTP/1.1\r\nHost: a.example:8080\r\nX:\t y z \t\r\nEmpty:\r\n\r\nbody";
    let (head, fields) = accepted(text);
    let buffer = text.as_bytes();
    assert_eq!(head.size as usize, text.len() - 4);
    assert_eq!(head.method, Method::Post);
    assert_eq!(head.method_span.of(buffer), b"POST");
    assert_eq!(head.target_span.of(buffer), b"/p?q");
    assert_eq!(head.target, Target::Origin);
    assert_eq!(head.version, Version::Http11);
    assert_eq!(head.host.of(buffer), b"a.example");
    assert_eq!(head.path(buffer), b"/p");
    let list: Vec<_> =
        fields.list().iter().map(|f| (f.name.of(buffer), f.value.of(buffer), f.known)).collect();
    assert_eq!(
        list,
        [
            (&b"Host"[..], &b"a.example:8080"[..], Known::Host),
            (b"X", b"y z", Known::Other),
            (b"Empty", b"", Known::Other),
        ]
    );
    assert_eq!(fields.line(1).of(buffer), b"X:\t y z \t\r\n");
    assert_eq!(fields.line(2).of(buffer), b"Empty:\r\n");
    assert_eq!(&buffer[fields.end() as usize..head.size as usize], b"\r\n");
}

#[test]
fn a_list_of_fields_is_reused() {
    let first = get("Content-Length: 5\r\nConnection: x\r\nX: y\r\n");
    let second = get("");
    let mut fields = super::Fields::with_capacity(super::LIMITS.header_count_max);
    for (text, framing, count) in [(&first, Framing::Length(5), 4), (&second, Framing::None, 1)] {
        let head = super::parse_request(text.as_bytes(), &mut fields, &super::LIMITS);
        assert_eq!(head.map(|head| head.map(|head| head.framing)), Ok(Some(framing)));
        assert_eq!(fields.list().len(), count);
    }
    assert!(!fields.has(Known::ContentLength));
}

#[test]
fn methods() {
    for (text, method, idempotent) in [
        ("GET", Method::Get, true),
        ("HEAD", Method::Head, true),
        ("POST", Method::Post, false),
        ("PUT", Method::Put, true),
        ("DELETE", Method::Delete, true),
        ("OPTIONS", Method::Options, true),
        ("TRACE", Method::Trace, true),
        ("PATCH", Method::Other, false),
        // RFC 9110 section 9.1: methods are case-sensitive.
        ("get", Method::Other, false),
        ("!#$%&'*+-.^_`|~09", Method::Other, false),
    ] {
        let (head, _) = accepted(&format!("{text} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.method, method, "{text}");
        assert_eq!(head.method.is_idempotent(), idempotent, "{text}");
    }
    let (head, _) = accepted("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.method, Method::Connect);
    assert!(!head.method.is_idempotent());
}

/// Method, target, Host, then host and path as they are routed. The examples are those of RFC 9112 section 3.2.
#[test]
fn forms_of_a_target() {
    for (method, target, field, host, path) in [
        ("GET", "/where?q=now", "www.example.org", "www.example.org", "/where"),
        (
            "GET",
            "http://www.example.org/pub/WWW/TheProject.html",
            "x",
            "www.example.org",
            "/pub/WWW/TheProject.html",
        ),
        ("CONNECT", "www.example.com:80", "www.example.com", "www.example.com", "/"),
        ("OPTIONS", "*", "www.example.org:8001", "www.example.org", "*"),
        ("OPTIONS", "http://www.example.org:8001", "x", "www.example.org", "/"),
        ("GET", "/", "[2001:db8::1]:80", "[2001:db8::1]", "/"),
        ("GET", "//a/b", "h", "h", "//a/b"),
        ("GET", "/a?b?c", "h", "h", "/a"),
        ("GET", "/http://x/?y", "h", "h", "/http://x/"),
        ("GET", "/{|}\"<>\\^`%zz", "h", "h", "/{|}\"<>\\^`%zz"),
        ("GET", "HTTP://[::1]:1", "h", "[::1]", "/"),
        ("GET", "http://a?b/c", "h", "a", "/"),
        ("GET", "http://a:/?", "h", "a", "/"),
        ("GET", "http://a.example/x", "b.example", "a.example", "/x"),
    ] {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: {field}\r\n\r\n");
        let (head, _) = accepted(&text);
        let buffer = text.as_bytes();
        assert_eq!(head.host.of(buffer), host.as_bytes(), "{text}");
        assert_eq!(head.path(buffer), path.as_bytes(), "{text}");
        assert_eq!(head.target_span.of(buffer), target.as_bytes(), "{text}");
    }
}

#[test]
fn old_requests_may_lack_a_host() {
    let (head, _) = accepted("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((head.version, head.host.is_empty()), (Version::Http10, true));
    let text = "GET http://a/ HTTP/1.0\r\n\r\n";
    assert_eq!(accepted(text).0.host.of(text.as_bytes()), b"a");
}

/// RFC 9112 section 9.3.
#[test]
fn persistence() {
    for (version, connection, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: CLOSE\r\n", false),
        ("1.1", "Connection: x,\t close ,\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nX: y\r\nconnection: close\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.1", "Proxy-Connection: close\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
        ("1.0", "Proxy-Connection: keep-alive\r\n", false),
        ("1.0", "Keep-Alive: timeout=5\r\n", false),
    ] {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        assert_eq!(accepted(&text).0.keep_alive, keep_alive, "{text}");
    }
}

/// RFC 9112 section 6.3.
#[test]
fn framing() {
    for (lines, framing) in [
        ("", Framing::None),
        ("Content-Length: 0\r\n", Framing::None),
        ("Content-Length: 00\r\n", Framing::None),
        ("Content-Length:5\r\n", Framing::Length(5)),
        ("Content-Length: \t 5 \t\r\n", Framing::Length(5)),
        ("Content-Length: 010\r\n", Framing::Length(10)),
        ("Content-Length: 000000000000000000000000000005\r\n", Framing::Length(5)),
        ("Content-Length: 9223372036854775807\r\n", Framing::Length(i64::MAX as u64)),
        // RFC 9110 section 8.6: identical values may be taken for one.
        ("Content-Length: 5, 5,\t5\r\n", Framing::Length(5)),
        ("Content-Length: 5\r\nContent-Length: 05\r\n", Framing::Length(5)),
        ("Transfer-Encoding: chunked\r\n", Framing::Chunked),
        ("transfer-encoding:CHUNKED\r\n", Framing::Chunked),
        ("Transfer-Encoding: , chunked ,\r\n", Framing::Chunked),
        ("Transfer-Encoding: \r\nTransfer-Encoding: chunked\r\n", Framing::Chunked),
        // Names that only look alike are other fields.
        ("Content_Length: 5\r\nTransfer.Encoding: chunked\r\n", Framing::None),
    ] {
        assert_eq!(accepted(&get(lines)).0.framing, framing, "{lines:?}");
    }
}

/// RFC 9110 section 10.1.1.
#[test]
fn expectations() {
    for (lines, expects) in [
        ("", false),
        ("Expect: 100-continue\r\n", true),
        ("Expect: 100-Continue\r\n", true),
        ("Expect:\r\n", false),
        ("Expect: 100-continue, 100-continue\r\n", true),
    ] {
        assert_eq!(accepted(&get(lines)).0.expects_continue, expects, "{lines:?}");
    }
    // An HTTP/1.0 client would not know what to do with a 100.
    let (head, _) = accepted("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
    assert!(!head.expects_continue);
}

/// RFC 9110 section 7.8.
#[test]
fn upgrades() {
    for (lines, upgrade) in [
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", true),
        ("Connection: keep-alive, upgrade\r\nUpgrade: a, b/1\r\n", true),
        ("Upgrade: websocket\r\n", false),
        ("Connection: Upgrade\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: ,\r\n", false),
        // With a body, the tunnel's first byte would be in doubt.
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n", false),
        // Protocols that carry requests.
        ("Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\nUpgrade: h2c\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c-14\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n", false),
    ] {
        assert_eq!(accepted(&get(lines)).0.upgrade, upgrade, "{lines:?}");
    }
    let old = "GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(!accepted(old).0.upgrade);
}

/// The caller skips empty lines before a head, which may come in two reads.
#[test]
fn half_of_an_empty_line() {
    assert!(matches!(request(b"\r"), Ok(None)));
}

#[test]
fn what_follows_a_head_is_left_alone() {
    let text = get("Content-Length: 3\r\n");
    for tail in ["", "abc", "\r\n", "GET /next HTTP/1.1\r\n\r\n", "\0\n\r"] {
        let all = format!("{text}{tail}");
        let size = request(all.as_bytes()).map(|parsed| parsed.map(|(head, _)| head.size as usize));
        assert_eq!(size, Ok(Some(text.len())), "{all:?}");
    }
}
