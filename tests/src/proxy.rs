//! A running proxy: started with a configuration of the test, stopped with a look at what it left behind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use underpass_command::Client;
use underpass_command::api::{RedirectChange, RedirectScope, Status, WorkerState};
use underpass_command::state::{Backend, Cluster, Listener, RedirectMode, State, SteeringPolicy};

use crate::wait::{PATIENCE, until, until_within};

/// The redirect modes of which every semantic is tested.
pub const MODES: [RedirectMode; 3] = [RedirectMode::Copy, RedirectMode::Splice, RedirectMode::Sockmap];

/// Gauges that are 0 when nothing is under way.
const GAUGES: &[&str] =
    &["connections_active", "requests_active", "buffers_used", "pipes_used", "tunnels_active"];

/// What a proxy is to do; the default serves the cluster "app" through the listener "web".
#[derive(Debug)]
pub struct Setup {
    /// The configuration.
    pub state: State,
    /// Parts of warnings and errors that the test provokes.
    expected_log: Vec<String>,
    /// What the command line of the proxy begins with.
    prefix: Vec<String>,
}

impl Setup {
    /// One worker, a listener "web" on a free port of 127.0.0.1, in front of a cluster "app" of these backends.
    pub fn to(backends: &[SocketAddr]) -> Self {
        let mut state = State::default();
        state.settings.workers = 1;
        // Most tests are not about steering, and a program that BPF helps needs longer to start.
        state.settings.steering = SteeringPolicy::Off;
        state.settings.limits.connections = 256;
        state.settings.limits.pipes = 16;
        let mut listener = Listener::new("web", SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        listener.default_cluster = Some("app".into());
        state.listeners.push(listener);
        Self { state, expected_log: Vec::new(), prefix: Vec::new() }.cluster("app", backends)
    }

    /// Adds a cluster.
    #[must_use]
    pub fn cluster(mut self, name: &str, backends: &[SocketAddr]) -> Self {
        let mut cluster = Cluster::new(name);
        cluster.backends = backends.iter().map(|&address| Backend::new(address)).collect();
        self.state.clusters.push(cluster);
        self
    }

    /// Sets the redirect mode of the process; no body is too small for it.
    #[must_use]
    pub fn redirect(self, mode: RedirectMode) -> Self {
        self.with(|state| {
            state.settings.redirect = mode;
            state.settings.splice_size_min = 1;
        })
    }

    /// Changes anything.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.state);
        self
    }

    /// A warning or error with this text in it is no failure.
    #[must_use]
    pub fn expect_log(mut self, part: &str) -> Self {
        self.expected_log.push(part.into());
        self
    }

    /// Starts the proxy by another program, for instance `ip netns exec NAME`.
    #[must_use]
    pub fn run_by(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Starts it and waits until every worker accepts connections.
    #[track_caller]
    pub fn start(mut self) -> Proxy {
        let folder =
            tempfile::Builder::new().prefix("underpass-test-").tempdir().expect("a temporary folder");
        self.state.settings.admin_socket = folder.path().join("admin.sock");
        let config = folder.path().join("underpass.toml");
        fs::write(&config, underpass::config::to_toml(&self.state)).expect("writing the configuration");
        let log = File::create(folder.path().join("log")).expect("a log file");
        let mut words = self.prefix.clone();
        words.push(executable().display().to_string());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .arg("start")
            .arg("--config")
            .arg(&config)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor of the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", words.join(" ")));
        let client = Client::new(&self.state.settings.admin_socket);
        let mut proxy = Proxy {
            child,
            client,
            folder,
            expected_log: self.expected_log,
            listeners: BTreeMap::new(),
            workers: Vec::new(),
            stopped: false,
        };
        proxy.wait_until_running();
        proxy
    }
}

/// A running proxy. Every test ends with [`Proxy::stop`], which checks what it left behind.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    client: Client,
    folder: TempDir,
    expected_log: Vec<String>,
    listeners: BTreeMap<String, SocketAddr>,
    workers: Vec<u32>,
    stopped: bool,
}

impl Proxy {
    /// Starts one in front of these backends, with the default setup.
    #[track_caller]
    pub fn to(backends: &[SocketAddr]) -> Self {
        Setup::to(backends).start()
    }

