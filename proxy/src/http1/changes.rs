//! What an operator wants changed in a head beside what every intermediary changes.

use std::ops::Range;

use underpass_command::state::EditAction;

use super::Known;
use super::chars::{FIELD_VALUE, TARGET, is_token};
use super::pieces::Edit;

/// The longest name of a field that can be changed, in bytes.
const NAME_SIZE_MAX: usize = 128;

/// A change of a header field, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    name: Box<[u8]>,
    action: EditAction,
}

impl FieldChange {
    /// A change of the field `name`.
    ///
    /// # Errors
    /// A sentence that says why the name cannot be changed: fields that say where a message or connection ends, or that the
    /// proxy itself answers for, would have peers disagree on where the next message begins.
    pub fn new(name: &str, action: EditAction) -> Result<Self, String> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_SIZE_MAX || !bytes.iter().all(|byte| is_token(*byte)) {
            return Err(format!("{name:?} is not the name of a field"));
        }
        let fixed = matches!(
            Known::of(bytes),
            // RFC 9112 section 6, RFC 9110 section 7.6.1.
            Known::ContentLength
                | Known::TransferEncoding
                | Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::Te
                | Known::Upgrade
                | Known::Host
                | Known::Expect
                | Known::MaxForwards
                | Known::Via
        );
        if fixed || name.eq_ignore_ascii_case("trailer") {
            let instead = match Known::of(bytes) {
                Known::Host => "; rewrite the host",
                Known::Via => "; via in the settings decides",
                _ => "",
            };
            return Err(format!(
                "{name} belongs to the connection or to the framing, which the proxy answers for{instead}"
            ));
        }
        Ok(Self { name: bytes.into(), action })
    }
}

/// Texts that were made for one message: one after the other in memory that is used again.
#[derive(Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    /// None, without memory.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), ends: Vec::new() }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Adds one, as `write` writes it behind those before.
    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// How many bytes all of them have.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[index]
    }

    /// One of them.
    pub fn of(&self, index: usize) -> &[u8] {
        &self.bytes[self.range(index)]
    }
}

/// Changes of one head.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// The new path and query of a request.
    pub target: Option<&'a [u8]>,
    /// The new Host field of a request.
    pub host: Option<&'a [u8]>,
    /// Changes of fields.
    pub fields: &'a [FieldChange],
    /// Their values: that of `fields[n]` is number `first + n`.
    pub values: &'a Texts,
    /// See `values`.
    pub first: usize,
}

static NO_TEXTS: Texts = Texts::new();

impl Changes<'_> {
    /// Nothing is changed.
    pub const NONE: Changes<'static> =
        Changes { target: None, host: None, fields: &[], values: &NO_TEXTS, first: 0 };

    /// Whether lines of this name are not passed on, and not written by the proxy itself.
    #[inline]
    pub(super) fn replace(&self, name: &[u8]) -> bool {
        self.fields
            .iter()
            .any(|change| change.action != EditAction::Append && change.name.eq_ignore_ascii_case(name))
    }

    /// Writes the new lines.
    pub(super) fn write(&self, out: &mut Edit) {
        for (index, change) in self.fields.iter().enumerate() {
            if change.action != EditAction::Remove {
                out.write(&change.name);
                out.write(b": ");
                out.write(self.values.of(self.first + index));
                out.write(b"\r\n");
            }
        }
    }
}

/// Whether a text may stand as the value of a field: no line end can come into a head by it.
pub fn is_field_value(text: &[u8]) -> bool {
    text.iter().all(|byte| FIELD_VALUE.has(*byte))
}

/// Whether a text may stand as the path and query of a request (RFC 9112 section 3.2.1).
pub fn is_origin_form(text: &[u8]) -> bool {
    text.first() == Some(&b'/') && text.iter().all(|byte| TARGET.has(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_a_message_cannot_be_changed() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "Connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
            "Host",
            "Expect",
            "Via",
            "Proxy-Connection",
            "Max-Forwards",
            "",
            "a b",
            "a:b",
            "a\r\nb",
            "ä",
        ] {
            for action in EditAction::ALL {
                assert!(FieldChange::new(name, *action).is_err(), "{name}");
            }
        }
        assert!(FieldChange::new("X-Forwarded-For", EditAction::Set).is_ok());
    }

    #[test]
    fn nothing_that_ends_a_line_or_a_target() {
        assert!(is_field_value(b"a b\t\xe4") && !is_field_value(b"a\r\nb") && !is_field_value(b"\0"));
        assert!(
            is_origin_form(b"/a?b")
                && !is_origin_form(b"/a b")
                && !is_origin_form(b"a")
                && !is_origin_form(b"/a#b")
        );
        assert!(!is_origin_form(b""));
    }
}
