//! The framing ledger: how much of a message's body is still to come.
//!
//! One type for every forwarder. Bytes that pass through userspace are shown to [`Ledger::scan`], which finds chunk
//! headers, trailers and the end; bytes that the kernel moves unseen are taken off with [`Ledger::debit`], never more than
//! [`Ledger::data_left`] allows. A connection may be reused only when the ledger is settled.
#![deny(clippy::disallowed_methods)]

use crate::http1::chars::{is_field_value, is_token};
use crate::http1::{Framing, Known, Reason};

/// Longest line of a chunk size with its extensions, line end not counted.
const CHUNK_LINE_SIZE_MAX: u32 = 1024;
/// Longest name of a [`Known`] field, and so the bytes of a trailer's name that are kept.
const NAME_KEPT: usize = 17;

/// Bounds of a trailer section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailerLimits {
    /// Longest section in bytes.
    pub size_max: u32,
    /// Most fields.
    pub count_max: u16,
}

/// A part of the input that [`Ledger::scan`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// So many bytes of content.
    Data(usize),
    /// So many bytes of framing: chunk sizes, line ends, trailers.
    Framing(usize),
    /// The message is complete; nothing of the input belongs to it any more.
    End,
    /// All input was taken; more must come.
    More,
}

/// How much of one message's body is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    state: State,
    /// Bytes of content that passed.
    content: u64,
    /// The most there may be.
    content_max: u64,
    trailer_limits: TrailerLimits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Settled,
    Length(u64),
    UntilClose,
    Chunked(Chunked),
}

