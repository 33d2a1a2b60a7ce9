//! What the admin API asks of the supervisor, and how a change reaches every worker.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use underpass_command::api::{
    ErrorBody, RedirectChange, RedirectScope, RedirectStatus, Status, SteeringChange, SteeringStatus,
};
use underpass_command::state::{RedirectMode, State};

use super::link::Told;
use super::supervisor::Supervisor;
use crate::ipc::ToWorker;

/// Until all workers must have carried out a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests that may wait for the supervisor's loop.
const REQUESTS_MAX: usize = 64;

/// Why a request of the admin API failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The status code of the answer.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: ErrorBody,
}

impl Failure {
    pub(super) fn new(status: u16, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody { error: error.into(), remedy: Some(remedy.into()), ..ErrorBody::default() },
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// A request to the supervisor's loop.
#[derive(Debug)]
pub(super) enum Request {
    Status(Reply<Status>),
    SetRedirect(RedirectChange, Reply<RedirectStatus>),
    SetSteering(SteeringChange, Reply<SteeringStatus>),
    Stop,
}

/// Commands a proxy that runs in this process.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    requests: mpsc::Sender<Request>,
}

impl Handle {
    pub(super) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self { requests }, receiver)
    }

    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.ask(Request::Status).await
    }

    pub(super) async fn set_redirect(&self, change: RedirectChange) -> Result<RedirectStatus, Failure> {
        self.ask(|reply| Request::SetRedirect(change, reply)).await
    }

    pub(super) async fn set_steering(&self, change: SteeringChange) -> Result<SteeringStatus, Failure> {
        self.ask(|reply| Request::SetSteering(change, reply)).await
    }

    /// Begins to drain, as SIGTERM does. For callers outside of the supervisor's event loop.
    pub(crate) fn stop(&self) {
        // Nobody to receive it: the proxy has ended already.
        let _ = self.requests.blocking_send(Request::Stop);
    }

    /// What the proxy does; none once it has ended. For callers outside of the supervisor's event loop.
    pub(crate) fn status_blocking(&self) -> Option<Status> {
        let (reply, answer) = oneshot::channel();
        self.requests.blocking_send(Request::Status(reply)).ok()?;
        answer.blocking_recv().ok()?.ok()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Failure> {
        let gone = || Failure::new(503, "the proxy is ending", "start it again");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A command that not every worker has carried out yet.
#[derive(Debug)]
pub(super) struct Pending {
    id: u64,
    waiting: BTreeSet<usize>,
    errors: Vec<String>,
    pub(super) deadline: Instant,
    reply: Reply<RedirectStatus>,
}

impl Supervisor {
    /// Changes a redirect mode; the answer goes out when all workers have it.
    ///
    /// From here on the change is part of the state, so a worker that is started again has it, whatever becomes of
    /// those that run.
    pub(super) fn set_redirect(&mut self, change: RedirectChange, reply: Reply<RedirectStatus>) {
        if let Err(failure) = apply_redirect(&mut self.state, &change) {
            // The caller may have gone; nobody else wants the answer.
            let _ = reply.send(Err(failure));
            return;
        }
        self.next_command += 1;
        let id = self.next_command;
        let command = ToWorker::SetRedirect { id, scope: change.scope, mode: change.mode };
        let mut pending = Pending {
            id,
            waiting: BTreeSet::new(),
            errors: Vec::new(),
            deadline: Instant::now() + COMMAND_TIMEOUT,
            reply,
        };
        for (index, worker) in self.workers.iter().enumerate() {
            let Some(link) = &worker.link else { continue };
            match link.tell(command.clone()) {
                Told::Queued => {
                    pending.waiting.insert(index);
                }
                Told::Stuck => pending.errors.push(format!("worker {index} does not take its commands")),
                // Its successor starts with the new state.
                Told::Ended => {}
            }
        }
        self.pending.push(pending);
        self.answer_pending();
    }

    /// Notes that a worker has carried out a command, or has not.
    pub(super) fn command_done(&mut self, worker: usize, id: u64, error: Option<String>) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.id == id)
            && pending.waiting.remove(&worker)
            && let Some(error) = error
        {
            pending.errors.push(format!("worker {worker}: {error}"));
        }
        self.answer_pending();
    }

    /// Notes that a worker process has ended: it has nothing left to answer, its successor starts with the new state.
    pub(super) fn command_void(&mut self, worker: usize) {
        for pending in &mut self.pending {
            pending.waiting.remove(&worker);
        }
        self.answer_pending();
    }

    /// Answers the commands that are complete or late.
    pub(super) fn answer_pending(&mut self) {
        let now = Instant::now();
        let complete = |pending: &Pending| pending.waiting.is_empty() || pending.deadline <= now;
        if !self.pending.iter().any(complete) {
            return;
        }
        let (complete, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(complete);
        self.pending = rest;
        let status = redirect_status(&self.state);
        for pending in complete {
            // As above: the caller may have gone.
            let _ = pending.reply.send(outcome(&pending.waiting, &pending.errors).map(|()| status.clone()));
        }
    }

    /// Changes the steering policy.
    pub(super) fn set_steering(&mut self, change: SteeringChange) -> Result<SteeringStatus, Failure> {
        self.steering.set_policy(change.policy)?;
        self.state.settings.steering = change.policy;
        Ok(self.steering.status())
    }
}

fn outcome(waiting: &BTreeSet<usize>, errors: &[String]) -> Result<(), Failure> {
    if !errors.is_empty() {
        let text = format!("not every worker has changed its redirect mode: {}", errors.join("; "));
        return Err(Failure::new(500, text, "those that are started again will have it"));
    }
    if !waiting.is_empty() {
        let late: Vec<String> = waiting.iter().map(ToString::to_string).collect();
        let seconds = COMMAND_TIMEOUT.as_secs();
        let text = format!("no answer within {seconds} s from worker {}", late.join(", "));
        return Err(Failure::new(504, text, "the change takes effect there as soon as it is read"));
    }
    Ok(())
}

/// Changes a redirect mode in the state.
fn apply_redirect(state: &mut State, change: &RedirectChange) -> Result<(), Failure> {
    fn set(
        kind: &str,
        name: &str,
        entries: Vec<(&String, &mut Option<RedirectMode>)>,
        mode: Option<RedirectMode>,
    ) -> Result<(), Failure> {
        let known: Vec<String> = entries.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        match entries.into_iter().find(|(known, _)| *known == name) {
            Some((_, entry)) => {
                *entry = mode;
                Ok(())
            }
            None => {
                let remedy = format!("use one of: {}", known.join(", "));
                Err(Failure::new(404, format!("there is no {kind} \"{name}\""), remedy))
            }
        }
    }
    match &change.scope {
        RedirectScope::Process => {
            state.settings.redirect = change.mode.ok_or_else(|| {
                let remedy = "give a mode, or the listener or cluster that is to inherit";
                Failure::new(400, "the process has nothing to inherit a redirect mode from", remedy)
            })?;
            Ok(())
        }
        RedirectScope::Listener(name) => {
            let entries =
                state.listeners.iter_mut().map(|entry| (&entry.name, &mut entry.redirect)).collect();
            set("listener", name, entries, change.mode)
        }
        RedirectScope::Cluster(name) => {
            let entries = state.clusters.iter_mut().map(|entry| (&entry.name, &mut entry.redirect)).collect();
            set("cluster", name, entries, change.mode)
        }
    }
}

/// The redirect modes of a state.
pub(super) fn redirect_status(state: &State) -> RedirectStatus {
    RedirectStatus {
        process: state.settings.redirect,
        listeners: state.listeners.iter().map(|entry| (entry.name.clone(), entry.redirect)).collect(),
        clusters: state.clusters.iter().map(|entry| (entry.name.clone(), entry.redirect)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use underpass_command::state::Cluster;

    use super::*;

    fn state() -> State {
        State { clusters: vec![Cluster::new("app")], ..State::default() }
    }

    #[test]
    fn a_mode_is_set_and_inherited_again() {
        let mut state = state();
        let scope = RedirectScope::Cluster("app".into());
        for mode in [Some(RedirectMode::Copy), None] {
            apply_redirect(&mut state, &RedirectChange { mode, scope: scope.clone() }).expect("known");
            assert_eq!(redirect_status(&state).clusters["app"], mode);
        }
    }

    #[test]
    fn an_unknown_name_is_told_what_there_is() {
        let change = RedirectChange { mode: None, scope: RedirectScope::Cluster("ap".into()) };
        let failure = apply_redirect(&mut state(), &change).expect_err("unknown");
        assert_eq!(failure.status, 404);
        assert_eq!(failure.body.remedy.as_deref(), Some("use one of: \"app\""));
    }

    #[test]
    fn the_process_inherits_from_nobody() {
        let mut state = state();
        let failure = apply_redirect(&mut state, &RedirectChange::default()).expect_err("no mode");
        assert_eq!((failure.status, state.settings.redirect), (400, RedirectMode::Auto));
    }

    #[test]
    fn the_late_and_the_failing_worker_are_named() {
        let none = BTreeSet::new();
        assert_eq!(outcome(&none, &[]), Ok(()));
        let late = outcome(&BTreeSet::from([1, 3]), &[]).expect_err("late");
        assert_eq!((late.status, late.body.error.as_str()), (504, "no answer within 5 s from worker 1, 3"));
        let failed = outcome(&none, &["worker 2: no pipes".into()]).expect_err("failed");
        assert!(failed.status == 500 && failed.body.error.contains("worker 2: no pipes"), "{failed:?}");
    }
}
