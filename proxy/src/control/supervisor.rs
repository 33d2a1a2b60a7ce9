//! The loop that owns all state of the supervisor.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use underpass_command::api::WorkerState;
use underpass_command::live::Configuration;
use underpass_command::state::{AccessLogFormat, Settings, State};

use super::access_log::AccessLog;
use super::admin;
use super::change::{Answer, Pending};
use super::commands::{Handle, Request};
use super::events::Events;
use super::health::Health;
use super::link::{Event, Link, Source};
use super::machine::{
    allowed_cpus, assign_cpus, check_user, descriptor_shortage, idle_workers, raise_descriptor_limit,
};
use super::metrics;
use super::numbers::Registry;
use super::redirection::Redirection;
use super::sessions::Question;
use super::sockets::{self, ListenerSockets};
use super::steering::Steering;
use super::store::Store;
use super::workers::Worker;
use super::{ControlError, Options};
use crate::metrics::BlockPair;

/// Events that may wait for the loop.
const EVENTS_MAX: usize = 256;

#[derive(Debug)]
pub(super) enum Phase {
    /// Not every worker has accepted connections yet.
    Starting,
    Serving,
    Draining {
        /// When the workers that are left are killed; none once they were.
        kill_at: Option<Instant>,
    },
}

#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) configuration: Configuration,
    pub(super) registry: Registry,
    pub(super) store: Option<Store>,
    pub(super) events: Events,
    pub(super) health: Health,
    pub(super) options: Options,
    pub(super) phase: Phase,
    /// The same for those who watch from another thread.
    pub(super) draining: Arc<AtomicBool>,
    pub(super) started: Instant,
    pub(super) generation: u32,
    pub(super) sockets: BTreeMap<String, ListenerSockets>,
    /// Of listeners that the change under way removes.
    pub(super) removed_sockets: Vec<ListenerSockets>,
    /// Items that were removed since memory was given back last.
    pub(super) removed: usize,
    pub(super) blocks: Arc<Vec<BlockPair>>,
    pub(super) workers: Vec<Worker>,
    pub(super) steering: Steering,
    pub(super) redirection: Redirection,
    pub(super) access_log: Option<AccessLog>,
    pub(super) pending: VecDeque<Pending>,
    pub(super) questions: Vec<Question>,
    pub(super) next_command: u64,
    pub(super) worker_sender: mpsc::Sender<(Source, Event)>,
    worker_events: mpsc::Receiver<(Source, Event)>,
    pub(super) handle: Handle,
    requests: mpsc::Receiver<Request>,
    admin: admin::Server,
    pub(super) metrics: metrics::Server,
    pub(super) rankings: metrics::Rankings,
    signals: Signals,
}

