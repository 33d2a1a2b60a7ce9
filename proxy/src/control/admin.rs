//! The admin API: HTTP/1.1 and JSON over a Unix socket. The documents are those of [`underpass_command::api`].

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, Extension, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use underpass_command::api::{
    ErrorBody, RedirectChange, RedirectStatus, Status, SteeringChange, SteeringStatus,
};

use super::commands::{Failure, Handle};

/// Connections served at a time; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 32;
const BODY_SIZE_MAX: usize = 64 * 1024;
/// For the head of a request to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// For the whole connection, which is one request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to accept while the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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

/// The admin socket. Its file goes with it.
#[derive(Debug)]
pub(super) struct Server {
    path: PathBuf,
    /// Device and number of the file that we made: not to remove a successor's.
    file: (u64, u64),
    listener: Option<UnixListener>,
}

impl Server {
    /// Makes the socket; what a dead process left there is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, AdminError> {
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
        Ok(Self { path: path.to_owned(), file, listener: Some(listener) })
    }

    /// Serves callers from now on.
    pub(super) fn serve(&mut self, handle: Handle) {
        if let Some(listener) = self.listener.take() {
            tokio::spawn(accept(listener, handle));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = std::fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
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

/// Who calls.
#[derive(Clone, Copy, Debug)]
struct Caller {
    uid: u32,
    pid: Option<i32>,
}

impl Caller {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid() })
    }

    /// Root, and the user whose process this is.
    fn is_allowed(self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user id {}, process id {}", self.uid, self.pid.unwrap_or(0))
    }
}

async fn accept(listener: UnixListener, handle: Handle) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("admin API: a caller cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let caller = match Caller::of(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!("admin API: caller of unknown identity refused: {error}");
                continue;
            }
        };
        let router = if caller.is_allowed() {
            router(handle.clone()).layer(Extension(caller))
        } else {
            tracing::warn!("admin API: caller refused: {caller}");
            Router::new().fallback(forbidden)
        };
        tokio::spawn(async move {
            serve_connection(stream, router).await;
            drop(slot);
        });
    }
}

async fn serve_connection(stream: UnixStream, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("admin API: connection failed: {error}"),
        Err(_) => {
            tracing::warn!("admin API: caller cut, not done within {} s", CONNECTION_TIMEOUT.as_secs());
        }
    }
}

fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/redirect", get(redirect).put(set_redirect))
        .route("/v1/steering", get(steering).put(set_steering))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_SIZE_MAX))
        .with_state(handle)
}

type Answer<T> = Result<Json<T>, Failure>;

async fn status(State(handle): State<Handle>) -> Answer<Status> {
    Ok(Json(handle.status().await?))
}

async fn redirect(State(handle): State<Handle>) -> Answer<RedirectStatus> {
    Ok(Json(handle.status().await?.redirect))
}

async fn set_redirect(
    State(handle): State<Handle>,
    Extension(caller): Extension<Caller>,
    Body(change): Body<RedirectChange>,
) -> Answer<RedirectStatus> {
    let result = handle.set_redirect(change.clone()).await;
    audit(caller, &format!("redirect mode of {} to {}", change.scope, mode_name(&change)), &result);
    Ok(Json(result?))
}

async fn steering(State(handle): State<Handle>) -> Answer<SteeringStatus> {
    Ok(Json(handle.status().await?.steering))
}

async fn set_steering(
    State(handle): State<Handle>,
    Extension(caller): Extension<Caller>,
    Body(change): Body<SteeringChange>,
) -> Answer<SteeringStatus> {
    let result = handle.set_steering(change).await;
    audit(caller, &format!("steering policy to {}", change.policy), &result);
    Ok(Json(result?))
}

async fn not_found() -> Failure {
    Failure::new(404, "there is no such path", "use /v1/status, /v1/redirect or /v1/steering")
}

async fn wrong_method() -> Failure {
    Failure::new(
        405,
        "this path does not take the method",
        "use GET to read, PUT to change what can be changed",
    )
}

async fn forbidden() -> Failure {
    Failure::new(
        403,
        "the admin API is not for this user",
        "call it as root, or as the user who started the proxy",
    )
}

/// A body of JSON.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let remedy = || format!("send the whole body, of at most {BODY_SIZE_MAX} bytes");
        // Where the head tells, nobody has to wait for what would be thrown away.
        if request.body().size_hint().lower() > BODY_SIZE_MAX as u64 {
            return Err(Failure::new(413, "the body is too large", remedy()));
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            Failure::new(rejection.status().as_u16(), rejection.body_text(), remedy())
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|error| {
            let remedy = "send a JSON object, such as {\"mode\":\"splice\"} to /v1/redirect or {\"policy\":\"cpu\"} to /v1/steering";
            Failure::new(400, format!("the body is not understood: {error}"), remedy)
        })
    }
}

/// Who changed what, in the log.
fn audit<T>(caller: Caller, what: &str, result: &Result<T, Failure>) {
    match result {
        Ok(_) => tracing::info!("admin API: {what}, by {caller}"),
        Err(failure) => tracing::warn!("admin API: {what}, by {caller}: {}", failure.body.error),
    }
}

fn mode_name(change: &RedirectChange) -> &'static str {
    change.mode.map_or("inherited", |mode| mode.name())
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json::<ErrorBody>(self.body)).into_response()
    }
}
