//! Request heads: RFC 9112 sections 3 and 6.

use nom::bytes::streaming::take_while;
use nom::{Err, Needed, Parser};

use super::authority::parse_authority;
use super::chars::{TARGET, TOKEN};
use super::fields::{
    Fields, Limits, Parsed, Refusal, Span, cut, field_lines, finish, line_end, list_members, refuse,
};
use super::framing::framing_fields;
use super::{Framing, Known, Reason};

/// The versions spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// Methods that framing or retrying depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD: its response has no body.
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// OPTIONS: may have the target `*`.
    Options,
    /// TRACE
    Trace,
    /// CONNECT: a 2xx response turns the connection into a tunnel.
    Connect,
    /// Any other token.
    Other,
}

impl Method {
    fn of(token: &[u8]) -> Self {
        match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether sending the request twice has the effect of sending it once: RFC 9110 section 9.2.2.
    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }
}

/// The four forms of a request target: RFC 9112 section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/path?query`
    Origin,
    /// `http://authority/path?query`; the spans of the authority and of what follows it, which may be empty.
    Absolute {
        /// The authority.
        authority: Span,
        /// Path and query.
        path: Span,
    },
    /// `host:port`, only with CONNECT.
    Authority,
    /// `*`, only with OPTIONS.
    Asterisk,
}

/// A request head. Spans count from the start of the buffer that was parsed; the fields are in the list that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Length of the head in bytes, empty line included. The body begins here.
    pub size: u32,
    /// The method.
    pub method: Method,
    /// The method as it was sent.
    pub method_span: Span,
    /// The target as it was sent.
    pub target_span: Span,
    /// Its form.
    pub target: Target,
    /// The version.
    pub version: Version,
    /// The host asked for, without port: from the target's authority, else from Host (RFC 9112 section 3.3); empty
    /// in an HTTP/1.0 request without Host.
    pub host: Span,
    /// Where the body ends; never [`Framing::UntilClose`].
    pub framing: Framing,
    /// Whether the client wants to send more requests on this connection (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether the client waits for a 100 response (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    /// Whether an upgrade is asked for that may be passed on.
    pub upgrade: bool,
    /// How often an OPTIONS or TRACE request may still be passed on, if it says so; a number too large for the type is its
    /// largest. Always none for other methods.
    pub forwards_left: Option<u32>,
}

impl RequestHead {
    /// The path without query, for routing; `*` for the asterisk form, and `/` for CONNECT, which has none.
    pub fn path<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        self.path_and_query(buffer).0
    }

    /// The path, and the query with its question mark or nothing.
    pub fn path_and_query<'a>(&self, buffer: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let empty_path = |path: &Span| path.is_empty() || path.of(buffer)[0] == b'?';
        let with_query = match self.target {
            Target::Origin | Target::Asterisk => self.target_span.of(buffer),
            Target::Absolute { path, .. } if empty_path(&path) => return (b"/", path.of(buffer)),
            Target::Absolute { path, .. } => path.of(buffer),
            Target::Authority => b"/",
        };
        let end = memchr::memchr(b'?', with_query).unwrap_or(with_query.len());
        with_query.split_at(end)
    }
}

struct RequestLine<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: Version,
}

/// Parses a request head at the start of `buffer`; `None` while bytes are missing. Empty lines before it (RFC 9112
/// section 2.2) are the caller's to skip.
///
/// The same bytes give the same answer however they were split into reads: a refusal of a part is a refusal of the whole.
///
/// # Errors
/// The reason to refuse the request and close the connection.
pub fn parse_request(
    buffer: &[u8],
    fields: &mut Fields,
    limits: &Limits,
) -> Result<Option<RequestHead>, Reason> {
    let parsed = head(cut(buffer, limits), fields, limits);
    let Some((line, size)) = finish(buffer, parsed, limits)? else { return Ok(None) };
    let method = Method::of(line.method);
    let target_span = Span::locate(buffer, line.target);
    let target = target_form(buffer, method, line.target)?;
    let host = host(buffer, fields, target, target_span, line.version)?;
    let framing = framing_fields(buffer, fields, line.version)?;
    let framing = match framing.length {
        _ if framing.chunked => Framing::Chunked,
        None | Some(0) => Framing::None, // RFC 9112 section 6.3, rule 7
        Some(length) => Framing::Length(length),
    };
    // RFC 9110 section 9.3.6: what follows a CONNECT's head is not content. Some would read it as such, others as the
    // tunnel's first bytes.
    if method == Method::Connect && framing != Framing::None {
        return Err(Reason::ConnectWithBody);
    }
    let expects_continue = expectation(buffer, fields, line.version)?;
    let forwards_left = forwards_left(buffer, fields, method)?;
    let connection = ConnectionOptions::read(buffer, fields, limits)?;
    let upgrade = connection.upgrade
        && line.version == Version::Http11
        && framing == Framing::None
        && upgrade_allowed(buffer, fields);
    Ok(Some(RequestHead {
        size,
        method,
        method_span: Span::locate(buffer, line.method),
        target_span,
        target,
        version: line.version,
        host,
        framing,
        keep_alive: connection.persistent(line.version),
        expects_continue,
        upgrade,
        forwards_left,
    }))
}

