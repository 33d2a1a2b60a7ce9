//! What the client is sent in place of the head that the backend sent.

use super::super::{Changes, Edit, Method, ResponseEdit, edit_response};
use super::{LIMITS, response_to};

pub(super) const QUIET: ResponseEdit<'static> = ResponseEdit {
    via_name: b"",
    close: false,
    old_client: false,
    dechunk: false,
    changes: Changes::NONE,
    set_cookie: b"",
};

/// The head as the client sees it.
pub(super) fn edited(method: Method, text: &str, with: &ResponseEdit<'_>) -> String {
    let Ok(Some((head, fields))) = response_to(method, text.as_bytes()) else { panic!("{text:?}") };
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_response(text.as_bytes(), &head, &fields, with, &mut edit);
    let bytes: Vec<u8> =
        edit.pieces().iter().flat_map(|piece| edit.bytes(*piece, text.as_bytes())).copied().collect();
    assert_eq!(bytes.len(), edit.size());
    String::from_utf8(bytes).unwrap()
}

/// `before` and `after` are the status and the field lines.
#[track_caller]
fn lines(status: u16, before: &str, with: &ResponseEdit<'_>, after: &str) {
    let head = |lines: &str| format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
    assert_eq!(edited(Method::Get, &head(before), with), head(after));
}

#[test]
fn unchanged() {
    lines(200, "A: b\r\nContent-Length: 5\r\n", &QUIET, "A: b\r\nContent-Length: 5\r\n");
    lines(200, "", &QUIET, "");
}

#[test]
fn old_responses_are_raised_to_our_version() {
    for rest in [" 200 OK\r\n", " 200 OK\r\nA: b\r\nC: d\r\n", " 200 \u{e4}\r\nA: b\r\n"] {
        assert_eq!(
            edited(Method::Get, &format!("HTTP/1.0{rest}\r\n"), &QUIET),
            format!("HTTP/1.1{rest}\r\n")
        );
    }
    let with = ResponseEdit { via_name: b"up", ..QUIET };
    assert_eq!(
        edited(Method::Get, "HTTP/1.0 200 OK\r\nVia: a\r\n\r\n", &with),
        "HTTP/1.1 200 OK\r\nVia: a, 1.0 up\r\n\r\n"
    );
}

#[test]
fn via() {
    let with = ResponseEdit { via_name: b"up", ..QUIET };
    lines(200, "", &with, "Via: 1.1 up\r\n");
    lines(200, "Via: a\r\nvia: b\r\nC: d\r\n", &with, "Via: a\r\nvia: b, 1.1 up\r\nC: d\r\n");
    lines(200, "Via: a\r\n", &QUIET, "Via: a\r\n");
}

#[test]
fn connection_says_what_this_hop_does() {
    let close = ResponseEdit { close: true, ..QUIET };
    let old = ResponseEdit { old_client: true, ..QUIET };
    let theirs = "Connection: close\r\nKeep-Alive: timeout=5\r\nContent-Length: 5\r\n";
    lines(200, theirs, &QUIET, "Content-Length: 5\r\n");
    lines(200, theirs, &close, "Content-Length: 5\r\nConnection: close\r\n");
    lines(200, theirs, &old, "Content-Length: 5\r\nConnection: keep-alive\r\n");
    lines(
        200,
        theirs,
        &ResponseEdit { old_client: true, ..close },
        "Content-Length: 5\r\nConnection: close\r\n",
    );
}

/// RFC 9110 sections 7.8 and 15.5.22.
#[test]
fn upgrades() {
    let close = ResponseEdit { close: true, ..QUIET };
    let theirs = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    let ours = "Upgrade: websocket\r\nConnection: upgrade\r\n";
    lines(101, theirs, &QUIET, ours);
    // The connection goes on as a tunnel: there is nothing to close.
    lines(101, theirs, &close, ours);
    lines(426, theirs, &QUIET, ours);
    lines(426, theirs, &close, "Upgrade: websocket\r\nConnection: upgrade, close\r\n");
    // An advertisement for this hop only.
    lines(200, "Upgrade: h2, h2c\r\nConnection: Upgrade\r\n", &QUIET, "");
}

#[test]
fn framing_fields() {
    let dechunk = ResponseEdit { dechunk: true, ..QUIET };
    let (length, chunked) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
    for (method, status, before, with, after) in [
        (Method::Get, 200, chunked, &QUIET, chunked),
        (Method::Get, 200, chunked, &dechunk, ""),
        (
            Method::Get,
            200,
            "transfer-encoding: , CHUNKED,\r\nA: b\r\n",
            &QUIET,
            "A: b\r\nTransfer-Encoding: chunked\r\n",
        ),
        (Method::Get, 200, "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n", &QUIET, chunked),
        (Method::Get, 200, "Content-Length: 5, 5\r\nA: b\r\n", &QUIET, "A: b\r\nContent-Length: 5\r\n"),
        (Method::Get, 200, "Content-Length: 5\r\nContent-Length: 05\r\n", &QUIET, length),
        (Method::Get, 200, "Content-Length: 005\r\n", &QUIET, length),
        // They say what GET would have had.
        (Method::Head, 200, length, &QUIET, length),
        (Method::Head, 200, "Content-Length: 5, 5\r\n", &QUIET, length),
        (Method::Head, 200, chunked, &QUIET, chunked),
        (Method::Get, 304, length, &QUIET, length),
        (Method::Get, 304, chunked, &QUIET, chunked),
        // RFC 9110 section 8.6, RFC 9112 section 6.1: not in 1xx, 204, 2xx to CONNECT.
        (Method::Get, 204, length, &QUIET, ""),
        (Method::Get, 204, "Content-Length: 5, 5\r\n", &QUIET, ""),
        (Method::Get, 204, chunked, &QUIET, ""),
        (Method::Get, 103, "Content-Length: 0\r\nLink: x\r\n", &QUIET, "Link: x\r\n"),
        (Method::Connect, 200, length, &QUIET, ""),
        (Method::Connect, 200, chunked, &QUIET, ""),
        (Method::Connect, 403, length, &QUIET, length),
    ] {
        let head = |lines: &str| format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
        assert_eq!(edited(method, &head(before), with), head(after), "{method:?}");
    }
}

#[test]
fn a_cookie_of_the_proxys_own_is_a_line_of_its_own() {
    let with = ResponseEdit { set_cookie: b"at=1; Path=/", ..QUIET };
    let head = "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n";
    let expected =
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\nSet-Cookie: at=1; Path=/\r\n\r\n";
    assert_eq!(edited(Method::Get, head, &with), expected);
}
