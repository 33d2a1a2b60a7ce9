//! The access log: lines gathered in memory, written once a turn, dropped and counted when nobody takes them.

mod clock;
mod headers;
mod record;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use underpass_command::state::{AccessLogEscape, AccessLogFormat, Log, Protocol};

pub(super) use record::Names;

use super::session::Session;
use crate::http1::Fields;
use crate::log_format::{COMBINED, Escape, Field, LINE_SIZE_MAX, Template, TemplateError};
use crate::metrics::{Block, Counter};
use clock::Clock;
use headers::KeptHeaders;
use record::Record;

/// Lines that wait for the pipe.
const PENDING_SIZE_MAX: usize = 64 * 1024;
/// Bytes kept of each request for its line: method, target and host, one after the other. Of a TCP connection `TCP`, the
/// name of its listener, and the server name that TLS told.
const KEPT: usize = 1024;

/// What a line looks like.
enum Format {
    Text,
    Json,
    Template(Template),
}

impl Format {
    /// The format that the settings want; none for no log.
    fn of(log: &Log) -> Result<Option<Self>, TemplateError> {
        Ok(Some(match log.access {
            AccessLogFormat::Off => return Ok(None),
            AccessLogFormat::Text => Self::Text,
            AccessLogFormat::Json => Self::Json,
            AccessLogFormat::Combined => Self::Template(Template::new(COMBINED, Escape::Text)?),
            AccessLogFormat::Template => {
                let text = log.access_template.as_deref().unwrap_or_default();
                Self::Template(Template::new(text, log.access_escape.into())?)
            }
        }))
    }

    fn template(&self) -> Option<&Template> {
        match self {
            Self::Template(template) => Some(template),
            Self::Text | Self::Json => None,
        }
    }
}

impl From<AccessLogEscape> for Escape {
    fn from(escape: AccessLogEscape) -> Self {
        match escape {
            AccessLogEscape::Text => Self::Text,
            AccessLogEscape::Json => Self::Json,
        }
    }
}

/// The access log of a worker.
pub(super) struct AccessLog {
    pipe: Option<std::fs::File>,
    format: Format,
    /// Number of the worker.
    worker: u16,
    clock: Option<Clock>,
    pending: Vec<u8>,
    /// Line under construction.
    line: Vec<u8>,
    /// For each session, what its line will say of the request; the request's own bytes are gone by then.
    kept: Vec<u8>,
    lengths: Vec<[u16; 3]>,
    headers: KeptHeaders,
    /// The pipe took nothing at the last try.
    blocked: bool,
}

