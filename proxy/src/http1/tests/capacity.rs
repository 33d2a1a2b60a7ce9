//! Whatever head comes, an edit needs no more room than it was made with. That it does not is asserted where it grows;
//! these heads take it there.

use std::fmt::Write;

use underpass_command::state::{ForwardedFields, RequestId};

use super::super::{Changes, Edit, Method, RequestEdit, ResponseEdit, edit_request, edit_response};
use super::{LIMITS, request, response_to};
use crate::forward::EDIT_ROOM;
use crate::route::HOST_SIZE_MAX;

/// Everything is added, in the longest form it has.
const LOUD: RequestEdit<'static> = RequestEdit {
    client: b"2001:db8:1111:2222:3333:4444:5555:6666",
    port: b"65535",
    backend: b"[2001:db8:1111:2222:3333:4444:5555:6666]:65535",
    via_name: &[b'v'; 255],
    x_forwarded: ForwardedFields::Append,
    forwarded: ForwardedFields::Append,
    request_id: RequestId::Keep,
    id: &[b'0'; 32],
    traceparent: Some(&[b'0'; 55]),
    changes: Changes::NONE,
};

#[track_caller]
fn fits(text: &str) -> usize {
    let Ok(Some((head, fields))) = request(text.as_bytes()) else {
        panic!("{text:?}: {:?}", request(text.as_bytes()));
    };
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    for (x_forwarded, request_id) in
        [(ForwardedFields::Append, RequestId::Keep), (ForwardedFields::Replace, RequestId::Replace)]
    {
        let with = RequestEdit { x_forwarded, request_id, ..LOUD };
        edit_request(text.as_bytes(), &head, &fields, &with, &mut edit);
        // What is not sent at once is kept in a buffer.
        assert!(edit.size() <= text.len() + EDIT_ROOM, "{} bytes became {}", text.len(), edit.size());
    }
    edit.pieces().len()
}

/// As many of these lines, in turn, as a head may have fields beside the `taken` ones.
fn filled(lines: &[&str], taken: usize) -> String {
    let count = usize::from(LIMITS.header_count_max) - taken;
    lines.iter().cycle().take(count).fold(String::new(), |mut text, line| {
        let _ = write!(text, "{line}\r\n");
        text
    })
}

#[test]
fn requests() {
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    for lines in [
        &["TE:", "a:"][..],
        &["a:", "TE:"],
        &["Via:", "X-Forwarded-For:"],
        &["a:", "Via: b", "TE:", "X-Forwarded-For: c"],
        &["X-Forwarded-Port:", "a:", "X-Forwarded-Host:", "b:"],
        &["Content-Length: 5", "a:"],
        &["Connection: a", "a:", "b:"],
        &["tracestate:", "a:", "traceparent:", "b:"],
    ] {
        assert!(fits(&format!("{start}{}\r\n", filled(lines, 1))) > 3, "{lines:?}");
    }
}

#[test]
fn long_hosts_are_written_more_than_once() {
    let host = format!("{}:00080", "h".repeat(HOST_SIZE_MAX));
    fits(&format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"));
    let host = "h".repeat(LIMITS.target_size_max as usize - 20);
    fits(&format!("GET http://{host}/? HTTP/1.1\r\nHost: a\r\n{}\r\n", filled(&["TE:", "a:"], 1)));
    fits(&format!("GET http://{host}?x HTTP/1.0\r\n{}\r\n", filled(&["a:", "TE:"], 0)));
    fits(&format!("CONNECT {host}:65535 HTTP/1.0\r\n{}\r\n", filled(&["a:", "TE:"], 0)));
    fits(&format!("OPTIONS http://{host} HTTP/1.0\r\nMax-Forwards: 9\r\n{}\r\n", filled(&["a:", "TE:"], 1)));
    // A method has no bound but the head's.
    let method = "M".repeat(LIMITS.head_size_max as usize - 300);
    fits(&format!("{method} http://{host} HTTP/1.0\r\n\r\n"));
}

#[test]
fn responses() {
    for (version, lines) in [
        ("1.0", &["TE:", "a:"][..]),
        ("1.1", &["a:", "TE:"]),
        ("1.1", &["a:", "Via: b", "TE:"]),
        ("1.1", &["Content-Length: 5", "a:"]),
        ("1.1", &["a:", "Transfer-Encoding:", "b:"]),
    ] {
        let text = format!("HTTP/{version} 200 OK\r\n{}Transfer-Encoding: chunked\r\n\r\n", filled(lines, 1));
        let text = if lines.iter().any(|line| line.starts_with("Content")) || version == "1.0" {
            text.replace("Transfer-Encoding: chunked\r\n", "")
        } else {
            text
        };
        let Ok(Some((head, fields))) = response_to(Method::Get, text.as_bytes()) else { panic!("{text:?}") };
        let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
        let with = ResponseEdit {
            via_name: LOUD.via_name,
            close: true,
            old_client: true,
            dechunk: false,
            changes: Changes::NONE,
            set_cookie: b"",
        };
        edit_response(text.as_bytes(), &head, &fields, &with, &mut edit);
        assert!(edit.pieces().len() > 3, "{lines:?}");
    }
}
