//! What userspace reads of chunked bodies whose data the kernel moves, and when their lines are sent.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use underpass_command::state::RedirectMode;
use underpass_loader::{RedirectPrograms, tcp_sent};

use super::{CHUNK_LINE_READ, Flow, Moved, Progress, Tools};
use crate::forward::testing::{connection, redirector, until};
use crate::forward::{BufferPool, Endpoint, Kind, Ledger, PipePool, Policy, Redirector, TrailerLimits};
use crate::http1::Framing;
use crate::metrics::Block;

const BUFFER: usize = 1024;
/// Large enough to be redirected when a buffer of it has been read; three of them lie in a socket at once.
const CHUNK: usize = 18 * 1024;

/// A flow of a chunked response, with what a worker has.
struct Line {
    _programs: Option<RedirectPrograms>,
    redirector: Option<Redirector>,
    buffers: BufferPool,
    pipes: PipePool,
    metrics: Block,
    far: TcpStream,
    source: Endpoint,
    sink: Endpoint,
    peer: TcpStream,
    flow: Flow,
}

impl Line {
    /// None where kernel or privileges do not allow the mode.
    fn new(mode: RedirectMode, test: &str) -> Option<Self> {
        let (programs, redirector) = match mode {
            RedirectMode::Sockmap => redirector(1024 * 1024, test)
                .map(|(programs, redirector)| (Some(programs), Some(redirector)))?,
            _ => (None, None),
        };
        let ((far, source), (peer, sink)) = (connection().unwrap(), connection().unwrap());
        peer.set_nonblocking(true).unwrap();
        let ledger = Ledger::new(Framing::Chunked, TrailerLimits { size_max: 100, count_max: 1 });
        let mut buffers = BufferPool::new(2, BUFFER);
        buffers.reserve(2);
        Some(Self {
            _programs: programs,
            redirector,
            buffers,
            pipes: PipePool::new(1, 1024 * 1024),
            metrics: Block::create().unwrap(),
            far,
            source,
            sink,
            peer,
            flow: Flow::new(Kind::Response, ledger, Policy::fixed(mode), false),
        })
    }

    fn tools(&mut self) -> (&mut Flow, &mut Endpoint, &mut Endpoint, Tools<'_>) {
        let tools = Tools {
            buffers: &mut self.buffers,
            pipes: &mut self.pipes,
            metrics: &self.metrics,
            redirector: self.redirector.as_mut(),
            session: 0,
        };
        (&mut self.flow, &mut self.source, &mut self.sink, tools)
    }

    /// Sends bytes to the source, and waits until they lie there.
    fn send(&mut self, bytes: &[u8]) {
        self.far.write_all(bytes).unwrap();
        let mut seen = vec![0; bytes.len()];
        until("they lie there", || self.source.stream().peek(&mut seen).is_ok_and(|n| n == bytes.len()));
    }

    /// Moves what can be moved, and reads what arrives.
    fn pump(&mut self, arrived: &mut Vec<u8>) -> Progress {
        if let Some(redirector) = &mut self.redirector {
            while redirector.next_woken().is_some() {}
            redirector.take_waiting(&mut Vec::new());
        }
        let (flow, source, sink, mut tools) = self.tools();
        source.readable = !source.is_read_by_kernel();
        sink.writable = true;
        let progress = flow.pump(source, sink, &mut tools).unwrap();
        self.read(arrived);
        progress
    }

    /// Reads what has arrived; returns how much there is of it.
    fn read(&mut self, arrived: &mut Vec<u8>) -> usize {
        let mut bytes = [0; 32 * 1024];
        while let Ok(n @ 1..) = self.peer.read(&mut bytes) {
            arrived.extend_from_slice(&bytes[..n]);
        }
        arrived.len()
    }

    fn end(mut self) -> Moved {
        let (flow, source, sink, mut tools) = self.tools();
        let moved = flow.finish(&mut tools);
        for endpoint in [source, sink] {
            endpoint.discard_buffer(tools.buffers);
            endpoint.detach(tools.redirector.as_deref_mut());
        }
        moved
    }
}

fn chunk(size: usize, filling: u8) -> Vec<u8> {
    let mut chunk = format!("{size:x}\r\n").into_bytes();
    chunk.resize(chunk.len() + size, filling);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

#[test]
fn of_large_chunks_userspace_reads_the_lines_only() {
    for mode in [RedirectMode::Splice, RedirectMode::Sockmap] {
        let Some(mut line) = Line::new(mode, "of_large_chunks_userspace_reads_the_lines_only") else {
            return;
        };
        let mut body = [chunk(CHUNK, b'a'), chunk(CHUNK, b'b'), chunk(CHUNK, b'c'), chunk(3, b'd')].concat();
        body.extend_from_slice(b"0\r\n\r\n");
        line.send(&body);
        let (mut arrived, mut is_done) = (Vec::new(), false);
        until("it has arrived", || {
            is_done |= !is_done && line.pump(&mut arrived) == Progress::Done;
            is_done && line.read(&mut arrived) == body.len()
        });
        assert!(arrived == body, "the bytes have changed");
        let moved = line.end();
        // The first read does not know what follows.
        assert!(moved.copied <= (BUFFER + 3 * CHUNK_LINE_READ) as u64, "{mode}: {moved:?}");
        assert_eq!(moved.total(), body.len() as u64);
    }
}

#[test]
fn a_line_that_nothing_follows_is_not_kept_back() {
    for mode in [RedirectMode::Splice, RedirectMode::Sockmap] {
        let Some(mut line) = Line::new(mode, "a_line_that_nothing_follows_is_not_kept_back") else { return };
        let mut body = chunk(CHUNK, b'a');
        let first = body.len();
        // As many bytes as are read for a line at once, so that more seems to follow.
        body.extend_from_slice(format!("{CHUNK:x}\r\n").as_bytes());
        body.resize(first - 2 + CHUNK_LINE_READ, b'b');
        line.send(&body);
        let mut arrived = Vec::new();
        until("it has arrived", || {
            line.pump(&mut arrived);
            // Nothing that was passed on waits in the sink's socket for bytes that do not come.
            let is_all = line.flow.ledger.content() > CHUNK as u64;
            let unsent = tcp_sent(line.sink.as_fd()).unwrap().unsent;
            assert!(!is_all || unsent == 0, "{mode}: {unsent} bytes wait");
            arrived.len() == body.len()
        });
        assert!(arrived == body, "the bytes have changed");
        line.end();
    }
}
