//! Pipes for splice, made once and reused: making and sizing one costs several system calls.

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
}

/// All pipes of a worker.
#[derive(Debug)]
pub struct PipePool {
    free: Vec<Pipe>,
    count: usize,
    size: u32,
}

impl PipePool {
    /// Makes `count` pipes of `size` bytes. Fewer when the process runs out of descriptors; that is no error, bodies
    /// are copied then.
    pub fn new(count: u32, size: u32) -> Self {
        let free: Vec<Pipe> = (0..count).map_while(|_| Pipe::new(size).ok()).collect();
        Self { count: free.len(), free, size }
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

    /// Gives a pipe back. One that still holds bytes of a broken transfer is replaced.
    pub fn release(&mut self, pipe: Pipe) {
        if pipe.filled == 0 {
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
