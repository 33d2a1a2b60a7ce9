//! Whether this kernel redirects without losing a byte: tried at start, over loopback, with the code that workers run.
//!
//! What is tried is what earlier kernels got wrong: a body whose beginning userspace has read already, a request right
//! behind it, a source that stops because its credit is spent and is taken back, a reader that stands still, a target that
//! goes away.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use socket2::SockRef;
use underpass_command::state::RedirectMode;
use underpass_loader::RedirectPrograms;

use super::{
    Broken, BufferPool, Endpoint, Flow, Kind, Ledger, PipePool, Policy, Progress, Received, Redirector,
    Tools, TrailerLimits,
};
use crate::http1::Framing;
use crate::metrics::Block;

/// A kernel that has lost something stands still for so long. The start waits for the test: where something is wrong it is
/// delayed by this, for the first part that fails ends the test.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long each part may take though it goes on. 40 ms are enough on an idle machine; where sockets have hardly any memory it is
/// seconds.
const PART_MAX: Duration = Duration::from_secs(30);
const CREDIT: usize = 256 * 1024;
const SOCKET_BUFFER: usize = 64 * 1024;
/// What a flow may be ahead of a reader that stands still: its credit, and what the target's two ends can hold, which
/// the kernel makes twice what was asked for, and counts with its own overhead.
const AHEAD_MAX: u64 = (CREDIT + CREDIT / 2 + 8 * SOCKET_BUFFER) as u64;
const PAUSE: Duration = Duration::from_micros(100);

/// Tries it.
///
/// # Errors
/// A sentence that says what failed, or why it could not be tried.
pub fn run() -> Result<(), String> {
    let programs = RedirectPrograms::load(8).map_err(|error| error.to_string())?;
    let descriptors: io::Result<Vec<OwnedFd>> =
        programs.descriptors().into_iter().map(|fd| fd.try_clone_to_owned()).collect();
    let descriptors = descriptors.map_err(|error| format!("self-test: {error}"))?;
    let descriptors = descriptors.try_into().map_err(|_| "self-test: a map is missing".to_owned())?;
    let mut bench = Bench::new(descriptors).map_err(|error| format!("self-test: {error}"))?;
    let tests: [(&str, Test); 4] = [
        ("a body between two heads", body_between_heads),
        ("a credit that is spent", spent_credit),
        ("a reader that stands still", stalled_reader),
        ("a target that goes away", closing_target),
    ];
    for (name, test) in tests {
        test(&mut bench).map_err(|fault| format!("self-test: {name}: {}", fault.0))?;
        bench.check_empty().map_err(|fault| format!("self-test: after {name}: {}", fault.0))?;
    }
    Ok(())
}

type Test = fn(&mut Bench) -> Result<(), Fault>;

/// What went wrong.
struct Fault(String);

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<&str> for Fault {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A byte that tells its place.
fn byte_at(place: usize) -> u8 {
    (place ^ place >> 8 ^ place >> 16).to_le_bytes()[0]
}

/// What a worker has, for one flow.
struct Bench {
    buffers: BufferPool,
    pipes: PipePool,
    metrics: Block,
    redirector: Redirector,
}

impl Bench {
    fn new(descriptors: [OwnedFd; 5]) -> Result<Self, String> {
        let mut buffers = BufferPool::new(8, 4096);
        buffers.reserve(8);
        Ok(Self {
            buffers,
            pipes: PipePool::new(0, 0),
            metrics: Block::create().map_err(|error| error.to_string())?,
            redirector: Redirector::open(descriptors, CREDIT as u64).map_err(|error| error.to_string())?,
        })
    }

    fn tools(&mut self) -> Tools<'_> {
        Tools {
            buffers: &mut self.buffers,
            pipes: &mut self.pipes,
            metrics: &self.metrics,
            redirector: Some(&mut self.redirector),
            session: 0,
        }
    }

    fn check_empty(&self) -> Result<(), Fault> {
        if (self.redirector.running(), self.redirector.used()) != (0, 0) {
            return Err("an account was not given back".into());
        }
        match self.redirector.population()? {
            (0, 0) => Ok(()),
            (sources, targets) => Err(Fault(format!("{sources} sources and {targets} targets are left"))),
        }
    }
}

/// A flow between two connections, with their other ends.
struct Line<'a> {
    bench: &'a mut Bench,
    from: TcpStream,
    source: Endpoint,
    sink: Endpoint,
    to: Option<TcpStream>,
    flow: Flow,
    written: usize,
    read: usize,
    /// What was written, moved and read when it was looked at last.
    progress: (usize, u64, usize),
    still_until: Instant,
    deadline: Instant,
}

