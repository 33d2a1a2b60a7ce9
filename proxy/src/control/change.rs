//! A change of the configuration: checked, applied, brought to every worker, answered when all have it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use underpass_command::api::{
    ChangeRequest, Changed, ErrorBody, EventKind, RedirectChange, RedirectScope, RedirectStatus,
    SteeringChange, SteeringStatus,
};
use underpass_command::live::{Operation, OperationError};
use underpass_command::state::Cluster;

use super::commands::{Failure, Reply, redirect_status};
use super::link::{Letter, Source, Told};
use super::numbers::{Drained, Waiting};
use super::sockets::{self, ListenerSockets};
use super::supervisor::Supervisor;
use super::workers::Worker;
use crate::config;
use crate::heap;
use crate::ipc::{Finished, STEP_SIZE_MAX, pieces};
use crate::metrics::{BackendCounter, BlockPair, ClusterCounter, ListenerCounter};

/// Until all workers must have carried out a change.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Memory is given back when so many items have been removed.
const TRIM_AFTER: usize = 8192;

/// Who waits for a change, and for what.
#[derive(Debug)]
pub(super) enum Answer {
    Changed(Reply<Changed>),
    Redirect(Reply<RedirectStatus>),
    Steering(Reply<SteeringStatus>),
}

/// A change that not every worker has carried out yet.
#[derive(Debug)]
pub(super) struct Pending {
    id: u64,
    waiting: Waiting,
    errors: Vec<String>,
    pub(super) deadline: Instant,
    answer: Answer,
    changed: Changed,
    /// Of listeners that were removed: closed when the workers have accepted what waited there.
    _sockets: Vec<ListenerSockets>,
}

impl Supervisor {
    /// Carries out a change, or refuses it as a whole. It goes out to the workers at once, and is answered when all have it.
    ///
    /// From here on it is part of the configuration, so a worker that is started again has it, whatever becomes of those
    /// that run.
    pub(super) fn change(&mut self, request: &ChangeRequest, answer: Answer) {
        let warnings = Vec::new();
        self.change_with_warnings(request, warnings, answer);
    }

    pub(super) fn change_with_warnings(
        &mut self,
        request: &ChangeRequest,
        warnings: Vec<String>,
        answer: Answer,
    ) {
        match self.try_change(request) {
            Ok(mut changed) => {
                changed.warnings.splice(0..0, warnings);
                if changed.dry_run || changed.effects.is_empty() {
                    self.answer(answer, Ok(changed));
                } else {
                    self.propagate(changed, answer);
                }
            }
            Err(failure) => self.answer(answer, Err(failure)),
        }
    }

    /// Makes a change part of the configuration, with what it needs from the machine.
    fn try_change(&mut self, request: &ChangeRequest) -> Result<Changed, Failure> {
        if self.is_draining() {
            return Err(Failure::new(503, "the proxy is draining", "start it again, then change it"));
        }
        let revision = self.configuration.revision();
        if let Some(expected) = request.if_revision.filter(|expected| *expected != revision) {
            let text = format!("the configuration has revision {revision}, not {expected}");
            let remedy = "look at what has changed, and send the change for the revision that there is";
            let mut failure = Failure::new(412, text, remedy);
            failure.body.revision = Some(revision);
            return Err(failure);
        }
        if let Some(index) = self.workers.iter().position(Worker::is_behind) {
            let text = format!("worker {index} does not keep up with the changes before this one");
            return Err(Failure::new(503, text, "try again in a moment"));
        }
        let mut applied = self.configuration.apply(&request.operations).map_err(refused)?;
        let problems = config::check_change(&self.configuration, &applied.touched);
        let mut errors = problems.errors;
        errors.extend(too_large(&applied.effects));
        if !errors.is_empty() {
            self.configuration.revert(applied);
            return Err(refused(errors));
        }
        let changed = Changed {
            revision: self.configuration.revision(),
            effects: std::mem::take(&mut applied.effects),
            warnings: problems.warnings,
            dry_run: request.dry_run,
        };
        if request.dry_run {
            self.configuration.revert(applied);
        } else if let Err(failure) = self.acquire(&changed.effects) {
            self.configuration.revert(applied);
            return Err(failure);
        }
        Ok(changed)
    }

