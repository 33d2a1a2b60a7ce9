//! Field lines (RFC 9112 section 5), found as spans of the buffer they stand in.

use nom::bytes::streaming::take_while;
use nom::error::{ErrorKind, ParseError};
use nom::{Err, IResult, Needed, Parser};

use super::chars::{FIELD_VALUE, TOKEN};
use super::{Known, Reason};

/// A range of bytes in the buffer that holds the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes it names.
    #[inline]
    pub fn of<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        &buffer[self.start as usize..self.end as usize]
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it names no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The place of `part`, which must be a slice of `whole`.
    #[inline]
    pub(super) fn locate(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        debug_assert!(start + part.len() <= whole.len());
        #[allow(clippy::cast_possible_truncation, reason = "a head is at most Limits::head_size_max, a u32")]
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }
}

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name; the line begins here.
    pub name: Span,
    /// Its value without the white space around it.
    pub value: Span,
    /// Which field it is.
    pub known: Known,
    /// Whether Connection names it, so that it goes no further (RFC 9110 section 7.6.1).
    pub hop_by_hop: bool,
}

/// The field lines of a head, in a list that is made once and reused. Lines are contiguous: each ends where the next
/// begins, the last at `end`.
#[derive(Debug, Default)]
pub struct Fields {
    list: Vec<Field>,
    end: u32,
    /// Bit n is set when a field of the known kind n is in the list.
    seen: u32,
}

impl Fields {
    /// A list that never grows beyond `count_max`.
    pub fn with_capacity(count_max: u16) -> Self {
        Self { list: Vec::with_capacity(usize::from(count_max)), end: 0, seen: 0 }
    }

    /// The fields in the order they came.
    #[inline]
    pub fn list(&self) -> &[Field] {
        &self.list
    }

    /// The whole line of field `index`, line end included.
    #[inline]
    pub fn line(&self, index: usize) -> Span {
        let end = self.list.get(index + 1).map_or(self.end, |next| next.name.start);
        Span { start: self.list[index].name.start, end }
    }

    /// Marks every field called `name` as hop-by-hop. Fields that frame or route are never marked: to drop them would
    /// change the message.
    pub(super) fn mark_hop_by_hop(&mut self, buffer: &[u8], name: &[u8]) {
        for field in &mut self.list {
            let fixed = matches!(
                field.known,
                Known::Host | Known::ContentLength | Known::TransferEncoding | Known::Expect
            );
            field.hop_by_hop |= !fixed && field.name.of(buffer).eq_ignore_ascii_case(name);
        }
    }

    /// Where the empty line begins that ends the head.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The values of a known field.
    pub fn values<'a>(&'a self, buffer: &'a [u8], known: Known) -> impl Iterator<Item = &'a [u8]> {
        let list = if self.has(known) { self.list.as_slice() } else { &[] };
        list.iter().filter(move |field| field.known == known).map(move |field| field.value.of(buffer))
    }

    /// Whether a known field is there that is meant for the next hop too, and which line is its last.
    pub(crate) fn last_end_to_end(&self, known: Known) -> Option<usize> {
        let list = if self.has(known) { self.list.as_slice() } else { &[] };
        list.iter().rposition(|field| field.known == known && !field.hop_by_hop)
    }

    /// Whether a known field is there.
    #[inline]
    pub fn has(&self, known: Known) -> bool {
        self.seen & (1 << known as u32) != 0
    }
}

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest head in bytes, empty line included.
    pub head_size_max: u32,
    /// Most fields.
    pub header_count_max: u16,
    /// Longest request target in bytes.
    pub target_size_max: u32,
}

/// A failed parse: the reason, for nom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) Reason);

impl<I> ParseError<I> for Refusal {
    fn from_error_kind(_: I, _: ErrorKind) -> Self {
        Self(Reason::StartLineMalformed)
    }

    fn append(_: I, _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// What a head parser returns: the rest and the value.
pub(super) type Parsed<'a, T> = IResult<&'a [u8], T, Refusal>;

/// A definite refusal.
pub(super) fn refuse<'a, T>(reason: Reason) -> Parsed<'a, T> {
    Err(Err::Failure(Refusal(reason)))
}

/// Consumes exactly CR LF. RFC 9112 section 2.2: a recipient may take a bare LF for a line end; it is refused here,
/// as is a bare CR, because other recipients of the same bytes would see other lines.
pub(super) fn line_end<'a>(input: &'a [u8], otherwise: Reason) -> Parsed<'a, ()> {
    match input {
        [b'\r', b'\n', rest @ ..] => Ok((rest, ())),
        [] | [b'\r'] => Err(Err::Incomplete(Needed::Unknown)),
        [b'\r', ..] => refuse(Reason::BareCr),
        [b'\n', ..] => refuse(Reason::BareLf),
        _ => refuse(otherwise),
    }
}

