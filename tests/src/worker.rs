//! A worker on a thread of the test, with the test as its supervisor. Its counters are read directly, so a test can
//! see that nothing is left behind when the last connection has ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use underpass::http1::Reason;
use underpass::ipc::{Channel, Finished, Step, ToSupervisor, ToWorker, pieces};
use underpass::metrics::{Block, Counter, Peer as Side};
use underpass::worker::{Confinement, Ended, serve};
use underpass_command::state::{AccessLogFormat, Cluster, Listener, Route, State};
use underpass_loader::RedirectPrograms;

use crate::proxy::Setup;
use crate::wait::{PATIENCE, until, until_within};

/// Gauges that are 0 when nothing is under way.
const GAUGES: &[Counter] = &[
    Counter::ClientsActive,
    Counter::RequestsActive,
    Counter::TunnelsActive,
    Counter::BuffersUsed,
    Counter::PipesUsed,
    Counter::SockmapFlows,
];

/// A running worker. Every test ends with [`Worker::stop`] or [`Worker::cut`].
#[derive(Debug)]
pub struct Worker {
    address: SocketAddr,
    metrics: Block,
    channel: Option<Channel>,
    thread: Option<JoinHandle<anyhow::Result<Ended>>>,
    /// Takes the access log, if there is one; returns its size.
    log: Option<JoinHandle<usize>>,
    /// Keeps the programs for redirection by sockmap attached.
    /// What it is done with, as far as it has been heard and not been asked for.
    finished: Mutex<VecDeque<Finished>>,
    _redirect: Mutex<Option<RedirectPrograms>>,
}

impl Worker {
    /// Starts one that does what the setup says, behind one listener.
    #[track_caller]
    pub fn start(setup: Setup) -> Self {
        Self::start_after(|| {}, setup)
    }