    /// Gets what a change needs from the machine: the sockets of new listeners, another steering policy.
    fn acquire(&mut self, effects: &[Operation]) -> Result<(), Failure> {
        let mut removed = Vec::new();
        let mut added = Vec::new();
        let mut steering = None;
        for effect in effects {
            match effect {
                Operation::AddListener { listener } => added.push(listener.clone()),
                Operation::RemoveListener { name } => removed.extend(self.sockets.remove(name)),
                Operation::ChangeSettings { settings } => steering = Some(settings.steering),
                _ => {}
            }
        }
        // One that takes the place of another takes its sockets too: what waits there is not lost.
        let mut handed_on = Vec::new();
        added.retain(|listener| match removed.iter().find(|old| old.address == listener.address) {
            Some(old) => {
                handed_on.push(ListenerSockets { name: listener.name.clone(), ..old.clone() });
                false
            }
            None => true,
        });
        let opened = match sockets::open(&added, self.workers.len(), &self.configuration.settings().limits) {
            Ok(opened) => opened,
            Err(error) => {
                self.sockets.extend(removed.into_iter().map(|sockets| (sockets.name.clone(), sockets)));
                return Err(Failure::new(409, error.to_string(), "nothing was changed"));
            }
        };
        if let Some(policy) = steering.filter(|policy| *policy != self.steering.policy())
            && let Err(failure) = self.steering.set_policy(policy)
        {
            self.sockets.extend(removed.into_iter().map(|sockets| (sockets.name.clone(), sockets)));
            return Err(failure);
        }
        for sockets in &removed {
            self.steering.detach(sockets);
        }
        self.removed_sockets = removed;
        for sockets in opened.into_iter().chain(handed_on) {
            tracing::info!("listener \"{}\": listening on {}", sockets.name, sockets.address);
            self.steering.attach(&sockets);
            self.sockets.insert(sockets.name.clone(), sockets);
        }
        Ok(())
    }

    /// Sends a change to every worker.
    fn propagate(&mut self, changed: Changed, answer: Answer) {
        self.next_command += 1;
        let id = self.next_command;
        let running: Waiting = self.processes().map(|(process, _)| process).collect();
        let steps = self.steps(&changed, &running);
        self.removed += steps.iter().filter(|step| step.removes()).count();
        if self.removed >= TRIM_AFTER {
            self.removed = 0;
            heap::trim();
        }
        self.health.follow(&steps);
        let pieces = pieces(id, changed.revision, &steps);
        if let Some(store) = &mut self.store {
            store.append(changed.revision, &changed.effects, &self.configuration);
        }
        let mut pending = Pending {
            id,
            waiting: Waiting::new(),
            errors: Vec::new(),
            deadline: Instant::now() + COMMAND_TIMEOUT,
            answer,
            changed,
            _sockets: std::mem::take(&mut self.removed_sockets),
        };
        for (process, link) in self.processes() {
            let index = process.worker;
            // One that drains gets the sockets too, and closes them: its successor accepts.
            let letters = pieces.iter().map(|(message, range)| Letter {
                message: message.clone(),
                descriptors: self.sockets_of(&steps[range.clone()], index),
            });
            match link.tell(letters.collect()) {
                Told::Queued => {
                    pending.waiting.insert(process);
                }
                Told::Stuck => {
                    // It would never have this change: its successor will.
                    pending.errors.push(format!("worker {index} does not take its commands"));
                    link.kill();
                }
                // Its successor starts with the new configuration.
                Told::Ended => {}
            }
        }
        self.pending.push_back(pending);
        self.answer_pending();
    }

    // What workers say.

