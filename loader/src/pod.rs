//! Marks the types of the ABI as plain data, so that aya copies them to and from maps byte by byte.
#![allow(unsafe_code)] // nothing but these marks

use underpass_ebpf::{Config, Outcomes, QueueKey, Watch};

/// A value of the ABI. A type of its own, because a foreign trait cannot be implemented for a foreign type.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plain<T>(pub(crate) T);

// SAFETY: `repr(C)`, integers only, without padding (its size is asserted in the ABI to be the sum of its fields).
unsafe impl aya::Pod for Plain<Config> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<QueueKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Watch> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Outcomes> {}
