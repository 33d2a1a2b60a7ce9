//! What holds for any bytes that are parsed as a head, valid or not. The fuzz targets use it too.

use underpass_command::state::{ForwardedFields, RequestId};

use crate::http1::{
    Changes, Edit, Fields, Framing, Known, Limits, Method, Reason, RequestEdit, RequestHead, ResponseEdit,
    ResponseHead, Target, Version, edit_request, edit_response, parse_request, parse_response,
};

/// Bounds that small input can reach.
const LIMITS: Limits = Limits { head_size_max: 1024, header_count_max: 16, target_size_max: 256 };
/// Bounds of an edited head, which may be larger than the one that came.
const EDITED: Limits = Limits { head_size_max: 16_384, header_count_max: 64, target_size_max: 512 };
/// Up to this size every prefix is tried, beyond it a sample.
const PREFIXES_ALL_SIZE_MAX: usize = 512;

type Result<T> = std::result::Result<Option<T>, Reason>;

/// Checks `input` as a request head.
pub(crate) fn request(input: &[u8]) {
    let mut fields = Fields::with_capacity(LIMITS.header_count_max);
    prefixes(input, |head: &RequestHead| head.size, |bytes| parse_request(bytes, &mut fields, &LIMITS));
    let parsed = parse_request(input, &mut fields, &LIMITS);
    request_oracle(input, &parsed, &fields);
    if let Ok(Some(head)) = parsed {
        for with in &REQUEST_EDITS {
            request_edited(input, &head, &fields, with);
        }
    }
}

/// Checks `input` as the head of a response to `method`.
pub(crate) fn response(input: &[u8], method: Method) {
    let mut fields = Fields::with_capacity(LIMITS.header_count_max);
    prefixes(
        input,
        |head: &ResponseHead| head.size,
        |bytes| parse_response(bytes, &mut fields, &LIMITS, method),
    );
    let parsed = parse_response(input, &mut fields, &LIMITS, method);
    response_oracle(input, &parsed, &fields);
    if let Ok(Some(head)) = parsed {
        assert!(head.framing != Framing::UntilClose || !head.keep_alive);
        for bits in 0..16_u8 {
            let with = ResponseEdit {
                via_name: if bits & 1 != 0 { b"up" } else { b"" },
                close: bits & 2 != 0,
                old_client: bits & 4 != 0,
                dechunk: bits & 8 != 0,
                changes: Changes::NONE,
                set_cookie: b"",
            };
            response_edited(input, &head, &fields, method, &with);
        }
    }
}

/// However the bytes are split into reads, the answer is the same: a refusal of a prefix is the refusal of the whole, an
/// acceptance too, and a head is accepted as soon as its last byte is there.
fn prefixes<T: PartialEq + std::fmt::Debug>(
    input: &[u8],
    size: impl Fn(&T) -> u32,
    mut parse: impl FnMut(&[u8]) -> Result<T>,
) {
    let whole = parse(input);
    let step = if input.len() <= PREFIXES_ALL_SIZE_MAX { 1 } else { input.len() / 64 };
    for end in (0..input.len()).step_by(step) {
        let part = parse(&input[..end]);
        match &whole {
            Ok(Some(head)) if end >= size(head) as usize => assert_eq!(part, whole, "prefix of {end} bytes"),
            Ok(_) => assert_eq!(part, Ok(None), "prefix of {end} bytes"),
            Err(_) if part == Ok(None) => {}
            Err(_) => assert_eq!(part, whole, "prefix of {end} bytes"),
        }
    }
    if let Ok(Some(head)) = &whole {
        assert!(size(head) as usize <= input.len().min(LIMITS.head_size_max as usize));
        assert!(input[..size(head) as usize].ends_with(b"\r\n\r\n"));
    }
}

/// What httparse accepts and we refuse, deliberately. It reads syntax only, so all about targets, hosts and framing is
/// ours; it takes a bare line feed for a line end and skips empty lines before a head; it has no bound on bytes.
const STRICTER: &[Reason] = &[
    Reason::MethodInvalid, // empty lines before a request
    Reason::BareLf,
    Reason::TargetInvalid,
    Reason::TargetTooLong,
    Reason::HeadTooLarge,
    Reason::HostMissing,
    Reason::HostRepeated,
    Reason::HostInvalid,
    Reason::ContentLengthMalformed,
    Reason::ContentLengthDiffers,
    Reason::LengthAndEncoding,
    Reason::TransferEncodingMalformed,
    Reason::TransferEncodingUnknown,
    Reason::TransferEncodingOldVersion,
    Reason::ConnectWithBody,
    Reason::MaxForwardsMalformed,
    Reason::ExpectationUnknown,
    Reason::Misdirected,
    Reason::TooManyFields,    // names in Connection
    Reason::VersionMalformed, // empty lines before a response
    Reason::StatusMalformed,  // below 100
];

