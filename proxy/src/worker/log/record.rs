//! What a line says of a request or a TCP connection: the formats `text` and `json`, and the fields of templates.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use humantime::Rfc3339Timestamp;
use underpass_command::state::Protocol;

use super::headers::Kept;
use crate::http1::{Target, Version};
use crate::log_format::{Escape, Field, LINE_SIZE_MAX, Value, Values, write_escaped};
use crate::worker::session::{Ending, Session};

/// Where a request came in and where it went; empty where it did not come so far.
pub(in crate::worker) struct Names<'a> {
    pub(in crate::worker) listener: &'a [u8],
    pub(in crate::worker) cluster: &'a [u8],
    /// The address of the backend tried last.
    pub(in crate::worker) backend: &'a [u8],
}

/// What is known of a request or TCP connection at its end.
pub(super) struct Record<'a> {
    pub(super) session: &'a Session,
    pub(super) names: &'a Names<'a>,
    pub(super) micros: u64,
    /// `-` where no head was understood, `TCP` for a TCP connection.
    pub(super) method: &'a [u8],
    pub(super) target: &'a [u8],
    pub(super) host: &'a [u8],
    /// Number of the worker.
    pub(super) worker: u16,
    pub(super) now: SystemTime,
    /// `now` in UTC.
    pub(super) iso: Rfc3339Timestamp,
    /// `now` in the time zone of the machine; empty where nobody asks for it.
    pub(super) local: &'a str,
    pub(super) headers: Kept<'a>,
}

impl Record<'_> {
    pub(super) fn text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{} ", self.iso)?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b" \"");
        out.extend_from_slice(self.method);
        out.push(b' ');
        quoted(out, self.target);
        out.extend_from_slice(b"\" ");
        word(out, or_dash(self.host));
        write!(out, " {} {} {}us ", exchange.status, exchange.bytes, self.micros)?;
        out.extend_from_slice(or_dash(self.names.backend));
        write!(out, " {} ", exchange.reason.map_or("-", crate::http1::Reason::name))?;
        word(out, or_dash(exchange.id.as_bytes()));
        write!(out, " end={} in={}", self.ending(), exchange.bytes_up)?;
        self.text_tail(out)?;
        out.extend_from_slice(b" trace=");
        out.extend_from_slice(or_dash(exchange.trace.id()));
        out.push(b'\n');
        Ok(())
    }

    pub(super) fn json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{{\"time\":\"{}\",\"client\":\"", self.iso)?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b"\",\"method\":\"");
        json_text(out, self.method);
        out.extend_from_slice(b"\",\"target\":\"");
        json_text(out, self.target);
        out.extend_from_slice(b"\",\"host\":\"");
        json_text(out, self.host);
        write!(
            out,
            "\",\"status\":{},\"bytes\":{},\"duration_us\":{}",
            exchange.status, exchange.bytes, self.micros
        )?;
        out.extend_from_slice(b",\"backend\":\"");
        out.extend_from_slice(self.names.backend);
        write!(
            out,
            "\",\"reason\":\"{}\",\"id\":\"",
            exchange.reason.map_or("", crate::http1::Reason::name)
        )?;
        json_text(out, exchange.id.as_bytes());
        write!(out, "\",\"end\":\"{}\",\"bytes_in\":{}", self.ending(), exchange.bytes_up)?;
        self.json_tail(out)?;
        out.extend_from_slice(b",\"listener\":\"");
        out.extend_from_slice(self.names.listener);
        out.extend_from_slice(b"\",\"trace_id\":\"");
        out.extend_from_slice(exchange.trace.id());
        out.extend_from_slice(b"\"}\n");
        Ok(())
    }

    /// Why it ended: the reason for which it was refused or broken off, else how.
    fn ending(&self) -> &'static str {
        let exchange = &self.session.exchange;
        match (exchange.reason, exchange.ending, self.session.protocol) {
            (Some(reason), ..) => reason.name(),
            (None, Ending::Closed, Protocol::Http) => "done",
            (None, ending, _) => ending.name(),
        }
    }

    /// The parts of its time in microseconds, each in the order in which a request comes to it.
    fn parts(&self) -> [(&'static str, Option<u64>); 3] {
        let timing = &self.session.exchange.timing;
        let first_byte_us = timing.first_byte_us(self.session.first_byte_us);
        [("queue", timing.queue_us()), ("connect", timing.connect_us()), ("first_byte", first_byte_us)]
    }

    /// What the lines of requests and of TCP connections have in common.
    fn text_tail(&self, out: &mut Vec<u8>) -> io::Result<()> {
        for (name, micros) in self.parts() {
            match micros {
                Some(micros) => write!(out, " {name}={micros}us")?,
                None => write!(out, " {name}=-")?,
            }
        }
        write!(out, " attempts={} listener=", self.session.exchange.attempts)?;
        out.extend_from_slice(self.names.listener);
        out.extend_from_slice(b" cluster=");
        out.extend_from_slice(or_dash(self.names.cluster));
        Ok(())
    }

    fn json_tail(&self, out: &mut Vec<u8>) -> io::Result<()> {
        for (name, micros) in self.parts() {
            match micros {
                Some(micros) => write!(out, ",\"{name}_us\":{micros}")?,
                None => write!(out, ",\"{name}_us\":null")?,
            }
        }
        write!(out, ",\"attempts\":{},\"cluster\":\"", self.session.exchange.attempts)?;
        out.extend_from_slice(self.names.cluster);
        out.push(b'"');
        Ok(())
    }
}

