//! What is wrong with a state, and where in the file it stands.

use std::fmt;

use super::table::Fault;

/// Whether a problem stops the configuration from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration works, but probably not as meant.
    Warning,
    /// The configuration is refused.
    Error,
}

/// The part of a state that a problem is about. Numbers count from 0, in the order of the state's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The file or the state as a whole.
    Whole,
    /// The process-wide settings.
    Settings,
    /// A listener.
    Listener(usize),
    /// A cluster.
    Cluster(usize),
    /// A backend of a cluster.
    Backend {
        /// Number of the cluster.
        cluster: usize,
        /// Number of the backend in its cluster.
        backend: usize,
    },
    /// A route.
    Route(usize),
    /// A named answer.
    Answer(usize),
}

/// One thing that is wrong with a state: what, which value, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the state is refused for it.
    pub severity: Severity,
    /// What it is about.
    pub place: Place,
    /// The place in words, as `listener "web"`; empty for the settings and the whole.
    pub label: String,
    /// The key, as `address` or `limits.connections`; empty when it is about the place as such.
    pub key: String,
    /// The value, written as in a file.
    pub value: Option<String>,
    /// Why it is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
    /// Further keys that it follows from: when one of them could not be read, this problem is not real.
    pub(super) follows_from: Vec<(Place, String)>,
}

impl Problem {
    pub(super) fn error(place: Place, label: &str, key: &str, value: Option<String>, fault: Fault) -> Self {
        Self {
            severity: Severity::Error,
            place,
            label: label.to_owned(),
            key: key.to_owned(),
            value,
            reason: fault.reason,
            remedy: fault.remedy,
            follows_from: Vec::new(),
        }
    }

    pub(super) fn warning(place: Place, label: &str, key: &str, value: Option<String>, fault: Fault) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, label, key, value, fault) }
    }

    pub(super) fn file(fault: Fault) -> Self {
        Self::error(Place::Whole, "", "", None, fault)
    }

    pub(super) fn follows_from(mut self, place: Place, key: &str) -> Self {
        self.follows_from.push((place, key.to_owned()));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.label.is_empty() {
            write!(f, "{}: ", self.label)?;
        }
        match (self.key.as_str(), &self.value) {
            ("", None) => {}
            ("", Some(value)) => write!(f, "{value}: ")?,
            (key, None) => write!(f, "{key}: ")?,
            (key, Some(value)) => write!(f, "{key} {value}: ")?,
        }
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

/// A problem and where in a file it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Name of the file, as it was given.
    pub file: String,
    /// Line and column, both from 1, columns in characters; none when no line of the file shows the problem.
    pub position: Option<(usize, usize)>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}

/// Everything that is wrong with a file; displayed one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// At least one error, and the warnings, in the order of the file's lines.
    pub diagnostics: Vec<Diagnostic>,
}

impl Errors {
    pub(super) fn of_file(file: &str, fault: Fault) -> Self {
        let problem = Problem::file(fault);
        Self { diagnostics: vec![Diagnostic { file: file.to_owned(), position: None, problem }] }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
