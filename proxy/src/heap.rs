//! Memory that the allocator holds and nobody uses.

/// Gives memory that was freed back to the system. What glibc keeps otherwise between what is still in use would let a
/// process that has once had a large configuration look large for ever. Takes about a millisecond for each 30 MiB.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time, from any thread; it only touches what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
