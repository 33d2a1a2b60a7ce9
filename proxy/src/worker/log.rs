//! The access log: lines gathered in memory, written once a turn, dropped and counted when nobody takes them.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use underpass_command::state::{AccessLogFormat, Protocol};

use super::session::{Ending, Session};
use crate::metrics::{Block, Counter};

/// Lines that wait for the pipe.
const PENDING_SIZE_MAX: usize = 64 * 1024;
/// Longest line; what does not fit is cut off the target and the host.
const LINE_SIZE_MAX: usize = 2048;
/// Bytes kept of each request for its line: method, target and host, one after the other. Of a TCP connection `TCP`, the
/// name of its listener, and the server name that TLS told.
const KEPT: usize = 1024;

/// The access log of a worker.
pub(super) struct AccessLog {
    pipe: Option<std::fs::File>,
    format: AccessLogFormat,
    pending: Vec<u8>,
    /// Line under construction.
    line: Vec<u8>,
    /// For each session, what its line will say of the request; the request's own bytes are gone by then.
    kept: Vec<u8>,
    lengths: Vec<[u16; 3]>,
    /// The pipe took nothing at the last try.
    blocked: bool,
}

impl AccessLog {
    /// A log into a non-blocking pipe; `None` writes nothing.
    pub(super) fn new(pipe: Option<OwnedFd>, format: AccessLogFormat, sessions: usize) -> Self {
        let enabled = pipe.is_some() && format != AccessLogFormat::Off;
        let sessions = if enabled { sessions } else { 0 };
        Self {
            pipe: pipe.filter(|_| enabled).map(std::fs::File::from),
            format,
            pending: Vec::with_capacity(if enabled { PENDING_SIZE_MAX } else { 0 }),
            line: Vec::with_capacity(if enabled { 2 * LINE_SIZE_MAX } else { 0 }),
            kept: vec![0; sessions * KEPT],
            lengths: vec![[0; 3]; sessions],
            blocked: false,
        }
    }

    /// Whether lines are wanted.
    #[inline]
    pub(super) fn is_enabled(&self) -> bool {
        self.pipe.is_some()
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
        let at = key * KEPT;
        let method = &self.kept[at..at + lengths[0]];
        let target = &self.kept[at + lengths[0]..at + lengths[0] + lengths[1]];
        let host = &self.kept[at + lengths[0] + lengths[1]..at + lengths.iter().sum::<usize>()];
        self.line.clear();
        let record = Record { session, names, micros, method, target, host };
        let json = self.format == AccessLogFormat::Json;
        // Writing into memory cannot fail.
        let _ = match session.protocol {
            Protocol::Http if json => record.json(&mut self.line),
            Protocol::Http => record.text(&mut self.line),
            Protocol::Tcp if json => record.tcp_json(&mut self.line),
            Protocol::Tcp => record.tcp_text(&mut self.line),
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

/// Where a request came in and where it went; empty where it did not come so far.
pub(super) struct Names<'a> {
    pub(super) listener: &'a [u8],
    pub(super) cluster: &'a [u8],
    /// The address of the backend tried last.
    pub(super) backend: &'a [u8],
}

struct Record<'a> {
    session: &'a Session,
    names: &'a Names<'a>,
    micros: u64,
    method: &'a [u8],
    target: &'a [u8],
    host: &'a [u8],
}

impl Record<'_> {
    fn text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{} ", humantime::format_rfc3339_millis(SystemTime::now()))?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b" \"");
        out.extend_from_slice(self.method);
        out.push(b' ');
        escaped(out, self.target);
        out.extend_from_slice(b"\" ");
        out.extend_from_slice(or_dash(self.host));
        write!(out, " {} {} {}us ", exchange.status, exchange.bytes, self.micros)?;
        out.extend_from_slice(or_dash(self.names.backend));
        write!(out, " {} ", exchange.reason.map_or("-", crate::http1::Reason::name))?;
        escaped(out, or_dash(exchange.id.as_bytes()));
        write!(out, " end={} in={}", self.ending(), exchange.bytes_up)?;
        self.text_tail(out)?;
        out.extend_from_slice(b" trace=");
        out.extend_from_slice(or_dash(exchange.trace.id()));
        out.push(b'\n');
        Ok(())
    }

    fn json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{{\"time\":\"{}\",\"client\":\"", humantime::format_rfc3339_millis(SystemTime::now()))?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b"\",\"method\":\"");
        escaped(out, self.method);
        out.extend_from_slice(b"\",\"target\":\"");
        escaped(out, self.target);
        out.extend_from_slice(b"\",\"host\":\"");
        escaped(out, self.host);
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
        escaped(out, exchange.id.as_bytes());
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
    fn tcp_text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{} ", humantime::format_rfc3339_millis(SystemTime::now()))?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b" \"TCP ");
        escaped(out, self.target);
        out.extend_from_slice(b"\" ");
        escaped(out, or_dash(self.host));
        write!(out, " {}/{} {}us ", exchange.bytes_up, exchange.bytes, self.micros)?;
        out.extend_from_slice(or_dash(self.names.backend));
        self.text_tail(out)?;
        writeln!(out, " {}", self.ending())
    }

    fn tcp_json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let exchange = &self.session.exchange;
        write!(out, "{{\"time\":\"{}\",\"client\":\"", humantime::format_rfc3339_millis(SystemTime::now()))?;
        out.extend_from_slice(self.session.address.as_bytes());
        out.extend_from_slice(b"\",\"protocol\":\"tcp\",\"listener\":\"");
        escaped(out, self.target);
        out.extend_from_slice(b"\",\"server_name\":\"");
        escaped(out, self.host);
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

/// Visible ASCII, which is all a parsed head has here, with what would end a quoted string escaped.
fn escaped(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x20..=0x7e => out.push(byte),
            _ => out.push(b'?'),
        }
    }
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
        let mut log = AccessLog::new(Some(writer), AccessLogFormat::Text, 1);
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