impl AccessLog {
    /// A log into a non-blocking pipe; `None` writes nothing.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub(super) fn new(
        pipe: Option<OwnedFd>,
        settings: &Log,
        worker: u16,
        sessions: usize,
    ) -> Result<Self, TemplateError> {
        let (pipe, format) = match (pipe, Format::of(settings)?) {
            (Some(pipe), Some(format)) => (Some(pipe.into()), format),
            _ => (None, Format::Text),
        };
        let sessions = if pipe.is_some() { sessions } else { 0 };
        let local = format.template().is_some_and(|template| template.names(Field::TimeLocal));
        Ok(Self {
            worker,
            clock: local.then(Clock::new),
            pending: Vec::with_capacity(if sessions > 0 { PENDING_SIZE_MAX } else { 0 }),
            line: Vec::with_capacity(if sessions > 0 { LINE_SIZE_MAX } else { 0 }),
            kept: vec![0; sessions * KEPT],
            lengths: vec![[0; 3]; sessions],
            headers: KeptHeaders::new(format.template(), sessions),
            blocked: false,
            pipe,
            format,
        })
    }

    /// Whether lines are wanted.
    #[inline]
    pub(super) fn is_enabled(&self) -> bool {
        self.pipe.is_some()
    }

    /// Whether lines tell which route was taken.
    pub(super) fn wants_route(&self) -> bool {
        self.is_enabled() && self.format.template().is_some_and(|template| template.names(Field::Route))
    }

    /// Keeps the header fields that the line will tell, of the request of which [`Self::keep`] has kept the rest.
    #[inline]
    pub(super) fn keep_headers(&mut self, key: usize, fields: &Fields, bytes: &[u8]) {
        if let Some(template) = self.format.template() {
            self.headers.keep(key, template, fields, bytes);
        }
    }

    /// Keeps what the line will say of a request.
    pub(super) fn keep(&mut self, key: usize, method: &[u8], target: &[u8], host: &[u8]) {
        let mut at = key * KEPT;
        let rooms = [32, KEPT - 32 - 255, 255];
        for ((part, room), length) in [method, target, host].iter().zip(rooms).zip(&mut self.lengths[key]) {
            let n = part.len().min(room);
            self.kept[at..at + n].copy_from_slice(&part[..n]);
            *length = u16::try_from(n).unwrap_or(u16::MAX);
            at += n;
        }
        self.headers.forget(key);
    }

    /// Adds the line of a finished request.
    pub(super) fn write(
        &mut self,
        key: usize,
        session: &Session,
        names: &Names<'_>,
        micros: u64,
        metrics: &Block,
    ) {
        let lengths = self.lengths[key].map(usize::from);
        let (method, rest) = self.kept[key * KEPT..(key + 1) * KEPT].split_at(lengths[0]);
        let (target, rest) = rest.split_at(lengths[1]);
        let now = SystemTime::now();
        let record = Record {
            session,
            names,
            micros,
            method,
            target,
            host: &rest[..lengths[2]],
            worker: self.worker,
            now,
            iso: humantime::format_rfc3339_millis(now),
            local: self.clock.as_mut().map_or("", |clock| clock.local(now)),
            headers: self.headers.of(key),
        };
        self.line.clear();
        // Writing into memory cannot fail.
        let _ = match (&self.format, session.protocol) {
            (Format::Template(template), _) => {
                template.write(&record, &mut self.line);
                Ok(())
            }
            (Format::Json, Protocol::Http) => record.json(&mut self.line),
            (Format::Text, Protocol::Http) => record.text(&mut self.line),
            (Format::Json, Protocol::Tcp) => record.tcp_json(&mut self.line),
            (Format::Text, Protocol::Tcp) => record.tcp_text(&mut self.line),
        };
        if self.pending.len() + self.line.len() > PENDING_SIZE_MAX {
            metrics.add(Counter::AccessLogDropped, 1);
            return;
        }
        self.pending.extend_from_slice(&self.line);
    }

    /// Writes what has gathered, as far as the pipe takes it. Whole lines only: a pipe takes up to PIPE_BUF bytes whole or
    /// not at all (pipe(7)).
    pub(super) fn flush(&mut self, metrics: &Block) {
        let Some(pipe) = self.pipe.as_mut() else { return };
        let mut done = 0;
        self.blocked = false;
        while done < self.pending.len() {
            let end = line_end_within(&self.pending[done..], libc::PIPE_BUF);
            match pipe.write(&self.pending[done..done + end]) {
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    break;
                }
                Err(_) => {
                    // Nobody reads any more: the supervisor is gone.
                    self.drop_pending(done, metrics);
                    return;
                }
            }
        }
        self.pending.drain(..done);
    }

    /// Counts the lines that nobody took before the worker ends.
    pub(super) fn close(&mut self, metrics: &Block) {
        self.drop_pending(0, metrics);
    }

    fn drop_pending(&mut self, from: usize, metrics: &Block) {
        let lines = memchr::memchr_iter(b'\n', &self.pending[from..]).count();
        metrics.add(Counter::AccessLogDropped, lines as u64);
        self.pending.clear();
    }

    /// Whether lines wait for a pipe that was full: try again soon.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }
}

/// The end of the last whole line within `most` bytes.
fn line_end_within(bytes: &[u8], most: usize) -> usize {
    let window = &bytes[..bytes.len().min(most)];
    memchr::memrchr(b'\n', window).map_or(window.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;

    use super::*;

    /// A log of 200 lines whose pipe holds fewer, some of which were taken; and the other end of the pipe.
    fn stuck(metrics: &Block) -> (AccessLog, std::fs::File) {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).expect("a pipe of one page");
        let settings = Log { access: AccessLogFormat::Text, ..Log::default() };
        let mut log = AccessLog::new(Some(writer), &settings, 0, 1).expect("a log");
        log.pending = format!("{}\n", "x".repeat(99)).into_bytes().repeat(200);
        log.flush(metrics);
        assert!(log.is_blocked());
        (log, reader.into())
    }

    #[test]
    fn what_nobody_took_before_the_end_is_counted_to_the_line() {
        let metrics = Block::create().expect("metrics memory");
        let (mut log, mut reader) = stuck(&metrics);
        log.close(&metrics);
        drop(log);
        let mut taken = String::new();
        reader.read_to_string(&mut taken).expect("text");
        assert!(!taken.is_empty() && taken.ends_with('\n'));
        assert_eq!(taken.lines().count() as u64 + metrics.get(Counter::AccessLogDropped), 200);
    }

    #[test]
    fn what_was_taken_before_the_reader_went_is_not_counted_as_dropped() {
        let metrics = Block::create().expect("metrics memory");
        let (mut log, reader) = stuck(&metrics);
        let left = log.pending.len() as u64 / 100;
        assert!(left < 200);
        drop(reader);
        log.flush(&metrics);
        assert_eq!(metrics.get(Counter::AccessLogDropped), left);
    }
}
