//! `underpass demo`: a whole proxy with backends and a little load, to look at.
//!
//! Everything is real but small: two backends on a thread, the supervisor in this process, one worker process per core,
//! and clients that check every byte they get. Nothing is written outside of a folder for temporary files, which goes
//! with the demo.
#![forbid(unsafe_code)]

mod backend;
mod live;
mod load;

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::sync::oneshot;
use underpass_command::api::Status;
use underpass_command::state::{Backend, Cluster, Limits, Listener, Route, Settings, State, Timeouts};

use crate::control::{self, ControlError, Options, Ready, reachable};
use backend::Backends;
use live::Live;

/// How the demo runs.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Where the proxy listens.
    pub(crate) listen: SocketAddr,
    /// Number of workers; 0 means one per core.
    pub(crate) workers: u16,
    /// After so long it ends by itself.
    pub(crate) seconds: Option<u64>,
    /// Whether it makes load.
    pub(crate) load: bool,
}

/// Why the demo could not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error("{0}; for the demo: --listen 127.0.0.1:0 takes any free port")]
    Listen(ControlError),
    #[error(transparent)]
    Control(ControlError),
    #[error("folder for temporary files {path}: {source}; set TMPDIR to one that can be written to")]
    Folder { path: PathBuf, source: io::Error },
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl DemoError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Runs the demo until a signal ends it, or its time is over.
pub(crate) fn run(plan: &Plan) -> Result<(), DemoError> {
    let folder = TemporaryFolder::make()?;
    let backends = Backends::start(&["blue", "green"]).map_err(DemoError::system("backends of the demo"))?;
    let state = state(plan, &folder.path, backends.addresses());
    let (sender, ready) = oneshot::channel();
    let (running, over) = channel();
    let (seconds, load) = (plan.seconds, plan.load);
    let viewer = std::thread::Builder::new()
        .name("demo-viewer".into())
        .spawn(move || view(ready, &over, seconds, load))
        .map_err(DemoError::system("thread of the demo"))?;
    let result = control::run(state, Options { ready: Some(sender), ..Options::default() });
    drop::<std::sync::mpsc::Sender<()>>(running);
    // A panic ends the whole process, so the thread has returned.
    let summary = viewer.join().unwrap_or_default();
    match result {
        Ok(()) => {
            println!("{summary}Ended cleanly: workers have drained, nothing is left behind.");
            Ok(())
        }
        Err(error @ ControlError::Listener(_)) => Err(DemoError::Listen(error)),
        Err(error) => Err(DemoError::Control(error)),
    }
}

