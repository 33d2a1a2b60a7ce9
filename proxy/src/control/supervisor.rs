//! The loop that owns all state of the supervisor.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use underpass_command::api::{EventKind, WorkerState};
use underpass_command::live::Configuration;
use underpass_command::state::{AccessLogFormat, Settings, State};

use super::access_log::AccessLog;
use super::admin;
use super::change::{Answer, Pending};
use super::commands::{Handle, Request};
use super::events::Events;
use super::health::Health;
use super::link::{Event, Letter, Link, Source, Told};
use super::machine::{
    allowed_cpus, assign_cpus, check_user, descriptor_shortage, idle_workers, raise_descriptor_limit,
};

use super::metrics;
use super::numbers::Registry;
use super::redirection::Redirection;
use super::sessions::Question;
use super::sockets::{self, ListenerSockets};
use super::status::clear_gauges;
use super::steering::Steering;
use super::store::Store;
use super::workers::{Worker, describe};
use super::{ControlError, Options, Ready};
use crate::ipc::{ToSupervisor, ToWorker};
use crate::metrics::Block;

/// After the workers' own deadline to drain, until they are killed.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// Events that may wait for the loop.
const EVENTS_MAX: usize = 256;

#[derive(Debug)]
enum Phase {
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
    phase: Phase,
    /// The same for those who watch from another thread.
    draining: Arc<AtomicBool>,
    pub(super) started: Instant,
    pub(super) generation: u32,
    pub(super) sockets: BTreeMap<String, ListenerSockets>,
    /// Of listeners that the change under way removes.
    pub(super) removed_sockets: Vec<ListenerSockets>,
    /// Items that were removed since memory was given back last.
    pub(super) removed: usize,
    pub(super) blocks: Arc<Vec<Block>>,
    pub(super) workers: Vec<Worker>,
    pub(super) steering: Steering,
    pub(super) redirection: Redirection,
    pub(super) access_log: Option<AccessLog>,
    pub(super) pending: VecDeque<Pending>,
    pub(super) questions: Vec<Question>,
    pub(super) next_command: u64,
    worker_sender: mpsc::Sender<(Source, Event)>,
    worker_events: mpsc::Receiver<(Source, Event)>,
    handle: Handle,
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
        let blocks: Result<Vec<Block>, _> = cpus.iter().map(|_| Block::create()).collect();
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
        self.is_draining() && self.workers.iter().all(|worker| worker.state == WorkerState::Ended)
    }

    // Workers.

    fn start_worker(&mut self, index: usize) {
        clear_gauges(&self.blocks[index]);
        self.workers[index].process += 1;
        let source = Source { worker: index, process: self.workers[index].process };
        let started = self.start_letters(index).and_then(|letters| {
            Link::start(&self.options.executable, source, letters, self.worker_sender.clone())
        });
        match started {
            Ok(link) => {
                tracing::debug!(worker = index, pid = link.pid, "worker started");
                self.workers[index].started(link, Instant::now());
            }
            Err(error) => {
                let pause = self.workers[index].died(format!("not started: {error}"), Instant::now());
                tracing::error!(worker = index, "worker cannot be started: {error}; next try in {pause:?}");
            }
        }
    }

    /// The whole state, as a worker gets it when it starts.
    fn start_letters(&mut self, index: usize) -> io::Result<Vec<Letter>> {
        let mut descriptors = vec![Arc::new(self.blocks[index].fd().try_clone_to_owned()?)];
        if let Some(log) = &self.access_log {
            descriptors.push(Arc::new(log.pipe(index)?));
        }
        let slots = self.steering.slots();
        let steering = slots.is_some();
        descriptors.extend(slots);
        let maps = self.redirection.prepare(index);
        let redirect = maps.is_some();
        descriptors.extend(maps.into_iter().flatten());
        let hello = ToWorker::Hello {
            index: u16::try_from(index).map_err(io::Error::other)?,
            cpu: self.workers[index].cpu,
            generation: self.generation,
            access_log: self.access_log.is_some(),
            steering,
            redirect,
            seed: RandomState::new().build_hasher().finish(),
            settings: Box::new(super::sticky::with_secret(self.configuration.settings())),
        };
        let mut letters = vec![Letter { message: hello, descriptors }];
        letters.extend(self.configuration_letters(index));
        letters.extend(self.health_letters());
        letters.push(ToWorker::Run.into());
        Ok(letters)
    }

    fn on_event(&mut self, source: Source, event: Event) -> Result<(), ControlError> {
        let index = source.worker;
        if self.workers[index].process != source.process {
            return Ok(());
        }
        match event {
            Event::Said(ToSupervisor::Running { pid }) => {
                tracing::info!(
                    worker = index,
                    pid,
                    cpu = self.workers[index].cpu,
                    "worker accepts connections"
                );
                if self.workers[index].state == WorkerState::Starting {
                    self.workers[index].state = WorkerState::Running;
                    self.events.tell(EventKind::WorkerUp { worker: source.number() });
                }
                self.check_ready();
            }
            Event::Said(ToSupervisor::Done { id, error }) => self.change_done(index, id, error),
            Event::Said(ToSupervisor::Finished(finished)) => self.finished(index, &finished),
            Event::Said(ToSupervisor::Sessions { id, total, sessions }) => {
                self.sessions_told(index, id, total, sessions);
            }
            Event::Said(ToSupervisor::Refused { reason }) => {
                tracing::error!(worker = index, "worker refuses the configuration: {reason}");
                if matches!(self.phase, Phase::Starting) {
                    return Err(ControlError::Refused { worker: index, reason });
                }
                self.kill_worker(index);
            }
            Event::DrainSent => {
                self.workers[index].state = WorkerState::Draining;
                self.let_go_of_sockets(index);
            }
            Event::StartTimeout => tracing::error!(worker = index, "worker does not get ready; it is killed"),
            Event::Ended(status) => self.on_ended(index, &status),
        }
        Ok(())
    }

    fn on_ended(&mut self, index: usize, status: &io::Result<std::process::ExitStatus>) {
        let how = describe(status);
        let worker = u16::try_from(index).unwrap_or(u16::MAX);
        self.events.tell(EventKind::WorkerDown { worker, reason: how.clone() });
        self.steering.worker_down(index);
        clear_gauges(&self.blocks[index]);
        self.changes_void(index);
        self.questions_void(index);
        let worker = &mut self.workers[index];
        if matches!(self.phase, Phase::Draining { .. }) {
            if !matches!(status, Ok(status) if status.success()) {
                tracing::warn!(worker = index, "worker ended while draining: {how}");
            }
            worker.ended();
            self.let_go_of_sockets(index);
            return;
        }
        let pause = worker.died(how.clone(), Instant::now());
        let restarts = worker.restarts;
        if pause.is_zero() {
            tracing::error!(
                worker = index,
                restarts,
                "worker died: {how}; started again with the same sockets"
            );
            self.start_worker(index);
        } else {
            tracing::error!(worker = index, restarts, "worker died again: {how}; started again in {pause:?}");
        }
    }

    fn check_ready(&mut self) {
        let all_run = self.workers.iter().all(|worker| worker.state == WorkerState::Running);
        if !all_run || !matches!(self.phase, Phase::Starting) {
            return;
        }
        self.phase = Phase::Serving;
        tracing::info!("ready: {} workers", self.workers.len());
        notify_systemd(sd_notify::NotifyState::Ready);
        if let Some(sender) = self.options.ready.take() {
            let ready = Ready {
                status: self.status(),
                handle: self.handle.clone(),
                blocks: Arc::clone(&self.blocks),
                draining: Arc::clone(&self.draining),
            };
            // Whoever wanted to know may have stopped waiting.
            let _: Result<(), Ready> = sender.send(ready);
        }
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
            Request::Read(read) => (read.0)(&self.configuration),
            Request::Stop => self.drain(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let kill_at = match self.phase {
            Phase::Draining { kill_at } => kill_at,
            Phase::Starting | Phase::Serving => None,
        };
        let restarts = self.workers.iter().filter_map(|worker| worker.restart_at);
        let questions = self.questions.iter().map(|question| question.deadline);
        let commands = self.pending.iter().map(|pending| pending.deadline).chain(questions);
        restarts.chain(commands).chain(kill_at).min()
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
        }
    }

    fn reopen_logs(&self) {
        if let Some(log) = &self.access_log {
            log.reopen();
        }
    }

    // The end.

    fn on_end_signal(&mut self) {
        if self.is_draining() {
            tracing::warn!("second signal: workers are killed");
            self.kill_workers();
        } else {
            self.drain();
        }
    }

    /// Tells the workers to finish what is under way; the sockets of each are closed here once it was told.
    fn drain(&mut self) {
        if self.is_draining() {
            return;
        }
        let deadline_ms = self.configuration.settings().timeouts.drain_ms;
        tracing::info!("draining: what is under way is finished, within {deadline_ms} ms");
        notify_systemd(sd_notify::NotifyState::Stopping);
        let kill_at = Instant::now() + Duration::from_millis(deadline_ms) + DRAIN_GRACE;
        self.phase = Phase::Draining { kill_at: Some(kill_at) };
        self.draining.store(true, Ordering::Relaxed);
        for (index, worker) in self.workers.iter_mut().enumerate() {
            match &worker.link {
                None => worker.ended(),
                Some(link) => {
                    if link.tell(vec![ToWorker::Drain { deadline_ms }.into()]) == Told::Stuck {
                        tracing::error!(worker = index, "worker does not take its commands; it is killed");
                        link.kill();
                    }
                }
            }
        }
        for index in 0..self.workers.len() {
            if self.workers[index].state == WorkerState::Ended {
                self.let_go_of_sockets(index);
            }
        }
    }

    /// Closes the listening sockets of a worker that accepts what waits there, and then closes them too; or that has
    /// ended.
    fn let_go_of_sockets(&mut self, worker: usize) {
        for listener in self.sockets.values_mut() {
            if let Some(socket) = listener.sockets.get_mut(worker) {
                *socket = None;
            }
        }
    }

    /// Kills a worker; its successor follows.
    pub(super) fn kill_worker(&mut self, index: usize) {
        if let Some(link) = &self.workers[index].link {
            link.kill();
        }
    }

    /// From here on it is over within moments, whatever the workers do.
    fn kill_workers(&mut self) {
        for link in self.workers.iter().filter_map(|worker| worker.link.as_ref()) {
            link.kill();
        }
        self.phase = Phase::Draining { kill_at: None };
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

fn notify_systemd(state: sd_notify::NotifyState<'_>) {
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
