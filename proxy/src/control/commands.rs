//! What the admin API asks of the supervisor.

use std::fmt;

use tokio::sync::{mpsc, oneshot};
use underpass_command::api::{
    ChangeRequest, Changed, ErrorBody, RedirectChange, RedirectStatus, Saved, Select, SessionSelect,
    Sessions, StateDocument, Status, SteeringChange, SteeringStatus, WorkerDrain, WorkerDraining,
};
use underpass_command::live::{ClusterEntry, Configuration};

use super::events::Events;
use super::metrics::{Listed, Scrape};

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

pub(super) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// A request to the supervisor's loop.
#[derive(Debug)]
pub(super) enum Request {
    Status(Reply<Status>),
    State(Reply<StateDocument>),
    Change(ChangeRequest, Reply<Changed>),
    /// Whether only to tell what would change.
    Reload(bool, Reply<Changed>),
    Save(Reply<Saved>),
    Sessions(SessionSelect, Reply<Sessions>),
    Backends(Select, Reply<Listed>),
    Read(Read),
    SetRedirect(RedirectChange, Reply<RedirectStatus>),
    SetSteering(SteeringChange, Reply<SteeringStatus>),
    Scrape(Reply<Scrape>),
    DrainWorker(u16, WorkerDrain, Reply<WorkerDraining>),
    Stop,
}

/// Looks at the configuration, and answers by itself. It must not take long: the supervisor waits meanwhile.
pub(super) struct Read(pub(super) Box<dyn FnOnce(&Configuration) + Send>);

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Read")
    }
}

/// Commands a proxy that runs in this process.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    requests: mpsc::Sender<Request>,
    events: Events,
}

impl Handle {
    pub(super) fn new(events: Events) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self { requests, events }, receiver)
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

    /// The configuration.
    pub(super) async fn state(&self) -> Result<StateDocument, Failure> {
        self.ask(Request::State).await
    }

    /// What can be read from the configuration without a copy of all of it.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Configuration) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let read = |reply: Reply<T>| {
            Request::Read(Read(Box::new(move |configuration| {
                // A caller that has gone does not wait for its answer.
                let _ = reply.send(Ok(look(configuration)));
            })))
        };
        self.ask(read).await
    }

    /// Changes the configuration. Returns when every worker has carried it out.
    pub(super) async fn change(&self, request: ChangeRequest) -> Result<Changed, Failure> {
        self.ask(|reply| Request::Change(request, reply)).await
    }

    /// Makes the configuration what its file says.
    pub(super) async fn reload(&self, dry_run: bool) -> Result<Changed, Failure> {
        self.ask(|reply| Request::Reload(dry_run, reply)).await
    }

    /// Client connections that are open.
    pub(super) async fn sessions(&self, select: SessionSelect) -> Result<Sessions, Failure> {
        self.ask(|reply| Request::Sessions(select, reply)).await
    }

    /// Saves the configuration.
    pub(super) async fn save(&self) -> Result<Saved, Failure> {
        self.ask(Request::Save).await
    }

    /// What happens.
    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// Lets a worker's process finish what it has while another takes its place. Returns when that accepts connections.
    pub(super) async fn drain_worker(
        &self,
        worker: u16,
        order: WorkerDrain,
    ) -> Result<WorkerDraining, Failure> {
        self.ask(|reply| Request::DrainWorker(worker, order, reply)).await
    }

    /// Begins to drain, as SIGTERM does. Says nothing if the proxy has ended already.
    pub(super) async fn drain(&self) {
        let _ = self.requests.send(Request::Stop).await;
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

    pub(super) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Failure> {
        let gone = || Failure::new(503, "the proxy is ending", "start it again");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The redirect modes of a configuration.
pub(super) fn redirect_status(configuration: &Configuration) -> RedirectStatus {
    let listeners = configuration.listeners().values();
    let clusters = configuration.clusters().values().map(ClusterEntry::own);
    RedirectStatus {
        process: configuration.settings().redirect,
        listeners: listeners.map(|listener| (listener.name.clone(), listener.redirect)).collect(),
        clusters: clusters.map(|cluster| (cluster.name.clone(), cluster.redirect)).collect(),
    }
}
