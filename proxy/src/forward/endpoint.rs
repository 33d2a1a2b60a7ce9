//! One side of a forwarding: a socket, what is known of its readiness, and the bytes read from it.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use nix::libc::MSG_MORE;
use socket2::SockRef;

use super::redirect::Attachment;
use super::{Buffer, BufferPool};

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now; an event will tell.
    Nothing,
    /// The peer has closed its side.
    Closed,
}

/// A socket with its receive buffer. Readiness follows epoll's edges: it is taken for ready until a call shows
/// otherwise.
#[derive(Debug)]
pub struct Endpoint {
    stream: TcpStream,
    /// Bytes may be waiting to be read.
    pub readable: bool,
    /// Bytes can be written.
    pub writable: bool,
    /// The peer has announced its end: a short read does not mean that nothing follows.
    pub hangup: bool,
    /// The end was read.
    pub ended: bool,
    /// Our end was sent.
    pub(super) finished: bool,
    /// What was sent last was to wait for what follows.
    pub(super) corked: bool,
    /// Bytes received and not yet passed on.
    pub buffer: Option<Buffer>,
    /// What the kernel's redirection has to do with the socket.
    pub(super) redirect: Attachment,
}

impl Endpoint {
    /// Wraps a connected or connecting stream.
    pub fn new(stream: TcpStream, readable: bool, writable: bool) -> Self {
        Self {
            stream,
            readable,
            writable,
            hangup: false,
            ended: false,
            finished: false,
            corked: false,
            buffer: None,
            redirect: Attachment::default(),
        }
    }

    /// The stream, to register it.
    pub fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The stream.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Enters what epoll reported.
    #[inline]
    pub fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed();
        self.writable |= event.is_writable() || event.is_write_closed();
        // A connection that was reset is closed for reading too; an error alone may be the stop of a redirection.
        self.hangup |= event.is_read_closed();
    }

    /// Reads into the buffer's room. A read that does not fill the room has emptied the socket, so the next one waits for
    /// an event: this saves the call that would only say so (epoll(7), question 9).
    #[inline]
    pub fn receive(&mut self, pool: &mut BufferPool) -> io::Result<Received> {
        self.receive_at_most(usize::MAX, pool)
    }

    /// The same, `most` bytes at most.
    #[inline]
    pub fn receive_at_most(&mut self, most: usize, pool: &mut BufferPool) -> io::Result<Received> {
        let buffer = self.buffer.get_or_insert_with(|| pool.take());
        let room = pool.room_mut(buffer);
        debug_assert!(!room.is_empty());
        let size = room.len().min(most);
        let room = &mut room[..size];
        let received = loop {
            match self.stream.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        match received {
            Ok(0) => {
                self.readable = false;
                self.ended = true;
                Ok(Received::Closed)
            }
            Ok(n) => {
                buffer.end += n;
                if n < size && !self.hangup {
                    self.readable = false;
                }
                Ok(Received::Bytes(n))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Received::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes slices; `Ok(0)` when the socket takes nothing now.
    #[inline]
    pub fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.corked = false;
        self.send_by(|mut stream| match slices {
            [one] => stream.write(one),
            _ => stream.write_vectored(slices),
        })
    }

    /// Writes bytes that the next ones follow at once: TCP keeps a segment that they do not fill (MSG_MORE, send(2)) until then, or
    /// until [`Self::push`].
    pub(super) fn send_corked(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.corked = true;
        self.send_by(|stream| SockRef::from(stream).send_with_flags(bytes, MSG_MORE))
    }

    /// Nothing follows for now. What was held back is sent, which the kernel would do after 200 ms.
    #[inline]
    pub(super) fn push(&mut self) {
        if std::mem::take(&mut self.corked) {
            // It is set already. To set it again pushes (tcp(7)); fails only when the connection is gone.
            let _ = self.stream.set_nodelay(true);
        }
    }

    #[inline]
    fn send_by(&mut self, write: impl Fn(&TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        let mut may_meet_stop = self.is_read_by_kernel();
        loop {
            match write(&self.stream) {
                Ok(n) => return Ok(n),
                // The pending error of a stop looks the same (`ebpf/src/redirect.rs`, STOP) and is told once. Taken for a full buffer it
                // would have us wait for an event that never comes.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_meet_stop => {
                    may_meet_stop = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives an empty receive buffer back to its pool, unless its bytes are still wanted.
    #[inline]
    pub fn release_if_empty(&mut self, pool: &mut BufferPool) {
        if self.buffer.as_ref().is_some_and(|buffer| buffer.is_empty() && !buffer.held)
            && let Some(buffer) = self.buffer.take()
        {
            pool.release(buffer);
        }
    }

    /// Gives the receive buffer back, whatever it holds.
    pub fn discard_buffer(&mut self, pool: &mut BufferPool) {
        if let Some(buffer) = self.buffer.take() {
            pool.release(buffer);
        }
    }

    /// Sends FIN.
    pub fn shutdown_write(&mut self) {
        self.finished = true;
        // Fails only when the connection is gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Makes the close that follows a reset: the peer must not take what it has for the whole.
    pub fn reset_on_close(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// The socket's pending error.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.stream.take_error()
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