/// `field-name ":"`.
fn field_name(input: &[u8]) -> Parsed<'_, &[u8]> {
    let (rest, name) = take_while(|byte| TOKEN.has(byte)).parse(input)?;
    match rest.first() {
        Some(b':') if name.is_empty() => refuse(Reason::FieldNameEmpty),
        Some(b':') => Ok((&rest[1..], name)),
        // RFC 9112 section 5.1: no white space between name and colon; a server must answer 400.
        Some(b' ' | b'\t') if !name.is_empty() => refuse(Reason::SpaceBeforeColon),
        Some(b'\n') => refuse(Reason::BareLf),
        Some(b'\r') if rest.get(1).is_some_and(|&byte| byte != b'\n') => refuse(Reason::BareCr),
        Some(b'\r') if rest.len() == 1 => Err(Err::Incomplete(Needed::Unknown)),
        Some(_) => refuse(Reason::FieldNameInvalid),
        None => Err(Err::Incomplete(Needed::Unknown)),
    }
}

/// `OWS field-value OWS CRLF`, the value without the white space.
fn field_value(input: &[u8]) -> Parsed<'_, &[u8]> {
    let (rest, line) = take_while(|byte| FIELD_VALUE.has(byte)).parse(input)?;
    // RFC 9110 section 5.5: CR, LF and NUL in a value are refused; so are other controls.
    let (rest, ()) = line_end(rest, Reason::FieldValueInvalid)?;
    Ok((rest, trim(line)))
}

/// Without the optional white space (RFC 9110 section 5.6.3) at both ends.
#[inline]
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Parses field lines up to and including the empty line.
///
/// `whole` is the buffer that `input` is a part of; spans count from its start.
pub(super) fn field_lines<'a>(
    whole: &[u8],
    mut input: &'a [u8],
    fields: &mut Fields,
    limits: &Limits,
) -> Parsed<'a, ()> {
    fields.list.clear();
    fields.seen = 0;
    loop {
        match input {
            [b'\r', b'\n', rest @ ..] => {
                fields.end = Span::locate(whole, input).start;
                return Ok((rest, ()));
            }
            [b'\r'] | [] => return Err(Err::Incomplete(Needed::Unknown)),
            // RFC 9112 section 5.2: a server must refuse line folding or unfold it. It is refused; white space
            // before the first field (section 2.2) is the same offence.
            [b' ' | b'\t', ..] => return refuse(Reason::ObsFold),
            _ => {}
        }
        let (rest, name) = field_name(input)?;
        let (rest, value) = field_value(rest)?;
        if fields.list.len() == usize::from(limits.header_count_max) {
            return refuse(Reason::TooManyFields);
        }
        let known = Known::of(name);
        fields.seen |= 1 << known as u32;
        fields.list.push(Field {
            name: Span::locate(whole, name),
            value: Span::locate(whole, value),
            known,
            hop_by_hop: false,
        });
        input = rest;
    }
}

/// The part of a buffer that a head may fill. What lies beyond it must not change the answer.
pub(super) fn cut<'a>(buffer: &'a [u8], limits: &Limits) -> &'a [u8] {
    &buffer[..buffer.len().min(limits.head_size_max as usize)]
}

/// Turns nom's result for a head [`cut`] to its bound into ours: `None` while bytes are missing.
pub(super) fn finish<T>(
    buffer: &[u8],
    parsed: Parsed<'_, T>,
    limits: &Limits,
) -> Result<Option<(T, u32)>, Reason> {
    match parsed {
        Ok((rest, value)) => Ok(Some((value, Span::locate(buffer, rest).start))),
        Err(Err::Incomplete(_)) if buffer.len() >= limits.head_size_max as usize => Err(Reason::HeadTooLarge),
        Err(Err::Incomplete(_)) => Ok(None),
        Err(Err::Error(Refusal(reason)) | Err::Failure(Refusal(reason))) => Err(reason),
    }
}

/// The members of a comma-separated list, trimmed, empty ones left out (RFC 9110 section 5.6.1).
pub(super) fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|member| !member.is_empty())
}
