//! The supervisor: owns the configured state, the listening sockets, the BPF objects and the admin socket, and keeps
//! one worker per core alive. It never touches traffic.
//!
//! Everything runs on one thread: `supervisor` is the loop that owns all state; one task per worker process (`link`)
//! and one per connection of the admin API (`admin`) talk to it over bounded channels. Only the access log has a thread
//! of its own, because files block.
//!
//! A program of one's own becomes a proxy in a few lines. The workers are the same executable:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use underpass::{config, control, worker};
//!
//! fn main() -> ExitCode {
//!     if std::env::args_os().nth(1).is_some_and(|argument| argument == worker::WORKER_ARGUMENT) {
//!         return worker::run_from_environment();
//!     }
//!     let state = match config::load("proxy.toml".as_ref()) {
//!         Ok(state) => state,
//!         Err(errors) => {
//!             eprintln!("{errors}");
//!             return ExitCode::from(2);
//!         }
//!     };
//!     match control::run(state, control::Options::default()) {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => {
//!             eprintln!("{error}");
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//! ```

mod access_log;
mod admin;
mod change;
mod commands;
mod ending;
mod events;
mod health;
mod link;
mod machine;
mod metrics;
mod numbers;
mod processes;
mod program_log;
mod redirection;
mod reload;
mod sessions;
mod sockets;
mod spawn;
mod status;
mod steering;
mod steps;
mod sticky;
mod store;
mod succession;
mod supervisor;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::oneshot;
use underpass_command::api::Status;
use underpass_command::state::State;

pub use admin::AdminError;
pub(crate) use commands::Handle;
pub use machine::UserError;
pub(crate) use machine::{allowed_cpus, cpu_table};
pub use sockets::SocketError;
pub(crate) use sockets::reachable;
pub use store::StoreError;

use crate::metrics::{BlockError, BlockPair};

/// How a proxy is run, apart from its configured state.
#[derive(Debug)]
pub struct Options {
    /// The executable that workers run: it must call [`crate::worker::run_from_environment`] when its first argument is
    /// [`crate::worker::WORKER_ARGUMENT`].
    pub executable: PathBuf,
    /// The configuration file, for `underpass reload`.
    pub file: Option<PathBuf>,
    /// Gets the proxy's handle once every worker accepts connections.
    pub(crate) ready: Option<oneshot::Sender<Ready>>,
}

impl Default for Options {
    fn default() -> Self {
        // The file may have been replaced since we started; this link still leads to what we run.
        Self { executable: PathBuf::from("/proc/self/exe"), file: None, ready: None }
    }
}

/// A proxy whose workers accept connections.
#[derive(Debug)]
pub(crate) struct Ready {
    /// What it does at this time.
    pub(crate) status: Status,
    /// Commands it.
    pub(crate) handle: Handle,
    /// The workers' counters, which may be read at any time.
    pub(crate) blocks: Arc<Vec<BlockPair>>,
    /// Becomes true when the proxy takes no new connections.
    pub(crate) draining: Arc<AtomicBool>,
}

/// Why a proxy could not be started, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A listener cannot be opened.
    #[error(transparent)]
    Listener(#[from] SocketError),
    /// The admin socket cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The workers' user cannot be had.
    #[error(transparent)]
    User(#[from] UserError),
    /// No memory for counters.
    #[error(transparent)]
    Metrics(#[from] BlockError),
    /// The access log cannot be opened.
    #[error("log.access_file {path}: {source}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The audit log cannot be opened.
    #[error("log.audit_file {path}: {source}; make its folder, or leave the key out")]
    AuditLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration does not fit together.
    #[error("{0}")]
    Configuration(String),
    /// A saved configuration cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address for Prometheus cannot be opened.
    #[error("metrics.address {address}: {source}; choose another, or leave the key out")]
    MetricsAddress {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A worker does not take the configured state.
    #[error("worker {worker} refuses the configuration: {reason}")]
    Refused {
        /// The worker's number.
        worker: usize,
        /// What, and why.
        reason: String,
    },
    /// The kernel refuses something that a process can expect.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl ControlError {
    fn audit_log(path: Option<&Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.unwrap_or(Path::new("")).to_owned();
        move |source| Self::AuditLog { path, source }
    }

    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Runs a proxy until a signal ends it.
///
/// SIGTERM or SIGINT drains: what is under way is finished within `timeouts.drain_ms`; a second one ends it at once.
/// SIGUSR1 opens the access log anew.
///
/// # Errors
/// What keeps it from starting; once it runs it does not fail.
pub fn run(state: State, options: Options) -> Result<(), ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ControlError::system("event loop of the supervisor"))?;
    runtime.block_on(async { supervisor::Supervisor::start(state, options)?.run().await })
}
