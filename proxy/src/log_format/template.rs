//! Templates of lines: read once, written without allocation.

use std::fmt;
use std::io::Write as _;

use super::field::IN_NGINX;
use super::{Escape, FIELDS, Field, write_escaped};
use crate::config::nearest;

/// The longest line, with its end, in bytes: what a pipe takes whole or not at all (PIPE_BUF, pipe(7)).
pub(crate) const LINE_SIZE_MAX: usize = 4096;
/// Bytes kept of each header field that a template names.
pub(crate) const HEADER_SIZE_MAX: usize = 512;
/// The most header fields of a template.
const HEADERS_MAX: usize = 16;
/// The longest name of a header field in bytes.
const HEADER_NAME_SIZE_MAX: usize = 64;
/// Bytes that a text has room for, whatever stands before it.
const TEXT_SIZE_MIN: usize = 64;
/// The longest number, u64::MAX.
const NUMBER_SIZE_MAX: usize = 20;

/// What a value is in one line.
pub(crate) enum Value<'a> {
    /// It did not come to that.
    Missing,
    Number(u64),
    Text(&'a [u8]),
    /// Text without anything to be escaped.
    Shown(&'a dyn fmt::Display),
}

/// Who knows the values.
pub(crate) trait Values {
    fn field(&self, field: Field) -> Value<'_>;
    /// The header field that stands at this place in [`Template::headers`].
    fn header(&self, index: usize) -> Value<'_>;
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError {
    /// Where, in characters from 1; none where it is about the whole.
    pub(crate) at: Option<usize>,
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "at character {at}: {}; {}", self.reason, self.remedy),
            None => write!(f, "{}; {}", self.reason, self.remedy),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Field(Field),
    Header(usize),
}

impl What {
    fn is_number(self) -> bool {
        matches!(self, Self::Field(field) if field.is_number())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<[u8]>),
    Value {
        what: What,
        quoted: bool,
        /// Bytes that must be left for what follows.
        rest: usize,
    },
}

impl Part {
    /// Bytes that it needs at least.
    fn size_min(&self) -> usize {
        match self {
            Self::Literal(text) => text.len(),
            Self::Value { what, .. } if what.is_number() => NUMBER_SIZE_MAX,
            Self::Value { .. } => TEXT_SIZE_MIN,
        }
    }
}

/// A template, ready for use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
    escape: Escape,
    headers: Vec<String>,
}

impl Template {
    /// Reads a template: text with `$name` or `${name}` for fields, `$http_name` for header fields of the request, and
    /// `$$` for a dollar.
    ///
    /// # Errors
    /// What is wrong with it, where, and what to do.
    pub(crate) fn new(text: &str, escape: Escape) -> Result<Self, TemplateError> {
        let mut reader =
            Reader { escape, parts: Vec::new(), literal: String::new(), headers: Vec::new(), quoted: false };
        reader.read(text)?;
        reader.end_literal();
        let Reader { mut parts, headers, .. } = reader;
        let mut rest = 1; // the line's end
        for part in parts.iter_mut().rev() {
            if let Part::Value { rest: own, .. } = part {
                *own = rest;
            }
            rest += part.size_min();
        }
        let whole = |reason, remedy: &str| TemplateError { at: None, reason, remedy: remedy.to_owned() };
        if rest > LINE_SIZE_MAX {
            let reason = format!("its lines may need {rest} bytes, and the longest has {LINE_SIZE_MAX}");
            return Err(whole(reason, "leave out some text or fields"));
        }
        if rest == 1 {
            return Err(whole("empty".to_owned(), "write what a line shall say"));
        }
        let template = Self { parts, escape, headers };
        if escape == Escape::Json {
            // 00 is no number, and what is missing is written otherwise.
            for sample in [Some(1), Some(0), None].map(Sample) {
                let mut line = Vec::new();
                template.write(&sample, &mut line);
                serde_json::from_slice::<serde::de::IgnoredAny>(&line).map_err(|error| {
                    let line = String::from_utf8_lossy(line.trim_ascii_end());
                    let reason = format!("its lines could be no JSON, {error}: {line}");
                    whole(reason, "correct it, or use escape \"text\"")
                })?;
            }
        }
        Ok(template)
    }

    /// The header fields that it names, in lower case.
    pub(crate) fn headers(&self) -> &[String] {
        &self.headers
    }

    /// Whether it names a field.
    pub(crate) fn names(&self, field: Field) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Value { what: What::Field(own), .. } if *own == field))
    }

    /// Writes a line, with its end, into an empty buffer. It never takes more than [`LINE_SIZE_MAX`] bytes: texts are cut.
    pub(crate) fn write(&self, values: &dyn Values, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.extend_from_slice(text),
                Part::Value { what, quoted, rest } => {
                    let value = match what {
                        What::Field(field) => values.field(*field),
                        What::Header(index) => values.header(*index),
                    };
                    self.write_value(&value, *quoted, LINE_SIZE_MAX.saturating_sub(out.len() + rest), out);
                }
            }
        }
        out.push(b'\n');
        debug_assert!(out.len() <= LINE_SIZE_MAX);
    }

    fn write_value(&self, value: &Value<'_>, quoted: bool, room: usize, out: &mut Vec<u8>) {
        match value {
            Value::Missing | Value::Text(b"") => out.extend_from_slice(match (self.escape, quoted) {
                (Escape::Text, _) => b"-",
                (Escape::Json, true) => b"",
                (Escape::Json, false) => b"null",
            }),
            Value::Text(text) => write_escaped(out, text, self.escape, quoted, room),
            // Writing into memory cannot fail.
            Value::Number(number) => drop(write!(out, "{number}")),
            Value::Shown(text) => drop(write!(out, "{text}")),
        }
    }
}