/// What we accept, httparse accepts with the same parts; what it refuses, we refuse; where it is laxer, the reason is one
/// of [`STRICTER`].
fn request_oracle(input: &[u8], ours: &Result<RequestHead>, fields: &Fields) {
    let mut headers = [httparse::EMPTY_HEADER; LIMITS.header_count_max as usize];
    let mut theirs = httparse::Request::new(&mut headers);
    let size = theirs.parse(input);
    match ours {
        Ok(Some(head)) => {
            assert_eq!(size, Ok(httparse::Status::Complete(head.size as usize)));
            assert_eq!(theirs.method.map(str::as_bytes), Some(head.method_span.of(input)));
            assert_eq!(theirs.path.map(str::as_bytes), Some(head.target_span.of(input)));
            assert_eq!(theirs.version, Some(u8::from(head.version == Version::Http11)));
            same_fields(input, fields, theirs.headers);
        }
        // It may refuse some bytes before we do: it reads all of a version at once.
        Ok(None) => assert!(!matches!(size, Ok(httparse::Status::Complete(_)))),
        Err(reason) => laxer(size, *reason),
    }
}

fn response_oracle(input: &[u8], ours: &Result<ResponseHead>, fields: &Fields) {
    let mut headers = [httparse::EMPTY_HEADER; LIMITS.header_count_max as usize];
    let mut theirs = httparse::Response::new(&mut headers);
    let size = theirs.parse(input);
    match ours {
        Ok(Some(head)) => {
            assert_eq!(size, Ok(httparse::Status::Complete(head.size as usize)));
            assert_eq!(theirs.code, Some(head.status));
            assert_eq!(theirs.version, Some(u8::from(head.version == Version::Http11)));
            same_fields(input, fields, theirs.headers);
        }
        // It may refuse some bytes before we do: it reads all of a version at once.
        Ok(None) => assert!(!matches!(size, Ok(httparse::Status::Complete(_)))),
        Err(reason) => laxer(size, *reason),
    }
}

