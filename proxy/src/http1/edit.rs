//! What an intermediary changes in a head: RFC 9110 section 7.6 and RFC 9112 section 3.2.
//!
//! Nothing is rebuilt. The outcome is a list of pieces, each a range of the buffer the head came in or of a small
//! scratch area, to be sent with one `writev`.

use std::io::IoSlice;

use underpass_command::state::{ForwardedFields, RequestId};

use super::fields::{Field, Fields, Span, list_members};
use super::request::ConnectionOptions;
use super::{Framing, Known, RequestHead, ResponseHead, Target, Version};

/// A part of an edited head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the buffer that the head came in.
    Source(Span),
    /// Bytes of the scratch area.
    Scratch(Span),
}

/// An edited head. Made once for each worker and reused, so that editing allocates nothing.
#[derive(Debug)]
pub struct Edit {
    pieces: Vec<Piece>,
    scratch: Vec<u8>,
}

impl Edit {
    /// Room for a head of `head_size_max` bytes and `header_count_max` fields.
    pub fn with_capacity(head_size_max: u32, header_count_max: u16) -> Self {
        // Each field can split a run of kept lines once; the host is written at most four times.
        let pieces = 2 * usize::from(header_count_max) + 16;
        Self {
            pieces: Vec::with_capacity(pieces),
            scratch: Vec::with_capacity(4 * head_size_max as usize + 1024),
        }
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The bytes of one piece.
    #[inline]
    pub fn bytes<'a>(&'a self, piece: Piece, source: &'a [u8]) -> &'a [u8] {
        match piece {
            Piece::Source(span) => span.of(source),
            Piece::Scratch(span) => span.of(&self.scratch),
        }
    }

    /// Length of the edited head in bytes.
    pub fn size(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Source(span) | Piece::Scratch(span) => span.len(),
            })
            .sum()
    }

    /// Fills `slices` with the pieces and returns how many there are; `None` if they do not fit.
    #[inline]
    pub fn slices<'a>(&'a self, source: &'a [u8], slices: &mut [IoSlice<'a>]) -> Option<usize> {
        if self.pieces.len() > slices.len() {
            return None;
        }
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(self.bytes(*piece, source));
        }
        Some(self.pieces.len())
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.scratch.clear();
    }

    fn keep(&mut self, start: u32, end: u32) {
        if start < end {
            self.pieces.push(Piece::Source(Span { start, end }));
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "the scratch area holds less than 4 GiB by construction"
    )]
    fn write(&mut self, bytes: &[u8]) {
        let start = self.scratch.len() as u32;
        self.scratch.extend_from_slice(bytes);
        let end = self.scratch.len() as u32;
        match self.pieces.last_mut() {
            Some(Piece::Scratch(span)) if span.end == start => span.end = end,
            _ => self.pieces.push(Piece::Scratch(Span { start, end })),
        }
    }

    fn write_number(&mut self, mut number: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            #[allow(clippy::cast_possible_truncation, reason = "a digit")]
            let digit = (number % 10) as u8;
            digits[at] = b'0' + digit;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.write(&digits[at..]);
    }
}

/// What the proxy knows when it passes a request on.
#[derive(Clone, Copy, Debug)]
pub struct RequestEdit<'a> {
    /// The client's address, without brackets.
    pub client: &'a [u8],
    /// The port the client connected to.
    pub port: &'a [u8],
    /// The backend's address, for a request without a host.
    pub backend: &'a [u8],
    /// This proxy in a Via field, version included; empty leaves Via alone.
    pub via: &'a [u8],
    /// What to do with `X-Forwarded-*`.
    pub x_forwarded: ForwardedFields,
    /// What to do with `Forwarded`.
    pub forwarded: ForwardedFields,
    /// What to do with `X-Request-Id`.
    pub request_id: RequestId,
    /// An id for a request that needs one.
    pub id: &'a [u8],
}

