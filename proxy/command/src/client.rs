//! A blocking client of the admin API.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ErrorBody, RedirectChange, RedirectStatus, Status, SteeringChange, SteeringStatus};
use crate::http;

/// Where a proxy that root started has its admin socket.
pub const SYSTEM_SOCKET: &str = "/run/underpass/admin.sock";

/// For each read and write on the socket. The proxy itself answers, or gives up, well within.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Where a proxy that the calling user started has its admin socket if it was not told otherwise.
///
/// For root [`SYSTEM_SOCKET`]; for others `underpass/admin.sock` in `XDG_RUNTIME_DIR`, or where that is not set
/// `underpass-UID/admin.sock` in the folder for temporary files.
pub fn default_socket() -> PathBuf {
    // The owner of /proc/self is the process's effective user.
    let uid = std::fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid());
    if uid == 0 {
        return PathBuf::from(SYSTEM_SOCKET);
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder).join("underpass/admin.sock"),
        _ => std::env::temp_dir().join(format!("underpass-{uid}/admin.sock")),
    }
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No proxy answers at the socket.
    #[error("admin socket {path}: {source}; {}", remedy(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke or timed out, or what came back is not HTTP.
    #[error("admin socket {path}: {source}")]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is not the document it should be.
    #[error("admin socket {path}: answer with status {status} is not understood: {source}")]
    Document {
        /// The socket.
        path: PathBuf,
        /// Status code of the answer.
        status: u16,
        /// Why.
        source: serde_json::Error,
    },
    /// The proxy refused, or failed to do it.
    #[error("{}{}", body.error, body.remedy.as_ref().map_or_else(String::new, |remedy| format!("; {remedy}")))]
    Refused {
        /// Status code of the answer.
        status: u16,
        /// What the proxy says.
        body: ErrorBody,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "is the proxy running? Start it, or give its socket with --socket",
        io::ErrorKind::PermissionDenied => "run as root or as the user who started the proxy",
        io::ErrorKind::ConnectionRefused => "the proxy that made it is gone; start it",
        _ => "is it the admin socket of a running proxy?",
    }
}

/// Commands one running proxy; each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the proxy whose admin socket is at this path.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Path of the admin socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the proxy does.
    ///
    /// # Errors
    /// See [`ClientError`]; the same holds for every call.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.call("GET", "/v1/status", None::<&()>)
    }

    /// How bodies are forwarded.
    pub fn redirect(&self) -> Result<RedirectStatus, ClientError> {
        self.call("GET", "/v1/redirect", None::<&()>)
    }

    /// Changes how bodies are forwarded. Returns when all workers have.
    pub fn set_redirect(&self, change: &RedirectChange) -> Result<RedirectStatus, ClientError> {
        self.call("PUT", "/v1/redirect", Some(change))
    }

    /// How connections find their worker.
    pub fn steering(&self) -> Result<SteeringStatus, ClientError> {
        self.call("GET", "/v1/steering", None::<&()>)
    }

    /// Changes how connections find their worker.
    pub fn set_steering(&self, change: SteeringChange) -> Result<SteeringStatus, ClientError> {
        self.call("PUT", "/v1/steering", Some(&change))
    }

    fn call<B: Serialize, A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<A, ClientError> {
        let exchange_error = |source| ClientError::Exchange { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket)
            .map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(exchange_error)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(exchange_error)?;
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| exchange_error(error.into()))?;
        let response = http::exchange(stream, method, path, body.as_deref()).map_err(exchange_error)?;
        let status = response.status;
        let document_error = |source| ClientError::Document { path: self.socket.clone(), status, source };
        if (200..300).contains(&status) {
            return serde_json::from_slice(&response.body).map_err(document_error);
        }
        let body = serde_json::from_slice(&response.body).map_err(document_error)?;
        Err(ClientError::Refused { status, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_socket_says_what_to_do() {
        let error = Client::new("/nonexistent/admin.sock").status().expect_err("nobody there");
        let text = error.to_string();
        assert!(text.contains("/nonexistent/admin.sock") && text.contains("--socket"), "{text}");
    }

    #[test]
    fn a_refusal_shows_reason_and_remedy() {
        let body = ErrorBody {
            error: "cluster \"x\": unknown".into(),
            remedy: Some("use app".into()),
            ..ErrorBody::default()
        };
        assert_eq!(ClientError::Refused { status: 404, body }.to_string(), "cluster \"x\": unknown; use app");
    }
}
