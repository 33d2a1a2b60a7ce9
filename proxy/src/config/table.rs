//! The shape of the table of keys: what a key is called, what it takes, and how it reaches its field.

use std::ops::RangeInclusive;

use super::syntax::Syntax;

/// Why a value is refused, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) remedy: String,
}

impl Fault {
    pub(super) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason: reason.into(), remedy: remedy.into() }
    }
}

/// One key of the file, which sets one field of `T`.
pub(super) struct Key<T: 'static> {
    /// Its name within its table.
    pub(super) name: &'static str,
    /// What it is, in one or two sentences. Says what 0 and leaving it out mean.
    pub(super) doc: &'static str,
    pub(super) need: Need,
    pub(super) access: Access<T>,
}

/// Whether a key must be there.
#[derive(Clone, Copy)]
pub(super) enum Need {
    /// It has a default.
    Default,
    /// It may be left out, and has no value then; the text is an example.
    Optional(&'static str),
    /// It or one of others must be there, which is checked elsewhere; the text is an example.
    OneOf(&'static str),
    /// It must be there; the text is an example.
    Required(&'static str),
}

/// What a key takes, and how its field is read and set.
pub(super) enum Access<T: 'static> {
    Integer {
        range: RangeInclusive<u64>,
        /// In the plural; empty for a plain number.
        unit: &'static str,
        get: fn(&T) -> u64,
        /// False when the field cannot hold the number.
        set: fn(&mut T, u64) -> bool,
    },
    Boolean {
        get: fn(&T) -> bool,
        set: fn(&mut T, bool),
    },
    Text {
        syntax: Syntax,
        get: fn(&T) -> Option<String>,
        set: fn(&mut T, &str) -> Result<(), Fault>,
    },
}

impl<T> Key<T> {
    /// The field's value as a file would have it; none when it has none.
    pub(super) fn literal(&self, target: &T) -> Option<String> {
        match &self.access {
            Access::Integer { get, .. } => Some(get(target).to_string()),
            Access::Boolean { get, .. } => Some(get(target).to_string()),
            Access::Text { get, .. } => get(target).map(|text| quote(&text)),
        }
    }

    /// Whether no message may show its value.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self.access, Access::Text { syntax: Syntax::Secret, .. })
    }

    /// Whether the field's value is one that the key takes.
    pub(super) fn check(&self, target: &T) -> Result<(), Fault> {
        match &self.access {
            Access::Integer { range, unit, get, .. } => check_range(range, unit, get(target)),
            Access::Boolean { .. } => Ok(()),
            Access::Text { syntax, get, .. } => match get(target) {
                Some(text) => syntax.check(&text),
                None if matches!(self.need, Need::Optional(_) | Need::OneOf(_)) => Ok(()),
                // Only a path can be there and have no text.
                None => Err(Fault::new("not UTF-8", "use a path in UTF-8")),
            },
        }
    }
}

/// Whether a number is in the range of its key.
pub(super) fn check_range(range: &RangeInclusive<u64>, unit: &str, value: u64) -> Result<(), Fault> {
    if range.contains(&value) {
        return Ok(());
    }
    let reason = match value < *range.start() {
        true => format!("below {}", range.start()),
        false => format!("above {}", range.end()),
    };
    Err(Fault { reason, remedy: use_range(range, unit) })
}

/// The remedy for a number that is out of its range.
pub(super) fn use_range(range: &RangeInclusive<u64>, unit: &str) -> String {
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    format!("use a number from {} to {}{unit}", range.start(), range.end())
}

/// A text as a TOML string.
pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
