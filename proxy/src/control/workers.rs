//! What the supervisor knows of each worker, and when a dead one is started again.

use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use tokio::time::Instant;
use underpass_command::api::WorkerState;

use super::link::Link;

/// A worker that lived shorter died quickly.
const QUICK: Duration = Duration::from_secs(10);
/// So many quick deaths in a row are answered by a start at once.
const QUICK_DEATHS_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// What is in its accept queues waits for so long at most.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// One worker: the process that does its work now, and the count of those before.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) cpu: Option<u16>,
    pub(super) state: WorkerState,
    /// The process, while there is one.
    pub(super) link: Option<Link>,
    /// Number of the process, to tell what its predecessors still say.
    pub(super) process: u64,
    pub(super) restarts: u64,
    pub(super) last_exit: Option<String>,
    /// When it is started again, in state `Waiting`.
    pub(super) restart_at: Option<Instant>,
    started: Instant,
    quick_deaths: u32,
}

impl Worker {
    pub(super) fn new(cpu: Option<u16>) -> Self {
        Self {
            cpu,
            state: WorkerState::Waiting,
            link: None,
            process: 0,
            restarts: 0,
            last_exit: None,
            restart_at: None,
            started: Instant::now(),
            quick_deaths: 0,
        }
    }

    /// Notes that a process was started.
    pub(super) fn started(&mut self, link: Link, now: Instant) {
        self.link = Some(link);
        self.state = WorkerState::Starting;
        self.restart_at = None;
        self.started = now;
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
        self.link.as_ref().is_some_and(Link::is_full)
    }

    /// Notes that the process has ended and none follows.
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
