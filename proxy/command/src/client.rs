//! A blocking client of the admin API.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    BackendEntry, ChangeRequest, Changed, Draining, ErrorBody, Page, RedirectChange, RedirectStatus, Saved,
    Select, SessionSelect, Sessions, StateDocument, Status, SteeringChange, SteeringStatus, Top, WorkerDrain,
    WorkerDraining, WorkerStatus,
};
use crate::events::Events;
use crate::http::{Connection, Request, Response};
use crate::state::{Answer, Cluster, Listener, Route};

/// Where a proxy that root started has its admin socket.
pub const SYSTEM_SOCKET: &str = "/run/underpass/admin.sock";

/// For each read and write on the socket. The proxy itself answers, or gives up, within 60 s.
const TIMEOUT: Duration = Duration::from_secs(65);
/// How long a connection is kept for the next request; well below the 10 s after which the proxy closes it.
const KEEP_TIME: Duration = Duration::from_secs(5);

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
    #[error("{}", refusal(body))]
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

/// What was refused, and under it each operation that was.
fn refusal(body: &ErrorBody) -> String {
    let mut text = body.error.clone();
    if let Some(remedy) = &body.remedy {
        text.push_str("; ");
        text.push_str(remedy);
    }
    // Of a single one, the text says already what is wrong.
    let told: Vec<String> = body.operations.iter().map(ToString::to_string).collect();
    if told.len() > 1 || told.iter().any(|operation| !text.contains(operation.as_str())) {
        told.iter().for_each(|operation| {
            text.push_str("\n  ");
            text.push_str(operation);
        });
    }
    text
}

/// Commands one running proxy, over one connection that it keeps. A clone has a connection of its own.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    kept: Mutex<Option<Kept>>,
}

/// A connection that may serve another request.
#[derive(Debug)]
struct Kept {
    connection: Connection<UnixStream>,
    since: Instant,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        Self::new(self.socket.clone())
    }
}

