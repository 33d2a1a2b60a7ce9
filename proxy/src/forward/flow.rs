//! One direction of a connection: from a source endpoint to a sink endpoint, under a ledger.

mod head;

use std::io::{self, IoSlice};

use underpass_command::state::RedirectMode;

use super::redirect::{Begun, Run};
use super::{Buffer, BufferPool, Endpoint, Kind, Ledger, Part, Pipe, PipePool, Policy, Received, Redirector};
use crate::http1::Reason;
use crate::metrics::{Block, Counter};

/// Below so many bytes a splice costs more than it saves even where splicing is wanted.
const SPLICE_SIZE_LEAST: u64 = 4096;
/// What is read where a chunk ends and another one follows that the kernel is to move: the line end, a size of up to sixteen digits
/// and its line end are 20 bytes.
const CHUNK_LINE_READ: usize = 32;
/// Rounds of one call of [`Flow::pump`], so that one busy flow does not keep others waiting.
const ROUNDS_MAX: u32 = 16;

/// Why a flow stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The message has been passed on whole.
    Done,
    /// The source has nothing now.
    Starved,
    /// The sink takes nothing now.
    Blocked,
    /// Both sides are ready; others get their turn first.
    Yielded,
}

/// Why a flow broke.
#[derive(Debug)]
pub enum Broken {
    /// The source closed before its message was complete.
    SourceEnded,
    /// Reading failed.
    Source(io::Error),
    /// Writing failed.
    Sink(io::Error),
    /// The source broke the rules of framing.
    Refused(Reason),
}

/// What a flow needs of its worker.
pub struct Tools<'a> {
    /// The worker's buffers.
    pub buffers: &'a mut BufferPool,
    /// The worker's pipes.
    pub pipes: &'a mut PipePool,
    /// Its counters.
    pub metrics: &'a Block,
    /// The kernel's redirection, where it is available.
    pub redirector: Option<&'a mut Redirector>,
    /// The session that the flow belongs to: whom the kernel wakes for it.
    pub session: usize,
}

/// Bytes of a body by how they were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Through a buffer.
    pub copied: u64,
    /// Through a pipe.
    pub spliced: u64,
    /// By sockmap.
    pub redirected: u64,
}

impl Moved {
    /// All of them.
    pub fn total(self) -> u64 {
        self.copied + self.spliced + self.redirected
    }
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, more: Self) {
        self.copied += more.copied;
        self.spliced += more.spliced;
        self.redirected += more.redirected;
    }
}

/// One direction.
#[derive(Debug)]
pub struct Flow {
    /// How much of the message is left.
    pub ledger: Ledger,
    /// An edited head that the sink has not taken yet.
    pending: Option<Buffer>,
    pipe: Option<Pipe>,
    pub(super) kind: Kind,
    pub(super) policy: Policy,
    /// The chunked coding is taken off.
    dechunk: bool,
    /// No pipe could be had, or the kernel refused: the rest is copied.
    splice_given_up: bool,
    /// The kernel passes the bytes on now.
    pub(super) run: Option<Run>,
    /// The kernel's redirection was tried and is not wanted any more.
    pub(super) redirect_given_up: bool,
    /// Bytes that the kernel has moved since userspace read the last: of a chunked body, most of the chunk.
    moved_unseen: u64,
    /// The last read was one of [`CHUNK_LINE_READ`], and nothing has been moved since.
    read_line: bool,
    /// Since when the kernel's redirection has been waiting until the sink has room.
    pub(super) waits_since_ms: Option<u64>,
    copied: u64,
    spliced: u64,
    pub(super) redirected: u64,
}

impl Flow {
    /// A flow without a message.
    pub fn idle() -> Self {
        Self::new(Kind::Response, Ledger::settled(), Policy::fixed(RedirectMode::Copy), false)
    }

