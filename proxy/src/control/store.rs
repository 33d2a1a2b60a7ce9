//! The configuration on disk: a snapshot, and a journal of the changes since.
//!
//! Each change is appended to the journal before it goes to the workers, so a proxy that is killed comes back as it was. The
//! journal is not forced to the disk with each change: after a loss of power the last moments may be missing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use underpass_command::api::StateDocument;
use underpass_command::live::{Configuration, Operation};

/// A journal above this and above the snapshot's size is replaced by a new snapshot.
const JOURNAL_SIZE_MIN: u64 = 4 * 1024 * 1024;

/// Why a saved configuration cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("settings.saved_state {path}: {problem}")]
pub struct StoreError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("it is not understood: {0}; move it away to start from the configuration file")]
    Document(serde_json::Error),
    #[error(
        "line {line} of its journal is not understood: {error}; move both away to start from the configuration file"
    )]
    Journal { line: usize, error: String },
    #[error("it does not fit together: {0}; move it away to start from the configuration file")]
    Content(String),
}

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    revision: u64,
    operations: Vec<Operation>,
}

/// Where the configuration is kept.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// None after it could not be written: then the next change makes a new snapshot.
    journal: Option<File>,
    journal_size: u64,
    snapshot_size: u64,
}

impl Store {
    /// Opens a store, and what was saved there.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Configuration>), StoreError> {
        let fail = |problem| StoreError { path: path.to_owned(), problem };
        let saved = read(path).map_err(fail)?;
        let store = Self { path: path.to_owned(), journal: None, journal_size: 0, snapshot_size: 0 };
        Ok((store, saved))
    }

    /// Writes a snapshot, and begins a new journal.
    pub(super) fn save(&mut self, configuration: &Configuration) -> Result<(), StoreError> {
        self.write(configuration).map_err(|error| {
            self.journal = None;
            StoreError { path: self.path.clone(), problem: error.into() }
        })
    }

    fn write(&mut self, configuration: &Configuration) -> io::Result<()> {
        let document = StateDocument { revision: configuration.revision(), state: configuration.state() };
        let text = serde_json::to_vec(&document)?;
        let new = with_suffix(&self.path, ".new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder)?.sync_all()?;
        }
        // Whatever is in the old journal is of revisions that the snapshot has, so it does no harm if this fails.
        let journal = with_suffix(&self.path, ".journal");
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(journal)?;
        (self.journal, self.journal_size, self.snapshot_size) = (Some(file), 0, text.len() as u64);
        Ok(())
    }

    /// Adds a change that has led to a configuration. Whatever fails is logged: the proxy goes on.
    pub(super) fn append(&mut self, revision: u64, operations: &[Operation], configuration: &Configuration) {
        let full = self.journal_size > JOURNAL_SIZE_MIN.max(self.snapshot_size);
        let appended = match &mut self.journal {
            Some(journal) if !full => append(journal, revision, operations),
            _ => self.write(configuration).map(|()| 0),
        };
        match appended {
            Ok(size) => self.journal_size += size,
            Err(error) => {
                self.journal = None;
                let path = self.path.display();
                tracing::error!("settings.saved_state {path}: revision {revision} is not saved: {error}");
            }
        }
    }
}

fn append(journal: &mut File, revision: u64, operations: &[Operation]) -> io::Result<u64> {
    let mut line = serde_json::to_vec(&Entry { revision, operations: operations.to_vec() })?;
    line.push(b'\n');
    journal.write_all(&line)?;
    Ok(line.len() as u64)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn read(path: &Path) -> Result<Option<Configuration>, Problem> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let document: StateDocument = serde_json::from_slice(&text).map_err(Problem::Document)?;
    let first = |errors: Vec<underpass_command::live::OperationError>| {
        Problem::Content(errors.first().map_or_else(String::new, ToString::to_string))
    };
    let mut configuration = Configuration::new(document.state).map_err(first)?;
    configuration.set_revision(document.revision);
    let journal = match File::open(with_suffix(path, ".journal")) {
        Ok(journal) => journal,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(configuration)),
        Err(error) => return Err(error.into()),
    };
    replay(BufReader::new(journal), &mut configuration)?;
    Ok(Some(configuration))
}

