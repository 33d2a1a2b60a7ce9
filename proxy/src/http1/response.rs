//! Response heads: RFC 9112 sections 4 and 6.

use nom::bytes::streaming::take_while;
use nom::{Err, Needed, Parser};

use super::chars::FIELD_VALUE;
use super::fields::{Fields, Limits, Parsed, Span, cut, field_lines, finish, line_end, refuse};
use super::framing::framing_fields;
use super::request::{ConnectionOptions, version};
use super::{Framing, Method, Reason, Version};

/// A response head. Spans count from the start of the buffer that was parsed; the fields are in the list that was
/// given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Length of the head in bytes, empty line included. The body begins here.
    pub size: u32,
    /// Its version.
    pub version: Version,
    /// The status code, 100 to 999.
    pub status: u16,
    /// Everything of the status line after the version, line end included.
    pub status_line_rest: Span,
    /// Where the body ends. For 101, and for 2xx to CONNECT, there is none: a tunnel follows.
    pub framing: Framing,
    /// Whether the backend keeps the connection open for another request.
    pub keep_alive: bool,
    /// Whether the framing fields must not be passed on: they stand where RFC 9110 section 8.6 and RFC 9112 section
    /// 6.1 forbid them (1xx, 204, 2xx to CONNECT).
    pub framing_fields_void: bool,
}

impl ResponseHead {
    /// Whether another response to the same request follows (RFC 9110 section 15.2).
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Parses a response head at the start of `buffer`; `None` while bytes are missing.
///
/// # Errors
/// The reason not to forward it; the client gets 502.
pub fn parse_response(
    buffer: &[u8],
    fields: &mut Fields,
    limits: &Limits,
    request_method: Method,
) -> Result<Option<ResponseHead>, Reason> {
    let parsed = head(cut(buffer, limits), fields, limits);
    let Some(((version, status, rest), size)) = finish(buffer, parsed, limits)? else { return Ok(None) };
    let given = framing_fields(buffer, fields, version)?;
    // RFC 9112 section 6.3, rules 1 and 2.
    let tunnel = request_method == Method::Connect && (200..300).contains(&status);
    let framing_fields_void = status < 200 || status == 204 || tunnel;
    let framing = if framing_fields_void || status == 304 || request_method == Method::Head {
        Framing::None
    } else if given.chunked {
        Framing::Chunked // rule 4
    } else {
        match given.length {
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length), // rule 6
            None => Framing::UntilClose,             // rule 8
        }
    };
    let connection = ConnectionOptions::read(buffer, fields, limits)?;
    // Fields that announce a body where there is none: a backend that sends it would have it read as its next response.
    let body_beyond_end =
        framing_fields_void && (given.chunked || given.length.is_some_and(|length| length > 0));
    let keep_alive = connection.persistent(version) && framing != Framing::UntilClose && !body_beyond_end;
    Ok(Some(ResponseHead {
        size,
        version,
        status,
        status_line_rest: rest,
        framing,
        keep_alive,
        framing_fields_void,
    }))
}

type StatusLine = (Version, u16, Span);

fn head<'a>(buffer: &'a [u8], fields: &mut Fields, limits: &Limits) -> Parsed<'a, StatusLine> {
    let (rest, line) = status_line(buffer)?;
    let (rest, ()) = field_lines(buffer, rest, fields, limits)?;
    Ok((rest, line))
}

/// `HTTP-version SP status-code SP [reason-phrase] CRLF`, RFC 9112 section 4. The space before an empty reason may be
/// missing, as many servers send it.
fn status_line(input: &[u8]) -> Parsed<'_, StatusLine> {
    let (rest, version) = version(input)?;
    let after_version = rest;
    let status = match rest {
        [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ if rest.len() < 4
            && rest.iter().skip(1).all(u8::is_ascii_digit)
            && rest.first().is_none_or(|b| *b == b' ') =>
        {
            return Err(Err::Incomplete(Needed::Unknown));
        }
        _ => return refuse(Reason::StatusMalformed),
    };
    let rest = match &rest[4..] {
        [b' ', rest @ ..] => take_while(|byte| FIELD_VALUE.has(byte)).parse(rest)?.0,
        rest => rest,
    };
    let (rest, ()) = line_end(rest, Reason::StartLineMalformed)?;
    let line_rest = &after_version[..after_version.len() - rest.len()];
    Ok((rest, (version, status, Span::locate(input, line_rest))))
}
