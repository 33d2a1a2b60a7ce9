//! What an intermediary changes in a head: RFC 9110 section 7.6 and RFC 9112 section 3.2.
//!
//! Nothing is rebuilt. The outcome is a list of pieces, each a range of the buffer the head came in or of a small
//! scratch area, to be sent with one `writev`.

use underpass_command::state::{ForwardedFields, RequestId};

use super::changes::Changes;
use super::fields::{Field, Fields, list_members};
use super::pieces::Edit;
use super::{Framing, Known, Method, RequestHead, ResponseHead, Target, Version};

/// What the proxy knows when it passes a request on.
#[derive(Clone, Copy, Debug)]
pub struct RequestEdit<'a> {
    /// The client's address, without brackets.
    pub client: &'a [u8],
    /// The port the client connected to.
    pub port: &'a [u8],
    /// The backend's address, for a request without a host.
    pub backend: &'a [u8],
    /// This proxy's name in a Via field, without a version; empty leaves Via alone.
    pub via_name: &'a [u8],
    /// What to do with `X-Forwarded-*`.
    pub x_forwarded: ForwardedFields,
    /// What to do with `Forwarded`.
    pub forwarded: ForwardedFields,
    /// What to do with `X-Request-Id`.
    pub request_id: RequestId,
    /// An id for a request that needs one.
    pub id: &'a [u8],
    /// A trace that begins here: takes the place of `traceparent` and `tracestate`. None lets both pass.
    pub traceparent: Option<&'a [u8]>,
    /// What else is changed.
    pub changes: Changes<'a>,
}

/// The largest Max-Forwards that is passed on (RFC 9110 section 7.6.2 leaves the choice): what is passed on more often goes
/// in a circle. As many hops as an IP packet may make.
const FORWARDS_MAX: u32 = 255;

