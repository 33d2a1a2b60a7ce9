//! The fields `traceparent` and `tracestate` (W3C Trace Context, level 1: <https://www.w3.org/TR/trace-context-1/>).

use super::{Fields, Known};

/// Length of what every version has: version, trace id, parent id and flags, with the dashes between.
const SIZE: usize = 55;
const TRACE_ID: std::ops::Range<usize> = 3..35;
const PARENT_ID: std::ops::Range<usize> = 36..52;
const FLAGS: std::ops::Range<usize> = 53..55;

/// A valid `traceparent`, as far as every version has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent([u8; SIZE]);

impl TraceParent {
    /// The one that a head carries, unless Connection takes it away. More than one names no trace: nobody could tell which
    /// of them the next hop believes (section 3.2, a single header).
    pub fn of(buffer: &[u8], fields: &Fields) -> Option<Self> {
        let last = fields.last_end_to_end(Known::TraceParent)?;
        let mut all = fields.list().iter().filter(|field| field.known == Known::TraceParent);
        match (all.next(), all.next()) {
            (Some(_), None) => Self::parse(fields.list()[last].value.of(buffer)),
            _ => None,
        }
    }

    /// Section 3.2.2: what has lower-case digits, no id of zeroes, and for version 00 this length. Section 4.3: a higher
    /// version may be longer, after another dash.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let known: [u8; SIZE] = value.get(..SIZE)?.try_into().ok()?;
        let version = &known[..2];
        let rest_fits = match value.get(SIZE) {
            None => true,
            Some(next) => *next == b'-' && version != b"00",
        };
        let digits = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let names = |part: &[u8]| digits(part) && part.iter().any(|byte| *byte != b'0');
        let valid = rest_fits
            && digits(version)
            && version != b"ff"
            && [known[2], known[35], known[52]] == [b'-'; 3]
            && names(&known[TRACE_ID])
            && names(&known[PARENT_ID])
            && digits(&known[FLAGS]);
        valid.then_some(Self(known))
    }

    /// The beginning of a trace, from random numbers. It says `sampled`: who starts traces wants them recorded, and tracers
    /// that follow their parent would record none otherwise.
    pub fn start(trace_id: u128, parent_id: u64) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        // Zero would mean that there is none (section 3.2.2.3).
        let (trace_id, parent_id) = (trace_id.max(1), parent_id.max(1));
        for (index, digit) in text[TRACE_ID].iter_mut().rev().enumerate() {
            *digit = DIGITS[(trace_id >> (4 * index) & 15) as usize];
        }
        for (index, digit) in text[PARENT_ID].iter_mut().rev().enumerate() {
            *digit = DIGITS[(parent_id >> (4 * index) & 15) as usize];
        }
        Self(text)
    }

    /// The field's value in version 00.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The id of the trace in hexadecimal.
    pub fn trace_id(&self) -> &[u8] {
        &self.0[TRACE_ID]
    }
}