/// Carries out the changes that a journal has and the snapshot does not.
fn replay(mut journal: impl BufRead, configuration: &mut Configuration) -> Result<(), Problem> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        journal.read_until(b'\n', &mut line)?;
        // The last line was cut when the proxy was killed in the middle of it: its change was not answered.
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        let fault = |error: String| Problem::Journal { line: number, error };
        let entry: Entry = serde_json::from_slice(&line).map_err(|error| fault(error.to_string()))?;
        if entry.revision <= configuration.revision() {
            continue;
        }
        let applied = configuration.apply(&entry.operations);
        applied.map_err(|errors| fault(errors.first().map_or_else(String::new, ToString::to_string)))?;
        configuration.set_revision(entry.revision);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use underpass_command::state::{Backend, Cluster, State};

    use super::*;

    fn start() -> Configuration {
        Configuration::new(State { clusters: vec![Cluster::new("app")], ..State::default() }).expect("fits")
    }

    fn add(port: u16) -> Vec<Operation> {
        let backend = Backend::new(([127, 0, 0, 1], port).into());
        vec![Operation::AddBackend { cluster: "app".into(), backend }]
    }

    fn change(store: &mut Store, configuration: &mut Configuration, operations: &[Operation]) {
        let applied = configuration.apply(operations).expect("fits");
        store.append(configuration.revision(), &applied.effects, configuration);
    }

    #[test]
    fn what_was_changed_comes_back_with_its_revision() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.json");
        let (mut store, none) = Store::open(&path).expect("nothing there");
        assert!(none.is_none());
        let mut configuration = start();
        for port in 1..4 {
            change(&mut store, &mut configuration, &add(port));
        }
        let (_, saved) = Store::open(&path).expect("readable");
        let saved = saved.expect("saved");
        assert_eq!((saved.revision(), &saved), (4, &configuration));
        store.save(&configuration).expect("writable");
        change(&mut store, &mut configuration, &add(9));
        let (_, saved) = Store::open(&path).expect("readable");
        assert_eq!(saved.expect("saved"), configuration);
    }

    #[test]
    fn a_line_that_was_cut_is_passed_over_and_one_that_is_broken_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.json");
        let (mut store, _) = Store::open(&path).expect("nothing there");
        let mut configuration = start();
        change(&mut store, &mut configuration, &add(1));
        change(&mut store, &mut configuration, &add(2));
        let journal = with_suffix(&path, ".journal");
        let whole = fs::read(&journal).expect("a journal");
        fs::write(&journal, [&whole[..], b"{\"revision\":4,\"opera"].concat()).expect("writable");
        let (_, saved) = Store::open(&path).expect("the rest is whole");
        assert_eq!(saved.expect("saved"), configuration);
        fs::write(&journal, [b"{\n", &whole[..]].concat()).expect("writable");
        let error = Store::open(&path).expect_err("broken").to_string();
        assert!(error.contains("line 1 of its journal") && error.contains("move both away"), "{error}");
        fs::write(&path, "{").expect("writable");
        let error = Store::open(&path).expect_err("broken").to_string();
        assert!(error.starts_with("settings.saved_state ") && error.contains("not understood"), "{error}");
    }

    #[test]
    fn a_long_journal_becomes_a_snapshot() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.json");
        let (mut store, _) = Store::open(&path).expect("nothing there");
        let mut configuration = start();
        change(&mut store, &mut configuration, &add(1));
        store.journal_size = JOURNAL_SIZE_MIN + 1;
        change(&mut store, &mut configuration, &add(2));
        assert_eq!(fs::metadata(with_suffix(&path, ".journal")).expect("a journal").len(), 0);
        let (_, saved) = Store::open(&path).expect("readable");
        assert_eq!(saved.expect("saved"), configuration);
    }
}
