//! The shared memory behind a worker's counters. The only unsafe code of this module's folder.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{Whence, ftruncate, lseek};

use super::slots::{PAGE_WORDS, SLOT_COUNTERS, WORDS};
use super::{
    BUCKETS, BackendCounter, COUNTERS, ClusterCounter, Counter, Histogram, ListenerCounter, Peer, REASONS,
    Reading, SlotCounter, bucket_of,
};

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

/// One worker's counters, mapped. Pages that were never written take no memory.
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
        add(&self.words()[counter as usize], n);
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
        add(&self.words()[Self::reason_word(peer, reason)], 1);
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
        add(&self.words()[COUNTERS + 2 * REASONS + bucket_of(micros)], 1);
    }

    /// The latencies counted so far.
    pub fn latencies(&self) -> Histogram {
        let first = COUNTERS + 2 * REASONS;
        let counts: Vec<u64> =
            self.words()[first..first + BUCKETS].iter().map(|word| word.load(Relaxed)).collect();
        Histogram::from_counts(&counts)
    }
}

/// The slots of listeners, clusters and backends.
impl Block {
    /// The slot of a listener.
    #[inline]
    pub fn listener(&self, number: u32) -> Slot<'_, ListenerCounter> {
        self.slot(number)
    }

    /// The slot of a cluster.
    #[inline]
    pub fn cluster(&self, number: u32) -> Slot<'_, ClusterCounter> {
        self.slot(number)
    }

    /// The slot of a backend.
    #[inline]
    pub fn backend(&self, number: u32) -> Slot<'_, BackendCounter> {
        self.slot(number)
    }

    #[inline]
    pub(super) fn slot<C: SlotCounter>(&self, number: u32) -> Slot<'_, C> {
        let first = C::AREA.slot(number);
        Slot { words: &self.words()[first..first + C::AREA.slot_words], kind: PhantomData }
    }

    /// Sets a slot to zero before its number is given to another item. `in_use` tells which other numbers are taken: memory that
    /// holds nothing but slots without owner goes back to the system. No worker may count in the slot meanwhile.
    ///
    /// # Errors
    /// When the system does not take the memory back; the slot is zero all the same.
    pub fn clear<C: SlotCounter>(&self, number: u32, in_use: impl Fn(u32) -> bool) -> Result<(), BlockError> {
        let area = C::AREA;
        let first = area.slot(number);
        let mut written = false;
        self.each_written_within(first..first + area.slot_words, |_| written = true);
        if !written {
            return Ok(());
        }
        for word in self.slot::<C>(number).words {
            word.store(0, Relaxed);
        }
        let page = first - first % PAGE_WORDS;
        let in_page = u32::try_from(PAGE_WORDS / area.slot_words).unwrap_or(1);
        let neighbour = number - number % in_page;
        let shared = (neighbour..neighbour + in_page).any(|other| other != number && in_use(other));
        if !shared {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let word = size_of::<AtomicU64>();
            fallocate(&self.fd, flags, (page * word) as i64, (PAGE_WORDS * word) as i64)?;
        }
        Ok(())
    }

    /// Calls `found` with each range of words that has memory.
    pub(super) fn each_written(&self, found: impl FnMut(Range<usize>)) {
        self.each_written_within(0..WORDS, found);
    }

    fn each_written_within(&self, range: Range<usize>, mut found: impl FnMut(Range<usize>)) {
        let word = size_of::<AtomicU64>() as i64;
        let end = range.end as i64 * word;
        let mut at = range.start as i64 * word;
        // ENXIO ends it: no data from there to the end. The position belongs to nobody else: workers never seek.
        while at < end
            && let Ok(data) = lseek(&self.fd, at, Whence::SeekData)
            && data < end
        {
            let hole = lseek(&self.fd, data, Whence::SeekHole).map_or(end, |hole| hole.min(end));
            let words = |offset: i64| usize::try_from(offset / word).unwrap_or(WORDS);
            found(words(data)..words(hole));
            at = hole;
        }
    }

    /// Memory that the block takes, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let mut words = 0;
        self.each_written(|range| words += range.len());
        (words * size_of::<AtomicU64>()) as u64
    }
}

/// The counters of one listener, cluster or backend in one worker.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a, C> {
    words: &'a [AtomicU64],
    kind: PhantomData<C>,
}

impl<C: SlotCounter> Slot<'_, C> {
    /// Adds to a counter. As with [`Block::add`], only the worker may.
    #[inline]
    pub fn add(&self, counter: C, n: u64) {
        add(&self.words[counter.index()], n);
    }

    /// Sets a gauge.
    #[inline]
    pub fn set(&self, gauge: C, value: u64) {
        self.words[gauge.index()].store(value, Relaxed);
    }

    /// A gauge goes up or down by one.
    #[inline]
    pub fn gauge(&self, gauge: C, up: bool) {
        self.add(gauge, if up { 1 } else { u64::MAX });
    }

    /// Reads a counter.
    pub fn get(&self, counter: C) -> u64 {
        self.words[counter.index()].load(Relaxed)
    }

    /// Counts a duration in the histogram at `place`.
    #[inline]
    pub fn duration(&self, place: usize, micros: u64) {
        let first = Self::histogram(place);
        add(&self.words[first], micros);
        add(&self.words[first + 1 + C::SCALES[place].bucket_of(micros)], 1);
    }

    /// A histogram is the sum of its values and its buckets.
    fn histogram(place: usize) -> usize {
        SLOT_COUNTERS + C::SCALES[..place].iter().map(|scale| 1 + scale.buckets()).sum::<usize>()
    }

    pub(super) fn add_to(&self, reading: &mut Reading<C>) {
        for (sum, word) in reading.counters.iter_mut().zip(&self.words[..SLOT_COUNTERS]) {
            *sum = sum.wrapping_add(word.load(Relaxed));
        }
        for (place, scale) in C::SCALES.iter().enumerate() {
            let first = Self::histogram(place);
            let durations = &mut reading.durations[place];
            durations.sum_us = durations.sum_us.wrapping_add(self.words[first].load(Relaxed));
            let words = &self.words[first + 1..=first + scale.buckets()];
            for (sum, word) in durations.counts.iter_mut().zip(words) {
                *sum = sum.wrapping_add(word.load(Relaxed));
            }
        }
    }
}

/// Adds to a word that has one writer.
#[inline]
fn add(word: &AtomicU64, n: u64) {
    word.store(word.load(Relaxed).wrapping_add(n), Relaxed);
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
