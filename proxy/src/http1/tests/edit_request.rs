//! What the backend is sent in place of the head that the client sent.

use std::io::IoSlice;

use underpass_command::state::{ForwardedFields, RequestId};

use super::super::{Changes, Edit, RequestEdit, edit_request};
use super::{LIMITS, accepted};

/// Nothing is added.
pub(super) const QUIET: RequestEdit<'static> = RequestEdit {
    client: b"192.0.2.1",
    port: b"8080",
    backend: b"127.0.0.1:9000",
    via_name: b"",
    x_forwarded: ForwardedFields::Off,
    forwarded: ForwardedFields::Off,
    request_id: RequestId::Off,
    id: b"id-1",
    traceparent: None,
    changes: Changes::NONE,
};

/// The head as the backend sees it.
pub(super) fn edited(text: &str, with: &RequestEdit<'_>) -> String {
    let (head, fields) = accepted(text);
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_request(text.as_bytes(), &head, &fields, with, &mut edit);
    let bytes: Vec<u8> =
        edit.pieces().iter().flat_map(|piece| edit.bytes(*piece, text.as_bytes())).copied().collect();
    assert_eq!(bytes.len(), edit.size());
    String::from_utf8(bytes).unwrap()
}

/// `before` and `after` are field lines of a GET with a Host.
#[track_caller]
fn lines(before: &str, with: &RequestEdit<'_>, after: &str) {
    let head = |lines: &str| format!("GET /p HTTP/1.1\r\nHost: a.example:81\r\n{lines}\r\n");
    assert_eq!(edited(&head(before), with), head(after));
}

#[test]
fn nothing_to_change_is_one_piece() {
    let text = "GET /p HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(edited(text, &QUIET), text);
    let (head, fields) = accepted(text);
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_request(text.as_bytes(), &head, &fields, &QUIET, &mut edit);
    // The head's lines, and the line end that closes it.
    assert_eq!(edit.pieces().len(), 2);
}

#[test]
fn slices_fit_or_are_refused() {
    let text = "GET /p HTTP/1.1\r\nHost: a\r\nTe: x\r\nX: y\r\n\r\n";
    let (head, fields) = accepted(text);
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_request(text.as_bytes(), &head, &fields, &QUIET, &mut edit);
    assert_eq!(edit.pieces().len(), 3);
    let mut slices = [IoSlice::new(b""); 3];
    assert_eq!(edit.slices(text.as_bytes(), &mut slices[..2]), None);
    assert_eq!(edit.slices(text.as_bytes(), &mut slices), Some(3));
    assert_eq!(slices.map(|slice| slice.to_vec()).concat(), b"GET /p HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n");
}

#[test]
fn via() {
    let with = RequestEdit { via_name: b"up", ..QUIET };
    lines("", &with, "Via: 1.1 up\r\n");
    lines("Via: 1.0 fred\r\nX: y\r\n", &with, "Via: 1.0 fred, 1.1 up\r\nX: y\r\n");
    lines("Via: a\r\nVIA:\tb \r\n", &with, "Via: a\r\nVIA:\tb, 1.1 up \r\n");
    lines("Via:\r\n", &with, "Via:1.1 up\r\n");
    lines("Via: 1.0 fred\r\n", &QUIET, "Via: 1.0 fred\r\n");
    // RFC 9110 section 7.6.3: the version of the message as it was received.
    assert_eq!(
        edited("GET / HTTP/1.0\r\nHost: a\r\n\r\n", &with),
        "GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 up\r\n\r\n"
    );
}

