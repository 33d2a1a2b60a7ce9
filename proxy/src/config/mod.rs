//! The configuration file: TOML to [`State`] and back, the rules a state must keep, the text that explains each key.
//!
//! Every key is declared once, in `keys`: the reader, the writer, the range checks, `underpass check --explain` and
//! the man page all come from that table.
#![forbid(unsafe_code)]

mod explain;
mod keys;
mod problem;
mod read;
mod syntax;
mod table;
mod validate;
mod write;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use underpass_command::state::State;

use table::Fault;

pub use explain::{explain, man_page};
pub use problem::{Diagnostic, Errors, Place, Problem, Severity};
pub(crate) use syntax::nearest;
pub use validate::{ChangeProblems, check_change, keep_settled, settled_differently, validate};
pub use write::to_toml;

/// The largest configuration file in bytes.
pub const FILE_SIZE_MAX: u64 = 16 * 1024 * 1024;

/// The longest timeout in milliseconds, 30 days: long enough for any wait, short enough that no deadline overflows.
pub const TIMEOUT_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// Reads a configuration file.
///
/// # Errors
/// Everything that is wrong with the file, in the order of its lines. Warnings alone do not fail; they are dropped
/// here, see [`load_with_warnings`].
pub fn load(path: &Path) -> Result<State, Errors> {
    load_with_warnings(path).map(|(state, _)| state)
}

/// Reads a configuration file; the second part are the warnings, in the order of the file's lines.
///
/// # Errors
/// Everything that is wrong with the file, warnings included.
pub fn load_with_warnings(path: &Path) -> Result<(State, Vec<Diagnostic>), Errors> {
    let file_name = path.display().to_string();
    let text = read_text(path).map_err(|fault| Errors::of_file(&file_name, fault))?;
    parse_with_warnings(&text, &file_name)
}

/// Reads the text of a configuration file; `file_name` is for the messages.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file_name: &str) -> Result<State, Errors> {
    parse_with_warnings(text, file_name).map(|(state, _)| state)
}

/// Reads the text of a configuration file; the second part are the warnings.
///
/// # Errors
/// As [`load_with_warnings`].
pub fn parse_with_warnings(text: &str, file_name: &str) -> Result<(State, Vec<Diagnostic>), Errors> {
    let (state, diagnostics) = read::read(text, file_name);
    if diagnostics.iter().any(|diagnostic| diagnostic.problem.severity == Severity::Error) {
        return Err(Errors { diagnostics });
    }
    Ok((state, diagnostics))
}

fn read_text(path: &Path) -> Result<String, Fault> {
    let unreadable = |error: io::Error| {
        Fault::new(format!("cannot be read: {error}"), "name a file that this user may read")
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(Fault::new(format!("above {FILE_SIZE_MAX} bytes"), "use a smaller file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        Fault::new(format!("not UTF-8 in line {line}"), "save it as UTF-8")
    })
}

#[cfg(test)]
mod tests;