/// A template being read.
struct Reader {
    escape: Escape,
    parts: Vec<Part>,
    literal: String,
    headers: Vec<String>,
    quoted: bool,
}

impl Reader {
    fn read(&mut self, text: &str) -> Result<(), TemplateError> {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let at = text[..text.len() - rest.len()].chars().count() + 1;
            let error = |reason: String, remedy: String| TemplateError { at: Some(at), reason, remedy };
            let after = &rest[c.len_utf8()..];
            if c != '$' {
                if c.is_control() && c != '\t' {
                    return Err(error(format!("the control character {c:?}"), "remove it".to_owned()));
                }
                self.literal(c);
                rest = after;
                continue;
            }
            if let Some(after) = after.strip_prefix('$') {
                self.literal('$');
                rest = after;
                continue;
            }
            let Some((name, after)) = name(after) else {
                let reason = "a $ without a name behind it".to_owned();
                return Err(error(reason, "write $name, ${name}, or $$ for a dollar".to_owned()));
            };
            self.value(name).map_err(|(reason, remedy)| error(reason, remedy))?;
            rest = after;
        }
        Ok(())
    }

    fn literal(&mut self, c: char) {
        // In JSON a quote behind a backslash is one of the text.
        let escaped = self.escape == Escape::Json
            && self.literal.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
        if c == '"' && !escaped {
            self.quoted = !self.quoted;
        }
        self.literal.push(c);
    }

    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            self.parts.push(Part::Literal(std::mem::take(&mut self.literal).into_bytes().into()));
        }
    }

    /// A value by its name; else why not, and what to do.
    fn value(&mut self, name: &str) -> Result<(), (String, String)> {
        if name == "request" {
            // Its parts are escaped one by one, so that none can pass for another.
            self.value("method")?;
            self.literal(' ');
            self.value("target")?;
            self.literal(' ');
            return self.value("version");
        }
        let what = match (Field::named(name), name.strip_prefix("http_")) {
            (Some(field), _) => What::Field(field),
            (None, Some(header)) => What::Header(self.header(header)?),
            (None, None) => return Err((format!("there is no field ${name}"), instead_of(name))),
        };
        if self.escape == Escape::Json && !self.quoted && !what.is_number() {
            let reason = format!("${name} is a text, and stands outside of quotes");
            return Err((reason, format!("write \"${name}\"")));
        }
        self.end_literal();
        self.parts.push(Part::Value { what, quoted: self.quoted, rest: 0 });
        Ok(())
    }

    fn header(&mut self, name: &str) -> Result<usize, (String, String)> {
        let header = name.to_ascii_lowercase().replace('_', "-");
        if header.is_empty() || header.len() > HEADER_NAME_SIZE_MAX {
            let remedy = format!("write $http_ and a name of at most {HEADER_NAME_SIZE_MAX} bytes");
            return Err((format!("$http_{name} names no header field"), remedy));
        }
        if let Some(known) = self.headers.iter().position(|known| *known == header) {
            return Ok(known);
        }
        if self.headers.len() == HEADERS_MAX {
            let reason = format!("$http_{name} is one header field more than {HEADERS_MAX}");
            return Err((reason, "leave some out".to_owned()));
        }
        self.headers.push(header);
        Ok(self.headers.len() - 1)
    }
}

/// The name behind a dollar, and what follows.
fn name(after: &str) -> Option<(&str, &str)> {
    let inner = after.strip_prefix('{').unwrap_or(after);
    let end = inner.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(inner.len());
    let (name, rest) = inner.split_at(end);
    let rest = if after.starts_with('{') { rest.strip_prefix('}')? } else { rest };
    (!name.is_empty()).then_some((name, rest))
}

/// What to do about a name that is not known.
fn instead_of(name: &str) -> String {
    let of_nginx = IN_NGINX.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
    match of_nginx.or_else(|| nearest(name, FIELDS.iter().map(|(_, known, _)| *known))) {
        Some(near) => format!("did you mean ${near}? underpass check --explain lists them all"),
        None => "underpass check --explain lists them all".to_owned(),
    }
}

/// A request for which all numbers are the same, or missing where they can be.
struct Sample(Option<u64>);

impl Values for Sample {
    fn field(&self, field: Field) -> Value<'_> {
        match self.0 {
            None if field.may_be_missing() => Value::Missing,
            number if field.is_number() => Value::Number(number.unwrap_or(1)),
            _ => Value::Text(b"x"),
        }
    }

    fn header(&self, _: usize) -> Value<'_> {
        if self.0.is_some() { Value::Text(b"x") } else { Value::Missing }
    }
}
