//! Response heads: what is accepted, what is refused, and where bodies end.

use super::super::{Framing, Method, Reason, Version};
use super::{accepted_response, response_to};

#[test]
fn status_lines() {
    for (line, version, status, rest) in [
        ("HTTP/1.1 200 OK", Version::Http11, 200, " 200 OK\r\n"),
        ("HTTP/1.0 200 OK", Version::Http10, 200, " 200 OK\r\n"),
        ("HTTP/1.1 404 Not\tFound \u{e4}", Version::Http11, 404, " 404 Not\tFound \u{e4}\r\n"),
        ("HTTP/1.1 200 ", Version::Http11, 200, " 200 \r\n"),
        ("HTTP/1.1 200", Version::Http11, 200, " 200\r\n"),
        ("HTTP/1.1 100 ", Version::Http11, 100, " 100 \r\n"),
        ("HTTP/1.1 999 ", Version::Http11, 999, " 999 \r\n"),
    ] {
        let text = format!("{line}\r\nA: b\r\n\r\nrest");
        let (head, fields) = accepted_response(&text);
        assert_eq!((head.version, head.status), (version, status), "{line}");
        assert_eq!(head.status_line_rest.of(text.as_bytes()), rest.as_bytes(), "{line}");
        assert_eq!(head.size as usize, text.len() - 4);
        assert_eq!(fields.list().len(), 1);
    }
}

#[test]
fn refused() {
    for (reason, input) in [
        (Reason::VersionMalformed, "\r\n"),
        (Reason::VersionMalformed, "ICY 200 OK\r\n"),
        (Reason::VersionMalformed, "HTTP/1 200 OK\r\n"),
        (Reason::VersionUnsupported, "HTTP/2.0 200 OK\r\n"),
        (Reason::VersionUnsupported, "HTTP/0.9 200 OK\r\n"),
        (Reason::StatusMalformed, "HTTP/1.1  200"),
        (Reason::StatusMalformed, "HTTP/1.1\t200"),
        (Reason::StatusMalformed, "HTTP/1.1 099"),
        (Reason::StatusMalformed, "HTTP/1.1 20 OK"),
        (Reason::StatusMalformed, "HTTP/1.1 +20"),
        (Reason::StatusMalformed, "HTTP/1.1 2x0"),
        (Reason::StatusMalformed, "HTTP/1.1\r\n"),
        (Reason::StartLineMalformed, "HTTP/1.1 2000"),
        (Reason::StartLineMalformed, "HTTP/1.1 200\t"),
        (Reason::StartLineMalformed, "HTTP/1.1 200 \0"),
        (Reason::BareCr, "HTTP/1.1 200 OK\rX"),
        (Reason::BareLf, "HTTP/1.1 200 OK\n"),
        (Reason::BareLf, "HTTP/1.1 200 OK\r\nA: b\n"),
        (Reason::ObsFold, "HTTP/1.1 200 OK\r\n A: b"),
        (Reason::SpaceBeforeColon, "HTTP/1.1 200 OK\r\nContent-Length : 5"),
        (Reason::FieldNameEmpty, "HTTP/1.1 200 OK\r\n: b"),
        (Reason::FieldNameInvalid, "HTTP/1.1 200 OK\r\nA(: b"),
        (Reason::FieldValueInvalid, "HTTP/1.1 200 OK\r\nA: \0"),
        (Reason::ContentLengthMalformed, "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n"),
        (Reason::ContentLengthDiffers, "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n"),
        (
            Reason::LengthAndEncoding,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (Reason::TransferEncodingMalformed, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
        (Reason::TransferEncodingUnknown, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (Reason::TransferEncodingOldVersion, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        // Also where the fields would not frame anything: HEAD, 204 and the like are no excuse.
        (Reason::ContentLengthMalformed, "HTTP/1.1 204 \r\nContent-Length: x\r\n\r\n"),
        (
            Reason::LengthAndEncoding,
            "HTTP/1.1 304 \r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
    ] {
        let result = response_to(Method::Get, input.as_bytes()).map(|parsed| parsed.map(|(head, _)| head));
        assert_eq!(result, Err(reason), "{input:?}");
        assert_eq!(reason.gateway_status(), 502);
    }
}

#[test]
fn unfinished() {
    let whole = "HTTP/1.1 200 OK\r\nA: b\r\n\r\n";
    for end in 0..whole.len() {
        assert!(matches!(response_to(Method::Get, &whole.as_bytes()[..end]), Ok(None)), "{end}");
    }
}

/// RFC 9112 section 6.3, rule by rule: method, status, field lines, framing, whether the fields are void.
#[test]
fn framing() {
    use Framing::{Chunked, Length, None, UntilClose};
    let (length, chunked) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
    for (method, status, lines, framing, void) in [
        // Rule 1: HEAD, 1xx, 204 and 304 have no body.
        (Method::Head, 200, length, None, false),
        (Method::Head, 200, chunked, None, false),
        (Method::Head, 200, "", None, false),
        (Method::Get, 100, "", None, true),
        (Method::Get, 101, "", None, true),
        (Method::Get, 103, length, None, true),
        (Method::Get, 204, "", None, true),
        (Method::Get, 204, "Content-Length: 0\r\n", None, true),
        (Method::Get, 204, chunked, None, true),
        (Method::Get, 304, length, None, false),
        (Method::Get, 304, "", None, false),
        // Rule 2: after a 2xx to CONNECT a tunnel begins.
        (Method::Connect, 200, length, None, true),
        (Method::Connect, 299, chunked, None, true),
        (Method::Connect, 200, "", None, true),
        (Method::Connect, 407, length, Length(5), false),
        (Method::Connect, 500, "", UntilClose, false),
        // Rule 4.
        (Method::Get, 200, chunked, Chunked, false),
        (Method::Post, 500, chunked, Chunked, false),
        // Rule 6.
        (Method::Get, 200, length, Length(5), false),
        (Method::Get, 205, "Content-Length: 0\r\n", None, false),
        (Method::Get, 200, "Content-Length: 5, 5\r\n", Length(5), false),
        // Rule 8.
        (Method::Get, 200, "", UntilClose, false),
        (Method::Get, 404, "Connection: keep-alive\r\n", UntilClose, false),
    ] {
        let text = format!("HTTP/1.1 {status} \r\n{lines}\r\n");
        let Ok(Some((head, _))) = response_to(method, text.as_bytes()) else { panic!("{text:?}") };
        assert_eq!((head.framing, head.framing_fields_void), (framing, void), "{method:?} {text:?}");
        assert_eq!(head.is_interim(), status < 200 && status != 101, "{status}");
    }
}

#[test]
fn persistence() {
    for (text, keep_alive) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, close\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", true),
        ("HTTP/1.1 204 \r\n\r\n", true),
        ("HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 304 \r\nContent-Length: 5\r\n\r\n", true),
        // What these announce must not come, and if it comes, it must not be read as the next response.
        ("HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\n", false),
        ("HTTP/1.1 204 \r\nTransfer-Encoding: chunked\r\n\r\n", false),
    ] {
        assert_eq!(accepted_response(text).0.keep_alive, keep_alive, "{text:?}");
    }
}
