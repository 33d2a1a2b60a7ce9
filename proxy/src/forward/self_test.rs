//! Whether this kernel redirects without losing a byte: tried over loopback, with the code that workers run.

use underpass_loader::RedirectPrograms;

/// Tries it.
///
/// # Errors
/// A sentence that says what failed.
pub fn run() -> Result<(), String> {
    RedirectPrograms::load(4).map(drop).map_err(|error| error.to_string())
}
