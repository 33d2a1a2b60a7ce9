//! Pipes for splice, made once and reused: making and sizing one costs several system calls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// A pipe with the bytes that lie in it.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in the pipe.
    filled: usize,
    capacity: usize,
}

impl Pipe {
    fn new(size: u32) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        // Beyond the user's limit (pipe-user-pages-soft) a pipe keeps its small default size; it still works.
        let wanted = i32::try_from(size).unwrap_or(i32::MAX);
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted));
        let capacity = usize::try_from(fcntl(&write, FcntlArg::F_GETPIPE_SZ)?).unwrap_or(0);
        Ok(Self { read, write, filled: 0, capacity })
    }

    /// Bytes in the pipe. It may exceed the capacity: a slot can hold more than a page.
    #[inline]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Nominal capacity in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Moves up to `most` bytes from a socket into the pipe.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is empty or the pipe is full; the two look the same.
    pub fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let moved = splice(from, None, &self.write, None, most, flags)?;
        self.filled += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds to a socket; `more` tells TCP that more follows at once.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now.
    pub fn drain(&mut self, to: impl AsFd, more: bool) -> io::Result<usize> {
        let mut flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        flags.set(SpliceFFlags::SPLICE_F_MORE, more);
        let moved = splice(&self.read, None, to, None, self.filled, flags)?;
        self.filled -= moved;
        Ok(moved)
    }

    /// Throws away what is left; false if some of it stays.
    fn empty(&mut self, null: &File) -> bool {
        while self.filled > 0 {
            match splice(&self.read, None, null, None, self.filled, SpliceFFlags::SPLICE_F_NONBLOCK) {
                Ok(moved) if moved > 0 => self.filled = self.filled.saturating_sub(moved),
                _ => return false,
            }
        }
        // There may be more than was counted, if a call has moved bytes and failed.
        matches!(
            splice(&self.read, None, null, None, 1, SpliceFFlags::SPLICE_F_NONBLOCK),
            Err(nix::Error::EAGAIN)
        )
    }
}

/// All pipes of a worker.
///
/// They are made while the worker may still exceed what the kernel grants a user for pipes (pipe(7), `pipe-user-pages-soft`), and
/// kept: one that was made later might stay small for good.
#[derive(Debug)]
pub struct PipePool {
    free: Vec<Pipe>,
    count: usize,
    size: u32,
    /// Takes what is left in a pipe; none where it could not be opened.
    null: Option<File>,
}

impl PipePool {
    /// Makes `count` pipes of `size` bytes. Fewer when the process runs out of descriptors; that is no error, bodies
    /// are copied then.
    pub fn new(count: u32, size: u32) -> Self {
        let free: Vec<Pipe> = (0..count).map_while(|_| Pipe::new(size).ok()).collect();
        let null = if free.is_empty() { None } else { OpenOptions::new().write(true).open("/dev/null").ok() };
        Self { count: free.len(), free, size, null }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many are in use.
    pub fn used(&self) -> usize {
        self.count - self.free.len()
    }

    /// Takes an empty pipe, if one is free.
    pub fn take(&mut self) -> Option<Pipe> {
        self.free.pop()
    }

    /// Gives a pipe back. One that still holds bytes of a broken transfer is emptied, or else replaced.
    pub fn release(&mut self, mut pipe: Pipe) {
        if pipe.filled == 0 || self.null.as_ref().is_some_and(|null| pipe.empty(null)) {
            self.free.push(pipe);
            return;
        }
        drop(pipe);
        match Pipe::new(self.size) {
            Ok(fresh) => self.free.push(fresh),
            Err(_) => self.count -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pipe_of_a_broken_transfer_is_emptied_and_kept() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut pool = PipePool::new(1, 64 * 1024);
        for size in [1_usize, 5000, 64 * 1024] {
            let mut pipe = pool.take().expect("the only one");
            let number = pipe.read.as_raw_fd();
            ours.write_all(&vec![b'x'; size]).expect("room");
            let mut left = size;
            while left > 0 {
                left -= pipe.fill(&theirs, left).expect("there are bytes, and there is room");
            }
            assert_eq!(pipe.filled(), size);
            pool.release(pipe);
            let pipe = pool.take().expect("it came back");
            assert_eq!((pipe.filled(), pipe.read.as_raw_fd()), (0, number), "the same, and empty");
            pool.release(pipe);
        }
        // Nothing of it comes out with what is next.
        let mut pipe = pool.take().expect("the only one");
        ours.write_all(b"next").expect("room");
        pipe.fill(&theirs, 64 * 1024).expect("there are bytes");
        let (to, from) = UnixStream::pair().expect("a socket pair");
        assert_eq!(pipe.drain(&to, false).expect("room"), 4);
        let mut seen = [0; 8];
        assert_eq!(io::Read::read(&mut &from, &mut seen).expect("bytes"), 4);
        assert_eq!(&seen[..4], b"next");
        pool.release(pipe);
        assert_eq!((pool.used(), pool.count()), (0, 1));
    }
}