/// What is done with one field line.
enum Keep<'a> {
    Yes,
    No,
    /// Kept, and a member, in two parts, is added to the list that is its value.
    Append([&'a [u8]; 2]),
    /// Kept with this value.
    Number(u32),
}

/// Edits a request head for the backend.
pub fn edit_request(
    buffer: &[u8],
    head: &RequestHead,
    fields: &Fields,
    with: &RequestEdit<'_>,
    out: &mut Edit,
) {
    out.clear();
    let line_end = fields.list().first().map_or(fields.end(), |first| first.name.start);
    let run = start_request(buffer, head, with, line_end, out);
    let host_rewritten =
        with.changes.host.is_some() || matches!(head.target, Target::Absolute { .. } | Target::Authority);
    let length_rewritten = length_needs_rewrite(buffer, fields);
    let appends = Appends::plan(fields, with);
    let forwards_left = head.forwards_left.map(|left| left.saturating_sub(1).min(FORWARDS_MAX));
    edit_fields(fields, run, out, |index, field| match field.known {
        Known::Host if host_rewritten => Keep::No,
        Known::Upgrade if head.upgrade => Keep::Yes,
        Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Te | Known::Upgrade => {
            Keep::No
        }
        Known::ContentLength if length_rewritten => Keep::No,
        Known::TransferEncoding => Keep::No,
        // Before what Connection names, else a client could take the bound off.
        Known::MaxForwards if let Some(left) = forwards_left => Keep::Number(left),
        Known::Expect if !head.expects_continue => Keep::No,
        _ if field.hop_by_hop || with.changes.replace(field.name.of(buffer)) => Keep::No,
        Known::Via if appends.via == Some(index) => Keep::Append(via_member(head.version, with.via_name)),
        Known::XForwardedFor if appends.client == Some(index) => Keep::Append([with.client, b""]),
        Known::XForwardedFor | Known::XForwardedProto | Known::XForwardedHost | Known::XForwardedPort
            if with.x_forwarded == ForwardedFields::Replace =>
        {
            Keep::No
        }
        Known::Forwarded if with.forwarded == ForwardedFields::Replace => Keep::No,
        Known::XRequestId if with.request_id == RequestId::Replace => Keep::No,
        // W3C Trace Context section 4.2: with a new trace, the state of the old one goes too.
        Known::TraceParent | Known::TraceState if with.traceparent.is_some() => Keep::No,
        _ => Keep::Yes,
    });
    if head.framing == Framing::Chunked {
        out.write(b"Transfer-Encoding: chunked\r\n");
    }
    if length_rewritten {
        write_length(buffer, fields, out);
    }
    if head.upgrade {
        out.write(b"Connection: upgrade\r\n");
    }
    if !with.via_name.is_empty() && appends.via.is_none() {
        write_via(head.version, with.via_name, out);
    }
    write_origin(buffer, head, fields, with, &appends, out);
    with.changes.write(out);
    out.write(b"\r\n");
}

/// Writes the request line where it cannot stay, and returns where the run of kept bytes begins.
fn start_request(
    buffer: &[u8],
    head: &RequestHead,
    with: &RequestEdit<'_>,
    line_end: u32,
    out: &mut Edit,
) -> u32 {
    match head.target {
        _ if with.changes.target.is_some() || with.changes.host.is_some() => {
            out.keep(head.method_span.start, head.method_span.end);
            out.write(b" ");
            match with.changes.target {
                Some(target) => out.write(target),
                None => keep_target(buffer, head, out),
            }
            match (with.changes.host, head.target) {
                (Some(host), _) => write_version_and_host(host, out),
                (None, Target::Absolute { authority, .. }) => {
                    write_version_and_host(authority.of(buffer), out);
                }
                (None, _) if head.host.is_empty() => write_version_and_host(with.backend, out),
                (None, _) => out.write(b" HTTP/1.1\r\n"),
            }
            line_end
        }
        Target::Absolute { authority, .. } => {
            out.write(head.method_span.of(buffer));
            out.write(b" ");
            keep_target(buffer, head, out);
            // RFC 9112 section 3.2.2: the target's authority replaces Host.
            write_version_and_host(authority.of(buffer), out);
            line_end
        }
        // A Host that names another authority than the target would be read by some and not by others.
        Target::Authority => {
            out.keep(head.method_span.start, head.target_span.end);
            write_version_and_host(head.target_span.of(buffer), out);
            line_end
        }
        Target::Origin | Target::Asterisk if head.version == Version::Http11 => 0,
        // RFC 9110 section 2.5: an intermediary sends its own version.
        Target::Origin | Target::Asterisk => {
            out.keep(head.method_span.start, head.target_span.end);
            if head.host.is_empty() {
                write_version_and_host(with.backend, out);
            } else {
                out.write(b" HTTP/1.1\r\n");
            }
            line_end
        }
    }
}

/// The target in the form that a backend gets.
fn keep_target(buffer: &[u8], head: &RequestHead, out: &mut Edit) {
    let Target::Absolute { path, .. } = head.target else {
        return out.keep(head.target_span.start, head.target_span.end);
    };
    // RFC 9112 sections 3.2.1 and 3.2.4: an empty path becomes "/", or "*" with OPTIONS.
    match path.of(buffer).first() {
        None if head.method == Method::Options => out.write(b"*"),
        None => out.write(b"/"),
        Some(b'?') => {
            out.write(b"/");
            out.keep(path.start, path.end);
        }
        Some(_) => out.keep(path.start, path.end),
    }
}

fn write_version_and_host(host: &[u8], out: &mut Edit) {
    out.write(b" HTTP/1.1\r\nHost: ");
    out.write(host);
    out.write(b"\r\n");
}

/// Passes kept lines as runs, so that unchanged neighbours become one piece.
fn edit_fields<'a>(fields: &Fields, mut run: u32, out: &mut Edit, keep: impl Fn(usize, &Field) -> Keep<'a>) {
    for (index, field) in fields.list().iter().enumerate() {
        match keep(index, field) {
            Keep::Yes => {}
            Keep::No => {
                let line = fields.line(index);
                out.keep(run, line.start);
                run = line.end;
            }
            Keep::Append(member) => {
                out.keep(run, field.value.end);
                if !field.value.is_empty() {
                    out.write(b", ");
                }
                member.into_iter().for_each(|part| out.write(part));
                run = field.value.end;
            }
            Keep::Number(number) => {
                out.keep(run, field.value.start);
                out.write_number(u64::from(number));
                run = field.value.end;
            }
        }
    }
    out.keep(run, fields.end());
}

