//! Carries changes out.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use super::plan::Change;

/// Carries out one change below `root`.
///
/// # Errors
/// With what was tried. Some interrupts are managed by their driver and cannot be moved (`EIO` or `EPERM`).
pub fn apply(root: &Path, change: &Change) -> io::Result<()> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{change}: {error}"));
    match change {
        Change::Write { path, value } => {
            // Only files that are there: the kernel makes them, and a mistyped name shall make no other.
            let file = OpenOptions::new().write(true).truncate(true).open(root.join(path));
            file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(failed)
        }
        Change::Run(command) => {
            let [program, arguments @ ..] = &command[..] else { return Ok(()) };
            let status = Command::new(program).args(arguments).status().map_err(failed)?;
            if status.success() { Ok(()) } else { Err(failed(io::Error::other(status.to_string()))) }
        }
    }
}
