//! One worker drains: another process takes its place first, then it finishes what it has.
//!
//! The sockets are the supervisor's, so both processes have them. The successor accepts before the other one stops, and what
//! waits in the accept queues is there for either: nothing is lost, and nothing waits.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;
use underpass_command::api::{EventKind, Predecessor, WorkerDrain, WorkerDraining, WorkerState};

use super::commands::{Failure, Reply};
use super::ending::DRAIN_GRACE;
use super::link::Source;
use super::processes::tell_or_kill;
use super::supervisor::{Phase, Supervisor};
use super::workers::{Order, Role, Second, Worker, describe};
use crate::config::TIMEOUT_MS_MAX;
use crate::ipc::ToWorker;
use crate::metrics::Counter;

impl Supervisor {
    /// Starts a successor of a worker's process. The answer comes when it accepts connections, or will not.
    pub(super) fn drain_worker(&mut self, number: u16, order: &WorkerDrain, reply: Reply<WorkerDraining>) {
        let index = usize::from(number);
        let started = self.may_drain(index, order).and_then(|deadline_ms| {
            let process = self.workers[index].next_process();
            let turn = self.workers[index].other_turn();
            let link = self.start_process(Source { worker: index, process }, turn, false);
            link.map(|link| (deadline_ms, process, link)).map_err(|error| {
                let text = format!("worker {index}: its successor cannot be started: {error}");
                Failure::new(500, text, UNCHANGED)
            })
        });
        match started {
            // A caller that has gone does not wait for its answer.
            Err(failure) => drop(reply.send(Err(failure))),
            Ok((deadline_ms, process, link)) => {
                tracing::info!(worker = index, pid = link.pid, "successor started, to drain the worker");
                let role = Role::Successor(Order { deadline_ms, reply: Some(reply) });
                self.workers[index].second = Some(Second { process, link, role });
            }
        }
    }

    /// Whether a worker can be drained now; how long its process may go on then.
    fn may_drain(&self, index: usize, order: &WorkerDrain) -> Result<u64, Failure> {
        let Some(worker) = self.workers.get(index) else {
            let last = self.workers.len().saturating_sub(1);
            let text = format!("there is no worker {index}");
            return Err(Failure::new(404, text, format!("the workers have the numbers 0 to {last}")));
        };
        let deadline_ms = order.deadline_ms.unwrap_or(self.configuration.settings().timeouts.drain_ms);
        if deadline_ms > TIMEOUT_MS_MAX {
            let text = format!("deadline_ms {deadline_ms}: above {TIMEOUT_MS_MAX}");
            let remedy = "use fewer milliseconds, or leave it out: timeouts.drain_ms holds then";
            return Err(Failure::new(422, text, remedy));
        }
        match self.phase {
            Phase::Draining { .. } => {
                Err(Failure::new(503, "the proxy is draining: all its workers are", "wait for its end"))
            }
            Phase::Starting => Err(Failure::new(503, "the proxy is starting", "try again when it is ready")),
            Phase::Serving => may_change_places(index, worker, self.predecessor(index)).map(|()| deadline_ms),
        }
    }

    /// The successor of a worker's process accepts connections: the process before it leaves everything new to it.
    pub(super) fn succeed(&mut self, index: usize, pid: u32) {
        // It was told to drain, as all others were.
        if self.is_draining() {
            return;
        }
        let Some((order, before)) = self.workers[index].succeed(Instant::now(), DRAIN_GRACE) else { return };
        let deadline_ms = order.deadline_ms;
        tracing::info!(worker = index, pid = before, "worker drains within {deadline_ms} ms");
        if let Some(second) = &self.workers[index].second {
            tell_or_kill(index, &second.link, ToWorker::HandOver { deadline_ms });
        }
        let worker = u16::try_from(index).unwrap_or(u16::MAX);
        self.events.tell(EventKind::WorkerUp { worker });
        answer(order, Ok(WorkerDraining { worker, pid: before, successor: pid, deadline_ms }));
    }

    /// The process before the one that serves publishes nothing any more for steering.
    pub(super) fn handed_over(&mut self, index: usize) {
        let Some(leaving) = self.workers[index].leaving() else { return };
        if !std::mem::replace(&mut leaving.handed_over, true) {
            // None where it is being killed.
            leaving.kill_at = leaving.kill_at.map(|_| leaving.cut_at + DRAIN_GRACE);
            self.order(index, ToWorker::Publish);
        }
    }

