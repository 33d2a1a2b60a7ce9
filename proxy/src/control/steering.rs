//! The supervisor's hold on the steering program. Without it the kernel spreads connections by its own hash.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use underpass_command::api::{Probe, SteeringRow, SteeringStatus};
use underpass_command::live::LISTENERS_MAX;
use underpass_command::state::SteeringPolicy;
use underpass_loader::{
    Capability, LoadError, Matrix, Options, Outcome, Policy, QueueWorker, Steering as Program, nic, probe,
};

use super::commands::Failure;
use super::machine::cpu_table;
use super::program_log::WatchedLog;
use super::sockets::ListenerSockets;

/// The steering program, or why there is none.
#[derive(Debug)]
pub(super) struct Steering {
    policy: SteeringPolicy,
    loaded: Result<Loaded, String>,
    /// Comes a moment after the start: trying takes longer than loading.
    probes: Arc<OnceLock<Vec<Probe>>>,
}

#[derive(Debug)]
struct Loaded {
    program: Program,
    workers: u16,
    /// The worker of each CPU.
    cpus: Vec<(u32, u16)>,
    slots: Arc<OwnedFd>,
    log: Option<WatchedLog>,
    /// What is missing although the program runs.
    reduced: Option<String>,
}

impl Steering {
    /// Loads the program and attaches it to each listener's group.
    ///
    /// Also for the policy `off`, so that another can be chosen while the proxy runs.
    pub(super) fn start(
        policy: SteeringPolicy,
        cpus: &[Option<u16>],
        generation: u32,
        listeners: &[ListenerSockets],
    ) -> Self {
        let loaded = load(policy, cpus, generation, listeners).map_err(|error| describe(&error));
        match &loaded {
            Ok(Loaded { reduced: None, .. }) => tracing::info!("steering: policy {policy}, by BPF"),
            Ok(Loaded { reduced: Some(reason), .. }) => {
                tracing::info!("steering: policy {policy}, by BPF, but reduced: {reason}");
            }
            Err(reason) if policy == SteeringPolicy::Off => {
                tracing::info!("steering: off; no other policy can be had: {reason}");
            }
            Err(reason) => {
                tracing::warn!(
                    "steering: BPF is off: {reason}; the kernel spreads connections by its own hash"
                );
            }
        }
        Self { policy, loaded, probes: start_probes() }
    }

    /// The map through which workers tell the program how they are.
    pub(super) fn slots(&self) -> Option<Arc<OwnedFd>> {
        self.loaded.as_ref().ok().map(|loaded| Arc::clone(&loaded.slots))
    }

    /// Tells the program that a worker has no process.
    pub(super) fn worker_down(&mut self, worker: usize) {
        let Ok(loaded) = &mut self.loaded else { return };
        if let Err(error) = u16::try_from(worker).map_or(Ok(()), |worker| loaded.program.reset_worker(worker))
        {
            tracing::error!(worker, "steering: {error}");
        }
    }

    /// The policy that is asked for.
    pub(super) fn policy(&self) -> SteeringPolicy {
        self.policy
    }

    /// Steers the connections of a new listener. Where that fails the kernel spreads them by its own hash.
    pub(super) fn attach(&mut self, listener: &ListenerSockets) {
        let Ok(loaded) = &mut self.loaded else { return };
        if let Err(error) = attach(&mut loaded.program, listener) {
            tracing::error!("steering: {error}; the kernel spreads its connections by its own hash");
        }
    }

    /// Steers the connections of a listener no more, because it is removed.
    pub(super) fn detach(&mut self, listener: &ListenerSockets) {
        let Ok(loaded) = &mut self.loaded else { return };
        let Some(socket) = listener.sockets.iter().flatten().next() else { return };
        if let Err(error) = loaded.program.detach_listener(&listener.name, socket.as_fd()) {
            tracing::error!("steering: {error}");
        }
    }

    pub(super) fn set_policy(&mut self, policy: SteeringPolicy) -> Result<(), Failure> {
        let refused = |reason: &dyn std::fmt::Display| {
            let text = format!("steering policy \"{policy}\" cannot be had: {reason}");
            Failure::new(409, text, format!("the policy stays {}", self.policy))
        };
        match &mut self.loaded {
            Ok(loaded) => loaded.set_policy(policy).map_err(|error| refused(&error))?,
            Err(reason) if policy != SteeringPolicy::Off => return Err(refused(reason)),
            Err(_) => {}
        }
        self.policy = policy;
        Ok(())
    }

    pub(super) fn status(&self) -> SteeringStatus {
        let mut status = SteeringStatus { policy: self.policy, ..SteeringStatus::default() };
        match &self.loaded {
            Err(reason) => status.reason = Some(reason.clone()),
            Ok(loaded) => {
                status.active = self.policy != SteeringPolicy::Off;
                status.reduced.clone_from(&loaded.reduced);
                match loaded.program.matrix() {
                    Ok(matrix) => add_matrix(&mut status, &matrix, loaded.workers),
                    Err(error) => tracing::error!("steering: {error}"),
                }
            }
        }
        status
    }

    /// What the kernel and the privileges of this process allow.
    pub(super) fn probes(&self) -> &[Probe] {
        self.probes.get().map_or(&[], Vec::as_slice)
    }

    /// Waits until the program has logged something, and passes it on.
    pub(super) async fn pass_on_log(&mut self) {
        match &mut self.loaded {
            Ok(Loaded { log: Some(log), .. }) => log.pass_on().await,
            _ => pending().await,
        }
    }
}

