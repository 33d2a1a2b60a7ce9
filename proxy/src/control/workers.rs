//! What the supervisor knows of each worker, and when a dead one is started again.

use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use tokio::time::Instant;
use underpass_command::api::{WorkerDraining, WorkerState};

use super::commands::Reply;
use super::link::Link;
use crate::metrics::TURNS;

/// A worker that lived shorter died quickly.
const QUICK: Duration = Duration::from_secs(10);
/// So many quick deaths in a row are answered by a start at once.
const QUICK_DEATHS_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// What is in its accept queues waits for so long at most.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A process that has not left the sockets to its successor after so long hangs: nothing that it has moves either.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// One worker: the process that does its work now, another while the two change places, and the count of those before.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) cpu: Option<u16>,
    /// Of the process that serves.
    pub(super) state: WorkerState,
    /// The process, while there is one.
    pub(super) link: Option<Link>,
    /// Number of the process, to tell what its predecessors still say.
    pub(super) process: u64,
    /// Which of the worker's two blocks of counters the process has; another process beside it has the other.
    pub(super) turn: usize,
    /// Another process of this worker.
    pub(super) second: Option<Second>,
    pub(super) restarts: u64,
    pub(super) last_exit: Option<String>,
    /// When it is started again, in state `Waiting`.
    pub(super) restart_at: Option<Instant>,
    started: Instant,
    quick_deaths: u32,
    /// Processes started so far.
    processes: u64,
}

/// A process beside the one that serves.
#[derive(Debug)]
pub(super) struct Second {
    pub(super) process: u64,
    pub(super) link: Link,
    pub(super) role: Role,
}

/// What a process is for its worker.
#[derive(Debug)]
pub(super) enum Role {
    /// It gets ready to take the place of the one that serves, which goes on until then.
    Successor(Order),
    /// It finishes what it has, and ends.
    Predecessor(Leaving),
}

/// Who waits for a worker to change its process.
#[derive(Debug)]
pub(super) struct Order {
    /// How long the one before may go on.
    pub(super) deadline_ms: u64,
    /// None once it was answered.
    pub(super) reply: Option<Reply<WorkerDraining>>,
}

/// The end of a process that was replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    /// When it cuts what is left.
    pub(super) cut_at: Instant,
    /// When it is killed; none once it was.
    pub(super) kill_at: Option<Instant>,
    /// It has left the sockets and its place in steering.
    pub(super) handed_over: bool,
}

/// Which of a worker's processes is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Serving,
    Successor,
    Predecessor,
}

impl Worker {
    pub(super) fn new(cpu: Option<u16>) -> Self {
        Self {
            cpu,
            state: WorkerState::Waiting,
            link: None,
            process: 0,
            turn: 0,
            second: None,
            restarts: 0,
            last_exit: None,
            restart_at: None,
            started: Instant::now(),
            quick_deaths: 0,
            processes: 0,
        }
    }

    /// The number of a process that is about to start.
    pub(super) fn next_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    /// Which of its processes has this number; none for one that has ended.
    pub(super) fn part(&self, process: u64) -> Option<Part> {
        match &self.second {
            Some(second) if second.process == process => Some(match second.role {
                Role::Successor(_) => Part::Successor,
                Role::Predecessor(_) => Part::Predecessor,
            }),
            _ => (self.process == process).then_some(Part::Serving),
        }
    }

    /// The turn of a process that is not the one that serves.
    pub(super) fn other_turn(&self) -> usize {
        (self.turn + 1) % TURNS
    }

    /// The process that has left, or is about to.
    pub(super) fn leaving(&mut self) -> Option<&mut Leaving> {
        match &mut self.second.as_mut()?.role {
            Role::Predecessor(leaving) => Some(leaving),
            Role::Successor(_) => None,
        }
    }

    /// When a process that was replaced is killed.
    pub(super) fn kill_at(&self) -> Option<Instant> {
        match &self.second.as_ref()?.role {
            Role::Predecessor(leaving) => leaving.kill_at,
            Role::Successor(_) => None,
        }
    }

    /// The process that was replaced and has not ended yet.
    pub(super) fn draining_pid(&self) -> Option<u32> {
        match &self.second {
            Some(Second { link, role: Role::Predecessor(_), .. }) => link.pid,
            _ => None,
        }
    }

    /// Whether a process that was replaced still publishes what steering needs to know of this worker.
    pub(super) fn is_published_by_predecessor(&self) -> bool {
        let role = self.second.as_ref().map(|second| &second.role);
        matches!(role, Some(Role::Predecessor(leaving)) if !leaving.handed_over)
    }

    /// Its processes: number, and link.
    pub(super) fn processes(&self) -> impl Iterator<Item = (u64, &Link)> {
        let serving = self.link.iter().map(|link| (self.process, link));
        serving.chain(self.second.iter().map(|second| (second.process, &second.link)))
    }