/// Which lists get this hop appended, and to which line: the last of its name. A line that Connection names is dropped,
/// and so counts as absent; else a client could keep this hop from being told at all.
struct Appends {
    via: Option<usize>,
    client: Option<usize>,
}

impl Appends {
    fn plan(fields: &Fields, with: &RequestEdit<'_>) -> Self {
        let last = |known: Known, wanted: bool| if wanted { fields.last_end_to_end(known) } else { None };
        Self {
            via: last(Known::Via, !with.via_name.is_empty()),
            client: last(Known::XForwardedFor, with.x_forwarded == ForwardedFields::Append),
        }
    }
}

/// RFC 9110 section 7.6.3: the version is that of the message as it was received.
fn via_member(received: Version, name: &[u8]) -> [&[u8]; 2] {
    match received {
        Version::Http10 => [b"1.0 ", name],
        Version::Http11 => [b"1.1 ", name],
    }
}

fn write_via(received: Version, name: &[u8], out: &mut Edit) {
    out.write(b"Via: ");
    via_member(received, name).into_iter().for_each(|part| out.write(part));
    out.write(b"\r\n");
}

/// Writes the lines that tell the backend where the request came from.
fn write_origin(
    buffer: &[u8],
    head: &RequestHead,
    fields: &Fields,
    with: &RequestEdit<'_>,
    appends: &Appends,
    out: &mut Edit,
) {
    let host = authority_asked_for(buffer, head, fields);
    if with.x_forwarded != ForwardedFields::Off {
        // Single values: a second one would be read by some as the first.
        let wanted = |known: Known| {
            with.x_forwarded == ForwardedFields::Replace || fields.last_end_to_end(known).is_none()
        };
        if appends.client.is_none() {
            write_line(with, b"X-Forwarded-For", with.client, out);
        }
        if wanted(Known::XForwardedProto) {
            write_line(with, b"X-Forwarded-Proto", b"http", out);
        }
        if wanted(Known::XForwardedHost) && !host.is_empty() {
            write_line(with, b"X-Forwarded-Host", host, out);
        }
        if wanted(Known::XForwardedPort) {
            write_line(with, b"X-Forwarded-Port", with.port, out);
        }
    }
    if with.forwarded != ForwardedFields::Off && !with.changes.replace(b"Forwarded") {
        write_forwarded(host, with.client, out);
    }
    let id_wanted = match with.request_id {
        RequestId::Keep => fields.last_end_to_end(Known::XRequestId).is_none(),
        RequestId::Replace => true,
        RequestId::Off => false,
    };
    if id_wanted {
        write_line(with, b"X-Request-Id", with.id, out);
    }
    if let Some(parent) = with.traceparent {
        write_line(with, b"traceparent", parent, out);
    }
}

/// What the client asked for, as it wrote it; empty in an HTTP/1.0 request without Host.
pub fn authority_asked_for<'a>(buffer: &'a [u8], head: &RequestHead, fields: &'a Fields) -> &'a [u8] {
    match head.target {
        Target::Absolute { authority, .. } => authority.of(buffer),
        Target::Authority => head.target_span.of(buffer),
        Target::Origin | Target::Asterisk => fields.values(buffer, Known::Host).next().unwrap_or_default(),
    }
}

/// Writes a line of the proxy's own, unless the operator has said what stands there instead.
fn write_line(with: &RequestEdit<'_>, name: &[u8], value: &[u8], out: &mut Edit) {
    if with.changes.replace(name) {
        return;
    }
    out.write(name);
    out.write(b": ");
    out.write(value);
    out.write(b"\r\n");
}

/// RFC 7239 sections 4 to 6. It is always a line of its own: the field may be repeated. A valid host holds nothing that
/// would need a backslash in quotes.
fn write_forwarded(host: &[u8], client: &[u8], out: &mut Edit) {
    out.write(b"Forwarded: for=");
    if client.contains(&b':') {
        out.write(b"\"[");
        out.write(client);
        out.write(b"]\"");
    } else {
        out.write(client);
    }
    if !host.is_empty() {
        out.write(b";host=\"");
        out.write(host);
        out.write(b"\"");
    }
    out.write(b";proto=http\r\n");
}

