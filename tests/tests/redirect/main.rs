//! Whatever moves the bytes, each arrives: every redirect mode under many connections at once that break off, read slowly,
//! send both ways, die and run short of memory. `UNDERPASS_REDIRECT_SEED` draws other runs, `UNDERPASS_REDIRECT_COUNT`
//! longer ones (in percent of a test's own), `UNDERPASS_REDIRECT_MODE` a single mode.

mod client;
mod exact;
mod kills;
mod network;
mod plan;
mod pressure;
mod rig;
mod server;
mod stalled;
mod switching;
mod tunnels;
mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One of these tests at a time: they look at memory, descriptors and the kernel's log.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that could matter to the next.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test's own count, or so many percent of it as the environment says.
fn scaled(count: u64) -> u64 {
    (count * rig::setting("UNDERPASS_REDIRECT_COUNT", 100)).div_ceil(100)
}
