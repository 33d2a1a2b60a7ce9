//! Pages of a BPF array, shared with the kernel: the only place of this crate that maps memory.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};

/// A part of a BPF array with `BPF_F_MMAPABLE`, mapped for reading and writing.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Invariant: begin of a shared, writable mapping of `size` bytes that this value owns.
    address: NonNull<c_void>,
    size: NonZeroUsize,
}

// SAFETY: the mapping is owned by the value and every access to it is atomic; nothing in it is bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes from `offset`, a multiple of the page size, on.
    ///
    /// # Errors
    /// `InvalidInput` for bytes outside the map; otherwise those of mmap(2).
    pub(crate) fn new(fd: BorrowedFd<'_>, offset: usize, length: usize) -> io::Result<Self> {
        let page = page_size()?;
        let size = NonZeroUsize::new(length.next_multiple_of(page.get())).unwrap_or(page);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces none that exists. The kernel refuses
        // pages that lie outside the map.
        let address = unsafe { mmap(None, size, protection, MapFlags::MAP_SHARED, fd, offset) }?;
        Ok(Self { address, size })
    }

    /// A word, by its offset in bytes.
    ///
    /// # Panics
    /// When it lies outside or is not aligned.
    #[inline]
    pub(crate) fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset + 4 <= self.size.get() && offset.is_multiple_of(4));
        // SAFETY: inside the mapping, as was just checked.
        let word = unsafe { self.address.cast::<u8>().add(offset) };
        // SAFETY: aligned, because pages are and the offset is; mapped for as long as `self` lives; in this process only
        // atomics access it.
        unsafe { AtomicU32::from_ptr(word.cast::<u32>().as_ptr()) }
    }

    /// A double word, by its offset in bytes.
    ///
    /// # Panics
    /// When it lies outside or is not aligned.
    #[inline]
    pub(crate) fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(offset + 8 <= self.size.get() && offset.is_multiple_of(8));
        // SAFETY: inside the mapping, as was just checked.
        let word = unsafe { self.address.cast::<u8>().add(offset) };
        // SAFETY: as in `u32_at`.
        unsafe { AtomicU64::from_ptr(word.cast::<u64>().as_ptr()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is owned by this value, and no reference into it outlives it.
        let unmapped = unsafe { munmap(self.address, self.size.get()) };
        debug_assert!(unmapped.is_ok(), "unmapping part of a BPF array: {unmapped:?}");
    }
}

/// Size of a page of memory.
pub(crate) fn page_size() -> io::Result<NonZeroUsize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok());
    size.and_then(NonZeroUsize::new).ok_or_else(|| io::Error::other("the size of a page is unknown"))
}
