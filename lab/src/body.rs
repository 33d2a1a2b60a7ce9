//! Reads a body of known length from a socket, and compares it with the pattern.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use crate::exchange::Pattern;

/// Most bytes in a read that shall see every byte.
pub const PEEK_SIZE: usize = 16 * 1024;
/// Bytes at the end of a body that are always seen.
const TAIL_SIZE: u64 = 1024;

/// A body that is being received.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Where in the pattern it begins; none if it may be anything.
    from: Option<usize>,
    left: u64,
    received: u64,
}

/// What one call of `recv` gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes; the flag tells whether the socket is empty now, so that the next byte raises the next event.
    Bytes(usize, bool),
    /// The socket is empty.
    Nothing,
    /// The peer has closed.
    End,
}

impl Body {
    /// A body of which nothing has come yet.
    pub fn new(from: Option<usize>, size: u64) -> Self {
        Self { from, left: size, received: 0 }
    }

    /// Bytes still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes bytes that came with the head.
    ///
    /// # Errors
    /// They are not the right ones, or more than there should be.
    pub fn take(&mut self, bytes: &[u8], pattern: &Pattern) -> Result<()> {
        let length = bytes.len() as u64;
        ensure!(length <= self.left, "bytes after the body's end");
        if let Some(from) = self.from {
            let place = from + usize::try_from(self.received)?;
            ensure!(pattern.body(place, bytes.len()) == Some(bytes), "wrong body");
        }
        self.left -= length;
        self.received += length;
        Ok(())
    }

    /// Reads once.
    ///
    /// What is not compared is not even copied: the kernel drops it (MSG_TRUNC, tcp(7)), so that load generator and backend
    /// cost less than the proxy between them. The beginning and the end are compared.
    ///
    /// # Errors
    /// The connection broke, or the bytes are wrong.
    pub fn read(&mut self, stream: &TcpStream, pattern: &Pattern, buffer: &mut [u8]) -> Result<Received> {
        let at_beginning = self.received < TAIL_SIZE;
        let drop = !at_beginning && self.left > PEEK_SIZE as u64;
        let wanted = if drop { self.left - TAIL_SIZE } else { self.left.min(PEEK_SIZE as u64) };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(buffer.len());
        let flags = if drop { MsgFlags::MSG_TRUNC } else { MsgFlags::empty() };
        let received = receive(stream, &mut buffer[..wanted], flags)?;
        if let Received::Bytes(length, _) = received {
            if drop {
                self.left -= length as u64;
                self.received += length as u64;
            } else {
                self.take(&buffer[..length], pattern)?;
            }
        }
        Ok(received)
    }
}

/// Calls `recv` once; a read that does not fill the buffer has emptied the socket.
///
/// # Errors
/// The connection broke.
pub fn receive(stream: &TcpStream, buffer: &mut [u8], flags: MsgFlags) -> Result<Received> {
    loop {
        match recv(stream.as_raw_fd(), buffer, flags) {
            Ok(0) => return Ok(Received::End),
            Ok(length) => return Ok(Received::Bytes(length, length < buffer.len())),
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("connection broke"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream as StdStream};

    use super::*;

    const SIZE: usize = 300_000;

    fn receive_all(bytes: Vec<u8>, mut body: Body) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut sender = StdStream::connect(listener.local_addr()?)?;
        // Blocking on purpose: no event loop is needed to wait for what comes.
        let receiver = TcpStream::from_std(listener.accept()?.0);
        let sending = std::thread::spawn(move || sender.write_all(&bytes));
        let (pattern, mut buffer) = (Pattern::new(SIZE), vec![0; 1 << 20]);
        while body.left() > 0 {
            ensure!(body.read(&receiver, &pattern, &mut buffer)? != Received::End, "cut");
        }
        drop(receiver);
        let _ = sending.join();
        Ok(())
    }

    fn bytes(from: usize) -> Vec<u8> {
        Pattern::new(SIZE).body(from, SIZE).unwrap_or_default().to_vec()
    }

    #[test]
    fn the_right_body_is_taken() -> Result<()> {
        receive_all(bytes(9), Body::new(Some(9), SIZE as u64))?;
        receive_all(bytes(8), Body::new(None, SIZE as u64))
    }

    #[test]
    fn wrong_bodies_are_told_apart() {
        let displaced = {
            let mut bytes = bytes(9);
            let removed = bytes.remove(SIZE / 2);
            bytes.push(removed);
            bytes
        };
        for (bytes, reason) in
            [(bytes(8), "wrong body"), (displaced, "wrong body"), (bytes(9)[..SIZE - 1].to_vec(), "cut")]
        {
            let error = receive_all(bytes, Body::new(Some(9), SIZE as u64)).err();
            let text = error.map(|error| error.to_string());
            assert!(text.as_ref().is_some_and(|text| text.contains(reason)), "{reason}: {text:?}");
        }
        let mut body = Body::new(None, 3);
        assert!(body.take(b"four", &Pattern::new(8)).is_err());
    }
}