/// What the proxy knows when it passes a response on.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdit<'a> {
    /// This proxy's name in a Via field, without a version; empty leaves Via alone.
    pub via_name: &'a [u8],
    /// Whether the connection to the client ends with this response.
    pub close: bool,
    /// Whether the client speaks HTTP/1.0, and must be told when its connection stays open.
    pub old_client: bool,
    /// Whether the chunked coding is taken off, for a client that does not know it.
    pub dechunk: bool,
    /// What else is changed.
    pub changes: Changes<'a>,
    /// The value of a Set-Cookie field of the proxy's own; empty adds none.
    pub set_cookie: &'a [u8],
}

/// Edits a response head for the client.
pub fn edit_response(
    buffer: &[u8],
    head: &ResponseHead,
    fields: &Fields,
    with: &ResponseEdit<'_>,
    out: &mut Edit,
) {
    out.clear();
    let mut run = 0;
    if head.version == Version::Http10 {
        // RFC 9110 section 2.5: an intermediary sends its own version.
        out.write(b"HTTP/1.1");
        run = head.status_line_rest.start;
    }
    let upgrade = head.status == 101 || head.status == 426; // RFC 9110 sections 7.8 and 15.5.22
    let length_rewritten = !head.framing_fields_void && length_needs_rewrite(buffer, fields);
    let via = if with.via_name.is_empty() { None } else { fields.last_end_to_end(Known::Via) };
    edit_fields(fields, run, out, |index, field| match field.known {
        Known::Upgrade if upgrade => Keep::Yes,
        Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Te | Known::Upgrade => {
            Keep::No
        }
        Known::ContentLength if length_rewritten || head.framing_fields_void => Keep::No,
        Known::TransferEncoding => Keep::No,
        _ if field.hop_by_hop || with.changes.replace(field.name.of(buffer)) => Keep::No,
        Known::Via if via == Some(index) => Keep::Append(via_member(head.version, with.via_name)),
        _ => Keep::Yes,
    });
    if fields.has(Known::TransferEncoding) && !head.framing_fields_void && !with.dechunk {
        out.write(b"Transfer-Encoding: chunked\r\n");
    }
    if length_rewritten {
        write_length(buffer, fields, out);
    }
    if !with.via_name.is_empty() && via.is_none() {
        write_via(head.version, with.via_name, out);
    }
    with.changes.write(out);
    if !with.set_cookie.is_empty() {
        // RFC 6265 section 3: always a line of its own.
        out.write(b"Set-Cookie: ");
        out.write(with.set_cookie);
        out.write(b"\r\n");
    }
    // RFC 9112 sections 9.3 and 9.6; RFC 9110 section 7.8.
    match (upgrade, with.close && head.status != 101) {
        (true, false) => out.write(b"Connection: upgrade\r\n"),
        (true, true) => out.write(b"Connection: upgrade, close\r\n"),
        (false, true) => out.write(b"Connection: close\r\n"),
        (false, false) if with.old_client => out.write(b"Connection: keep-alive\r\n"),
        (false, false) => {}
    }
    out.write(b"\r\n");
}

/// Whether `Content-Length` is not one plain number: RFC 9110 section 8.6 wants a single value passed on in place of a
/// list, and leading zeros are octal to some.
fn length_needs_rewrite(buffer: &[u8], fields: &Fields) -> bool {
    let mut values = fields.values(buffer, Known::ContentLength);
    match values.next() {
        None => false,
        Some(first) => {
            first.contains(&b',') || first.starts_with(b"0") && first != b"0" || values.next().is_some()
        }
    }
}

/// The parser has seen that all members are the same number, and that it fits.
fn write_length(buffer: &[u8], fields: &Fields, out: &mut Edit) {
    if let Some(first) = fields.values(buffer, Known::ContentLength).flat_map(list_members).next() {
        out.write(b"Content-Length: ");
        out.write_number(first.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')));
        out.write(b"\r\n");
    }
}
