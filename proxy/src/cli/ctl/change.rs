//! How a command changes the configuration, and says what came of it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use underpass_command::api::{ChangeRequest, Changed};
use underpass_command::live::Operation;

use super::super::{Failure, print};
use super::{Conditions, Context};

/// The longest file of operations, as the proxy takes them.
const FILE_SIZE_MAX: u64 = 32 * 1024 * 1024;
/// The most effects that are listed for people.
const EFFECTS_SHOWN: usize = 50;

/// Arguments of `underpass ctl change`.
#[derive(Debug, Args)]
pub(super) struct FromFile {
    /// File with a JSON list of operations, or with {"operations":[...]}; - is the standard input
    file: PathBuf,
    #[command(flatten)]
    conditions: Conditions,
}

pub(super) fn from_file(context: &Context, arguments: &FromFile) -> Result<(), Failure> {
    let file = &arguments.file;
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", file.display()));
    let bytes = read(file, FILE_SIZE_MAX).map_err(|error| wrong(&error))?;
    let operations = match serde_json::from_slice::<Vec<Operation>>(&bytes) {
        Ok(operations) => operations,
        // What is no list is a whole request, or wrong.
        Err(of_list) if bytes.trim_ascii_start().starts_with(b"[") => return Err(wrong(&of_list)),
        Err(_) => serde_json::from_slice::<ChangeRequest>(&bytes).map_err(|error| wrong(&error))?.operations,
    };
    change(context, operations, arguments.conditions)
}

/// Makes a change and tells what it came to.
pub(super) fn change(
    context: &Context,
    operations: Vec<Operation>,
    conditions: Conditions,
) -> Result<(), Failure> {
    let changed = send(context, operations, conditions)?;
    context.show(&changed, text)
}

/// Makes a change.
pub(super) fn send(
    context: &Context,
    operations: Vec<Operation>,
    conditions: Conditions,
) -> Result<Changed, Failure> {
    let request =
        ChangeRequest { operations, if_revision: conditions.if_revision, dry_run: conditions.dry_run };
    context.client.change(&request).map_err(Failure::runtime)
}

/// What a change came to, for people.
pub(super) fn text(changed: &Changed) -> String {
    let mut out = String::new();
    for warning in &changed.warnings {
        out.push_str(&format!("warning: {warning}\n"));
    }
    for effect in changed.effects.iter().take(EFFECTS_SHOWN) {
        out.push_str(&format!("  {effect}\n"));
    }
    let more = changed.effects.len().saturating_sub(EFFECTS_SHOWN);
    if more > 0 {
        out.push_str(&format!("  and {more} more\n"));
    }
    let revision = changed.revision;
    out.push_str(&match (changed.effects.is_empty(), changed.dry_run) {
        (true, _) => format!("nothing to change; revision {revision}\n"),
        (false, true) => format!("dry run, nothing was changed; it would be revision {revision}\n"),
        (false, false) => format!("revision {revision}\n"),
    });
    out
}

/// Reads a file that is not too long; `-` is the standard input.
pub(super) fn read(file: &Path, size_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file == Path::new("-") {
        true => io::stdin().lock().take(size_max + 1).read_to_end(&mut bytes)?,
        false => File::open(file)?.take(size_max + 1).read_to_end(&mut bytes)?,
    };
    if bytes.len() as u64 > size_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("above {size_max} bytes")));
    }
    Ok(bytes)
}

/// Tells how a wait goes on, where people look.
pub(super) fn say(context: &Context, line: &str) -> Result<(), Failure> {
    if context.json { Ok(()) } else { print(&format!("{line}\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_in_lines() {
        let removed = |name: &str| Operation::RemoveCluster { name: name.into() };
        let mut changed = Changed { revision: 7, effects: vec![removed("a")], ..Changed::default() };
        assert_eq!(text(&changed), "  remove_cluster \"a\"\nrevision 7\n");
        changed.dry_run = true;
        assert!(text(&changed).ends_with("it would be revision 7\n"));
        changed.effects = vec![removed("a"); EFFECTS_SHOWN + 2];
        changed.warnings = vec!["cluster \"b\": no route leads to it".into()];
        let shown = text(&changed);
        assert!(shown.starts_with("warning: cluster \"b\"") && shown.contains("  and 2 more\n"), "{shown}");
        changed.effects.clear();
        assert!(text(&changed).ends_with("nothing to change; revision 7\n"));
    }
}