/// What is done with one field line.
enum Keep {
    Yes,
    No,
    /// Kept, and this member is added to the list that is its value.
    Append(Member),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Member {
    Via,
    Client,
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
    let names = ConnectionOptions::read(buffer, fields).names_fields;
    let length_rewritten = length_needs_rewrite(buffer, fields);
    let appends = RequestAppends::plan(fields, with);
    edit_fields(fields, run, out, with, |index, field| match field.known {
        Known::Host if matches!(head.target, Target::Absolute { .. }) => Keep::No,
        Known::Upgrade if head.upgrade => Keep::Yes,
        Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Te | Known::Upgrade => {
            Keep::No
        }
        Known::ContentLength if length_rewritten => Keep::No,
        Known::TransferEncoding => Keep::No,
        Known::Expect if !head.expects_continue => Keep::No,
        _ if names && named_by_connection(buffer, fields, field) => Keep::No,
        known => appends.keep(known, index, with),
    });
    finish_request(buffer, head, fields, with, &appends, length_rewritten, out);
}

/// Writes the request line where it cannot stay, and returns where the run of kept bytes begins.
fn start_request(
    buffer: &[u8],
    head: &RequestHead,
    with: &RequestEdit<'_>,
    line_end: u32,
    out: &mut Edit,
) -> u32 {
    let no_host = head.host == Span::default();
    let absolute = matches!(head.target, Target::Absolute { .. });
    if !absolute && head.version == Version::Http11 {
        return 0;
    }
    if let Target::Absolute { authority, path } = head.target {
        out.write(head.method_span.of(buffer));
        out.write(b" ");
        // RFC 9112 sections 3.2.1 and 3.2.4: an empty path becomes "/", or "*" with OPTIONS.
        match buffer[path.start as usize..path.end as usize].first() {
            None if head.method == super::Method::Options => out.write(b"*"),
            None => out.write(b"/"),
            Some(b'?') => {
                out.write(b"/");
                out.keep(path.start, path.end);
            }
            Some(_) => out.keep(path.start, path.end),
        }
        out.write(b" HTTP/1.1\r\nHost: ");
        out.write(authority.of(buffer));
        out.write(b"\r\n");
    } else {
        // RFC 9110 section 2.5: an intermediary sends its own version.
        out.keep(head.method_span.start, head.target_span.end);
        out.write(b" HTTP/1.1\r\n");
        if no_host {
            out.write(b"Host: ");
            out.write(with.backend);
            out.write(b"\r\n");
        }
    }
    line_end
}

/// Passes kept lines as runs, so that unchanged neighbours become one piece.
fn edit_fields(
    fields: &Fields,
    mut run: u32,
    out: &mut Edit,
    with: &RequestEdit<'_>,
    mut keep: impl FnMut(usize, &Field) -> Keep,
) {
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
                write_member(out, member, with);
                run = field.value.end;
            }
        }
    }
    out.keep(run, fields.end());
}

/// Which list fields get this hop appended, and to which line: the last of its name.
struct RequestAppends {
    via: Option<usize>,
    client: Option<usize>,
}

impl RequestAppends {
    fn plan(fields: &Fields, with: &RequestEdit<'_>) -> Self {
        let last = |known: Known, wanted: bool| {
            if !wanted || !fields.has(known) {
                return None;
            }
            fields.list().iter().rposition(|field| field.known == known)
        };
        Self {
            via: last(Known::Via, !with.via.is_empty()),
            client: last(Known::XForwardedFor, with.x_forwarded == ForwardedFields::Append),
        }
    }

    fn keep(&self, known: Known, index: usize, with: &RequestEdit<'_>) -> Keep {
        match known {
            Known::Via if self.via == Some(index) => Keep::Append(Member::Via),
            Known::XForwardedFor if self.client == Some(index) => Keep::Append(Member::Client),
            Known::XForwardedFor if with.x_forwarded == ForwardedFields::Replace => Keep::No,
            // Single values: a second one would be read by some as the first.
            Known::XForwardedProto | Known::XForwardedHost | Known::XForwardedPort
                if with.x_forwarded == ForwardedFields::Replace =>
            {
                Keep::No
            }
            Known::Forwarded if with.forwarded == ForwardedFields::Replace => Keep::No,
            Known::XRequestId if with.request_id == RequestId::Replace => Keep::No,
            _ => Keep::Yes,
        }
    }
}

fn write_member(out: &mut Edit, member: Member, with: &RequestEdit<'_>) {
    match member {
        Member::Via => out.write(with.via),
        Member::Client => out.write(with.client),
    }
}

/// RFC 7239 sections 4 and 6. It is always a line of its own: the field may be repeated.
fn write_forwarded(out: &mut Edit, buffer: &[u8], head: &RequestHead, with: &RequestEdit<'_>) {
    out.write(b"Forwarded: for=");
    if with.client.contains(&b':') {
        out.write(b"\"[");
        out.write(with.client);
        out.write(b"]\"");
    } else {
        out.write(with.client);
    }
    if !head.host.is_empty() {
        out.write(b";host=\"");
        out.write(head.host.of(buffer));
        out.write(b"\"");
    }
    out.write(b";proto=http\r\n");
}