    /// Address of the listener "web".
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.listener("web")
    }

    /// Address of a listener.
    #[track_caller]
    pub fn listener(&self, name: &str) -> SocketAddr {
        *self.listeners.get(name).unwrap_or_else(|| panic!("there is no listener \"{name}\""))
    }

    /// A folder that lives as long as the proxy.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Client of its admin API.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What it does now.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.client.status().unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// A counter or gauge, summed over the workers.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let total = self.status().total;
        *total.values.get(name).unwrap_or_else(|| panic!("there is no counter \"{name}\""))
    }

    /// Waits until a counter has at least this value.
    #[track_caller]
    pub fn until_counter(&self, name: &str, value: u64) {
        until(&format!("{name} >= {value}"), || (self.counter(name) >= value).then_some(()));
    }

    /// How many requests were refused for this reason.
    #[track_caller]
    pub fn refused_requests(&self, reason: &str) -> u64 {
        self.status().total.refused_requests.get(reason).copied().unwrap_or(0)
    }

    /// How many responses of backends were refused for this reason.
    #[track_caller]
    pub fn refused_responses(&self, reason: &str) -> u64 {
        self.status().total.refused_responses.get(reason).copied().unwrap_or(0)
    }

    /// Changes the redirect mode of the process; returns when all workers have.
    #[track_caller]
    pub fn set_redirect(&self, mode: RedirectMode) {
        let change = RedirectChange { mode: Some(mode), scope: RedirectScope::Process };
        let status = self.client.set_redirect(&change).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(status.process, mode);
    }

    /// Process ids of the workers, in their order.
    #[track_caller]
    pub fn worker_pids(&self) -> Vec<u32> {
        self.status().workers.iter().filter_map(|worker| worker.pid).collect()
    }

    /// Process id of the supervisor, or of what it was started by.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until nothing is under way and all that was taken from pools is back.
    #[track_caller]
    pub fn expect_quiet(&self) {
        let busy = |status: &Status| {
            let value = |name: &str| status.total.value(name);
            let mut busy: Vec<String> = GAUGES
                .iter()
                .filter(|name| value(name) != 0)
                .map(|name| format!("{name} {}", value(name)))
                .collect();
            let (open, idle) = (value("backend_connections_open"), value("backend_connections_idle"));
            if open != idle {
                busy.push(format!("backend_connections_open {open}, backend_connections_idle {idle}"));
            }
            busy
        };
        let quiet = until_within(PATIENCE, || busy(&self.status()).is_empty().then_some(()));
        if quiet.is_none() {
            panic!("still not quiet after {PATIENCE:?}: {}", busy(&self.status()).join(", "));
        }
    }

    /// Checks that all is quiet, ends the proxy by SIGTERM, and checks how it ended and what it logged.
    #[track_caller]
    pub fn stop(mut self) {
        self.expect_quiet();
        self.workers = self.worker_pids();
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.success(), "the proxy ended with {status}\n{}", self.log());
        self.expect_workers_gone();
        let log = self.log();
        let unexpected: Vec<&str> = log.lines().filter(|line| self.is_unexpected(line)).collect();
        assert!(
            unexpected.is_empty(),
            "unexpected in the log:\n{}\nall of it:\n{log}",
            unexpected.join("\n")
        );
    }

    /// Sends a signal to the supervisor.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        send_signal(self.child.id(), signal);
    }

    /// Waits until the supervisor has ended.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let status = until("the proxy ends", || self.child.try_wait().expect("waiting for a child"));
        self.stopped = true;
        status
    }

    fn wait_until_running(&mut self) {
        let status = until_within(PATIENCE, || {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                self.stopped = true;
                panic!("the proxy ended with {status} when it should start:\n{}", self.log());
            }
            let status = self.client.status().ok()?;
            self.workers = status.workers.iter().filter_map(|worker| worker.pid).collect();
            let running = status.workers.iter().all(|worker| worker.state == WorkerState::Running);
            (running && !status.workers.is_empty()).then_some(status)
        });
        let status = status.unwrap_or_else(|| panic!("not running after {PATIENCE:?}:\n{}", self.log()));
        self.listeners =
            status.listeners.into_iter().map(|listener| (listener.name, listener.address)).collect();
    }

    #[track_caller]
    fn expect_workers_gone(&self) {
        for &pid in &self.workers {
            // A zombie that nobody has reaped yet has no command line.
            let gone = || fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty());
            until(&format!("worker {pid} is gone"), || gone().then_some(()));
        }
    }

    fn is_unexpected(&self, line: &str) -> bool {
        let is_bad = ["WARN", "ERROR", "panicked"].iter().any(|word| line.contains(word));
        is_bad && !self.expected_log.iter().any(|part| line.contains(part))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        // Errors do not matter here: the test has failed already, or fails now.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for &pid in &self.workers {
            // Workers end by themselves when the supervisor has gone. One that does not may not outlive its test.
            let gone = || !Path::new(&format!("/proc/{pid}")).exists();
            if until_within(Duration::from_secs(2), || gone().then_some(())).is_none() {
                send_signal(pid, Signal::SIGKILL);
            }
        }
        if std::thread::panicking() {
            eprintln!("log of the proxy:\n{}", self.log());
        } else {
            panic!("a test has to end with Proxy::stop");
        }
    }
}

/// Sends a signal to a process of the test.
#[track_caller]
pub fn send_signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("a process id");
    // It may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// The executable under test: what `UNDERPASS_BIN` names, else the one that was built beside the running test.
#[track_caller]
pub fn executable() -> PathBuf {
    if let Some(path) = std::env::var_os("UNDERPASS_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the path of the running test");
    // target/PROFILE/deps/TEST
    let beside = test.ancestors().nth(2).map(|folder| folder.join("underpass"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no executable to test: run `cargo xtask test`, or build the package underpass, or set UNDERPASS_BIN")
    })
}
