//! The socket's file: made for its own user alone, never instead of a living proxy's, removed with its proxy.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use tokio::net::UnixListener;

/// Why the admin socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("settings.admin_socket {path}: {problem}")]
pub struct AdminError {
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("a proxy with process id {0} listens there; stop it, or choose another path")]
    Living(String),
    #[error("the path is taken by something that is no socket; remove it, or choose another path")]
    NoSocket,
    #[error("its folder {0} belongs to another user; choose another path")]
    ForeignFolder(PathBuf),
    #[error("its folder {0} cannot be made: {1}; make it, or choose another path")]
    Folder(PathBuf, io::Error),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The socket's file. It goes with this.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and number of the file that we made: not to remove a successor's.
    file: (u64, u64),
}

impl SocketFile {
    /// Makes the socket; what a dead process left there is replaced.
    pub(super) fn bind(path: &Path) -> Result<(Self, UnixListener), AdminError> {
        let error = |problem| AdminError { path: path.to_owned(), problem };
        prepare_folder(path).map_err(error)?;
        remove_stale(path).map_err(error)?;
        // From its first moment on the socket is for nobody else.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let listener = bound.map_err(|source| error(source.into()))?;
        let metadata = std::fs::metadata(path).map_err(|source| error(source.into()))?;
        let file = (metadata.dev(), metadata.ino());
        Ok((Self { path: path.to_owned(), file }, listener))
    }

    /// Sets who may connect at all. Who is then served is decided by who calls, so the mode may be wide where other
    /// users are on the allow-list: their user ids are no group that the file could be given to.
    pub(super) fn open_to_others(&self, others: bool) {
        let mode = if others { 0o666 } else { 0o600 };
        if !self.is_ours() {
            return;
        }
        if let Err(error) = std::fs::set_permissions(&self.path, Permissions::from_mode(mode)) {
            tracing::warn!("admin socket {}: mode {mode:o} cannot be set: {error}", self.path.display());
        }
    }

    fn is_ours(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("admin socket {} cannot be removed: {error}", self.path.display());
        }
    }
}

/// Makes the socket's folder. One that other users own could be made to hold their socket instead of ours.
fn prepare_folder(path: &Path) -> Result<(), Problem> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|source| Problem::Folder(folder.to_owned(), source))?;
    let metadata = std::fs::metadata(folder)?;
    let sticky = metadata.mode() & 0o1000 != 0;
    if metadata.uid() != geteuid().as_raw() && metadata.uid() != 0 && !sticky {
        return Err(Problem::ForeignFolder(folder.to_owned()));
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), Problem> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(Problem::NoSocket),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(stream) => {
            let credentials =
                nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
            let pid = credentials.map_or_else(|_| "unknown".to_owned(), |peer| peer.pid().to_string());
            Err(Problem::Living(pid))
        }
        // Nobody listens: whoever made it has died.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(std::fs::remove_file(path)?),
        Err(error) => Err(error.into()),
    }
}