    /// A flow for a message. The policy is kept until its end, however the configuration changes.
    pub fn new(kind: Kind, ledger: Ledger, policy: Policy, dechunk: bool) -> Self {
        Self {
            ledger,
            pending: None,
            pipe: None,
            kind,
            policy,
            dechunk,
            splice_given_up: false,
            run: None,
            redirect_given_up: false,
            moved_unseen: 0,
            read_line: false,
            waits_since_ms: None,
            copied: 0,
            spliced: 0,
            redirected: 0,
        }
    }

    /// Whether everything was passed on that is known so far: no edited head, no spliced or redirected byte is under way.
    #[inline]
    pub fn is_flushed(&self) -> bool {
        self.run.is_none() && self.holds_nothing()
    }

    /// Whether no byte of it is in the worker's hands.
    #[inline]
    pub fn holds_nothing(&self) -> bool {
        self.pending.is_none() && self.pipe.as_ref().is_none_or(|pipe| pipe.filled() == 0)
    }

    /// Whether the kernel passes its bytes on now.
    #[inline]
    pub fn is_redirected(&self) -> bool {
        self.run.is_some()
    }

    /// A response has become a tunnel: what is still under way of its head goes first.
    pub fn become_tunnel(&mut self, ledger: Ledger, policy: Policy) {
        (self.kind, self.ledger, self.policy) = (Kind::Tunnel, ledger, policy);
    }

    /// Bytes of body moved so far.
    #[inline]
    pub fn moved(&self) -> u64 {
        self.copied + self.spliced + self.redirected
    }

    /// Moves what can be moved now.
    ///
    /// # Errors
    /// What broke; what was under way is lost then.
    pub fn pump(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        tools: &mut Tools<'_>,
    ) -> Result<Progress, Broken> {
        for _ in 0..ROUNDS_MAX {
            if self.run.is_some()
                && let Some(progress) = self.look_after(source, sink, tools)?
            {
                return Ok(progress);
            }
            if !self.flush(source, sink, tools)? {
                return Ok(Progress::Blocked);
            }
            if self.ledger.is_settled() {
                self.release_pipe(tools);
                return Ok(Progress::Done);
            }
            if source.ended {
                // Everything it sent has been passed on. Where only the end of the connection ends the message, it must be one in
                // order.
                if self.ledger.data_left() == u64::MAX && source.was_reset() {
                    return Err(Broken::Source(io::ErrorKind::ConnectionReset.into()));
                }
                self.ledger.close().map_err(|_| Broken::SourceEnded)?;
                self.release_pipe(tools);
                return Ok(Progress::Done);
            }
            if self.wants_redirection(source) {
                match self.redirect(source, sink, tools) {
                    Begun::Yes => continue,
                    Begun::Later => return Ok(Progress::Blocked),
                    Begun::No => {}
                }
            }
            if !source.readable {
                sink.push();
                self.release_pipe(tools);
                return Ok(Progress::Starved);
            }
            if self.wants_splice() && self.take_pipe(tools) {
                if let Some(buffer) = source.buffer.as_mut() {
                    buffer.held = false; // what is spliced cannot be sent again
                }
                source.release_if_empty(tools.buffers);
                self.splice_in(source, tools)?;
            } else {
                self.read_in(source, tools.buffers)?;
            }
        }
        Ok(Progress::Yielded)
    }

    /// Sends all that waits: the edited head, spliced bytes, buffered bytes, in the order they came. False when the
    /// sink does not take all.
    pub fn flush(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        tools: &mut Tools<'_>,
    ) -> Result<bool, Broken> {
        if !self.flush_own(sink, tools).map_err(Broken::Sink)? {
            return Ok(false);
        }
        if !self.flush_pipe(sink, tools.metrics)? {
            return Ok(false);
        }
        loop {
            let Some(buffer) = source.buffer.as_mut() else { return Ok(true) };
            self.clear_buffered(buffer, tools.buffers)?;
            if buffer.start < buffer.cleared {
                // The line of a chunk goes with its data, which lies there as long as no read has emptied the socket.
                let more = self.read_line && source.readable && self.ledger.data_left() >= SPLICE_SIZE_LEAST;
                let sent = send_cleared(buffer, sink, tools.buffers, more).map_err(Broken::Sink)?;
                self.count_copied(sent as u64, tools.metrics);
                if buffer.start < buffer.cleared {
                    return Ok(false);
                }
            }
            if self.ledger.is_settled() || !buffer.has_unscanned() {
                source.release_if_empty(tools.buffers);
                return Ok(true);
            }
        }
    }