impl Supervisor {
    /// Takes everything that a proxy needs from the machine, then starts the workers.
    pub(super) fn start(state: State, options: Options) -> Result<Self, ControlError> {
        let (configuration, store) = configuration(state)?;
        let settings = configuration.settings();
        check_user(&settings.user)?;
        match raise_descriptor_limit() {
            Ok(limit) => {
                if let Some(text) = descriptor_shortage(&settings.limits, limit) {
                    tracing::warn!("{text}");
                }
            }
            Err(error) => tracing::warn!("limit of open files cannot be raised: {error}"),
        }
        // Before anything is started that a signal would have to end.
        let signals = Signals::new().map_err(ControlError::system("signal handlers"))?;
        let cpus = assign_cpus(settings.workers, &allowed_cpus());
        if let Some(text) = idle_workers(settings.steering, &cpus) {
            tracing::warn!("{text}");
        }
        let generation = 1;
        let events = Events::new();
        let (handle, requests) = Handle::new(events.clone());
        let mut admin = admin::Server::bind(&settings.admin_socket)?;
        let sockets = configuration.listeners().values().cloned().collect::<Vec<_>>();
        let sockets = sockets::open(&sockets, cpus.len(), &settings.limits)?;
        let steering = Steering::start(settings.steering, &cpus, generation, &sockets);
        let redirection = Redirection::start(&settings.limits, cpus.len());
        let blocks: Result<Vec<BlockPair>, _> = cpus.iter().map(|_| BlockPair::create()).collect();
        let access_log = start_access_log(settings, cpus.len())?;
        for opened in &sockets {
            tracing::info!("listener \"{}\": listening on {}", opened.name, opened.address);
        }
        admin.configure(settings);
        let audit_file = settings.log.audit_file.as_deref();
        admin.open_audit_log(audit_file).map_err(ControlError::audit_log(audit_file))?;
        let mut metrics = open_metrics(settings)?;
        let (worker_sender, worker_events) = mpsc::channel(EVENTS_MAX);
        admin.serve(handle.clone());
        metrics.serve(handle.clone());
        let mut supervisor = Self {
            configuration,
            registry: Registry::default(),
            store,
            events,
            health: Health::new(RandomState::new().build_hasher().finish()),
            options,
            phase: Phase::Starting,
            draining: Arc::default(),
            started: Instant::now(),
            generation,
            sockets: sockets.into_iter().map(|sockets| (sockets.name.clone(), sockets)).collect(),
            removed_sockets: Vec::new(),
            removed: 0,
            blocks: Arc::new(blocks?),
            workers: cpus.into_iter().map(Worker::new).collect(),
            steering,
            redirection,
            access_log,
            pending: VecDeque::new(),
            questions: Vec::new(),
            next_command: 0,
            worker_sender,
            worker_events,
            handle,
            requests,
            admin,
            metrics,
            rankings: metrics::Rankings::default(),
            signals,
        };
        supervisor.number_everything();
        for index in 0..supervisor.workers.len() {
            supervisor.start_worker(index);
        }
        Ok(supervisor)
    }

