//! A little load for the demo: one client per CPU, pinned there, so that it can be seen which worker gets its
//! connections. Each sends a request, checks every byte of the answer, pauses, and goes on.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::backend::PERIOD;
use crate::control::allowed_cpus;

/// Requests on one connection; then a new one shows where it is steered to.
const REQUESTS_PER_CONNECTION: u64 = 20;
/// Between two requests: this is to be looked at, not a benchmark.
const PAUSE: Duration = Duration::from_millis(1);
/// After a failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest line of a head that is read.
const LINE_SIZE_MAX: u64 = 8 * 1024;

/// The clients.
pub(super) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    /// Set when the proxy ends, and by that the load.
    stopping: Arc<AtomicBool>,
    failed: AtomicU64,
    last_problem: Mutex<Option<String>>,
}

impl Clients {
    /// Starts one for each CPU that this process may use.
    pub(super) fn start(address: SocketAddr, stopping: &Arc<AtomicBool>) -> Self {
        let shared = Arc::new(Shared {
            address,
            stopping: Arc::clone(stopping),
            failed: AtomicU64::new(0),
            last_problem: Mutex::new(None),
        });
        let threads = allowed_cpus()
            .into_iter()
            .filter_map(|cpu| {
                let shared = Arc::clone(&shared);
                let started = std::thread::Builder::new().name(format!("demo-load-{cpu}")).spawn(move || {
                    core_affinity::set_for_current(core_affinity::CoreId { id: usize::from(cpu) });
                    shared.run();
                });
                started.map_err(|error| tracing::warn!("client of the demo: {error}")).ok()
            })
            .collect();
        Self { shared, threads }
    }

    /// How many requests have failed.
    pub(super) fn failed(&self) -> u64 {
        self.shared.failed.load(Relaxed)
    }

    /// Ends; returns the last problem, if there was any.
    pub(super) fn finish(self) -> Option<String> {
        self.shared.stopping.store(true, Relaxed);
        for thread in self.threads {
            // A panic has ended the process before.
            let _ = thread.join();
        }
        self.shared.last_problem.lock().ok()?.take()
    }
}

impl Shared {
    fn run(&self) {
        let mut number = 0;
        while !self.is_stopping() {
            if let Err(error) = self.use_connection(&mut number)
                && !self.is_stopping()
            {
                self.failed.fetch_add(1, Relaxed);
                if let Ok(mut last) = self.last_problem.lock() {
                    *last = Some(error.to_string());
                }
                std::thread::sleep(FAILURE_PAUSE);
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    fn use_connection(&self, number: &mut u64) -> io::Result<()> {
        let stream = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::with_capacity(64 * 1024, stream);
        for _ in 0..REQUESTS_PER_CONNECTION {
            if self.is_stopping() {
                return Ok(());
            }
            *number += 1;
            if !exchange(&mut reader, Kind::of(*number))? {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Hello,
    Size(u64),
    Echo(u64),
}

impl Kind {
    /// Mostly small answers; now and then a body that is worth a splice, and an upload.
    fn of(number: u64) -> Self {
        match number % 50 {
            0 => Self::Size(2_000_000),
            10 | 30 => Self::Size(100_000),
            20 | 40 => Self::Echo(20_000),
            _ => Self::Hello,
        }
    }
}

/// Sends a request and checks the answer; returns whether the connection may be used again.
fn exchange<S: Read + Write>(stream: &mut BufReader<S>, kind: Kind) -> io::Result<bool> {
    let request = match kind {
        Kind::Hello => "GET / HTTP/1.1\r\nHost: demo\r\n\r\n".into(),
        Kind::Size(size) => format!("GET /size/{size} HTTP/1.1\r\nHost: demo\r\n\r\n"),
        Kind::Echo(size) => format!("POST /echo HTTP/1.1\r\nHost: demo\r\nContent-Length: {size}\r\n\r\n"),
    };
    let mut request = request.into_bytes();
    if let Kind::Echo(size) = kind {
        request.extend((0..size).map(expected));
    }
    stream.get_mut().write_all(&request)?;
    let head = read_head(stream)?;
    if head.status != 200 {
        return Err(wrong(format!("{kind:?} was answered with status {}", head.status)));
    }
    match kind {
        Kind::Hello if head.length == 0 => return Err(wrong("Hello was answered with nothing")),
        Kind::Size(size) | Kind::Echo(size) if head.length != size => {
            return Err(wrong(format!("{kind:?} was answered with {} bytes", head.length)));
        }
        _ => {}
    }
    check_body(stream, head.length, !matches!(kind, Kind::Hello))?;
    Ok(!head.close)
}

fn expected(offset: u64) -> u8 {
    u8::try_from(offset % PERIOD as u64).unwrap_or(0)
}

struct Head {
    status: u16,
    length: u64,
    close: bool,
}

fn read_head<R: BufRead>(stream: &mut R) -> io::Result<Head> {
    let line = read_line(stream)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut head = Head { status: status.ok_or_else(|| wrong("no status line"))?, length: 0, close: false };
    let mut length = None;
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            head.length = length.ok_or_else(|| wrong("an answer without Content-Length"))?;
            return Ok(head);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("a field without a colon"))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.trim().eq_ignore_ascii_case("close");
        }
    }
}

fn read_line<R: BufRead>(stream: &mut R) -> io::Result<String> {
    let mut line = String::new();
    stream.take(LINE_SIZE_MAX).read_line(&mut line)?;
    line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| wrong("the connection ended in a head"))
}

fn check_body<R: BufRead>(stream: &mut R, length: u64, patterned: bool) -> io::Result<()> {
    let mut offset = 0;
    while offset < length {
        let bytes = stream.fill_buf()?;
        if bytes.is_empty() {
            return Err(wrong(format!("the connection ended after {offset} of {length} bytes")));
        }
        let take = bytes.len().min(usize::try_from(length - offset).unwrap_or(usize::MAX));
        let bad = bytes[..take].iter().zip(offset..).find(|(byte, offset)| **byte != expected(*offset));
        if let Some((_, offset)) = bad.filter(|_| patterned) {
            return Err(wrong(format!("byte {offset} of a body of {length} is wrong")));
        }
        stream.consume(take);
        offset += take as u64;
    }
    Ok(())
}

fn wrong(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backends;
    use super::*;

    #[test]
    fn every_kind_is_answered_and_checked() {
        let backends = Backends::start(&["one"]).expect("loopback");
        let stream = TcpStream::connect(backends.addresses()[0]).expect("listens");
        let mut reader = BufReader::new(stream);
        for kind in [Kind::Hello, Kind::Size(100_000), Kind::Echo(20_000), Kind::Size(0), Kind::Hello] {
            let reusable = exchange(&mut reader, kind).expect("right");
            assert!(reusable, "{kind:?}");
        }
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let mut body: Vec<u8> = (0..1000).map(expected).collect();
        check_body(&mut &body[..], 1000, true).expect("right");
        body[700] ^= 1;
        let error = check_body(&mut &body[..], 1000, true).expect_err("wrong");
        assert!(error.to_string().contains("byte 700"), "{error}");
        check_body(&mut &body[..], 1001, false).expect_err("short");
    }
}