/// The lines of TCP connections. What HTTP has as method is `TCP`, as target the listener, as host the server name.
impl Record<'_> {
    pub(super) fn tcp_text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{} ", self.iso)?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b" \"TCP ");
        quoted(out, self.target);
        out.extend_from_slice(b"\" ");
        word(out, or_dash(self.host));
        write!(out, " {}/{} {}us ", exchange.bytes_up, exchange.bytes, self.micros)?;
        out.extend_from_slice(or_dash(self.names.backend));
        self.text_tail(out)?;
        writeln!(out, " {}", self.ending())
    }

    pub(super) fn tcp_json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{{\"time\":\"{}\",\"client\":\"", self.iso)?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b"\",\"protocol\":\"tcp\",\"listener\":\"");
        json_text(out, self.target);
        out.extend_from_slice(b"\",\"server_name\":\"");
        json_text(out, self.host);
        write!(
            out,
            "\",\"bytes_up\":{},\"bytes_down\":{},\"duration_us\":{}",
            exchange.bytes_up, exchange.bytes, self.micros
        )?;
        out.extend_from_slice(b",\"backend\":\"");
        out.extend_from_slice(self.names.backend);
        write!(out, "\",\"end\":\"{}\"", self.ending())?;
        self.json_tail(out)?;
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

fn or_dash(text: &[u8]) -> &[u8] {
    if text.is_empty() { b"-" } else { text }
}

/// A text in quotes.
fn quoted(out: &mut Vec<u8>, text: &[u8]) {
    write_escaped(out, text, Escape::Text, true, LINE_SIZE_MAX);
}

/// A text without quotes, which no space may end.
fn word(out: &mut Vec<u8>, text: &[u8]) {
    write_escaped(out, text, Escape::Text, false, LINE_SIZE_MAX);
}

/// A text in a string of JSON.
fn json_text(out: &mut Vec<u8>, text: &[u8]) {
    write_escaped(out, text, Escape::Json, true, LINE_SIZE_MAX);
}