    /// Notes that a process was started.
    pub(super) fn started(&mut self, process: u64, link: Link, now: Instant) {
        self.process = process;
        self.link = Some(link);
        self.state = WorkerState::Starting;
        self.restart_at = None;
        self.started = now;
    }

    /// The successor takes the place of the process that serves, which becomes its predecessor; returns who waits for this, and
    /// the link of the predecessor. None if there is nobody to change places with.
    pub(super) fn succeed(&mut self, now: Instant, grace: Duration) -> Option<(Order, u32)> {
        let Some(Second { process, link, role: Role::Successor(order) }) =
            self.second.take_if(|second| matches!(second.role, Role::Successor(_)))
        else {
            return None;
        };
        let before = (self.process, self.link.take()?);
        let cut_at = now + Duration::from_millis(order.deadline_ms);
        // Until it has handed over, steering sees what it says, and changes wait for it.
        let kill_at = (cut_at + grace).min(now + HAND_OVER_MAX);
        let leaving = Leaving { cut_at, kill_at: Some(kill_at), handed_over: false };
        let pid = before.1.pid.unwrap_or_default();
        self.started(process, link, now);
        self.state = WorkerState::Running;
        self.turn = self.other_turn();
        self.second = Some(Second { process: before.0, link: before.1, role: Role::Predecessor(leaving) });
        Some((order, pid))
    }

    /// The process that served has ended before its successor was ready, and that takes its place now; returns who waited
    /// for it.
    pub(super) fn promote(&mut self, now: Instant) -> Option<Order> {
        let Some(Second { process, link, role: Role::Successor(order) }) =
            self.second.take_if(|second| matches!(second.role, Role::Successor(_)))
        else {
            return None;
        };
        self.started(process, link, now);
        self.turn = self.other_turn();
        Some(order)
    }

    /// Notes that the process has died, or could not be started; returns the pause before the next start.
    pub(super) fn died(&mut self, how: String, now: Instant) -> Duration {
        self.link = None;
        self.last_exit = Some(how);
        self.restarts += 1;
        let lived = now.saturating_duration_since(self.started);
        self.quick_deaths = if lived < QUICK { self.quick_deaths + 1 } else { 0 };
        let pause = pause(self.quick_deaths);
        self.state = WorkerState::Waiting;
        self.restart_at = Some(now + pause);
        pause
    }

    /// Whether it has not taken the commands that it was told before.
    pub(super) fn is_behind(&self) -> bool {
        self.processes().any(|(_, link)| link.is_full())
    }

    /// Notes that the process that served has ended and none follows.
    pub(super) fn ended(&mut self) {
        self.link = None;
        self.restart_at = None;
        self.state = WorkerState::Ended;
    }
}

/// How long to wait after so many quick deaths in a row.
fn pause(quick_deaths: u32) -> Duration {
    match quick_deaths.checked_sub(QUICK_DEATHS_MAX + 1) {
        None => Duration::ZERO,
        Some(more) => PAUSE_MIN.saturating_mul(1 << more.min(16)).min(PAUSE_MAX),
    }
}

/// How a process ended, for people.
pub(super) fn describe(status: &std::io::Result<ExitStatus>) -> String {
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("unknown end: {error}"),
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => {
            let name =
                Signal::try_from(number).map_or_else(|_| number.to_string(), |s| s.as_str().to_owned());
            let core = if status.core_dumped() { ", core dumped" } else { "" };
            format!("killed by signal {name}{core}")
        }
        (None, None) => "unknown end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_deaths_are_answered_at_once_then_pauses_double_to_a_bound() {
        let pauses: Vec<u128> = (0..=13).map(|deaths| pause(deaths).as_millis()).collect();
        assert_eq!(pauses[..8], [0, 0, 0, 0, 100, 200, 400, 800]);
        assert_eq!(pauses[13], 2000);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn a_long_life_forgives() {
        let begin = Instant::now();
        let mut worker = Worker::new(None);
        worker.started = begin;
        for _ in 0..6 {
            worker.died("exit status 1".into(), begin);
        }
        assert_eq!(worker.died("exit status 1".into(), begin), Duration::from_millis(800));
        assert_eq!(worker.died("exit status 1".into(), begin + QUICK), Duration::ZERO);
        assert_eq!(worker.restarts, 8);
        assert_eq!(worker.state, WorkerState::Waiting);
    }

    #[test]
    fn ends_are_described() {
        let raw = |raw| describe(&Ok(ExitStatus::from_raw(raw)));
        assert_eq!(raw(0), "exit status 0");
        assert_eq!(raw(3 << 8), "exit status 3");
        assert_eq!(raw(9), "killed by signal SIGKILL");
        assert_eq!(raw(6 | 0x80), "killed by signal SIGABRT, core dumped");
    }
}