    /// Notes that a process has carried out a change, or has not.
    pub(super) fn change_done(&mut self, process: Source, id: u64, error: Option<String>) {
        let worker = process.worker;
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.id == id)
            && pending.waiting.remove(&process)
            && let Some(error) = &error
        {
            pending.errors.push(format!("worker {worker}: {error}"));
        }
        if let Some(error) = error {
            // It is not what it is taken for. Its successor starts with the whole configuration.
            tracing::error!(worker, "a change was not carried out: {error}; the worker is started again");
            self.kill_process(process);
        }
        self.answer_pending();
    }

    /// Notes that a worker process has ended: it has nothing left to answer, its successor starts with the new
    /// configuration.
    pub(super) fn changes_void(&mut self, process: Source) {
        for pending in &mut self.pending {
            pending.waiting.remove(&process);
        }
        self.registry.ended(process);
        self.tell_drained();
        self.answer_pending();
    }

    /// Notes what a process is done with.
    pub(super) fn finished(&mut self, process: Source, finished: &Finished) {
        self.registry.finished(process, finished);
        self.tell_drained();
    }

    /// Tells what all workers are done with.
    pub(super) fn tell_drained(&mut self) {
        let (drained, freed) = self.registry.take_drained();
        self.clear_counters(&freed);
        for drained in drained {
            self.events.tell(match drained {
                Drained::Backend { cluster, address } => {
                    tracing::info!("cluster \"{cluster}\": backend {address} is drained");
                    EventKind::BackendDrained { cluster, backend: address }
                }
                Drained::Listener(listener) => {
                    tracing::info!("listener \"{listener}\" is drained");
                    EventKind::ListenerDrained { listener }
                }
            });
        }
    }

    /// Sets the counters of what is no more to zero, before another gets its number.
    fn clear_counters(&self, freed: &Finished) {
        let registry = &self.registry;
        for block in self.blocks.iter().flat_map(BlockPair::blocks) {
            let listeners = freed.listeners.iter().try_for_each(|number| {
                block.clear::<ListenerCounter>(u32::from(*number), |other| registry.is_listener(other))
            });
            let mut clusters = freed.clusters.iter();
            let clusters = clusters.try_for_each(|number| {
                block.clear::<ClusterCounter>(*number, |other| registry.is_cluster(other))
            });
            let mut backends = freed.backends.iter();
            let backends = backends.try_for_each(|number| {
                block.clear::<BackendCounter>(*number, |other| registry.is_backend(other))
            });
            if let Err(error) = listeners.and(clusters).and(backends) {
                tracing::warn!("memory of counters is not given back: {error}");
            }
        }
    }

    // Answers.

    /// Answers the changes that are complete or late.
    pub(super) fn answer_pending(&mut self) {
        let now = Instant::now();
        let complete = |pending: &Pending| pending.waiting.is_empty() || pending.deadline <= now;
        // Workers carry changes out in their order, so the first is complete first, unless one of its workers hangs.
        let mut index = 0;
        while index < self.pending.len() {
            if !complete(&self.pending[index]) {
                index += 1;
                continue;
            }
            let Some(pending) = self.pending.remove(index) else { return };
            let (revision, operations) = (pending.changed.revision, pending.changed.effects.len());
            let outcome = outcome(&pending.waiting, &pending.errors, revision);
            if pending.waiting.is_empty() {
                self.events.tell(EventKind::Changed { revision, operations });
            }
            self.answer(pending.answer, outcome.map(|()| pending.changed));
        }
    }

    fn answer(&self, answer: Answer, outcome: Result<Changed, Failure>) {
        // The caller may have gone; nobody else wants the answer.
        match answer {
            Answer::Changed(reply) => drop(reply.send(outcome)),
            Answer::Redirect(reply) => {
                drop(reply.send(outcome.map(|_| redirect_status(&self.configuration))));
            }
            Answer::Steering(reply) => drop(reply.send(outcome.map(|_| self.steering.status()))),
        }
    }

    // Changes that have a document of their own.

    /// Changes a redirect mode.
    pub(super) fn set_redirect(&mut self, change: &RedirectChange, reply: Reply<RedirectStatus>) {
        match self.redirect_operation(change) {
            Ok(operation) => {
                let request = ChangeRequest { operations: vec![operation], ..ChangeRequest::default() };
                self.change(&request, Answer::Redirect(reply));
            }
            Err(failure) => drop(reply.send(Err(failure))),
        }
    }

    fn redirect_operation(&self, change: &RedirectChange) -> Result<Operation, Failure> {
        let unknown = |kind: &str, name: &str, known: &mut dyn Iterator<Item = &String>| {
            let known: Vec<String> = known.take(20).map(|name| format!("\"{name}\"")).collect();
            let remedy = format!("use one of: {}", known.join(", "));
            Failure::new(404, format!("there is no {kind} \"{name}\""), remedy)
        };
        match &change.scope {
            RedirectScope::Process => {
                let mode = change.mode.ok_or_else(|| {
                    let remedy = "give a mode, or the listener or cluster that is to inherit";
                    Failure::new(422, "the process has nothing to inherit a redirect mode from", remedy)
                })?;
                let mut settings = self.configuration.settings().clone();
                settings.redirect = mode;
                Ok(Operation::ChangeSettings { settings: Box::new(settings) })
            }
            RedirectScope::Listener(name) => {
                let known = self.configuration.listeners();
                let mut listener =
                    known.get(name).cloned().ok_or_else(|| unknown("listener", name, &mut known.keys()))?;
                listener.redirect = change.mode;
                Ok(Operation::ChangeListener { listener })
            }
            RedirectScope::Cluster(name) => {
                let known = self.configuration.clusters();
                let entry = known.get(name).ok_or_else(|| unknown("cluster", name, &mut known.keys()))?;
                let cluster = Cluster { redirect: change.mode, ..entry.own().clone() };
                Ok(Operation::ChangeCluster { cluster })
            }
        }
    }

    /// Changes the steering policy.
    pub(super) fn set_steering(&mut self, change: SteeringChange, reply: Reply<SteeringStatus>) {
        let mut settings = self.configuration.settings().clone();
        settings.steering = change.policy;
        let operations = vec![Operation::ChangeSettings { settings: Box::new(settings) }];
        self.change(&ChangeRequest { operations, ..ChangeRequest::default() }, Answer::Steering(reply));
    }
}