/// Shows what the proxy does until it ends; returns the summary.
fn view(ready: oneshot::Receiver<Ready>, over: &Receiver<()>, seconds: Option<u64>, load: bool) -> String {
    // The proxy that failed to start says why itself.
    let Ok(ready) = ready.blocking_recv() else { return String::new() };
    print!("{}", introduction(&ready.status, load));
    let address = ready.status.listeners.first().map(|listener| reachable(listener.address));
    let clients = match address {
        Some(address) if load => Some(load::Clients::start(address, &ready.draining)),
        _ => None,
    };
    let mut live = Live::new(Arc::clone(&ready.blocks));
    let mut left = seconds;
    let mut last = ready.status;
    while over.recv_timeout(Duration::from_secs(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        if left == Some(0) {
            continue;
        }
        let failed = clients.as_ref().map_or(0, load::Clients::failed);
        println!("{}", live.line(failed));
        if let Some(status) = ready.handle.status_blocking() {
            last = status;
        }
        left = left.map(|left| left - 1);
        if left == Some(0) {
            ready.handle.stop();
        }
    }
    let problem = clients.and_then(load::Clients::finish);
    summary(&last, problem.as_deref())
}

/// What the demo says first.
fn introduction(status: &Status, load: bool) -> String {
    let Some(listener) = status.listeners.first() else { return String::new() };
    let url = format!("http://{}", reachable(listener.address));
    let steering = &status.steering;
    let steered = match &steering.reason {
        None if steering.active => {
            format!("BPF on, policy {}: by the CPU that receives them", steering.policy)
        }
        None => format!("BPF loaded, policy {}: by the kernel's hash", steering.policy),
        Some(reason) => format!("BPF off ({reason}): by the kernel's hash"),
    };
    let backends: Vec<String> =
        status.clusters.iter().flat_map(|cluster| &cluster.backends).map(ToString::to_string).collect();
    let user = if geteuid().is_root() { "root, workers as nobody" } else { "an ordinary user" };
    let load =
        if load { "small built-in load, every answer checked; --no-load leaves it out" } else { "none" };
    format!(
        "underpass {version}, as {user}\n\
         \n\
         listening    {url}\n\
         try          curl -i {url}/\n\
         \x20            curl -s {url}/size/10000000 | sha256sum\n\
         \x20            curl -s --data-binary @FILE {url}/echo | sha256sum\n\
         status       {program} status --socket {socket}\n\
         backends     {backends}\n\
         workers      {workers}\n\
         connections  {steered}\n\
         redirect     {redirect}\n\
         load         {load}\n\
         end          Ctrl-C\n\
         \n",
        version = status.version,
        program =
            std::env::current_exe().map_or_else(|_| "underpass".into(), |path| path.display().to_string()),
        socket = status.admin_socket.display(),
        backends = backends.join(", "),
        workers = workers(status),
        redirect = status.redirect.process,
    )
}

fn workers(status: &Status) -> String {
    let cpus: Vec<String> = status
        .workers
        .iter()
        .map(|worker| worker.cpu.map_or_else(|| "any CPU".into(), |cpu| format!("CPU {cpu}")))
        .collect();
    format!("{}, pinned to {}", status.workers.len(), cpus.join(", "))
}

/// What the demo says last.
fn summary(status: &Status, problem: Option<&str>) -> String {
    let total = &status.total;
    let mut text = format!(
        "\n{} requests on {} connections; {} bodies copied, {} spliced.\n",
        total.value("requests"),
        total.value("connections_accepted"),
        total.value("bodies_copied"),
        total.value("bodies_spliced"),
    );
    if !status.steering.matrix.is_empty() {
        text.push_str("Connections by the CPU that received them, and worker:\n");
        for row in &status.steering.matrix {
            let cells: Vec<String> = row
                .workers
                .iter()
                .enumerate()
                .map(|(worker, count)| format!("worker {worker}: {count}"))
                .collect();
            text.push_str(&format!("  CPU {}  {}\n", row.cpu, cells.join(", ")));
        }
    }
    if let Some(problem) = problem {
        text.push_str(&format!("The last problem that a client of the demo met: {problem}\n"));
    }
    text
}

fn state(plan: &Plan, folder: &Path, backends: &[SocketAddr]) -> State {
    let settings = Settings {
        workers: plan.workers,
        admin_socket: folder.join("admin.sock"),
        limits: Limits { connections: 2000, ..Limits::default() },
        timeouts: Timeouts { drain_ms: 2000, ..Timeouts::default() },
        ..Settings::default()
    };
    let listener = Listener::new("demo", plan.listen);
    let backends = backends.iter().map(|address| Backend::new(*address)).collect();
    let cluster = Cluster { backends, ..Cluster::new("demo") };
    State {
        settings,
        listeners: vec![listener],
        clusters: vec![cluster],
        routes: vec![Route::new("demo")],
        ..State::default()
    }
}

/// A folder that nobody else can look into; removed with what is in it.
struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    fn make() -> Result<Self, DemoError> {
        let path = std::env::temp_dir().join(format!("underpass-demo-{}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(DemoError::Folder { path, source }),
        }
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("folder {} is left behind: {error}", self.path.display());
        }
    }
}