    /// Runs until all workers have ended after a signal.
    pub(super) async fn run(mut self) -> Result<(), ControlError> {
        while !self.is_over() {
            let next = self.next_deadline();
            tokio::select! {
                Some((source, event)) = self.worker_events.recv() => self.on_event(source, event)?,
                Some(request) = self.requests.recv() => self.on_request(request),
                _ = self.signals.terminate.recv() => self.on_end_signal(),
                _ = self.signals.interrupt.recv() => self.on_end_signal(),
                _ = self.signals.hangup.recv() => {
                    tracing::warn!("SIGHUP is ignored: `underpass reload` makes the configuration what its file says");
                }
                _ = self.signals.user1.recv() => self.reopen_logs(),
                verdicts = self.health.next() => self.on_health(verdicts),
                () = self.steering.pass_on_log() => {}
                () = self.redirection.pass_on_log() => {}
                () = sleep_until_some(next) => self.on_time(),
            }
        }
        if let Some(log) = self.access_log.take() {
            log.finish();
        }
        drop(self.admin);
        tracing::info!("ended");
        Ok(())
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    fn is_over(&self) -> bool {
        let over = |worker: &Worker| worker.state == WorkerState::Ended && worker.second.is_none();
        self.is_draining() && self.workers.iter().all(over)
    }

    /// All worker processes: those that serve, those that are to follow them, and those that finish what they have.
    pub(super) fn processes(&self) -> impl Iterator<Item = (Source, &Link)> {
        self.workers.iter().enumerate().flat_map(|(worker, state)| {
            state.processes().map(move |(process, link)| (Source { worker, process }, link))
        })
    }

    // Requests and time.

    fn on_request(&mut self, request: Request) {
        // A caller that has gone does not wait for its answer.
        match request {
            Request::Status(reply) => drop(reply.send(Ok(self.status()))),
            Request::State(reply) => drop(reply.send(Ok(self.state_document()))),
            Request::Change(change, reply) => self.change(&change, Answer::Changed(reply)),
            Request::Reload(dry_run, reply) => self.reload(dry_run, reply),
            Request::Sessions(select, reply) => self.ask_for_sessions(&select, reply),
            Request::Save(reply) => drop(reply.send(self.save())),
            Request::SetRedirect(change, reply) => self.set_redirect(&change, reply),
            Request::SetSteering(change, reply) => self.set_steering(change, reply),
            Request::Scrape(reply) => drop(reply.send(Ok(self.scrape()))),
            Request::Backends(select, reply) => drop(reply.send(self.backends(&select))),
            Request::Read(read) => (read.0)(&self.configuration),
            Request::DrainWorker(worker, order, reply) => self.drain_worker(worker, &order, reply),
            Request::Stop => self.drain(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let kill_at = match self.phase {
            Phase::Draining { kill_at } => kill_at,
            Phase::Starting | Phase::Serving => None,
        };
        let restarts = self.workers.iter().filter_map(|worker| worker.restart_at);
        let kills = self.workers.iter().filter_map(Worker::kill_at);
        let questions = self.questions.iter().map(|question| question.deadline);
        let commands = self.pending.iter().map(|pending| pending.deadline).chain(questions);
        restarts.chain(kills).chain(commands).chain(kill_at).min()
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.answer_pending();
        self.answer_questions();
        if let Phase::Draining { kill_at: Some(kill_at) } = self.phase
            && kill_at <= now
        {
            tracing::warn!("workers that still drain at the deadline are killed");
            self.kill_workers();
        }
        for index in 0..self.workers.len() {
            if self.workers[index].restart_at.is_some_and(|at| at <= now) {
                self.start_worker(index);
            }
            if self.workers[index].kill_at().is_some_and(|at| at <= now) {
                self.kill_predecessor(index);
            }
        }
    }

    fn reopen_logs(&self) {
        if let Some(log) = &self.access_log {
            log.reopen();
        }
    }
}

/// The configuration to start with: what was saved, or else the file. What only a start can settle is always the file's.
fn configuration(state: State) -> Result<(Configuration, Option<Store>), ControlError> {
    let settings = state.settings.clone();
    let configuration = Configuration::new(state).map_err(|errors| {
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        ControlError::Configuration(text)
    })?;
    let Some(path) = &settings.saved_state else { return Ok((configuration, None)) };
    let (mut store, saved) = Store::open(path)?;
    let configuration = match saved {
        None => configuration,
        Some(saved) => {
            let (path, revision) = (path.display(), saved.revision());
            tracing::info!(
                "configuration: revision {revision}, saved in {path}; `underpass reload` takes the file"
            );
            let mut state = saved.state();
            crate::config::keep_settled(&mut state.settings, &settings);
            let refused = crate::config::validate(&state).into_iter();
            let mut refused = refused.filter(|problem| problem.severity == crate::config::Severity::Error);
            if let Some(problem) = refused.next() {
                let text = format!("{problem}; in {path}, move it away to start from the configuration file");
                return Err(ControlError::Configuration(text));
            }
            let mut again = Configuration::new(state)
                .map_err(|_| ControlError::Configuration(format!("{path} does not fit together")))?;
            again.set_revision(revision);
            again
        }
    };
    store.save(&configuration)?;
    Ok((configuration, Some(store)))
}

fn start_access_log(settings: &Settings, workers: usize) -> Result<Option<AccessLog>, ControlError> {
    let log = &settings.log;
    if log.access == AccessLogFormat::Off {
        return Ok(None);
    }
    let started = AccessLog::start(&log.access_file, workers);
    started.map(Some).map_err(|source| ControlError::AccessLog { path: log.access_file.clone(), source })
}

fn open_metrics(settings: &Settings) -> Result<metrics::Server, ControlError> {
    let address = settings.metrics.address;
    metrics::Server::bind(address).map_err(|source| match address {
        Some(address) => ControlError::MetricsAddress { address, source },
        None => ControlError::System { what: "metrics", source },
    })
}

pub(super) fn notify_systemd(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("systemd cannot be notified: {error}");
    }
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }
}