    /// Notes that a process that was replaced has ended: none follows it.
    pub(super) fn predecessor_ended(&mut self, index: usize, status: &io::Result<ExitStatus>) {
        if self.workers[index].is_published_by_predecessor() {
            self.steering.worker_down(index);
            self.handed_over(index);
        }
        let second = self.workers[index].second.take();
        let pid = second.and_then(|second| second.link.pid).unwrap_or_default();
        let well = matches!(status, Ok(status) if status.success());
        let reason = (!well).then(|| describe(status));
        match &reason {
            None => tracing::info!(worker = index, "worker has drained: its process before has ended"),
            Some(how) => tracing::warn!(worker = index, "worker ended while draining: {how}"),
        }
        let worker = u16::try_from(index).unwrap_or(u16::MAX);
        self.events.tell(EventKind::WorkerDrained { worker, pid, reason });
    }

    /// Notes that a process has ended that was to take the place of another, which goes on.
    pub(super) fn successor_ended(&mut self, index: usize, status: &io::Result<ExitStatus>) {
        let how = describe(status);
        if !self.is_draining() {
            tracing::error!(worker = index, "successor ended before it was ready: {how}");
        }
        self.no_successor(index, 500, &format!("its successor ended before it was ready: {how}"));
        self.workers[index].second = None;
    }

    /// Answers that a worker goes on with the process that it has.
    pub(super) fn no_successor(&mut self, index: usize, status: u16, why: &str) {
        if let Some(Second { role: Role::Successor(order), .. }) = &mut self.workers[index].second
            && let Some(reply) = order.reply.take()
        {
            // The caller may have gone; nobody else wants the answer.
            drop(reply.send(Err(Failure::new(status, format!("worker {index}: {why}"), UNCHANGED))));
        }
    }

    /// The process that served has ended: one that was to take its place does so at once. False if there is none.
    pub(super) fn promote(&mut self, index: usize, how: &str) -> bool {
        let Some(order) = self.workers[index].promote(Instant::now()) else { return false };
        self.order(index, ToWorker::Publish);
        let text = format!("worker {index} ended before its successor was ready: {how}");
        answer(order, Err(Failure::new(500, text, "nothing is left to drain; its successor serves")));
        true
    }

    /// Kills a process that has not ended although its deadline has passed.
    pub(super) fn kill_predecessor(&mut self, index: usize) {
        if let Some(second) = &self.workers[index].second {
            tracing::warn!(worker = index, "a process that was replaced has not left in time; it is killed");
            second.link.kill();
        }
        if let Some(leaving) = self.workers[index].leaving() {
            leaving.kill_at = None;
        }
    }

    /// The process of a worker that drains.
    pub(super) fn predecessor(&self, index: usize) -> Option<Predecessor> {
        let worker = self.workers.get(index)?;
        let Second { link, role: Role::Predecessor(leaving), .. } = worker.second.as_ref()? else {
            return None;
        };
        let left = leaving.cut_at.saturating_duration_since(Instant::now());
        let connections = match self.blocks[index].of_turn(worker.other_turn()) {
            Ok(block) => block.get(Counter::ClientsActive),
            Err(_) => 0,
        };
        Some(Predecessor { pid: link.pid, connections, cut_in_ms: milliseconds(left) })
    }
}

/// What is true of a worker that was not drained although it should.
const UNCHANGED: &str = "the worker goes on as before; the log tells more";

fn may_change_places(index: usize, worker: &Worker, predecessor: Option<Predecessor>) -> Result<(), Failure> {
    if let Some(Predecessor { connections, cut_in_ms, .. }) = predecessor {
        let text = format!(
            "worker {index} drains already: {connections} connections are left, which are cut in {cut_in_ms} ms"
        );
        let remedy = "wait for the event worker_drained; deadline_ms bounds how long the next drain takes";
        return Err(Failure::new(409, text, remedy));
    }
    if worker.second.is_some() {
        let text = format!("worker {index} waits for its successor already");
        return Err(Failure::new(409, text, "wait for the answer to the first drain"));
    }
    if worker.state != WorkerState::Running {
        let text = format!("worker {index} does not serve: it is {}", worker.state);
        return Err(Failure::new(409, text, "try again when it runs; it is started by itself"));
    }
    if worker.is_behind() {
        let text = format!("worker {index} does not keep up with the changes before");
        return Err(Failure::new(503, text, "try again in a moment"));
    }
    Ok(())
}

fn answer(order: Order, outcome: Result<WorkerDraining, Failure>) {
    if let Some(reply) = order.reply {
        // The caller may have gone; nobody else wants the answer.
        drop(reply.send(outcome));
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