/// Where in the chunked coding we are: RFC 9112 section 7.1.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunked {
    /// In a chunk size; `digits` of it have been read.
    Size { size: u64, digits: u8 },
    /// After a chunk size, and before the end of its line, of which `line` bytes have been read.
    Extension { size: u64, line: u32, place: ExtensionPlace },
    /// The line feed after a chunk size line.
    SizeEnd { size: u64 },
    /// In chunk data; so many bytes are left.
    Data(u64),
    /// The carriage return after chunk data.
    DataCr,
    /// The line feed after chunk data.
    DataLf,
    /// In the trailer section.
    Trailer(Trailer),
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS value ] )`: RFC 9112 section 7.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExtensionPlace {
    AfterSize,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    Escaped,
    QuotedEnd,
    AfterValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trailer {
    place: TrailerPlace,
    size: u32,
    count: u16,
    name: [u8; NAME_KEPT],
    name_len: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrailerPlace {
    LineStart,
    Name,
    Value,
    ValueEnd,
    LastLf,
}

impl Ledger {
    /// The ledger of a message with this framing.
    pub fn new(framing: Framing, trailer_limits: TrailerLimits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Settled,
            Framing::Length(left) => State::Length(left),
            Framing::Chunked => State::Chunked(Chunked::Size { size: 0, digits: 0 }),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, content: 0, content_max: u64::MAX, trailer_limits }
    }

    /// The ledger before there is a message: settled.
    pub fn settled() -> Self {
        Self::new(Framing::None, TrailerLimits { size_max: 0, count_max: 0 })
    }

    /// Sets the most content a chunked body may have. The chunk that would cross it is refused by its header, so that a
    /// body that is too large never reaches its end at the other side.
    #[must_use]
    pub fn with_content_max(mut self, most: u64) -> Self {
        self.content_max = most;
        self
    }

    /// Whether the message is complete.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.state == State::Settled
    }

    /// Bytes of content that have passed, chunk framing not counted.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// How many of the next bytes are certainly content, so that the kernel may move them unseen. `u64::MAX` when
    /// only the end of the connection ends the body; 0 where userspace must look first.
    #[inline]
    pub fn data_left(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Chunked(Chunked::Data(left)) => left,
            State::UntilClose => u64::MAX,
            State::Settled | State::Chunked(_) => 0,
        }
    }

    /// Whether what comes next is the rest of the line between two chunks, or of the first one's, extensions not counted.
    #[inline]
    pub fn is_in_chunk_line(&self) -> bool {
        matches!(
            self.state,
            State::Chunked(
                Chunked::DataCr | Chunked::DataLf | Chunked::Size { .. } | Chunked::SizeEnd { .. }
            )
        )
    }

    /// Takes off content that the kernel has moved.
    ///
    /// # Panics
    /// When more was moved than [`Self::data_left`] allowed: the forwarder is broken, and going on could give one message's
    /// bytes to another.
    pub fn debit(&mut self, moved: u64) {
        assert!(moved <= self.data_left(), "moved {moved} bytes of {} allowed", self.data_left());
        self.content += moved;
        match &mut self.state {
            State::Length(left) => {
                *left -= moved;
                if *left == 0 {
                    self.state = State::Settled;
                }
            }
            State::Chunked(chunked @ Chunked::Data(_)) => {
                if let Chunked::Data(left) = chunked {
                    *left -= moved;
                    if *left == 0 {
                        *chunked = Chunked::DataCr;
                    }
                }
            }
            State::UntilClose | State::Settled | State::Chunked(_) => {}
        }
    }

    /// Finds the next part at the start of `input` and enters it into the books. Call again with the rest of the
    /// input until [`Part::End`] or [`Part::More`].
    ///
    /// # Errors
    /// The reason why the body breaks RFC 9112; nothing of it may be forwarded any more, and the connection must be
    /// closed.
    pub fn scan(&mut self, input: &[u8]) -> Result<Part, Reason> {
        if self.is_settled() {
            return Ok(Part::End);
        }
        if input.is_empty() {
            return Ok(Part::More);
        }
        let data = self.data_left().min(input.len() as u64);
        if data > 0 {
            self.debit(data);
            #[allow(clippy::cast_possible_truncation, reason = "at most input.len()")]
            return Ok(Part::Data(data as usize));
        }
        self.scan_framing(input).map(Part::Framing)
    }

    /// Shows how much of `input` belongs to this message, all of it passed on unchanged.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn take(&mut self, input: &[u8]) -> Result<usize, Reason> {
        let mut taken = 0;
        loop {
            match self.scan(&input[taken..])? {
                Part::Data(n) | Part::Framing(n) => taken += n,
                Part::End | Part::More => return Ok(taken),
            }
        }
    }

    /// Enters that the sender has closed its side.
    ///
    /// # Errors
    /// [`Reason::BodyTruncated`] when the message was not complete (RFC 9112 section 8).
    pub fn close(&mut self) -> Result<(), Reason> {
        match self.state {
            State::Settled => Ok(()),
            State::UntilClose => {
                self.state = State::Settled;
                Ok(())
            }
            State::Length(_) | State::Chunked(_) => Err(Reason::BodyTruncated),
        }
    }

    /// Reads framing bytes until data, the end, or the end of the input; returns how many.
    fn scan_framing(&mut self, input: &[u8]) -> Result<usize, Reason> {
        let limits = self.trailer_limits;
        let State::Chunked(chunked) = &mut self.state else { return Ok(0) };
        for (index, &byte) in input.iter().enumerate() {
            match chunked.step(byte, limits)? {
                Step::Go => {}
                Step::Data => {
                    if self.data_left() > self.content_max - self.content {
                        return Err(Reason::BodyTooLarge);
                    }
                    return Ok(index + 1);
                }
                Step::Done => {
                    self.state = State::Settled;
                    return Ok(index + 1);
                }
            }
        }
        Ok(input.len())
    }
}

enum Step {
    Go,
    Data,
    Done,
}

impl Chunked {
    fn step(&mut self, byte: u8, limits: TrailerLimits) -> Result<Step, Reason> {
        match self {
            Self::Size { size, digits } => {
                let (size, digits) = (*size, *digits);
                *self = Self::size_byte(byte, size, digits)?;
            }
            Self::Extension { size, line, place } => {
                if byte == b'\r' && place.may_end() {
                    *self = Self::SizeEnd { size: *size };
                    return Ok(Step::Go);
                }
                *line += 1;
                *place = place.next(byte)?;
                if *line > CHUNK_LINE_SIZE_MAX {
                    return Err(Reason::ChunkExtensionMalformed);
                }
            }
            Self::SizeEnd { size } => {
                if byte != b'\n' {
                    return Err(Reason::BareCr);
                }
                if *size > 0 {
                    *self = Self::Data(*size);
                    return Ok(Step::Data);
                }
                *self = Self::Trailer(Trailer {
                    place: TrailerPlace::LineStart,
                    size: 0,
                    count: 0,
                    name: [0; NAME_KEPT],
                    name_len: 0,
                });
            }
            Self::Data(_) => debug_assert!(false, "chunk data is debited, not stepped through"),
            Self::DataCr if byte == b'\r' => *self = Self::DataLf,
            Self::DataLf if byte == b'\n' => *self = Self::Size { size: 0, digits: 0 },
            Self::DataCr | Self::DataLf => return Err(Reason::ChunkEndMissing),
            Self::Trailer(trailer) => return trailer.step(byte, limits),
        }
        Ok(Step::Go)
    }

    fn size_byte(byte: u8, size: u64, digits: u8) -> Result<Self, Reason> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if digits == 0 => return Err(line_byte_reason(byte, Reason::ChunkSizeMalformed)),
            b'\r' => return Ok(Self::SizeEnd { size }),
            // White space may stand before the semicolon, "bad" as it is (RFC 9112 section 7.1.1).
            b';' | b' ' | b'\t' => {
                let line = u32::from(digits) + 1;
                let place = if byte == b';' { ExtensionPlace::BeforeName } else { ExtensionPlace::AfterSize };
                return Ok(Self::Extension { size, line, place });
            }
            _ => return Err(line_byte_reason(byte, Reason::ChunkSizeMalformed)),
        };
        // RFC 9112 section 7.1: recipients must anticipate large numbers. Sixteen digits hold every u64; a bound on the
        // digits also ends endless leading zeros. i64::MAX keeps sums with other counts from overflowing.
        if digits >= 16 || size > (i64::MAX as u64) >> 4 {
            return Err(Reason::ChunkSizeOverflow);
        }
        Ok(Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
    }
}

impl ExtensionPlace {
    /// Whether the line may end here. White space at its end is not in the grammar.
    fn may_end(self) -> bool {
        matches!(self, Self::Name | Self::Token | Self::QuotedEnd)
    }

    /// The place after `byte`. Extensions mean nothing here, but they are passed on, and a recipient that saw their end
    /// elsewhere would see other chunks.
    fn next(self, byte: u8) -> Result<Self, Reason> {
        let space = matches!(byte, b' ' | b'\t');
        Ok(match self {
            // RFC 9110 section 5.6.4: a quoted string holds no control character, so no line end either.
            Self::Quoted if byte == b'"' => Self::QuotedEnd,
            Self::Quoted if byte == b'\\' => Self::Escaped,
            Self::Quoted | Self::Escaped if is_field_value(byte) => Self::Quoted,
            Self::AfterSize | Self::BeforeName | Self::AfterName | Self::BeforeValue | Self::AfterValue
                if space =>
            {
                self
            }
            Self::Name if space => Self::AfterName,
            Self::Token | Self::QuotedEnd if space => Self::AfterValue,
            Self::BeforeName | Self::Name if is_token(byte) => Self::Name,
            Self::BeforeValue | Self::Token if is_token(byte) => Self::Token,
            Self::BeforeValue if byte == b'"' => Self::Quoted,
            Self::Name | Self::AfterName if byte == b'=' => Self::BeforeValue,
            Self::AfterSize
            | Self::Name
            | Self::AfterName
            | Self::Token
            | Self::QuotedEnd
            | Self::AfterValue
                if byte == b';' =>
            {
                Self::BeforeName
            }
            Self::AfterSize => return Err(line_byte_reason(byte, Reason::ChunkSizeMalformed)),
            _ => return Err(line_byte_reason(byte, Reason::ChunkExtensionMalformed)),
        })
    }
}

impl Trailer {
    fn step(&mut self, byte: u8, limits: TrailerLimits) -> Result<Step, Reason> {
        self.size += 1;
        if self.size > limits.size_max {
            return Err(Reason::HeadTooLarge);
        }
        self.place = match self.place {
            TrailerPlace::LineStart => match byte {
                b'\r' => TrailerPlace::LastLf,
                b' ' | b'\t' => return Err(Reason::ObsFold),
                b':' => return Err(Reason::FieldNameEmpty),
                _ if is_token(byte) => {
                    self.count += 1;
                    if self.count > limits.count_max {
                        return Err(Reason::TooManyFields);
                    }
                    self.name_len = 0;
                    self.keep_name_byte(byte);
                    TrailerPlace::Name
                }
                _ => return Err(line_byte_reason(byte, Reason::FieldNameInvalid)),
            },
            TrailerPlace::Name => match byte {
                b':' if self.is_forbidden() => return Err(Reason::TrailerForbidden),
                b':' => TrailerPlace::Value,
                b' ' | b'\t' => return Err(Reason::SpaceBeforeColon),
                _ if is_token(byte) => {
                    self.keep_name_byte(byte);
                    TrailerPlace::Name
                }
                _ => return Err(line_byte_reason(byte, Reason::FieldNameInvalid)),
            },
            TrailerPlace::Value => match byte {
                b'\r' => TrailerPlace::ValueEnd,
                _ if is_field_value(byte) => TrailerPlace::Value,
                _ => return Err(line_byte_reason(byte, Reason::FieldValueInvalid)),
            },
            TrailerPlace::ValueEnd if byte == b'\n' => TrailerPlace::LineStart,
            TrailerPlace::LastLf if byte == b'\n' => return Ok(Step::Done),
            TrailerPlace::ValueEnd | TrailerPlace::LastLf => return Err(Reason::BareCr),
        };
        Ok(Step::Go)
    }

    fn keep_name_byte(&mut self, byte: u8) {
        if let Some(slot) = self.name.get_mut(usize::from(self.name_len)) {
            *slot = byte;
        }
        self.name_len = self.name_len.saturating_add(1);
    }

    /// RFC 9110 section 6.5.1: a recipient that merged a trailer into the head would frame, route or attribute the
    /// message anew, past the edits that were made to its head. So none of the fields that the proxy looks at may be one.
    fn is_forbidden(&self) -> bool {
        let name = self.name.get(..usize::from(self.name_len));
        name.is_some_and(|name| Known::of(name) != Known::Other)
    }
}

/// A line feed that no carriage return precedes says so by name; anything else is `otherwise`.
fn line_byte_reason(byte: u8, otherwise: Reason) -> Reason {
    if byte == b'\n' { Reason::BareLf } else { otherwise }
}

#[cfg(test)]
mod tests;