fn refused(errors: Vec<OperationError>) -> Failure {
    let first = errors.first().map_or_else(String::new, ToString::to_string);
    let error = match errors.len() {
        1 => first,
        count => format!("{count} faults; the first: {first}"),
    };
    let remedy = Some("nothing was changed; mend what is named, and send the whole change again".into());
    let body = ErrorBody { error, remedy, operations: errors, ..ErrorBody::default() };
    Failure { status: 422, body }
}

/// What would not fit into a message to the workers.
fn too_large(effects: &[Operation]) -> Vec<OperationError> {
    let too_large = effects.iter().filter_map(|effect| {
        // A cluster goes without its backends, which have bounds of their own.
        let size = match effect {
            Operation::AddCluster { cluster } => {
                serde_json::to_vec(&Cluster { backends: Vec::new(), ..cluster.clone() })
            }
            other => serde_json::to_vec(other),
        };
        let size = size.map_or(usize::MAX, |text| text.len());
        (size > STEP_SIZE_MAX).then(|| OperationError {
            step: None,
            what: effect.to_string(),
            reason: format!("{size} bytes as JSON, above {STEP_SIZE_MAX}"),
            remedy: "make it smaller".to_owned(),
        })
    });
    too_large.collect()
}

fn outcome(waiting: &Waiting, errors: &[String], revision: u64) -> Result<(), Failure> {
    let fail = |status, text, remedy: &str| {
        let mut failure = Failure::new(status, text, remedy);
        failure.body.revision = Some(revision);
        Err(failure)
    };
    if !errors.is_empty() {
        let text = format!("not every worker has carried out the change: {}", errors.join("; "));
        return fail(500, text, "those are started again, with the whole configuration");
    }
    if !waiting.is_empty() {
        let late: BTreeSet<usize> = waiting.iter().map(|process| process.worker).collect();
        let late: Vec<String> = late.iter().map(ToString::to_string).collect();
        let seconds = COMMAND_TIMEOUT.as_secs();
        let text = format!("no answer within {seconds} s from worker {}", late.join(", "));
        return fail(504, text, "the change takes effect there as soon as it is read");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_late_and_the_failing_worker_are_named() {
        let none = Waiting::new();
        let process = |worker, process| Source { worker, process };
        assert_eq!(outcome(&none, &[], 1), Ok(()));
        let late =
            outcome(&Waiting::from([process(1, 1), process(3, 4), process(3, 5)]), &[], 1).expect_err("late");
        assert_eq!((late.status, late.body.error.as_str()), (504, "no answer within 5 s from worker 1, 3"));
        let failed = outcome(&none, &["worker 2: no pipes".into()], 1).expect_err("failed");
        assert!(failed.status == 500 && failed.body.error.contains("worker 2: no pipes"), "{failed:?}");
    }

    #[test]
    fn what_does_not_fit_into_a_message_is_refused() {
        let cluster = |name: String| Operation::ChangeCluster { cluster: Cluster::new(name) };
        assert_eq!(too_large(&[cluster("app".into())]), []);
        let errors = too_large(&[cluster("a".repeat(STEP_SIZE_MAX))]);
        assert!(errors.len() == 1 && errors[0].reason.contains("above"), "{}", errors[0].reason);
    }
}
