//! Connection: what it takes out of a message, and what it must not be able to take out or keep from being added.

use underpass_command::state::{ForwardedFields, RequestId};

use super::super::{Method, RequestEdit, ResponseEdit};
use super::{edit_request, edit_response};

#[track_caller]
fn request(before: &str, with: &RequestEdit<'_>, after: &str) {
    let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    assert_eq!(edit_request::edited(&head(before), with), head(after));
}

#[track_caller]
fn response(before: &str, with: &ResponseEdit<'_>, after: &str) {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
    assert_eq!(edit_response::edited(Method::Get, &head(before), with), head(after));
}

#[test]
fn fields_of_one_hop_are_dropped() {
    for line in [
        "Connection: close\r\n",
        "connection:\r\n",
        "Keep-Alive: timeout=5\r\n",
        "Proxy-Connection: keep-alive\r\n",
        "TE: trailers\r\n",
        "Upgrade: websocket\r\n",
    ] {
        for (before, after) in [("", ""), ("X: y\r\n", ""), ("", "X: y\r\n"), ("A: b\r\n", "C: d\r\n")] {
            let lines = format!("{before}{line}{after}");
            request(&lines, &edit_request::QUIET, &format!("{before}{after}"));
            response(&lines, &edit_response::QUIET, &format!("{before}{after}"));
        }
    }
}

#[test]
fn fields_that_connection_names_are_dropped() {
    for (before, after) in [
        ("Connection: X\r\nX: y\r\n", ""),
        ("X: y\r\nConnection: x\r\n", ""),
        ("Connection: close, x\t,, Y\r\nX: 1\r\nZ: 2\r\ny: 3\r\nx: 4\r\n", "Z: 2\r\n"),
        ("Connection: a\r\nX: 1\r\nConnection: x\r\nA: 2\r\nXX: 3\r\n", "XX: 3\r\n"),
        ("Connection: \"X\"\r\nX: y\r\n", "X: y\r\n"),
        ("Connection: cookie\r\nCookie: c\r\n", ""),
    ] {
        request(before, &edit_request::QUIET, after);
        response(before, &edit_response::QUIET, after);
    }
}

/// Without them the message would be another.
#[test]
fn fields_that_frame_or_route_stay() {
    let length = "Content-Length: 5\r\nExpect: 100-continue\r\n";
    let names = "Connection: Host, Content-Length, Transfer-Encoding, Expect, close\r\n";
    request(&format!("{names}{length}"), &edit_request::QUIET, length);
    let chunked = "Transfer-Encoding: chunked\r\n";
    request(&format!("{names}{chunked}"), &edit_request::QUIET, chunked);
    response(&format!("{names}{chunked}"), &edit_response::QUIET, chunked);
    response(&format!("{names}Content-Length: 5\r\n"), &edit_response::QUIET, "Content-Length: 5\r\n");
}

/// A client that names them in Connection could otherwise hide where it comes from.
#[test]
fn fields_of_this_hop_are_added_in_any_case() {
    let with = RequestEdit {
        via_name: b"up",
        x_forwarded: ForwardedFields::Append,
        forwarded: ForwardedFields::Append,
        request_id: RequestId::Keep,
        ..edit_request::QUIET
    };
    let ours = "Via: 1.1 up\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\
                X-Forwarded-Port: 8080\r\nForwarded: for=192.0.2.1;host=\"a\";proto=http\r\nX-Request-Id: id-1\r\n";
    let theirs = "Via: t\r\nX-Forwarded-For: t\r\nX-Forwarded-Proto: t\r\nX-Forwarded-Host: t\r\n\
                  X-Forwarded-Port: t\r\nForwarded: for=t\r\nX-Request-Id: t\r\n";
    let names = "Connection: via, x-forwarded-for, x-forwarded-proto, x-forwarded-host, x-forwarded-port, \
                 forwarded, x-request-id\r\n";
    request("", &with, ours);
    request(names, &with, ours);
    request(&format!("{names}{theirs}"), &with, ours);
    request(&format!("{theirs}{names}"), &with, ours);
    let replace = RequestEdit {
        x_forwarded: ForwardedFields::Replace,
        forwarded: ForwardedFields::Replace,
        request_id: RequestId::Replace,
        ..with
    };
    request(&format!("{names}{theirs}"), &replace, ours);
    let with = ResponseEdit { via_name: b"up", ..edit_response::QUIET };
    response("Connection: Via\r\nVia: t\r\n", &with, "Via: 1.1 up\r\n");
}
