//! Every reason to refuse a request head, by the smallest input that has it.

use super::super::Reason;
use super::{LIMITS, get, request};

#[track_caller]
fn refused(input: impl AsRef<[u8]>, reason: Reason) {
    let input = input.as_ref();
    assert_eq!(
        request(input).map(|parsed| parsed.map(|(head, _)| head)),
        Err(reason),
        "{:?}",
        String::from_utf8_lossy(input)
    );
}

/// Reason, status, input. A status is part of the contract with clients, so it stands here again.
const REFUSED: &[(Reason, u16, &str)] = &[
    (Reason::MethodInvalid, 400, " "),
    (Reason::MethodInvalid, 400, "\r\n"),
    (Reason::MethodInvalid, 400, "\rX"),
    (Reason::MethodInvalid, 400, "GET\r"),
    (Reason::MethodInvalid, 400, "\0"),
    (Reason::MethodInvalid, 400, "GE(T"),
    (Reason::MethodInvalid, 400, "GET\t"),
    (Reason::MethodInvalid, 400, "GET:"),
    (Reason::MethodInvalid, 400, "GET\r\n"),
    (Reason::MethodInvalid, 400, "\u{16}\u{3}\u{1}"), // the first bytes of TLS
    (Reason::TargetInvalid, 400, "GET  "),
    (Reason::TargetInvalid, 400, "GET /\t"),
    (Reason::TargetInvalid, 400, "GET /\0"),
    (Reason::TargetInvalid, 400, "GET /\u{7f}"),
    (Reason::TargetInvalid, 400, "GET /ä"),
    (Reason::TargetInvalid, 400, "GET /#fragment"),
    (Reason::TargetInvalid, 400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "GET a.example/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "GET a.example:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "GET \\ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "GET ?q HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "OPTIONS ** HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::TargetInvalid, 400, "CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::StartLineMalformed, 400, "GET /\r"),
    (Reason::StartLineMalformed, 400, "GET /\r\n"), // HTTP/0.9
    (Reason::StartLineMalformed, 400, "GET /\n"),
    (Reason::StartLineMalformed, 400, "GET / HTTP/1.1 "),
    (Reason::StartLineMalformed, 400, "GET / HTTP/1.10"),
    (Reason::VersionMalformed, 400, "GET / /"),
    (Reason::VersionMalformed, 400, "GET /  HTTP/1.1"),
    (Reason::VersionMalformed, 400, "GET / http/1.1"),
    (Reason::VersionMalformed, 400, "GET / HTTP/1,1"),
    (Reason::VersionMalformed, 400, "GET / HTTP/x.1"),
    (Reason::VersionMalformed, 400, "GET / HTTP/1\r\n"),
    (Reason::VersionUnsupported, 505, "GET / HTTP/0.9"),
    (Reason::VersionUnsupported, 505, "GET / HTTP/1.2"),
    (Reason::VersionUnsupported, 505, "GET / HTTP/2.0"),
    (Reason::VersionUnsupported, 505, "GET / HTTP/3.0"),
    (Reason::Http2Preface, 505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    (Reason::BareCr, 400, "GET / HTTP/1.1\rX"),
    (Reason::BareCr, 400, "GET / HTTP/1.1\r\nA: b\rX"),
    (Reason::BareCr, 400, "GET / HTTP/1.1\r\nA: b\r\r\n"),
    (Reason::BareCr, 400, "GET / HTTP/1.1\r\nA\rX"),
    (Reason::BareCr, 400, "GET / HTTP/1.1\r\nHost: a\r\n\rX"),
    (Reason::BareLf, 400, "GET\n"),
    (Reason::BareLf, 400, "GET / HTTP/1.1\n"),
    (Reason::BareLf, 400, "GET / HTTP/1.1\r\nA: b\n"),
    (Reason::BareLf, 400, "GET / HTTP/1.1\r\nA\n"),
    (Reason::BareLf, 400, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    (Reason::ObsFold, 400, "GET / HTTP/1.1\r\n A: b"),
    (Reason::ObsFold, 400, "GET / HTTP/1.1\r\nHost: a\r\n b"),
    (Reason::ObsFold, 400, "GET / HTTP/1.1\r\nHost: a\r\n\tb"),
    (Reason::SpaceBeforeColon, 400, "GET / HTTP/1.1\r\nHost : a"),
    (Reason::SpaceBeforeColon, 400, "GET / HTTP/1.1\r\nTransfer-Encoding\t: chunked"),
    (Reason::FieldNameEmpty, 400, "GET / HTTP/1.1\r\n: a"),
    (Reason::FieldNameInvalid, 400, "GET / HTTP/1.1\r\nA\r\n"),
    (Reason::FieldNameInvalid, 400, "GET / HTTP/1.1\r\nA\0:"),
    (Reason::FieldNameInvalid, 400, "GET / HTTP/1.1\r\n\"A\": b"),
    (Reason::FieldNameInvalid, 400, "GET / HTTP/1.1\r\nContent-Length\u{b}: 1"),
    (Reason::FieldNameInvalid, 400, "GET / HTTP/1.1\r\nÄ: b"),
    (Reason::FieldNameInvalid, 400, "GET / HTTP/1.1\r\nA{}: b"),
    (Reason::FieldValueInvalid, 400, "GET / HTTP/1.1\r\nA: \0"),
    (Reason::FieldValueInvalid, 400, "GET / HTTP/1.1\r\nA: \u{7f}"),
    (Reason::FieldValueInvalid, 400, "GET / HTTP/1.1\r\nTransfer-Encoding:\u{b}chunked"),
    (Reason::FieldValueInvalid, 400, "GET / HTTP/1.1\r\nA: \u{1b}[2J"),
    (Reason::HostMissing, 400, "GET / HTTP/1.1\r\n\r\n"),
    (Reason::HostMissing, 400, "GET http://a/ HTTP/1.1\r\n\r\n"),
    (Reason::HostMissing, 400, "CONNECT a:1 HTTP/1.1\r\n\r\n"),
    (Reason::HostRepeated, 400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    (Reason::HostRepeated, 400, "GET / HTTP/1.0\r\nHost: a\r\nhOST: a\r\n\r\n"),
    (Reason::HostRepeated, 400, "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.0\r\nHost: \r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: a:1x\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: [a.example]\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET / HTTP/1.1\r\nHost: \u{e4}.example\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET http:// HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET http://b\\a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    (Reason::HostInvalid, 400, "GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (Reason::HostInvalid, 400, "CONNECT a/b:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::Misdirected, 421, "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::Misdirected, 421, "GET HttpS://a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason::MaxForwardsMalformed, 400, "TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards:\r\n\r\n"),
    (Reason::MaxForwardsMalformed, 400, "TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: -1\r\n\r\n"),
    (Reason::MaxForwardsMalformed, 400, "TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 1, 1\r\n\r\n"),
    (Reason::MaxForwardsMalformed, 400, "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0x1\r\n\r\n"),
    (
        Reason::MaxForwardsMalformed,
        400,
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 1\r\nmax-forwards: 1\r\n\r\n",
    ),
    (Reason::ConnectWithBody, 400, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"),
    (Reason::ConnectWithBody, 400, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
];

/// The same for field lines of a GET with a Host.
const LINES_REFUSED: &[(Reason, u16, &str)] = &[
    (Reason::ContentLengthMalformed, 400, "Content-Length:\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: +5\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: -0\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 5 5\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 5,\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: ,5\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 5,,5\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 0x5\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 5;q=1\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: \"5\"\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 5.0\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 1_0\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 9223372036854775808\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 18446744073709551616\r\n"),
    (Reason::ContentLengthMalformed, 400, "Content-Length: 18446744073709551621\r\n"), // 5 when it wraps
    (Reason::ContentLengthMalformed, 400, "Content-Length: 5\r\nContent-Length: \r\n"),
    (Reason::ContentLengthDiffers, 400, "Content-Length: 5, 6\r\n"),
    (Reason::ContentLengthDiffers, 400, "Content-Length: 5\r\nContent-Length: 6\r\n"),
    (Reason::ContentLengthDiffers, 400, "Content-Length: 0\r\nA: b\r\ncontent-length: 5\r\n"),
    (Reason::LengthAndEncoding, 400, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    (Reason::LengthAndEncoding, 400, "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
    (Reason::LengthAndEncoding, 400, "Content-Length: 5\r\nTransfer-Encoding: identity\r\n"),
    (Reason::LengthAndEncoding, 400, "Content-Length: 5\r\nTransfer-Encoding:\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding:\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: ,\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: identity\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: gzip\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: xchunked\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunkedx\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: \"chunked\"\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunked;q=1\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chun ked\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunked chunked\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunked, gzip\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunked, chunked\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    (Reason::TransferEncodingMalformed, 400, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
    (
        Reason::TransferEncodingMalformed,
        400,
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
    ),
    (Reason::TransferEncodingUnknown, 501, "Transfer-Encoding: gzip, chunked\r\n"),
    (Reason::TransferEncodingUnknown, 501, "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"),
    (Reason::ExpectationUnknown, 417, "Expect: 200-ok\r\n"),
    (Reason::ExpectationUnknown, 417, "Expect: y 100-continue\r\n"),
    (Reason::ExpectationUnknown, 417, "Expect: 100-continue, x\r\n"),
    (Reason::ExpectationUnknown, 417, "Expect: 100-continue\r\nExpect: x\r\n"),
    (Reason::ExpectationUnknown, 417, "Expect: 100-continue;q=1\r\n"),
];

#[test]
fn each_reason_has_its_input_and_status() {
    for &(reason, status, input) in REFUSED {
        refused(input, reason);
        assert_eq!(reason.status(), status, "{}", reason.name());
        // Nothing that follows can mend it.
        refused(format!("{input}x: y\r\n\r\n"), reason);
    }
    for &(reason, status, lines) in LINES_REFUSED {
        refused(get(lines), reason);
        assert_eq!(reason.status(), status, "{}", reason.name());
    }
    for status_in_gateway in [Reason::BareLf, Reason::HeadTooLarge, Reason::TransferEncodingUnknown] {
        assert_eq!(status_in_gateway.gateway_status(), 502, "{}", status_in_gateway.name());
    }
}

#[test]
fn transfer_encoding_in_an_old_message() {
    let old = |lines: &str| format!("POST / HTTP/1.0\r\nHost: a\r\n{lines}\r\n");
    // RFC 9112 section 6.1: whatever it says.
    refused(old("Transfer-Encoding: chunked\r\n"), Reason::TransferEncodingOldVersion);
    refused(old("Transfer-Encoding: identity\r\n"), Reason::TransferEncodingOldVersion);
    refused(old("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), Reason::TransferEncodingOldVersion);
    assert_eq!(Reason::TransferEncodingOldVersion.status(), 400);
}

#[test]
fn every_reason_of_a_request_head_is_tried() {
    let tried = |reason: Reason| {
        REFUSED.iter().chain(LINES_REFUSED).any(|row| row.0 == reason)
            // These have tests of their own here.
            || matches!(reason, Reason::TransferEncodingOldVersion | Reason::TargetTooLong
                | Reason::HeadTooLarge | Reason::TooManyFields)
    };
    // Reasons from the first to the last of a head; those of a response's status, of bodies, and those that only the
    // worker can have, are left out.
    let elsewhere = [
        Reason::StatusMalformed,
        Reason::ChunkSizeMalformed,
        Reason::ChunkSizeOverflow,
        Reason::ChunkExtensionMalformed,
        Reason::ChunkEndMissing,
        Reason::TrailerForbidden,
        Reason::BodyTooLarge,
        Reason::LengthRequired,
        Reason::BodyTruncated,
        Reason::HeadTruncated,
    ];
    let last = Reason::ConnectWithBody.number();
    for &reason in &Reason::ALL[..=last] {
        assert!(tried(reason) || elsewhere.contains(&reason), "{} is not tried", reason.name());
    }
}

#[test]
fn targets_at_and_beyond_their_bound() {
    let max = LIMITS.target_size_max as usize;
    let with_target = |size: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(size - 1));
    assert!(matches!(request(with_target(max).as_bytes()), Ok(Some(_))));
    refused(with_target(max + 1), Reason::TargetTooLong);
    // Seen before the target ends, so that an endless one is not waited for.
    refused(format!("GET /{}", "a".repeat(max)), Reason::TargetTooLong);
    assert!(matches!(request(format!("GET /{}", "a".repeat(max - 1)).as_bytes()), Ok(None)));
    assert_eq!(Reason::TargetTooLong.status(), 414);
}

#[test]
fn heads_at_and_beyond_their_bound() {
    let max = LIMITS.head_size_max as usize;
    let with_size = |size: usize| get(&format!("A: {}\r\n", "b".repeat(size - get("A: \r\n").len())));
    let largest = with_size(max);
    assert_eq!(largest.len(), max);
    assert!(matches!(request(largest.as_bytes()), Ok(Some(_))));
    assert!(matches!(request(format!("{largest}body").as_bytes()), Ok(Some(_))));
    assert!(matches!(request(&largest.as_bytes()[..max - 1]), Ok(None)));
    refused(with_size(max + 1), Reason::HeadTooLarge);
    refused(&with_size(max + 1).as_bytes()[..max], Reason::HeadTooLarge);
    // Beyond the bound nothing counts, not even a byte that would be refused.
    refused(format!("{}\0", &with_size(max + 1)[..max]), Reason::HeadTooLarge);
    assert_eq!(Reason::HeadTooLarge.status(), 431);
}

#[test]
fn fields_at_and_beyond_their_bound() {
    let max = usize::from(LIMITS.header_count_max);
    assert!(matches!(request(get(&"A:\r\n".repeat(max - 1)).as_bytes()), Ok(Some(_))));
    refused(get(&"A:\r\n".repeat(max)), Reason::TooManyFields);
    assert_eq!(Reason::TooManyFields.status(), 431);
}

#[test]
fn names_in_connection_are_bounded_as_fields_are() {
    let max = usize::from(LIMITS.header_count_max);
    let naming = |count: usize| get(&format!("Connection: close{}\r\n", ", a".repeat(count)));
    assert!(matches!(request(naming(max).as_bytes()), Ok(Some(_))));
    refused(naming(max + 1), Reason::TooManyFields);
}