    fn flush_pipe(&mut self, sink: &mut Endpoint, metrics: &Block) -> Result<bool, Broken> {
        let Some(pipe) = self.pipe.as_mut() else { return Ok(true) };
        let mut may_meet_stop = sink.is_read_by_kernel(); // as in `Endpoint::send`
        while pipe.filled() > 0 {
            if !sink.writable {
                return Ok(false);
            }
            // More follows at once only if the source filled the pipe; otherwise the last segment must not wait.
            let more = pipe.filled() >= pipe.capacity() && !self.ledger.is_settled();
            match pipe.drain(&*sink, more) {
                Ok(n) => {
                    sink.corked = more;
                    self.spliced += n as u64;
                    metrics.add(Counter::BytesSpliced, n as u64);
                    metrics.add(self.kind.spliced(), n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sink.writable = std::mem::take(&mut may_meet_stop);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Broken::Sink(error)),
            }
        }
        Ok(true)
    }

    /// Looks at buffered bytes and clears those that belong to the message.
    fn clear_buffered(&mut self, buffer: &mut Buffer, pool: &mut BufferPool) -> Result<(), Broken> {
        while buffer.has_unscanned() {
            let unscanned = pool.bytes(buffer, buffer.unscanned..buffer.end);
            if !self.dechunk {
                let n = self.ledger.take(unscanned).map_err(Broken::Refused)?;
                buffer.unscanned += n;
                buffer.cleared = buffer.unscanned;
                return Ok(());
            }
            match self.ledger.scan(unscanned).map_err(Broken::Refused)? {
                Part::Data(n) => {
                    let from = buffer.unscanned;
                    pool.bytes_mut(buffer).copy_within(from..from + n, buffer.cleared);
                    buffer.cleared += n;
                    buffer.unscanned += n;
                }
                Part::Framing(n) => buffer.unscanned += n,
                Part::End | Part::More => break,
            }
        }
        if buffer.start == buffer.cleared {
            buffer.sent(0);
        }
        Ok(())
    }

    fn wants_splice(&self) -> bool {
        let left = self.ledger.data_left();
        // Until the connection closes the size is not known; a body that has been large goes on being large.
        let known = if left == u64::MAX { self.ledger.content() } else { left };
        match self.policy.mode {
            _ if self.splice_given_up => false,
            RedirectMode::Copy => false,
            RedirectMode::Splice | RedirectMode::Sockmap => left >= SPLICE_SIZE_LEAST,
            RedirectMode::Auto => known >= self.policy.splice_size_min.max(SPLICE_SIZE_LEAST),
        }
    }

    fn take_pipe(&mut self, tools: &mut Tools<'_>) -> bool {
        if self.pipe.is_none() {
            self.pipe = tools.pipes.take();
            if self.pipe.is_none() {
                tools.metrics.add(Counter::FallbackNoPipe, 1);
                self.splice_given_up = true;
            }
        }
        self.pipe.is_some()
    }

    fn splice_in(&mut self, source: &mut Endpoint, tools: &mut Tools<'_>) -> Result<(), Broken> {
        let Some(pipe) = self.pipe.as_mut() else { return Ok(()) };
        debug_assert_eq!(pipe.filled(), 0, "what is in the pipe goes first");
        let most = usize::try_from(self.ledger.data_left()).unwrap_or(usize::MAX).min(pipe.capacity());
        match pipe.fill(&*source, most) {
            Ok(0) => {
                source.ended = true;
                source.readable = false;
            }
            // Less than asked for does not mean that the socket is empty: the pipe's slots may have been full.
            Ok(n) => {
                self.ledger.debit(n as u64);
                self.count_unseen(n as u64);
            }
            // The pipe was empty, so it is the socket that has nothing.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => source.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tools.metrics.add(Counter::FallbackRefused, 1);
                self.splice_given_up = true;
                self.release_pipe(tools);
            }
            Err(error) => return Err(Broken::Source(error)),
        }
        Ok(())
    }

