//! What an operator changes in heads.

use underpass_command::state::{EditAction, ForwardedFields, RequestId};

use super::super::{
    Changes, Edit, FieldChange, Method, RequestEdit, ResponseEdit, Texts, edit_request, edit_response,
};
use super::edit_request::{QUIET, edited};
use super::{LIMITS, request, response_to};

/// Changes of fields, and their values.
fn changes(list: &[(EditAction, &str, &str)]) -> (Vec<FieldChange>, Texts) {
    let mut texts = Texts::new();
    texts.add(|out| out.extend_from_slice(b"something else"));
    let fields = list.iter().map(|(action, name, value)| {
        texts.add(|out| out.extend_from_slice(value.as_bytes()));
        FieldChange::new(name, *action).expect("a field that may be changed")
    });
    (fields.collect(), texts)
}

#[test]
fn lines_are_replaced_added_and_removed() {
    use EditAction::{Append, Remove, Set};
    let (fields, values) = changes(&[(Set, "X-A", "new"), (Append, "X-B", "more"), (Remove, "X-C", "")]);
    let with = RequestEdit {
        changes: Changes { fields: &fields, values: &values, first: 1, ..Changes::NONE },
        ..QUIET
    };
    let text =
        "GET / HTTP/1.1\r\nHost: a\r\nx-a: 1\r\nx-b: 2\r\nX-C: 3\r\nX-D: 4\r\nX-A: 5\r\nX-Ab: 6\r\n\r\n";
    let expected =
        "GET / HTTP/1.1\r\nHost: a\r\nx-b: 2\r\nX-D: 4\r\nX-Ab: 6\r\nX-A: new\r\nX-B: more\r\n\r\n";
    assert_eq!(edited(text, &with), expected);
}

#[test]
fn what_the_proxy_writes_gives_way_to_what_the_operator_sets() {
    use EditAction::{Remove, Set};
    let names = ["x-forwarded-for", "x-forwarded-proto", "forwarded", "X-Request-Id", "traceparent"];
    let loud = RequestEdit {
        x_forwarded: ForwardedFields::Append,
        forwarded: ForwardedFields::Append,
        request_id: RequestId::Replace,
        traceparent: Some(b"00-1"),
        ..QUIET
    };
    for action in [Set, Remove] {
        let list: Vec<_> = names.map(|name| (action, name, "own")).into();
        let (fields, values) = changes(&list);
        let with = RequestEdit {
            changes: Changes { fields: &fields, values: &values, first: 1, ..Changes::NONE },
            ..loud
        };
        let theirs: String = names.map(|name| format!("{name}: theirs\r\n")).concat();
        let text = edited(&format!("GET / HTTP/1.1\r\nHost: a\r\n{theirs}\r\n"), &with);
        for name in names {
            let mut lines = text
                .lines()
                .filter(|line| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name)));
            assert_eq!(
                lines.next().map(|line| line.ends_with(": own")),
                (action == Set).then_some(true),
                "{text}"
            );
            assert_eq!(lines.next(), None, "{text}");
        }
    }
}

#[test]
fn target_and_host_of_every_form() {
    let of = |target: Option<&str>, host: Option<&str>, text: &str| {
        let changes =
            Changes { target: target.map(str::as_bytes), host: host.map(str::as_bytes), ..Changes::NONE };
        edited(text, &RequestEdit { changes, ..QUIET })
    };
    let origin = "GET /a?b HTTP/1.1\r\nA: b\r\nHost: a\r\n\r\n";
    assert_eq!(of(Some("/c"), None, origin), "GET /c HTTP/1.1\r\nA: b\r\nHost: a\r\n\r\n");
    assert_eq!(of(None, Some("h:1"), origin), "GET /a?b HTTP/1.1\r\nHost: h:1\r\nA: b\r\n\r\n");
    let absolute = "GET http://a:81?b HTTP/1.1\r\nHost: other\r\n\r\n";
    assert_eq!(of(Some("/c"), None, absolute), "GET /c HTTP/1.1\r\nHost: a:81\r\n\r\n");
    assert_eq!(of(None, Some("h"), absolute), "GET /?b HTTP/1.1\r\nHost: h\r\n\r\n");
    let old = "GET /a HTTP/1.0\r\n\r\n";
    assert_eq!(of(Some("/c"), None, old), "GET /c HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n");
    assert_eq!(of(None, Some("h"), old), "GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let asterisk = "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(of(None, Some("h"), asterisk), "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n");
}

#[test]
fn the_framing_stays_whatever_is_changed() {
    use EditAction::{Append, Set};
    let (fields, values) = changes(&[(Set, "X-A", "b"), (Append, "Set-Cookie", "c=d")]);
    let changes = Changes { fields: &fields, values: &values, first: 1, ..Changes::NONE };
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-A: a\r\n\r\n";
    let text = edited(chunked, &RequestEdit { changes, ..QUIET });
    let (head, _) = request(text.as_bytes()).expect("valid").expect("whole");
    assert_eq!(head.framing, super::super::Framing::Chunked);

    let response =
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-a: a\r\nSet-Cookie: a=b\r\nConnection: Set-Cookie\r\n\r\n";
    let (head, fields) = response_to(Method::Get, response.as_bytes()).expect("valid").expect("whole");
    let with = ResponseEdit {
        via_name: b"",
        close: true,
        old_client: false,
        dechunk: false,
        set_cookie: b"",
        changes,
    };
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_response(response.as_bytes(), &head, &fields, &with, &mut edit);
    let bytes: Vec<u8> =
        edit.pieces().iter().flat_map(|piece| edit.bytes(*piece, response.as_bytes())).copied().collect();
    let expected =
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\nSet-Cookie: c=d\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(bytes).expect("text"), expected);
}

/// As much as routes may write: `worker::actions` holds the texts to the size of a head.
#[test]
fn the_most_that_can_be_written_fits() {
    let size = LIMITS.head_size_max as usize;
    let names: Vec<String> = (0..32).map(|n| format!("{n:x>128}")).collect();
    let mut texts = Texts::new();
    let mut fields = Vec::new();
    for name in &names {
        texts.add(|out| out.resize(out.len() + size / 64, b'v'));
        fields.push(FieldChange::new(name, EditAction::Set).expect("a name"));
    }
    let target = format!("/{}", "t".repeat(size / 4 - 1));
    let host = "h".repeat(size / 4);
    let changes = Changes {
        target: Some(target.as_bytes()),
        host: Some(host.as_bytes()),
        fields: &fields,
        values: &texts,
        first: 0,
    };
    let text = edited("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &RequestEdit { changes, ..QUIET });
    assert!(text.len() > size);
    let (head, parsed) = request(b"GET http://a HTTP/1.1\r\nHost: b\r\n\r\n").expect("valid").expect("whole");
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    let with = RequestEdit { changes, ..QUIET };
    edit_request(b"GET http://a HTTP/1.1\r\nHost: b\r\n\r\n", &head, &parsed, &with, &mut edit);
}