#[test]
fn x_forwarded() {
    let append = RequestEdit { x_forwarded: ForwardedFields::Append, ..QUIET };
    let replace = RequestEdit { x_forwarded: ForwardedFields::Replace, ..QUIET };
    let ours = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a.example:81\r\n\
                X-Forwarded-Port: 8080\r\n";
    let theirs = "X-Forwarded-For: 10.0.0.1, 10.0.0.2\r\nX-Forwarded-Proto: https\r\n\
                  X-Forwarded-Host: b.example\r\nX-Forwarded-Port: 443\r\n";
    lines("", &append, ours);
    lines("", &replace, ours);
    lines("", &QUIET, "");
    lines(theirs, &QUIET, theirs);
    lines(theirs, &replace, ours);
    lines(&theirs.to_lowercase(), &replace, ours);
    lines(&format!("{theirs}{theirs}"), &replace, ours);
    lines(theirs, &append, &theirs.replacen("10.0.0.2", "10.0.0.2, 192.0.2.1", 1));
    lines(
        "X-Forwarded-For: a\r\nx-forwarded-for: b\r\nX-Forwarded-Proto: https\r\n",
        &append,
        "X-Forwarded-For: a\r\nx-forwarded-for: b, 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: a.example:81\r\nX-Forwarded-Port: 8080\r\n",
    );
    // By convention, without brackets.
    let six = RequestEdit { client: b"2001:db8::1", ..append };
    lines("", &six, &ours.replace("192.0.2.1", "2001:db8::1"));
}

#[test]
fn forwarded() {
    let append = RequestEdit { forwarded: ForwardedFields::Append, ..QUIET };
    let replace = RequestEdit { forwarded: ForwardedFields::Replace, ..QUIET };
    let ours = "Forwarded: for=192.0.2.1;host=\"a.example:81\";proto=http\r\n";
    let theirs = "Forwarded: for=10.0.0.1;by=\"[::1]\"\r\n";
    lines("", &append, ours);
    lines(theirs, &append, &format!("{theirs}{ours}"));
    lines(theirs, &replace, ours);
    lines(theirs, &QUIET, theirs);
    // RFC 7239 section 6: an IPv6 address stands in brackets and quotes.
    let six = RequestEdit { client: b"2001:db8::1", ..append };
    lines("", &six, "Forwarded: for=\"[2001:db8::1]\";host=\"a.example:81\";proto=http\r\n");
    // An HTTP/1.0 request may have no host to tell.
    let old = edited("GET / HTTP/1.0\r\n\r\n", &append);
    assert!(old.ends_with("Forwarded: for=192.0.2.1;proto=http\r\n\r\n"), "{old}");
}

#[test]
fn request_id() {
    let keep = RequestEdit { request_id: RequestId::Keep, ..QUIET };
    let replace = RequestEdit { request_id: RequestId::Replace, ..QUIET };
    lines("", &keep, "X-Request-Id: id-1\r\n");
    lines("X-Request-ID: theirs\r\n", &keep, "X-Request-ID: theirs\r\n");
    lines("X-Request-ID: theirs\r\nx-request-id: too\r\n", &replace, "X-Request-Id: id-1\r\n");
    lines("X-Request-ID: theirs\r\n", &QUIET, "X-Request-ID: theirs\r\n");
    lines("", &QUIET, "");
}

#[test]
fn trace_context() {
    let start = RequestEdit { traceparent: Some(b"00-ours"), ..QUIET };
    let theirs = "tracestate: a=1\r\nTraceparent: 00-theirs\r\nX: y\r\ntracestate: b=2\r\n";
    lines(theirs, &QUIET, theirs);
    lines(theirs, &start, "X: y\r\ntraceparent: 00-ours\r\n");
    lines("", &start, "traceparent: 00-ours\r\n");
    lines("", &QUIET, "");
}

#[test]
fn absolute_form_is_rewritten() {
    for (before, after) in [
        ("GET http://a.example:81/x?y", "GET /x?y HTTP/1.1\r\nHost: a.example:81"),
        ("GET http://a.example", "GET / HTTP/1.1\r\nHost: a.example"),
        ("GET http://a.example?y", "GET /?y HTTP/1.1\r\nHost: a.example"),
        // RFC 9112 section 3.2.4, with its example.
        ("OPTIONS http://www.example.org:8001", "OPTIONS * HTTP/1.1\r\nHost: www.example.org:8001"),
        ("OPTIONS http://a/", "OPTIONS / HTTP/1.1\r\nHost: a"),
        ("OPTIONS http://a?y", "OPTIONS /?y HTTP/1.1\r\nHost: a"),
    ] {
        for version in ["1.1", "1.0"] {
            let text = format!("{before} HTTP/{version}\r\nX: y\r\nHost: other.example\r\nZ: z\r\n\r\n");
            assert_eq!(edited(&text, &QUIET), format!("{after}\r\nX: y\r\nZ: z\r\n\r\n"));
        }
    }
    let with = RequestEdit { x_forwarded: ForwardedFields::Append, ..QUIET };
    let text = edited("GET http://a:81/ HTTP/1.1\r\nHost: other.example\r\n\r\n", &with);
    assert!(text.contains("X-Forwarded-Host: a:81\r\n") && !text.contains("other"), "{text}");
}