fn head<'a>(buffer: &'a [u8], fields: &mut Fields, limits: &Limits) -> Parsed<'a, RequestLine<'a>> {
    let (rest, line) = request_line(buffer, limits)?;
    let (rest, ()) = field_lines(buffer, rest, fields, limits)?;
    Ok((rest, line))
}

/// `method SP request-target SP HTTP-version CRLF`, RFC 9112 section 3.
fn request_line<'a>(input: &'a [u8], limits: &Limits) -> Parsed<'a, RequestLine<'a>> {
    let (rest, method) = take_while(|byte| TOKEN.has(byte)).parse(input)?;
    let rest = match rest {
        [b' ', rest @ ..] if !method.is_empty() => rest,
        [] => return Err(Err::Incomplete(Needed::Unknown)),
        [b'\n', ..] => return refuse(Reason::BareLf),
        // An empty line, which the caller skips, may be in the making.
        [b'\r'] if method.is_empty() => return Err(Err::Incomplete(Needed::Unknown)),
        _ => return refuse(Reason::MethodInvalid),
    };
    let (rest, target) = match take_while(|byte| TARGET.has(byte)).parse(rest) {
        Ok(parsed) => parsed,
        Err(Err::Incomplete(_)) if rest.len() > limits.target_size_max as usize => {
            return refuse(Reason::TargetTooLong);
        }
        Err(error) => return Err(error),
    };
    if target.len() > limits.target_size_max as usize {
        return refuse(Reason::TargetTooLong); // RFC 9112 section 3: 414
    }
    let rest = match rest {
        [b' ', rest @ ..] if !target.is_empty() => rest,
        // A line without version is HTTP/0.9.
        [b'\r' | b'\n', ..] => return refuse(Reason::StartLineMalformed),
        _ => return refuse(Reason::TargetInvalid),
    };
    let (rest, version) = match version(rest) {
        // RFC 9113 section 3.4: so begins the preface of HTTP/2.
        Err(Err::Failure(Refusal(Reason::VersionUnsupported))) if method == b"PRI" && target == b"*" => {
            return refuse(Reason::Http2Preface);
        }
        parsed => parsed?,
    };
    let (rest, ()) = line_end(rest, Reason::StartLineMalformed)?;
    Ok((rest, RequestLine { method, target, version }))
}

/// `HTTP/DIGIT.DIGIT`, RFC 9112 section 2.3.
pub(super) fn version(input: &[u8]) -> Parsed<'_, Version> {
    const SHAPE: &[u8; 8] = b"HTTP/0.0";
    for (index, expected) in SHAPE.iter().enumerate() {
        let fits = match input.get(index) {
            None => return Err(Err::Incomplete(Needed::Unknown)),
            Some(byte) if *expected == b'0' => byte.is_ascii_digit(),
            Some(byte) => byte == expected,
        };
        if !fits {
            return refuse(Reason::VersionMalformed);
        }
    }
    match (input[5], input[7]) {
        (b'1', b'1') => Ok((&input[8..], Version::Http11)),
        (b'1', b'0') => Ok((&input[8..], Version::Http10)),
        _ => refuse(Reason::VersionUnsupported),
    }
}

fn target_form(buffer: &[u8], method: Method, target: &[u8]) -> Result<Target, Reason> {
    if method == Method::Connect {
        // RFC 9110 section 9.3.6: host and port, nothing else.
        let authority = parse_authority(target)?;
        return if authority.port.is_some() { Ok(Target::Authority) } else { Err(Reason::TargetInvalid) };
    }
    match target {
        [b'/', ..] => Ok(Target::Origin),
        b"*" if method == Method::Options => Ok(Target::Asterisk),
        _ => {
            // RFC 9110 section 7.4: a request for an https resource must be refused where it did not come over a
            // connection secured for it, and all listeners are cleartext.
            if strip_prefix(target, b"https://").is_some() {
                return Err(Reason::Misdirected);
            }
            let rest = strip_prefix(target, b"http://").ok_or(Reason::TargetInvalid)?;
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            // RFC 9110 section 4.2.4: user information in a target is to be treated as an error.
            parse_authority(authority)?;
            Ok(Target::Absolute {
                authority: Span::locate(buffer, authority),
                path: Span::locate(buffer, path),
            })
        }
    }
}

