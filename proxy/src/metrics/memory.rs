//! The shared memory behind a worker's counters. The only unsafe code of this module's folder.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::ftruncate;

use super::{BUCKETS, COUNTERS, Counter, Histogram, Peer, REASONS, WORDS, bucket_of};

const BYTES: usize = WORDS * size_of::<AtomicU64>();

/// Why a block could not be made or mapped.
#[derive(Debug, thiserror::Error)]
#[error("metrics memory of {BYTES} bytes: {0}")]
pub struct BlockError(#[from] io::Error);

impl From<nix::Error> for BlockError {
    fn from(error: nix::Error) -> Self {
        Self(error.into())
    }
}

/// One worker's counters, mapped.
#[derive(Debug)]
pub struct Block {
    /// Points to `WORDS` atomics that stay mapped until drop.
    words: NonNull<AtomicU64>,
    fd: OwnedFd,
}

// SAFETY: the block is memory of atomics; any thread may use it at any time.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Makes a block of zeroes. Its size is sealed: no holder of the descriptor can make an access fault.
    pub fn create() -> Result<Self, BlockError> {
        let fd = memfd_create(c"underpass-metrics", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&fd, BYTES as i64)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(fd)
    }

    /// Maps a block that another process made.
    pub fn map(fd: OwnedFd) -> Result<Self, BlockError> {
        let length = nix::sys::stat::fstat(&fd)?.st_size;
        if length != BYTES as i64 {
            let reason = format!("it has {length} bytes; supervisor and worker are of different versions");
            return Err(BlockError(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        let size = NonZeroUsize::new(BYTES).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping of a descriptor whose size was just checked; nothing else uses the address.
        let address = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, &fd, 0) }?;
        Ok(Self { words: address.cast(), fd })
    }

    /// The descriptor, to pass it on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words` points to WORDS mapped atomics (field invariant); the mapping lives as long as self.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), WORDS) }
    }

    /// Adds to a counter. Only the worker that owns the block may; there is one writer, so this is no atomic add.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let word = &self.words()[counter as usize];
        word.store(word.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, counter: Counter, value: u64) {
        self.words()[counter as usize].store(value, Relaxed);
    }

    /// Reads a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.words()[counter as usize].load(Relaxed)
    }

    /// Counts a message refused for reason number `reason`.
    pub fn refused(&self, peer: Peer, reason: usize) {
        let word = &self.words()[Self::reason_word(peer, reason)];
        word.store(word.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// How many messages of `peer` were refused for reason number `reason`.
    pub fn refusals(&self, peer: Peer, reason: usize) -> u64 {
        self.words()[Self::reason_word(peer, reason)].load(Relaxed)
    }

    fn reason_word(peer: Peer, reason: usize) -> usize {
        let base = match peer {
            Peer::Client => COUNTERS,
            Peer::Backend => COUNTERS + REASONS,
        };
        base + reason.min(REASONS - 1)
    }

    /// Counts one request's time from its first byte to the last byte of its response.
    #[inline]
    pub fn latency(&self, micros: u64) {
        let word = &self.words()[COUNTERS + 2 * REASONS + bucket_of(micros)];
        word.store(word.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The latencies counted so far.
    pub fn latencies(&self) -> Histogram {
        let first = COUNTERS + 2 * REASONS;
        let counts: Vec<u64> =
            self.words()[first..first + BUCKETS].iter().map(|word| word.load(Relaxed)).collect();
        Histogram::from_counts(&counts)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the address and size of the mapping made in `map`, unmapped once.
        let _ = unsafe { munmap(self.words.cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_see_the_same_counters() {
        let writer = Block::create().expect("memfd");
        let reader = Block::map(writer.fd().try_clone_to_owned().expect("dup")).expect("map");
        writer.add(Counter::Requests, 3);
        writer.refused(Peer::Backend, 2);
        writer.latency(250);
        assert_eq!(reader.get(Counter::Requests), 3);
        assert_eq!(reader.refusals(Peer::Backend, 2), 1);
        assert_eq!(reader.refusals(Peer::Client, 2), 0);
        assert_eq!(reader.latencies().total(), 1);
    }

    #[test]
    fn a_foreign_size_is_refused() {
        let fd = memfd_create(c"x", MFdFlags::MFD_CLOEXEC).expect("memfd");
        let error = Block::map(fd).expect_err("empty");
        assert!(error.to_string().contains("different versions"), "{error}");
    }
}