#[test]
fn old_requests_are_raised_to_our_version() {
    for (before, after) in [
        ("GET /p HTTP/1.0\r\n\r\n", "GET /p HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n"),
        ("GET /p HTTP/1.0\r\nX: y\r\n\r\n", "GET /p HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nX: y\r\n\r\n"),
        ("GET /p HTTP/1.0\r\nX: y\r\nHost: a\r\n\r\n", "GET /p HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n"),
        ("OPTIONS * HTTP/1.0\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        // RFC 9110 section 10.1.1: such an expectation is ignored.
        (
            "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        ),
    ] {
        assert_eq!(edited(before, &QUIET), after);
    }
}

#[test]
fn a_tunnels_host_is_its_target() {
    let after = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nX: y\r\n\r\n";
    assert_eq!(edited("CONNECT a:443 HTTP/1.1\r\nHost: other.example\r\nX: y\r\n\r\n", &QUIET), after);
    assert_eq!(edited("CONNECT a:443 HTTP/1.0\r\nX: y\r\n\r\n", &QUIET), after);
}

#[test]
fn framing_fields_are_passed_on_in_their_plain_form() {
    for (before, after) in [
        ("Content-Length: 5\r\n", "Content-Length: 5\r\n"),
        ("content-length:\t0 \r\n", "content-length:\t0 \r\n"),
        ("Content-Length: 5, 5\r\nX: y\r\n", "X: y\r\nContent-Length: 5\r\n"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "Content-Length: 5\r\n"),
        ("Content-Length: 0,0\r\n", "Content-Length: 0\r\n"),
        ("Content-Length: 0010\r\n", "Content-Length: 10\r\n"),
        (
            "Content-Length: 9223372036854775807, 9223372036854775807\r\n",
            "Content-Length: 9223372036854775807\r\n",
        ),
        ("TRANSFER-ENCODING: ,Chunked,\r\nX: y\r\n", "X: y\r\nTransfer-Encoding: chunked\r\n"),
        ("Expect: 100-continue\r\nContent-Length: 5\r\n", "Expect: 100-continue\r\nContent-Length: 5\r\n"),
    ] {
        lines(before, &QUIET, after);
    }
}

#[test]
fn upgrades() {
    let websocket = "Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n";
    lines(
        &format!("Connection: keep-alive, Upgrade\r\n{websocket}"),
        &QUIET,
        &format!("{websocket}Connection: upgrade\r\n"),
    );
    // Not asked for by Connection, so not meant for the next hop.
    lines(websocket, &QUIET, "Sec-WebSocket-Key: k\r\n");
    lines("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n", &QUIET, "");
    lines(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        &QUIET,
        "Content-Length: 5\r\n",
    );
}

/// RFC 9110 section 7.6.2.
#[test]
fn max_forwards() {
    for method in ["OPTIONS", "TRACE"] {
        for (before, after) in [
            ("Max-Forwards: 1", "Max-Forwards: 0"),
            ("MAX-forwards:\t010 ", "MAX-forwards:\t9 "),
            ("Max-Forwards:256", "Max-Forwards:255"),
            ("Max-Forwards: 257", "Max-Forwards: 255"),
            ("Max-Forwards: 4294967297", "Max-Forwards: 255"),
            // What Connection names is dropped, but a client cannot so take the bound off.
            ("Connection: max-forwards, x\r\nX: y\r\nMax-Forwards: 7", "Max-Forwards: 6"),
        ] {
            let head =
                |lines: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nA: b\r\n{lines}\r\nC: d\r\n\r\n");
            assert_eq!(edited(&head(before), &QUIET), head(after));
        }
    }
    // It means nothing to other methods, whatever it says.
    lines("Max-Forwards: 1\r\n", &QUIET, "Max-Forwards: 1\r\n");
    lines("Max-Forwards: none\r\nMax-Forwards:\r\n", &QUIET, "Max-Forwards: none\r\nMax-Forwards:\r\n");
}