fn same_fields(input: &[u8], ours: &Fields, theirs: &[httparse::Header<'_>]) {
    let ours = ours.list().iter().map(|field| (field.name.of(input), field.value.of(input)));
    let theirs = theirs.iter().map(|header| (header.name.as_bytes(), header.value));
    assert!(ours.eq(theirs));
}

fn laxer(size: httparse::Result<usize>, reason: Reason) {
    if let Ok(httparse::Status::Complete(_)) = size {
        assert!(STRICTER.contains(&reason), "httparse does not refuse for {}", reason.name());
    }
}

const REQUEST_EDITS: [RequestEdit<'static>; 3] = [
    RequestEdit {
        client: b"192.0.2.1",
        port: b"8080",
        backend: b"127.0.0.1:9000",
        via_name: b"",
        x_forwarded: ForwardedFields::Off,
        forwarded: ForwardedFields::Off,
        request_id: RequestId::Off,
        id: b"",
        traceparent: None,
        changes: Changes::NONE,
    },
    RequestEdit {
        client: b"2001:db8::1",
        port: b"1",
        backend: b"[::1]:9000",
        via_name: b"up",
        x_forwarded: ForwardedFields::Append,
        forwarded: ForwardedFields::Append,
        request_id: RequestId::Keep,
        id: b"0123456789abcdef",
        traceparent: Some(b"00-1"),
        changes: Changes::NONE,
    },
    RequestEdit {
        client: b"192.0.2.1",
        port: b"65535",
        backend: b"127.0.0.1:9000",
        via_name: b"up",
        x_forwarded: ForwardedFields::Replace,
        forwarded: ForwardedFields::Replace,
        request_id: RequestId::Replace,
        id: b"0123456789abcdef",
        traceparent: Some(b"00-1"),
        changes: Changes::NONE,
    },
];

/// An edited head parses again, is the same request, and says nothing that was meant for the hop before.
fn request_edited(input: &[u8], head: &RequestHead, fields: &Fields, with: &RequestEdit<'_>) {
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_request(input, head, fields, with, &mut edit);
    let bytes = collect(&edit, input);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut again = Fields::with_capacity(EDITED.header_count_max);
    let Ok(Some(edited)) = parse_request(&bytes, &mut again, &EDITED) else { panic!("{text:?}") };
    assert_eq!(edited.size as usize, bytes.len(), "{text:?}");
    assert_eq!(edited.version, Version::Http11, "{text:?}");
    assert_eq!(edited.method_span.of(&bytes), head.method_span.of(input), "{text:?}");
    assert!(!matches!(edited.target, Target::Absolute { .. }), "{text:?}");
    // A bare absolute form with OPTIONS asks for "*" (RFC 9112 section 3.2.4); it is routed as "/".
    if edited.target != Target::Asterisk {
        assert_eq!(edited.path(&bytes), head.path(input), "{text:?}");
    }
    if !head.host.is_empty() {
        assert_eq!(edited.host.of(&bytes), head.host.of(input), "{text:?}");
    }
    assert_eq!(edited.framing, head.framing, "{text:?}");
    assert_eq!(edited.upgrade, head.upgrade, "{text:?}");
    assert_eq!(edited.expects_continue, head.expects_continue, "{text:?}");
    assert!(edited.keep_alive, "{text:?}");
    let left = head.forwards_left.map(|left| left.saturating_sub(1).min(255));
    assert_eq!(edited.forwards_left, left, "{text:?}");
    assert_eq!(again.has(Known::Connection), head.upgrade, "{text:?}");
    assert_eq!(again.has(Known::Upgrade), head.upgrade, "{text:?}");
    only_end_to_end((&bytes, &again), (input, fields));
    let count = |known: Known| again.values(&bytes, known).count();
    assert_eq!(count(Known::Host), 1, "{text:?}");
    assert_eq!(count(Known::TransferEncoding), usize::from(head.framing == Framing::Chunked), "{text:?}");
    assert!(count(Known::ContentLength) <= 1, "{text:?}");
    assert!(with.via_name.is_empty() || again.has(Known::Via), "{text:?}");
    assert!(with.x_forwarded == ForwardedFields::Off || again.has(Known::XForwardedFor), "{text:?}");
    assert!(with.forwarded == ForwardedFields::Off || again.has(Known::Forwarded), "{text:?}");
    assert!(with.request_id == RequestId::Off || again.has(Known::XRequestId), "{text:?}");
    if let Some(parent) = with.traceparent {
        assert!(again.values(&bytes, Known::TraceParent).eq([parent]), "{text:?}");
        assert!(!again.has(Known::TraceState), "{text:?}");
    }
    if with.x_forwarded == ForwardedFields::Replace {
        assert!(again.values(&bytes, Known::XForwardedFor).eq([with.client]), "{text:?}");
    }
}

fn response_edited(
    input: &[u8],
    head: &ResponseHead,
    fields: &Fields,
    method: Method,
    with: &ResponseEdit<'_>,
) {
    let mut edit = Edit::with_capacity(LIMITS.head_size_max, LIMITS.header_count_max);
    edit_response(input, head, fields, with, &mut edit);
    let bytes = collect(&edit, input);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut again = Fields::with_capacity(EDITED.header_count_max);
    let Ok(Some(edited)) = parse_response(&bytes, &mut again, &EDITED, method) else { panic!("{text:?}") };
    assert_eq!(edited.size as usize, bytes.len(), "{text:?}");
    assert_eq!((edited.version, edited.status), (Version::Http11, head.status), "{text:?}");
    assert_eq!(edited.status_line_rest.of(&bytes), head.status_line_rest.of(input), "{text:?}");
    let framing = match head.framing {
        Framing::Chunked if with.dechunk => Framing::UntilClose,
        framing => framing,
    };
    assert_eq!(edited.framing, framing, "{text:?}");
    assert_eq!(edited.framing_fields_void, head.framing_fields_void, "{text:?}");
    if head.status != 101 {
        assert_eq!(edited.keep_alive, !with.close && framing != Framing::UntilClose, "{text:?}");
    }
    let framed = again.has(Known::ContentLength) || again.has(Known::TransferEncoding);
    assert!(!(head.framing_fields_void && framed), "{text:?}");
    assert!(again.values(&bytes, Known::ContentLength).count() <= 1, "{text:?}");
    assert!(with.via_name.is_empty() || again.has(Known::Via), "{text:?}");
    only_end_to_end((&bytes, &again), (input, fields));
}

/// Fields of one hop are gone, all others are there, in their order.
fn only_end_to_end(after: (&[u8], &Fields), before: (&[u8], &Fields)) {
    for known in [Known::KeepAlive, Known::ProxyConnection, Known::Te] {
        assert!(!after.1.has(known), "{known:?}");
    }
    let others = |(bytes, fields): (&[u8], &Fields)| -> Vec<(Vec<u8>, Vec<u8>)> {
        let kept = fields.list().iter().filter(|field| field.known == Known::Other && !field.hop_by_hop);
        kept.map(|field| (field.name.of(bytes).to_vec(), field.value.of(bytes).to_vec())).collect()
    };
    assert_eq!(others(after), others(before));
}

fn collect(edit: &Edit, source: &[u8]) -> Vec<u8> {
    let bytes =
        edit.pieces().iter().flat_map(|piece| edit.bytes(*piece, source)).copied().collect::<Vec<_>>();
    assert_eq!(bytes.len(), edit.size());
    bytes
}
