//! Waiting with a deadline, never for a fixed time.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what should happen at once. Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at something that gives no sign when it changes.
const POLL: Duration = Duration::from_millis(2);

/// Looks again and again until there is something, for [`PATIENCE`] at most.
///
/// # Panics
/// When the time is over; `what` says what did not happen.
#[track_caller]
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, look).unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

/// Looks again and again until there is something; none if it does not come in time.
pub fn until_within<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        #[expect(clippy::disallowed_methods, reason = "the one poll that every wait goes through")]
        thread::sleep(POLL);
    }
}
