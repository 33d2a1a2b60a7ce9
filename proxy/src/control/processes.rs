//! The worker processes: how they start, what they say, and how they end.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

use tokio::time::Instant;
use underpass_command::api::{EventKind, WorkerState};

use super::link::{Event, Letter, Link, Source, Told};
use super::status::clear_gauges;
use super::supervisor::{Phase, Supervisor, notify_systemd};
use super::workers::{Part, describe};
use super::{ControlError, Ready};
use crate::ipc::{ToSupervisor, ToWorker};

impl Supervisor {
    /// Starts the process of a worker that has none.
    pub(super) fn start_worker(&mut self, index: usize) {
        let process = self.workers[index].next_process();
        self.workers[index].process = process;
        let (source, turn) = (Source { worker: index, process }, self.workers[index].turn);
        let publish = !self.workers[index].is_published_by_predecessor();
        match self.start_process(source, turn, publish) {
            Ok(link) => {
                tracing::debug!(worker = index, pid = link.pid, "worker started");
                self.workers[index].started(process, link, Instant::now());
            }
            Err(error) => {
                let pause = self.workers[index].died(format!("not started: {error}"), Instant::now());
                tracing::error!(worker = index, "worker cannot be started: {error}; next try in {pause:?}");
            }
        }
    }

    /// Starts a process; `publish` tells whether it publishes for steering from its start.
    pub(super) fn start_process(&mut self, source: Source, turn: usize, publish: bool) -> io::Result<Link> {
        let block = self.blocks[source.worker].of_turn(turn).map_err(io::Error::other)?;
        clear_gauges(block);
        let letters = self.start_letters(source.worker, turn, publish)?;
        Link::start(&self.options.executable, source, letters, self.worker_sender.clone())
    }

    /// The whole state, as a process gets it when it starts.
    fn start_letters(&mut self, index: usize, turn: usize, publish: bool) -> io::Result<Vec<Letter>> {
        let block = self.blocks[index].of_turn(turn).map_err(io::Error::other)?;
        let mut descriptors = vec![Arc::new(block.fd().try_clone_to_owned()?)];
        if let Some(log) = &self.access_log {
            descriptors.push(Arc::new(log.pipe(index, turn)?));
        }
        let slots = self.steering.slots();
        let steering = slots.is_some();
        descriptors.extend(slots);
        let maps = self.redirection.prepare(index, turn);
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
        letters.extend(publish.then(|| ToWorker::Publish.into()));
        letters.push(ToWorker::Run.into());
        Ok(letters)
    }

    /// Takes what a process has said, or what became of it.
    pub(super) fn on_event(&mut self, source: Source, event: Event) -> Result<(), ControlError> {
        let index = source.worker;
        let Some(part) = self.workers[index].part(source.process) else { return Ok(()) };
        match event {
            Event::Said(ToSupervisor::Running { pid }) => self.running(source, part, pid),
            Event::Said(ToSupervisor::HandedOver) => self.handed_over(index),
            Event::Said(ToSupervisor::Done { id, error }) => self.change_done(source, id, error),
            Event::Said(ToSupervisor::Finished(finished)) => self.finished(source, &finished),
            Event::Said(ToSupervisor::Sessions { id, total, sessions }) => {
                self.sessions_told(source, id, total, sessions);
            }
            Event::Said(ToSupervisor::Refused { reason }) => {
                tracing::error!(worker = index, "worker refuses the configuration: {reason}");
                if matches!(self.phase, Phase::Starting) {
                    return Err(ControlError::Refused { worker: index, reason });
                }
                if part == Part::Successor {
                    let why = format!("its successor refuses the configuration: {reason}");
                    self.no_successor(index, 500, &why);
                }
                self.kill_process(source);
            }
            // Only who serves has sockets that nobody else needs.
            Event::DrainSent if part == Part::Serving => {
                self.workers[index].state = WorkerState::Draining;
                self.let_go_of_sockets(index);
            }
            Event::DrainSent => {}
            Event::StartTimeout => tracing::error!(worker = index, "worker does not get ready; it is killed"),
            Event::Ended(status) => self.on_ended(source, part, &status),
        }
        Ok(())
    }

    fn running(&mut self, source: Source, part: Part, pid: u32) {
        let index = source.worker;
        tracing::info!(worker = index, pid, cpu = self.workers[index].cpu, "worker accepts connections");
        match part {
            Part::Successor => self.succeed(index, pid),
            Part::Serving if self.workers[index].state == WorkerState::Starting => {
                self.workers[index].state = WorkerState::Running;
                self.events.tell(EventKind::WorkerUp { worker: source.number() });
            }
            Part::Serving | Part::Predecessor => {}
        }
        self.check_ready();
    }

    fn on_ended(&mut self, source: Source, part: Part, status: &io::Result<ExitStatus>) {
        let worker = &self.workers[source.worker];
        let turn = if part == Part::Serving { worker.turn } else { worker.other_turn() };
        if let Ok(block) = self.blocks[source.worker].of_turn(turn) {
            clear_gauges(block);
        }
        self.changes_void(source);
        self.questions_void(source);
        match part {
            Part::Serving => self.serving_ended(source, status),
            Part::Successor => self.successor_ended(source.worker, status),
            Part::Predecessor => self.predecessor_ended(source.worker, status),
        }
        // What one that served had goes to the next process of its turn, unless its successor was ready and has the other turn.
        if part != Part::Serving || self.workers[source.worker].turn != turn {
            self.redirection.release(source.worker, turn);
        }
    }

    fn serving_ended(&mut self, source: Source, status: &io::Result<ExitStatus>) {
        let index = source.worker;
        let how = describe(status);
        self.events.tell(EventKind::WorkerDown { worker: source.number(), reason: how.clone() });
        // Whoever publishes next says so. A predecessor that has not left yet says how busy it is, but not that it serves.
        self.steering.worker_down(index);
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
        if self.promote(index, &how) {
            tracing::error!(worker = index, restarts, "worker died: {how}; its successor follows at once");
        } else if pause.is_zero() {
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

    /// Kills a process; where it served, its successor follows.
    pub(super) fn kill_process(&self, source: Source) {
        let mut processes = self.workers[source.worker].processes();
        if let Some((_, link)) = processes.find(|(process, _)| *process == source.process) {
            link.kill();
        }
    }

    /// Tells the process that serves something that it must do, or else it is killed.
    pub(super) fn order(&self, index: usize, message: ToWorker) {
        if let Some(link) = &self.workers[index].link {
            tell_or_kill(index, link, message);
        }
    }
}

/// Tells a process something that it must do. One that does not take its commands is killed; whether one has ended, an event
/// tells.
pub(super) fn tell_or_kill(worker: usize, link: &Link, message: ToWorker) {
    if link.tell(vec![message.into()]) == Told::Stuck {
        tracing::error!(worker, "worker does not take its commands; it is killed");
        link.kill();
    }
}
