//! Why steering could not be set up.

use std::io;
use std::path::PathBuf;

/// Why steering could not be set up, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The kernel or this process's privileges do not allow BPF.
    #[error("BPF is not available: {reason}; {remedy}")]
    Unavailable {
        /// What is missing.
        reason: String,
        /// How to get it.
        remedy: String,
    },
    /// An option has a value that makes no sense.
    #[error("steering option {option}: {value} is not allowed; {remedy}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        remedy: &'static str,
    },
    /// The BPF object could not be read.
    #[error("BPF object {}: {error}; unset UNDERPASS_BPF_OBJECT to use the built-in one", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The BPF object is not one of this version.
    #[error("BPF object: {what} is missing; build it from the same sources with: cargo xtask build-ebpf")]
    Object {
        /// The program or map.
        what: String,
    },
    /// The kernel refused a step although everything it needs seems to be there.
    #[error("BPF steering: {step}: {error}")]
    Step {
        /// What was being done.
        step: String,
        /// What the kernel, or the library between, said.
        error: String,
    },
    /// A listener cannot be steered.
    #[error("listener \"{listener}\": {reason}")]
    Listener {
        /// Its name.
        listener: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl LoadError {
    pub(crate) fn step(step: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Step { step: step.into(), error: chain(error) }
    }

    pub(crate) fn listener(listener: &str, reason: impl Into<String>) -> Self {
        Self::Listener { listener: listener.to_owned(), reason: reason.into() }
    }
}

/// An error with all that caused it: the cause is what tells.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some of the library's errors repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