impl<'a> Line<'a> {
    fn new(bench: &'a mut Bench, kind: Kind, length: u64) -> Result<Self, Fault> {
        let ((from, source), (to, sink)) = (connection()?, connection()?);
        for end in [&from, &to] {
            end.set_nonblocking(true)?;
        }
        let limits = TrailerLimits { size_max: 0, count_max: 0 };
        let policy = Policy::fixed(RedirectMode::Sockmap);
        let flow = Flow::new(kind, Ledger::new(Framing::Length(length), limits), policy, false);
        let now = Instant::now();
        Ok(Self {
            bench,
            from,
            source,
            sink,
            to: Some(to),
            flow,
            written: 0,
            read: 0,
            progress: (0, 0, 0),
            still_until: now + PATIENCE,
            deadline: now + PART_MAX,
        })
    }

    /// Writes as much of the bytes up to `end` as the socket takes.
    fn write(&mut self, end: usize) -> Result<(), Fault> {
        while self.written < end {
            let chunk: Vec<u8> = (self.written..end.min(self.written + 50_000)).map(byte_at).collect();
            match self.from.write(&chunk) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has arrived, whose first byte is that at `offset`, and compares.
    fn read(&mut self, offset: usize) -> Result<(), Fault> {
        let mut bytes = [0; 32 * 1024];
        let Some(to) = self.to.as_mut() else { return Ok(()) };
        loop {
            match to.read(&mut bytes) {
                Ok(0) => return Err("the target's connection has ended".into()),
                Ok(n) => {
                    for (index, &byte) in bytes[..n].iter().enumerate() {
                        let place = self.read + index;
                        if byte != byte_at(offset + place) {
                            return Err(Fault(format!("byte {place} has arrived wrong")));
                        }
                    }
                    self.read += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Adds what has come behind the body, as the next request would be read: first what a read for the body has brought.
    fn read_successor(&mut self, size: usize, successor: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(buffer) = self.source.buffer.as_ref() {
            successor.extend_from_slice(self.bench.buffers.bytes(buffer, buffer.unscanned..buffer.end));
            self.source.discard_buffer(&mut self.bench.buffers);
        }
        if !self.source.reclaim(Some(&mut self.bench.redirector)) {
            return Ok(());
        }
        let mut bytes = vec![0; size - successor.len()];
        match self.source.stream().read(&mut bytes) {
            Ok(n) => successor.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Moves what can be moved, as a worker does when it is woken.
    fn pump(&mut self) -> Result<Progress, Broken> {
        while self.bench.redirector.next_woken().is_some() {}
        self.bench.redirector.take_waiting(&mut Vec::new());
        self.source.readable = !self.source.is_read_by_kernel();
        self.sink.writable = true;
        self.flow.pump(&mut self.source, &mut self.sink, &mut self.bench.tools())
    }

    fn wait(&mut self) -> Result<(), Fault> {
        let (now, progress) = (Instant::now(), (self.written, self.flow.moved(), self.read));
        if progress != self.progress {
            (self.progress, self.still_until) = (progress, now + PATIENCE);
        }
        if now > self.still_until.min(self.deadline) {
            let (written, moved, read) = progress;
            return Err(Fault(format!(
                "stands still, or takes too long, with {written} bytes written, {moved} moved and {read} read"
            )));
        }
        sleep(PAUSE);
        Ok(())
    }

    fn end(mut self) {
        self.flow.finish(&mut self.bench.tools());
        for endpoint in [&mut self.source, &mut self.sink] {
            endpoint.discard_buffer(&mut self.bench.buffers);
            endpoint.detach(Some(&mut self.bench.redirector));
        }
    }
}

/// A connection over loopback: its far end, and the end that the proxy would have.
fn connection() -> io::Result<(TcpStream, Endpoint)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    SockRef::from(&listener).set_recv_buffer_size(SOCKET_BUFFER)?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nonblocking(true)?;
    near.set_nodelay(true)?;
    SockRef::from(&near).set_send_buffer_size(SOCKET_BUFFER)?;
    Ok((far, Endpoint::new(mio::net::TcpStream::from_std(near), true, true)))
}

fn broken(broken: Broken) -> Fault {
    Fault(format!("{broken:?}"))
}

/// When a flow is looked after.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// All the time: mostly its credit is renewed before it is spent.
    Prompt,
    /// Not before its source stands still because the credit is spent.
    Late,
}

/// A head, the beginning of whose body is read with it, and a request right behind: none of the three may lose a byte to
/// another.
fn body_between_heads(bench: &mut Bench) -> Result<(), Fault> {
    let redirected = between_heads(bench, 700_000, Care::Prompt)?;
    if redirected == 0 { Err("nothing was redirected".into()) } else { Ok(()) }
}

/// The same, but each time the credit is spent the source stops, and is taken back: as a rule twice. What is left of the body then
/// is too little for the kernel and copied; a read that brings its end brings the next request with it. Where the kernel is
/// slow the credit may be renewed in time after all, which is no fault.
fn spent_credit(bench: &mut Bench) -> Result<(), Fault> {
    let redirected = between_heads(bench, 2 * CREDIT + 9_000, Care::Late)?;
    if redirected < 2 * CREDIT as u64 {
        return Err(Fault(format!("{redirected} bytes were redirected, fewer than two credits of {CREDIT}")));
    }
    Ok(())
}

/// Moves a body between two heads; returns how much of it was redirected.
fn between_heads(bench: &mut Bench, body: usize, care: Care) -> Result<u64, Fault> {
    const HEAD: usize = 100;
    const SUCCESSOR: usize = 777;
    let mut line = Line::new(bench, Kind::Request, body as u64)?;
    line.write(HEAD + 1000)?;
    while !matches!(line.source.receive(&mut line.bench.buffers)?, Received::Bytes(_)) {
        line.wait()?;
    }
    let buffer = line.source.buffer.as_mut().ok_or("nothing was read")?;
    (buffer.start, buffer.cleared, buffer.unscanned) = (HEAD, HEAD, HEAD);
    loop {
        line.write(HEAD + body + SUCCESSOR)?;
        let is_due = care == Care::Prompt
            || !line.flow.is_redirected()
            || line.flow.has_stopped(&line.bench.redirector);
        let progress = if is_due { line.pump().map_err(broken)? } else { Progress::Starved };
        line.read(HEAD)?;
        if progress == Progress::Done {
            break;
        }
        line.wait()?;
    }
    while line.read < body {
        line.read(HEAD)?;
        line.wait()?;
    }
    let mut successor = Vec::new();
    while successor.len() < SUCCESSOR {
        line.write(HEAD + body + SUCCESSOR)?;
        line.read_successor(SUCCESSOR, &mut successor)?;
        line.wait()?;
    }
    if !successor.iter().enumerate().all(|(index, &byte)| byte == byte_at(HEAD + body + index)) {
        return Err("the bytes behind the body have changed".into());
    }
    line.read(HEAD)?;
    if line.read != body {
        return Err(Fault(format!("{} bytes arrived of {body}", line.read)));
    }
    let redirected = line.flow.redirected;
    line.end();
    Ok(redirected)
}

/// A reader that reads nothing: what the kernel takes from the source stays within bounds; then all of it arrives.
fn stalled_reader(bench: &mut Bench) -> Result<(), Fault> {
    const BODY: usize = 2 * 1024 * 1024;
    const QUIET_ROUNDS: u32 = 50;
    let mut line = Line::new(bench, Kind::Response, BODY as u64)?;
    let (mut quiet, mut before) = (0, u64::MAX);
    while quiet < QUIET_ROUNDS {
        line.write(BODY)?;
        line.pump().map_err(broken)?;
        quiet = if line.flow.moved() == before { quiet + 1 } else { 0 };
        before = line.flow.moved();
        line.wait()?;
    }
    if before > AHEAD_MAX {
        return Err(Fault(format!("{before} bytes were taken for a reader that reads nothing")));
    }
    loop {
        line.write(BODY)?;
        let progress = line.pump().map_err(broken)?;
        line.read(0)?;
        if progress == Progress::Done && line.read == BODY {
            break;
        }
        line.wait()?;
    }
    line.end();
    Ok(())
}

/// A target that resets its connection in the middle of a body: it is noticed, and nothing is left in the maps.
fn closing_target(bench: &mut Bench) -> Result<(), Fault> {
    const BODY: usize = 1024 * 1024;
    let mut line = Line::new(bench, Kind::Response, BODY as u64)?;
    loop {
        line.write(BODY)?;
        match line.pump() {
            Ok(Progress::Done) => return Err("a body was delivered to nobody".into()),
            Ok(_) => {}
            Err(Broken::Sink(_)) => break,
            Err(other) => return Err(broken(other)),
        }
        line.read(0)?;
        if line.read > BODY / 4
            && let Some(to) = line.to.take()
        {
            SockRef::from(&to).set_linger(Some(Duration::ZERO))?;
        }
        line.wait()?;
    }
    line.end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use underpass_loader::RedirectPrograms;

    #[test]
    fn this_kernel_passes_or_says_why_it_is_not_tried() {
        let tried = super::run();
        match RedirectPrograms::load(1) {
            Ok(_) => tried.expect("the programs can be loaded, so the test must pass"),
            Err(error) => assert_eq!(tried, Err(error.to_string())),
        }
    }
}