    fn read_in(&mut self, source: &mut Endpoint, pool: &mut BufferPool) -> Result<(), Broken> {
        if let Some(buffer) = source.buffer.as_mut()
            && buffer.end == pool.size()
        {
            // The sink has taken all of it (`flush`), so nothing is lost.
            debug_assert!(buffer.is_empty());
            buffer.reset();
        }
        // Behind a large chunk no more than the framing up to the next one, which will be as large: what would be read of its data
        // would have to be copied.
        self.read_line = self.ledger.is_in_chunk_line() && self.moved_unseen >= pool.size() as u64;
        if !self.read_line {
            self.moved_unseen = 0;
        }
        let most = if self.read_line { CHUNK_LINE_READ } else { usize::MAX };
        match source.receive_at_most(most, pool) {
            Ok(Received::Bytes(_)) => {}
            Ok(Received::Nothing | Received::Closed) => source.release_if_empty(pool),
            Err(error) => return Err(Broken::Source(error)),
        }
        Ok(())
    }

    pub(super) fn count_unseen(&mut self, n: u64) {
        if std::mem::take(&mut self.read_line) {
            self.moved_unseen = 0;
        }
        self.moved_unseen += n;
    }

    fn count_copied(&mut self, n: u64, metrics: &Block) {
        if n > 0 {
            self.copied += n;
            metrics.add(Counter::BytesCopied, n);
            metrics.add(self.kind.copied(), n);
        }
    }

    pub(super) fn release_pipe(&mut self, tools: &mut Tools<'_>) {
        if let Some(pipe) = self.pipe.take() {
            tools.pipes.release(pipe);
        }
    }

    /// Ends the flow: gives everything back, and counts the body by how it was moved. Returns how many bytes were, the last
    /// that the kernel has moved included.
    pub fn finish(&mut self, tools: &mut Tools<'_>) -> Moved {
        self.abandon_run(tools);
        let moved = Moved { copied: self.copied, spliced: self.spliced, redirected: self.redirected };
        self.release_pipe(tools);
        if let Some(pending) = self.pending.take() {
            tools.buffers.release(pending);
        }
        if self.redirected > 0 {
            tools.metrics.add(Counter::BodiesRedirected, 1);
        } else if self.spliced > 0 {
            tools.metrics.add(Counter::BodiesSpliced, 1);
        } else if self.copied > 0 {
            tools.metrics.add(Counter::BodiesCopied, 1);
        }
        (self.copied, self.spliced, self.redirected) = (0, 0, 0);
        moved
    }
}

/// Writes a buffer's cleared bytes; returns how many the sink took.
fn send_cleared(
    buffer: &mut Buffer,
    sink: &mut Endpoint,
    pool: &BufferPool,
    more: bool,
) -> io::Result<usize> {
    let mut total = 0;
    while buffer.start < buffer.cleared && sink.writable {
        let bytes = pool.bytes(buffer, buffer.start..buffer.cleared);
        let size = bytes.len();
        let sent = if more { sink.send_corked(bytes)? } else { sink.send(&[IoSlice::new(bytes)])? };
        if sent < size {
            // A short write has filled the socket; an event tells when there is room.
            sink.writable = false;
        }
        buffer.sent(sent);
        total += sent;
    }
    Ok(total)
}

#[cfg(test)]
mod tests;
