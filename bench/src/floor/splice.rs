//! The way through a pipe: the kernel moves pages from socket to socket, userspace never sees the bytes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::net::TcpStream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::Step;

/// Wanted size in bytes; the kernel may give less to an ordinary user.
const PIPE_SIZE: i32 = 1 << 20;
/// Most bytes in one call.
const CALL_SIZE: usize = 1 << 20;

/// A pipe and what it holds.
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    pending: usize,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        match fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)) {
            // Beyond the user's share of pipe memory: the default size works too.
            Ok(_) | Err(Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self { reader, writer, pending: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Moves what the source has into the pipe, and from there to the target.
    pub(super) fn pass(&mut self, source: &TcpStream, target: &TcpStream) -> io::Result<Step> {
        // The pipe is empty, so a refusal means that the source is.
        let Some(length) = move_pages(source.as_fd(), self.writer.as_fd(), CALL_SIZE)? else {
            return Ok(Step::SourceEmpty);
        };
        if length == 0 {
            return Ok(Step::SourceEnded);
        }
        self.pending = length;
        Ok(if self.flush(target)? { Step::Moved } else { Step::TargetFull })
    }

    /// Empties the pipe; false when the target takes no more.
    pub(super) fn flush(&mut self, target: &TcpStream) -> io::Result<bool> {
        while self.pending > 0 {
            let Some(length) = move_pages(self.reader.as_fd(), target.as_fd(), self.pending)? else {
                return Ok(false);
            };
            self.pending -= length;
        }
        Ok(true)
    }
}

/// One splice; none when it would block.
fn move_pages(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> io::Result<Option<usize>> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from, None, to, None, length, flags) {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