/// Writes what is added after the kept lines, and the empty line.
fn finish_request(
    buffer: &[u8],
    head: &RequestHead,
    fields: &Fields,
    with: &RequestEdit<'_>,
    appends: &RequestAppends,
    length_rewritten: bool,
    out: &mut Edit,
) {
    write_framing(head.framing, length_rewritten, out);
    if head.upgrade {
        out.write(b"Connection: upgrade\r\n");
    }
    let line = |out: &mut Edit, name: &[u8], member: Member| {
        out.write(name);
        write_member(out, member, with);
        out.write(b"\r\n");
    };
    if !with.via.is_empty() && appends.via.is_none() {
        line(out, b"Via: ", Member::Via);
    }
    if with.x_forwarded != ForwardedFields::Off {
        if appends.client.is_none() {
            line(out, b"X-Forwarded-For: ", Member::Client);
        }
        let replace = with.x_forwarded == ForwardedFields::Replace;
        if replace || !fields.has(Known::XForwardedProto) {
            out.write(b"X-Forwarded-Proto: http\r\n");
        }
        if (replace || !fields.has(Known::XForwardedHost)) && !head.host.is_empty() {
            out.write(b"X-Forwarded-Host: ");
            out.write(head.host.of(buffer));
            out.write(b"\r\n");
        }
        if replace || !fields.has(Known::XForwardedPort) {
            out.write(b"X-Forwarded-Port: ");
            out.write(with.port);
            out.write(b"\r\n");
        }
    }
    if with.forwarded != ForwardedFields::Off {
        write_forwarded(out, buffer, head, with);
    }
    let id_wanted = match with.request_id {
        RequestId::Keep => !fields.has(Known::XRequestId),
        RequestId::Replace => true,
        RequestId::Off => false,
    };
    if id_wanted {
        out.write(b"X-Request-Id: ");
        out.write(with.id);
        out.write(b"\r\n");
    }
    out.write(b"\r\n");
}

/// What the proxy knows when it passes a response on.
#[derive(Clone, Copy, Debug)]
pub struct ResponseEdit<'a> {
    /// This proxy in a Via field; empty leaves Via alone.
    pub via: &'a [u8],
    /// Whether the connection to the client ends with this response.
    pub close: bool,
    /// Whether the client speaks HTTP/1.0, and must be told when its connection stays open.
    pub old_client: bool,
    /// Whether the chunked coding is taken off, for a client that does not know it.
    pub dechunk: bool,
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
    let names = ConnectionOptions::read(buffer, fields).names_fields;
    let length_rewritten = !head.framing_fields_void && length_needs_rewrite(buffer, fields);
    let via =
        fields.list().iter().rposition(|field| field.known == Known::Via).filter(|_| !with.via.is_empty());
    let request_side = RequestEdit {
        client: b"",
        port: b"",
        backend: b"",
        via: with.via,
        x_forwarded: ForwardedFields::Off,
        forwarded: ForwardedFields::Off,
        request_id: RequestId::Off,
        id: b"",
    };
    edit_fields(fields, run, out, &request_side, |index, field| match field.known {
        Known::Upgrade if upgrade => Keep::Yes,
        Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::Te | Known::Upgrade => {
            Keep::No
        }
        Known::ContentLength if length_rewritten || head.framing_fields_void => Keep::No,
        Known::TransferEncoding if head.framing_fields_void || with.dechunk => Keep::No,
        _ if names && named_by_connection(buffer, fields, field) => Keep::No,
        Known::Via if via == Some(index) => Keep::Append(Member::Via),
        _ => Keep::Yes,
    });
    if length_rewritten {
        write_rewritten_length(buffer, fields, out);
    }
    if !with.via.is_empty() && via.is_none() {
        out.write(b"Via: ");
        out.write(with.via);
        out.write(b"\r\n");
    }
    // RFC 9112 section 9.6 and 9.3; RFC 9110 section 7.8.
    if upgrade {
        out.write(b"Connection: upgrade\r\n");
    } else if with.close {
        out.write(b"Connection: close\r\n");
    } else if with.old_client {
        out.write(b"Connection: keep-alive\r\n");
    }
    out.write(b"\r\n");
}

/// Whether `Content-Length` is a list or repeated: RFC 9110 section 8.6 wants one value passed on.
fn length_needs_rewrite(buffer: &[u8], fields: &Fields) -> bool {
    let mut values = fields.values(buffer, Known::ContentLength);
    match values.next() {
        None => false,
        Some(first) => first.contains(&b',') || values.next().is_some(),
    }
}

fn write_rewritten_length(buffer: &[u8], fields: &Fields, out: &mut Edit) {
    // The parser has seen that all members are the same number.
    if let Some(first) = fields.values(buffer, Known::ContentLength).flat_map(list_members).next() {
        out.write(b"Content-Length: ");
        out.write(first);
        out.write(b"\r\n");
    }
}

fn write_framing(framing: Framing, length_rewritten: bool, out: &mut Edit) {
    match framing {
        Framing::Chunked => out.write(b"Transfer-Encoding: chunked\r\n"),
        Framing::Length(length) if length_rewritten => {
            out.write(b"Content-Length: ");
            out.write_number(length);
            out.write(b"\r\n");
        }
        Framing::None if length_rewritten => out.write(b"Content-Length: 0\r\n"),
        Framing::Length(_) | Framing::None | Framing::UntilClose => {}
    }
}

/// RFC 9110 section 7.6.1: what Connection names goes no further. Fields that frame or route are never dropped for
/// it: that would change the message.
fn named_by_connection(buffer: &[u8], fields: &Fields, field: &Field) -> bool {
    if matches!(field.known, Known::Host | Known::ContentLength | Known::TransferEncoding | Known::Expect) {
        return false;
    }
    let name = field.name.of(buffer);
    fields
        .values(buffer, Known::Connection)
        .flat_map(list_members)
        .any(|member| member.eq_ignore_ascii_case(name))
}