impl Loaded {
    fn set_policy(&mut self, policy: SteeringPolicy) -> Result<(), LoadError> {
        if policy == SteeringPolicy::RxQueue {
            // Interfaces and interrupts may have changed since the start.
            self.program.set_queues(&queue_table(policy, &self.cpus))?;
        }
        self.program.set_policy(to_loader(policy))
    }
}

/// Without saying once more what it is about.
fn describe(error: &LoadError) -> String {
    match error {
        LoadError::Unavailable { reason, remedy } => format!("{reason}; {remedy}"),
        other => other.to_string(),
    }
}

fn start_probes() -> Arc<OnceLock<Vec<Probe>>> {
    let probes = Arc::new(OnceLock::new());
    let result = Arc::clone(&probes);
    let started = std::thread::Builder::new().name("probes".into()).spawn(move || {
        // Set here only.
        let _ = result.set(probe().capabilities.into_iter().map(to_probe).collect());
    });
    if let Err(error) = started {
        tracing::warn!("what the kernel allows is not probed: {error}");
    }
    probes
}

fn load(
    policy: SteeringPolicy,
    cpus: &[Option<u16>],
    generation: u32,
    listeners: &[ListenerSockets],
) -> Result<Loaded, LoadError> {
    let workers = u16::try_from(cpus.len()).unwrap_or(u16::MAX);
    let mut options = Options::new(workers);
    options.policy = to_loader(policy);
    options.generation = generation;
    options.listeners_max = u16::try_from(LISTENERS_MAX).unwrap_or(u16::MAX);
    let cpus = cpu_table(cpus);
    let queues = queue_table(policy, &cpus);
    let mut program = Program::load(&options)?;
    program.set_cpus(&cpus)?;
    program.set_queues(&queues)?;
    for listener in listeners {
        attach(&mut program, listener)?;
    }
    let step = |step: &str, error: io::Error| LoadError::Step { step: step.into(), error: error.to_string() };
    let slots = program.slots_fd().try_clone_to_owned().map_err(|error| step("duplicating a map", error))?;
    let log = program.take_log().map(WatchedLog::new).transpose()?;
    let reduced = program.reduced().map(str::to_owned);
    Ok(Loaded { program, workers, cpus, slots: Arc::new(slots), log, reduced })
}

fn attach(program: &mut Program, listener: &ListenerSockets) -> Result<(), LoadError> {
    let sockets: Vec<BorrowedFd<'_>> =
        listener.sockets.iter().flatten().map(|socket| socket.as_fd()).collect();
    program.attach_listener(&listener.name, &sockets)
}

/// The worker of each RX queue, for the policy that asks for it.
fn queue_table(policy: SteeringPolicy, cpus: &[(u32, u16)]) -> Vec<QueueWorker> {
    if policy != SteeringPolicy::RxQueue {
        return Vec::new();
    }
    match nic::read(Path::new("/"), cpus, None) {
        Ok(report) => report.queue_workers(),
        Err(error) => {
            tracing::warn!("steering: queues of interfaces: {error}; connections go by their CPU");
            Vec::new()
        }
    }
}

fn add_matrix(status: &mut SteeringStatus, matrix: &Matrix, workers: u16) {
    let mut rows: BTreeMap<u32, SteeringRow> = BTreeMap::new();
    for cell in &matrix.cells {
        let row = rows.entry(cell.cpu).or_insert_with(|| SteeringRow {
            cpu: cell.cpu,
            workers: vec![0; usize::from(workers)],
            kernel: 0,
        });
        match cell.worker.and_then(|worker| row.workers.get_mut(usize::from(worker))) {
            Some(count) => *count += cell.count,
            None => row.kernel += cell.count,
        }
        *status.outcomes.entry(outcome_name(cell.outcome).to_owned()).or_default() += cell.count;
    }
    status.matrix = rows.into_values().collect();
}

/// How a connection found its worker, as the admin API says it.
fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Own => "own",
        Outcome::Unmapped => "unmapped",
        Outcome::Down => "down",
        Outcome::Generation => "generation",
        Outcome::Overloaded => "overloaded",
        Outcome::Stalled => "stalled",
        Outcome::Empty => "empty",
        Outcome::Off => "off",
    }
}

fn to_loader(policy: SteeringPolicy) -> Policy {
    match policy {
        SteeringPolicy::Cpu => Policy::Cpu,
        SteeringPolicy::RxQueue => Policy::RxQueue,
        SteeringPolicy::Hash => Policy::Hash,
        SteeringPolicy::Off => Policy::Off,
    }
}

fn to_probe(capability: Capability) -> Probe {
    let Capability { name, available, detail, remedy, .. } = capability;
    let detail = if available || remedy.is_empty() { detail } else { format!("{detail}; {remedy}") };
    Probe { name: name.to_owned(), available, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_have_the_same_names_everywhere() {
        for policy in SteeringPolicy::ALL {
            assert_eq!(policy.name(), to_loader(*policy).name());
        }
    }

    #[test]
    fn a_missing_capability_says_what_to_do() {
        let capability = Capability {
            name: "privileges",
            available: false,
            required: true,
            detail: "no CAP_BPF".into(),
            remedy: "run as root".into(),
        };
        assert_eq!(to_probe(capability).detail, "no CAP_BPF; run as root");
    }
}