impl Values for Record<'_> {
    fn field(&self, field: Field) -> Value<'_> {
        let Session { exchange, .. } = self.session;
        // Without a head there was no request whose parts could be told.
        let understood = exchange.head.size > 0;
        match field {
            Field::TimeLocal => Value::Shown(&self.local),
            Field::TimeIso => Value::Shown(&self.iso),
            Field::TimeMs => Value::Number(self.now_ms()),
            Field::Worker => Value::Number(self.worker.into()),
            Field::Listener => Value::Text(self.names.listener),
            Field::Client => Value::Text(self.session.address.as_bytes()),
            Field::ClientPort => Value::Number(self.session.source.port().into()),
            Field::User => Value::Text(self.headers.user()),
            // A template has its parts instead.
            Field::Request => Value::Missing,
            Field::Method if self.method == b"-" && !understood => Value::Missing,
            Field::Method => Value::Text(self.method),
            Field::Target if self.target == b"-" && !understood => Value::Missing,
            Field::Target => Value::Text(self.target),
            Field::Path => Value::Text(self.path_and_query().0),
            Field::Query => Value::Text(self.path_and_query().1),
            Field::Host => Value::Text(self.host),
            Field::Version if !understood => Value::Missing,
            Field::Version => Value::Text(match exchange.head.version {
                Version::Http10 => b"HTTP/1.0",
                Version::Http11 => b"HTTP/1.1",
            }),
            Field::Id => Value::Text(exchange.id.as_bytes()),
            Field::TraceId => Value::Text(exchange.trace.id()),
            Field::Requests => Value::Number(self.session.requests.max(1).into()),
            Field::Route => Value::Text(exchange.route.as_ref().map_or(b"", |route| route.as_bytes())),
            Field::Cluster => Value::Text(self.names.cluster),
            Field::Backend => Value::Text(self.names.backend),
            Field::Attempts => Value::Number(exchange.attempts.into()),
            Field::Retries => Value::Number(exchange.attempts.saturating_sub(1).into()),
            Field::Status if exchange.status == 0 => Value::Missing,
            Field::Status => Value::Number(exchange.status.into()),
            Field::Reason => Value::Text(exchange.reason.map_or("", crate::http1::Reason::name).as_bytes()),
            Field::End => Value::Text(self.ending().as_bytes()),
            Field::Bytes => Value::Number(exchange.bytes),
            Field::BytesIn => Value::Number(exchange.bytes_up),
            Field::BytesCopied => Value::Number(exchange.moved.copied),
            Field::BytesSpliced => Value::Number(exchange.moved.spliced),
            Field::BytesRedirected => Value::Number(exchange.moved.redirected),
            Field::Redirect if self.names.cluster.is_empty() => Value::Missing,
            Field::Redirect => Value::Text(exchange.mode.name().as_bytes()),
            Field::QueueUs => or_missing(exchange.timing.queue_us()),
            Field::ConnectUs => or_missing(exchange.timing.connect_us()),
            Field::FirstByteUs => or_missing(exchange.timing.first_byte_us(self.session.first_byte_us)),
            Field::DurationUs => Value::Number(self.micros),
        }
    }

    fn header(&self, index: usize) -> Value<'_> {
        Value::Text(self.headers.header(index))
    }
}

impl Record<'_> {
    fn now_ms(&self) -> u64 {
        let since = self.now.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The path and the query of what has been kept of the target, of which an absolute one begins with something else.
    fn path_and_query(&self) -> (&[u8], &[u8]) {
        let head = &self.session.exchange.head;
        let start = match head.target {
            _ if head.size == 0 => return (b"", b""),
            Target::Origin | Target::Asterisk => 0,
            Target::Absolute { path, .. } => path.start - head.target_span.start,
            Target::Authority => return (b"", b""),
        };
        let rest = self.target.get(start as usize..).unwrap_or_default();
        match memchr::memchr(b'?', rest) {
            Some(mark) => (&rest[..mark], &rest[mark + 1..]),
            None => (rest, b""),
        }
    }
}

fn or_missing(number: Option<u64>) -> Value<'static> {
    number.map_or(Value::Missing, Value::Number)
}
