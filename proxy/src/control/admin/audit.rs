//! Who changed what: one structured line for each change that was asked for, in the log and, where
//! `log.audit_file` names one, in a file of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use super::caller::Caller;
use crate::control::commands::Failure;

/// The audit log. Clones write to the same file.
#[derive(Clone, Debug, Default)]
pub(super) struct Audit {
    file: Option<Arc<Mutex<File>>>,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    uid: u32,
    pid: i32,
    action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// Status code of the answer.
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Audit {
    /// Opens the file, or makes it for its user alone. Lines are added at its end.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self { file: Some(Arc::new(Mutex::new(file))) })
    }

    /// Notes what came of a change. The line is in the file when this returns.
    pub(super) fn note(&self, caller: Caller, action: &str, outcome: Result<Option<u64>, &Failure>) {
        let Caller { uid, pid } = caller;
        let (revision, status, error) = match outcome {
            Ok(revision) => (revision, 200, None),
            Err(failure) => (None, failure.status, Some(failure.body.error.as_str())),
        };
        match error {
            None => tracing::info!(target: "audit", uid, pid, revision, "{action}"),
            Some(error) => tracing::warn!(target: "audit", uid, pid, status, "{action}: {error}"),
        }
        if let Some(file) = &self.file {
            let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            let line = Line { time, uid, pid, action, revision, status, error };
            if let Err(error) = append(file, &line) {
                tracing::error!("audit log: a line is lost: {error}");
            }
        }
    }
}

/// One write for one line, so that lines of several processes do not mix (O_APPEND, open(2)).
fn append(file: &Mutex<File>, line: &Line<'_>) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_change_is_a_line_of_json() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("audit.log");
        let caller = Caller { uid: 1000, pid: 77 };
        let audit = Audit::open(Some(&path)).expect("a new file");
        audit.note(caller, "2 operations", Ok(Some(9)));
        audit.note(caller, "redirect \"x\"\nmode", Err(&Failure::new(404, "no cluster", "name one")));
        drop(audit);
        Audit::open(Some(&path)).expect("the same file").note(caller, "save", Ok(None));
        let text = std::fs::read_to_string(&path).expect("readable");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!((&lines[0]["uid"], &lines[0]["pid"]), (&1000.into(), &77.into()));
        assert_eq!((&lines[0]["action"], &lines[0]["revision"]), (&"2 operations".into(), &9.into()));
        assert_eq!((&lines[1]["status"], &lines[1]["error"]), (&404.into(), &"no cluster".into()));
        assert_eq!(lines[2]["action"], "save");
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
