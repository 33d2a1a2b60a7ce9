//! The admin API: HTTP/1.1 and JSON over a Unix socket. The documents are those of [`underpass_command::api`].
//!
//! `socket` makes the file, `connections` serves callers, each within its share (`caller`), `routes` is what they can ask
//! for, `audit` notes what they change. Whatever a caller does, it costs the supervisor a bounded amount of memory and
//! time, and the workers nothing.

mod audit;
mod body;
mod caller;
mod changes;
mod connections;
mod endpoints;
pub(super) mod lists;
mod routes;
mod socket;
mod stall;
mod stream;

use std::io;
use std::path::Path;

use tokio::net::UnixListener;
use underpass_command::state::Settings;

use self::audit::Audit;
use self::caller::AllowList;
use self::socket::SocketFile;
use super::commands::Handle;

pub use self::socket::AdminError;

/// The admin socket. Its file goes with it.
#[derive(Debug)]
pub(super) struct Server {
    file: SocketFile,
    allowed: AllowList,
    audit: Audit,
    listener: Option<UnixListener>,
}

impl Server {
    /// Makes the socket; what a dead process left there is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, AdminError> {
        let (file, listener) = SocketFile::bind(path)?;
        Ok(Self { file, allowed: AllowList::new(), audit: Audit::default(), listener: Some(listener) })
    }

    /// Opens the audit log, if the settings name one. To be called before [`Self::serve`].
    pub(super) fn open_audit_log(&mut self, path: Option<&Path>) -> io::Result<()> {
        self.audit = Audit::open(path)?;
        Ok(())
    }

    /// Takes over what the settings say of callers; for each change of them, and once before [`Self::serve`].
    pub(super) fn configure(&self, settings: &Settings) {
        self.allowed.set(&settings.admin_uids);
        self.file.open_to_others(!settings.admin_uids.is_empty());
    }

    /// Serves callers from now on.
    pub(super) fn serve(&mut self, handle: Handle) {
        if let Some(listener) = self.listener.take() {
            let router = routes::router(handle, self.audit.clone());
            tokio::spawn(connections::accept(listener, router, self.allowed.clone()));
        }
    }
}