impl Client {
    /// A client of the proxy whose admin socket is at this path.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), kept: Mutex::new(None) }
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
        self.get("/v1/status")
    }

    /// What has been counted so far, of so many clusters and backends at most: the busiest.
    pub fn top(&self, limit: u32) -> Result<Top, ClientError> {
        self.get(&format!("/v1/top?limit={limit}"))
    }

    /// How bodies are forwarded.
    pub fn redirect(&self) -> Result<RedirectStatus, ClientError> {
        self.get("/v1/redirect")
    }

    /// Changes how bodies are forwarded. Returns when all workers have.
    pub fn set_redirect(&self, change: &RedirectChange) -> Result<RedirectStatus, ClientError> {
        self.send("PUT", "/v1/redirect", change)
    }

    /// How connections find their worker.
    pub fn steering(&self) -> Result<SteeringStatus, ClientError> {
        self.get("/v1/steering")
    }

    /// Changes how connections find their worker.
    pub fn set_steering(&self, change: SteeringChange) -> Result<SteeringStatus, ClientError> {
        self.send("PUT", "/v1/steering", &change)
    }

    /// The configuration, and its revision.
    pub fn state(&self) -> Result<StateDocument, ClientError> {
        self.get("/v1/state")
    }

    /// The configuration, unless it still has this revision.
    pub fn state_unless(&self, revision: u64) -> Result<Option<StateDocument>, ClientError> {
        let fields = vec![("If-None-Match", etag(revision))];
        let request = Request { method: "GET", target: "/v1/state", fields, body: None };
        let response = self.exchange(&request)?;
        if response.status == 304 { Ok(None) } else { self.document(response).map(Some) }
    }

    /// Changes the configuration. Returns when every worker has changed.
    pub fn change(&self, change: &ChangeRequest) -> Result<Changed, ClientError> {
        let body = serde_json::to_vec(change).map_err(|error| self.broken(error.into()))?;
        let target = if change.dry_run { "/v1/changes?dry_run=true" } else { "/v1/changes" };
        let fields = change.if_revision.map(|revision| ("If-Match", etag(revision))).into_iter().collect();
        self.document(self.exchange(&Request { method: "POST", target, fields, body: Some(&body) })?)
    }

    /// The workers.
    pub fn workers(&self) -> Result<Vec<WorkerStatus>, ClientError> {
        self.get("/v1/workers")
    }

    /// A page of the listeners.
    pub fn listeners(&self, select: &Select) -> Result<Page<Listener>, ClientError> {
        self.get(&target("/v1/listeners", select))
    }

    /// A page of the clusters, with their backends.
    pub fn clusters(&self, select: &Select) -> Result<Page<Cluster>, ClientError> {
        self.get(&target("/v1/clusters", select))
    }

    /// One cluster, with its backends.
    pub fn cluster(&self, name: &str) -> Result<Cluster, ClientError> {
        self.get(&format!("/v1/clusters/{}", encode(name)))
    }

    /// A page of the backends of all clusters.
    pub fn backends(&self, select: &Select) -> Result<Page<BackendEntry>, ClientError> {
        self.get(&target("/v1/backends", select))
    }

    /// A page of the routes.
    pub fn routes(&self, select: &Select) -> Result<Page<Route>, ClientError> {
        self.get(&target("/v1/routes", select))
    }

    /// A page of the named answers.
    pub fn answers(&self, select: &Select) -> Result<Page<Answer>, ClientError> {
        self.get(&target("/v1/answers", select))
    }

    /// What there is to measure, in Prometheus' text format.
    pub fn metrics(&self) -> Result<String, ClientError> {
        let response =
            self.exchange(&Request { method: "GET", target: "/v1/metrics", ..Request::default() })?;
        if response.status != 200 {
            return Err(self.refused(&response));
        }
        String::from_utf8(response.body)
            .map_err(|error| self.broken(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Client connections that are open.
    pub fn sessions(&self, select: &SessionSelect) -> Result<Sessions, ClientError> {
        let cluster =
            select.cluster.as_ref().map_or_else(String::new, |name| format!("&cluster={}", encode(name)));
        self.get(&format!("/v1/sessions?limit={}{cluster}", select.limit))
    }

    /// Writes the configuration to where the next start finds it.
    pub fn save(&self) -> Result<Saved, ClientError> {
        self.post("/v1/save")
    }

    /// Makes the configuration that of its file, with all that was added and removed there.
    pub fn reload(&self, dry_run: bool) -> Result<Changed, ClientError> {
        self.post(if dry_run { "/v1/reload?dry_run=true" } else { "/v1/reload" })
    }

    /// Lets a worker's process finish what it has while another takes its place. Returns when that accepts connections; the event
    /// `worker_drained` tells of the end.
    pub fn drain_worker(&self, worker: u16, order: WorkerDrain) -> Result<WorkerDraining, ClientError> {
        self.send("POST", &format!("/v1/workers/{worker}/drain"), &order)
    }

    /// Lets the proxy finish what is under way, take nothing new, and end. Returns at once.
    pub fn drain(&self) -> Result<Draining, ClientError> {
        self.post("/v1/drain")
    }

    /// What happens from now on; with `after` also what has happened after the event of this number, as far as the proxy
    /// still knows. Waits for the next event as long as it takes.
    pub fn events(&self, after: Option<u64>) -> Result<Events, ClientError> {
        let mut fields = vec![("Accept", "text/event-stream".to_owned())];
        fields.extend(after.map(|sequence| ("Last-Event-ID", sequence.to_string())));
        let request = Request { method: "GET", target: "/v1/events", fields, body: None };
        let lines = self.connect()?.stream(&request).map_err(|broken| self.broken(broken.source))?;
        lines.map(|lines| Events::new(self.socket.clone(), lines)).map_err(|response| self.refused(&response))
    }

    fn get<A: DeserializeOwned>(&self, target: &str) -> Result<A, ClientError> {
        self.document(self.exchange(&Request { method: "GET", target, ..Request::default() })?)
    }

    fn post<A: DeserializeOwned>(&self, target: &str) -> Result<A, ClientError> {
        self.document(self.exchange(&Request { method: "POST", target, ..Request::default() })?)
    }

    fn send<B: Serialize, A: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
        body: &B,
    ) -> Result<A, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error.into()))?;
        let request = Request { method, target, fields: Vec::new(), body: Some(&body) };
        self.document(self.exchange(&request)?)
    }

    fn document<A: DeserializeOwned>(&self, response: Response) -> Result<A, ClientError> {
        if (200..300).contains(&response.status) {
            let status = response.status;
            return serde_json::from_slice(&response.body).map_err(|source| ClientError::Document {
                path: self.socket.clone(),
                status,
                source,
            });
        }
        Err(self.refused(&response))
    }

    fn refused(&self, response: &Response) -> ClientError {
        let status = response.status;
        match serde_json::from_slice(&response.body) {
            Ok(body) => ClientError::Refused { status, body },
            Err(source) => ClientError::Document { path: self.socket.clone(), status, source },
        }
    }

    /// Sends a request on the connection that is kept, or on a new one.
    fn exchange(&self, request: &Request<'_>) -> Result<Response, ClientError> {
        let kept = self.kept().take().filter(|kept| kept.since.elapsed() < KEEP_TIME);
        let mut connection = match kept {
            Some(kept) => kept.connection,
            None => self.connect()?,
        };
        let response = match connection.exchange(request) {
            // The proxy has closed it meanwhile; it has seen nothing of this request.
            Err(broken) if broken.untouched => {
                connection = self.connect()?;
                connection.exchange(request).map_err(|broken| self.broken(broken.source))?
            }
            other => other.map_err(|broken| self.broken(broken.source))?,
        };
        if response.reusable {
            *self.kept() = Some(Kept { connection, since: Instant::now() });
        }
        Ok(response)
    }

    fn connect(&self) -> Result<Connection<UnixStream>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|source| ClientError::Connect { path: self.socket.clone(), source })?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(|source| self.broken(source))?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(|source| self.broken(source))?;
        Ok(Connection::new(stream))
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Exchange { path: self.socket.clone(), source }
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        // Whoever panicked held nothing half-done: a connection is taken out before it is used.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A revision as the value of `If-Match` (RFC 9110 section 8.8.3).
fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// A path with the query that selects.
fn target(path: &str, select: &Select) -> String {
    let limit = select.limit.map(|limit| limit.to_string());
    let parts = [
        ("name", select.name.as_deref()),
        ("cluster", select.cluster.as_deref()),
        ("limit", limit.as_deref()),
        ("after", select.after.as_deref()),
    ];
    let query: Vec<String> = parts
        .iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name}={}", encode(value))))
        .collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// Text as part of a URL: all but the unreserved characters is escaped (RFC 3986 section 2.3).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_a_query() {
        assert_eq!(target("/v1/clusters", &Select::default()), "/v1/clusters");
        let select = Select {
            name: Some("a&b =ä".into()),
            limit: Some(5),
            after: Some("x/y".into()),
            ..Select::default()
        };
        assert_eq!(target("/v1/routes", &select), "/v1/routes?name=a%26b%20%3D%C3%A4&limit=5&after=x%2Fy");
    }

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