fn strip_prefix<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// RFC 9112 section 3.2: exactly one valid Host in HTTP/1.1, at most one in HTTP/1.0.
fn host(
    buffer: &[u8],
    fields: &Fields,
    target: Target,
    target_span: Span,
    version: Version,
) -> Result<Span, Reason> {
    let mut values = fields.values(buffer, Known::Host);
    let field = values.next();
    if values.next().is_some() {
        return Err(Reason::HostRepeated);
    }
    if field.is_none() && version == Version::Http11 {
        return Err(Reason::HostMissing);
    }
    let from_field = field.map(parse_authority).transpose()?;
    let host = match target {
        // RFC 9112 section 3.2.2: the target's authority replaces Host.
        Target::Absolute { authority, .. } => parse_authority(authority.of(buffer))?.host,
        Target::Authority => parse_authority(target_span.of(buffer))?.host,
        Target::Origin | Target::Asterisk => match from_field {
            Some(authority) => authority.host,
            None => return Ok(Span::default()),
        },
    };
    Ok(Span::locate(buffer, host))
}

/// RFC 9110 section 10.1.1.
fn expectation(buffer: &[u8], fields: &Fields, version: Version) -> Result<bool, Reason> {
    let mut expects = false;
    for value in fields.values(buffer, Known::Expect) {
        for member in list_members(value) {
            if !member.eq_ignore_ascii_case(b"100-continue") {
                return Err(Reason::ExpectationUnknown);
            }
            expects = true;
        }
    }
    // "A server that receives a 100-continue expectation in an HTTP/1.0 request MUST ignore that expectation."
    Ok(expects && version == Version::Http11)
}

/// RFC 9110 section 7.6.2: `Max-Forwards = 1*DIGIT`, which means something to OPTIONS and TRACE only. Two values could be
/// read as one by this hop and as the other by the next.
fn forwards_left(buffer: &[u8], fields: &Fields, method: Method) -> Result<Option<u32>, Reason> {
    if !matches!(method, Method::Options | Method::Trace) {
        return Ok(None);
    }
    let mut values = fields.values(buffer, Known::MaxForwards);
    let Some(digits) = values.next() else { return Ok(None) };
    if values.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Reason::MaxForwardsMalformed);
    }
    let number = digits
        .iter()
        .fold(0_u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    Ok(Some(number))
}

/// Whether there is a protocol to upgrade to, and none that carries requests: `h2c`, another HTTP or TLS would let the
/// client send the backend requests that the proxy does not see.
fn upgrade_allowed(buffer: &[u8], fields: &Fields) -> bool {
    let mut any = false;
    for value in fields.values(buffer, Known::Upgrade) {
        for member in list_members(value) {
            if [&b"h2"[..], b"h3", b"http", b"tls"].iter().any(|name| strip_prefix(member, name).is_some()) {
                return false;
            }
            any = true;
        }
    }
    any
}

/// What the Connection field says: RFC 9110 section 7.6.1 and RFC 9112 section 9.3.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionOptions {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl ConnectionOptions {
    /// Reads the options, and marks the fields they name as hop-by-hop.
    pub(super) fn read(buffer: &[u8], fields: &mut Fields, limits: &Limits) -> Result<Self, Reason> {
        let mut options = Self::default();
        if !fields.has(Known::Connection) {
            return Ok(options);
        }
        let mut names_left = limits.header_count_max;
        for index in 0..fields.list().len() {
            let field = fields.list()[index];
            if field.known != Known::Connection {
                continue;
            }
            for member in list_members(field.value.of(buffer)) {
                if member.eq_ignore_ascii_case(b"close") {
                    options.close = true;
                } else if member.eq_ignore_ascii_case(b"keep-alive") {
                    options.keep_alive = true;
                } else if member.eq_ignore_ascii_case(b"upgrade") {
                    options.upgrade = true;
                } else {
                    // Each name is compared with each field. Without a bound, one head could cost a million comparisons.
                    names_left = names_left.checked_sub(1).ok_or(Reason::TooManyFields)?;
                    fields.mark_hop_by_hop(buffer, member);
                }
            }
        }
        Ok(options)
    }

    /// RFC 9112 section 9.3.
    pub(super) fn persistent(self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}