    /// Starts one on a thread that does something else first.
    #[track_caller]
    pub fn start_after(first: impl FnOnce() + Send + 'static, setup: Setup) -> Self {
        let State { settings, listeners, clusters, routes, answers } = setup.state;
        let metrics = Block::create().expect("metrics memory");
        let (channel, end) = Channel::pair().expect("a control channel");
        let thread = thread::spawn(move || {
            first();
            serve(end, Confinement::None)
        });
        let redirect = redirect_programs(settings.limits.redirect_flows);
        let log = (settings.log.access != AccessLogFormat::Off).then(access_log);
        let hello = ToWorker::Hello {
            index: 0,
            cpu: None,
            generation: 1,
            access_log: log.is_some(),
            steering: false,
            redirect: redirect.is_some(),
            seed: 1,
            settings: Box::new(settings),
        };
        let send = |message: &ToWorker, descriptors: &[_]| {
            until("room in the control channel", || channel.send(message, descriptors).ok());
        };
        let mut descriptors = vec![metrics.fd()];
        descriptors.extend(log.as_ref().map(|(_, pipe)| pipe.as_fd()));
        descriptors.extend(redirect.iter().flat_map(RedirectPrograms::descriptors));
        send(&hello, &descriptors);
        let [mut listener] = <[_; 1]>::try_from(listeners).expect("one listener");
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = socket.local_addr().expect("the address of a bound socket");
        listener.address = address;
        let mut steps = steps(clusters, routes, listener);
        steps.splice(0..0, answers.into_iter().map(|answer| Step::PutAnswer { answer }));
        for (message, range) in pieces(0, 1, &steps) {
            let mut added = steps[range].iter().filter(|step| matches!(step, Step::AddListener { .. }));
            let descriptors: Vec<_> = added.next().map(|_| socket.as_fd()).into_iter().collect();
            send(&message, &descriptors);
        }
        send(&ToWorker::Run, &[]);
        let worker = Self {
            address,
            metrics,
            channel: Some(channel),
            thread: Some(thread),
            log: log.map(|(reader, _)| reader),
            finished: Mutex::default(),
            _redirect: Mutex::new(redirect),
        };
        match worker.told() {
            ToSupervisor::Running { .. } => worker,
            other => panic!("the worker did not start: {other:?}"),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A counter or gauge. Some gauges are brought up to date at the end of each turn of the worker's loop.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.metrics.get(counter)
    }

    /// Waits until a counter or gauge has exactly this value.
    #[track_caller]
    pub fn until(&self, counter: Counter, value: u64) {
        if until_within(PATIENCE, || (self.counter(counter) == value).then_some(())).is_none() {
            panic!("{} is {}, not {value}, after {PATIENCE:?}", counter.name(), self.counter(counter));
        }
    }

    /// How many requests were refused for this reason.
    pub fn refused_requests(&self, reason: Reason) -> u64 {
        self.metrics.refusals(Side::Client, reason.number())
    }

    /// Gives an order.
    #[track_caller]
    pub fn order(&self, message: &ToWorker) {
        let channel = self.channel.as_ref().expect("the worker runs");
        until("room in the control channel", || channel.send(message, &[]).ok());
    }

    /// Has it carry out a change, in as many pieces as a supervisor would send.
    #[track_caller]
    pub fn change(&self, revision: u64, steps: &[Step], sockets: &[BorrowedFd<'_>]) {
        self.send_change(revision, steps, sockets);
        assert_eq!(self.carried_out(revision), None);
    }

    /// Sends a change whose number is its revision.
    #[track_caller]
    pub fn send_change(&self, revision: u64, steps: &[Step], sockets: &[BorrowedFd<'_>]) {
        let channel = self.channel.as_ref().expect("the worker runs");
        let mut sockets = sockets.iter().copied();
        for (message, range) in pieces(revision, revision, steps) {
            let added = steps[range].iter().filter(|step| matches!(step, Step::AddListener { .. })).count();
            let descriptors: Vec<_> = sockets.by_ref().take(added).collect();
            until("room in the control channel", || channel.send(&message, &descriptors).ok());
        }
    }

    /// Waits until a change has been carried out; why it was not, if it was not.
    #[track_caller]
    pub fn carried_out(&self, revision: u64) -> Option<String> {
        loop {
            match self.told() {
                ToSupervisor::Done { id, error } if id == revision => return error,
                ToSupervisor::Finished(finished) => {
                    self.finished.lock().expect("no panic").push_back(finished);
                }
                other => panic!("the worker says {other:?}"),
            }
        }
    }

    /// What it has said next that it is done with.
    #[track_caller]
    pub fn finished(&self) -> Finished {
        if let Some(finished) = self.finished.lock().expect("no panic").pop_front() {
            return finished;
        }
        match self.told() {
            ToSupervisor::Finished(finished) => finished,
            other => panic!("the worker says {other:?}"),
        }
    }

    /// Whether it has said that it is done with anything, as far as that has been read.
    #[track_caller]
    pub fn has_finished_anything(&self) -> bool {
        !self.finished.lock().expect("no panic").is_empty()
    }

    /// Waits until nothing is under way and all that was taken from pools is back.
    #[track_caller]
    pub fn expect_quiet(&self) {
        if until_within(PATIENCE, || self.busy().is_empty().then_some(())).is_none() {
            panic!("still not quiet after {PATIENCE:?}: {}", self.busy().join(", "));
        }
    }

    /// Waits until all is quiet, ends the worker, and checks what it left behind.
    #[track_caller]
    pub fn stop(self) {
        self.expect_quiet();
        assert_eq!(self.drain(20_000), Ended::Drained);
    }

    /// Ends the worker though so many connections are open.
    #[track_caller]
    pub fn cut(self, connections: usize) {
        assert_eq!(self.drain(0), Ended::Cut(connections));
    }

    #[track_caller]
    fn drain(self, deadline_ms: u64) -> Ended {
        self.order(&ToWorker::Drain { deadline_ms });
        self.join()
    }

    /// Waits until a worker that drains has ended, and checks what it left behind.
    #[track_caller]
    pub fn join(mut self) -> Ended {
        let thread = self.thread.take().expect("the worker runs");
        let ended = thread.join().expect("the worker panicked").expect("the worker failed");
        for gauge in GAUGES.iter().chain(&[Counter::BackendsOpen, Counter::BackendsIdle]) {
            assert_eq!(self.counter(*gauge), 0, "{} at the end", gauge.name());
        }
        if let Some(log) = self.log.take() {
            assert!(
                log.join().expect("the reader of the access log panicked") > 0,
                "the access log is empty"
            );
        }
        ended
    }

    fn busy(&self) -> Vec<String> {
        let value = |counter: Counter| self.counter(counter);
        let mut busy: Vec<String> = GAUGES
            .iter()
            .filter(|gauge| value(**gauge) != 0)
            .map(|gauge| format!("{} {}", gauge.name(), value(*gauge)))
            .collect();
        let (open, idle) = (value(Counter::BackendsOpen), value(Counter::BackendsIdle));
        if open != idle {
            busy.push(format!("backend_connections_open {open}, backend_connections_idle {idle}"));
        }
        busy
    }

    /// What it says next.
    #[track_caller]
    pub fn told(&self) -> ToSupervisor {
        let channel = self.channel.as_ref().expect("the worker runs");
        let told = until("a word from the worker", || channel.receive().ok());
        told.expect("the worker closed the control channel").0
    }
}

/// A pipe for an access log, and a thread that drains it as the supervisor would.
fn access_log() -> (JoinHandle<usize>, OwnedFd) {
    let (from, to) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    fcntl(&to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
    let reader = thread::spawn(move || {
        let mut from = File::from(from);
        let mut buffer = vec![0; 64 * 1024];
        let mut total = 0;
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            total += count;
        }
        total
    });
    (reader, to)
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A closed channel ends the worker of a test that failed.
        self.channel = None;
        if self.thread.is_some() && !thread::panicking() {
            panic!("a test has to end with Worker::stop or Worker::cut");
        }
    }
}

/// The programs for redirection by sockmap, where kernel and privileges allow them.
fn redirect_programs(flows: u32) -> Option<RedirectPrograms> {
    if flows == 0 {
        return None;
    }
    RedirectPrograms::load(flows).inspect_err(|error| eprintln!("no redirection by sockmap: {error}")).ok()
}

/// The steps that make a configuration: clusters and backends have their numbers in the order they stand in.
fn steps(clusters: Vec<Cluster>, routes: Vec<Route>, listener: Listener) -> Vec<Step> {
    let names: Vec<String> = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let number_of = |name: &str| {
        let at = names.iter().position(|known| known == name).expect("the name of a cluster");
        u32::try_from(at).expect("few clusters")
    };
    let mut steps = Vec::new();
    let mut backend_number = 0;
    for mut cluster in clusters {
        let backends = std::mem::take(&mut cluster.backends);
        let number = number_of(&cluster.name);
        steps.push(Step::AddCluster { number, cluster });
        for backend in backends {
            steps.push(Step::AddBackend { number: backend_number, cluster: number, backend });
            backend_number += 1;
        }
    }
    for route in routes {
        let cluster = route.cluster().map(number_of);
        steps.push(Step::PutRoute { cluster, route: Box::new(route) });
    }
    let default_cluster = listener.default_cluster.as_deref().map(number_of);
    steps.push(Step::AddListener { number: 0, default_cluster, listener });
    steps
}
