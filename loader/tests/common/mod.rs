//! What the tests of steering share: listeners, pinned clients, and a way to say that a test cannot run.
#![allow(dead_code)] // each test file uses its part

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};
use underpass_loader::{LoadError, Matrix, Options, Outcome, Policy, Steering, WorkerSlot};

/// Longer than any step of a test takes, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than any test, so that nothing is found stalled by chance.
pub(crate) const NEVER_STALLS: Duration = Duration::from_secs(60);

/// Says that a test cannot run. Past the test harness, which would swallow it.
pub(crate) fn skip(test: &str, reason: &str) {
    writeln!(std::io::stderr(), "SKIP {test}: {reason}").expect("standard error");
}

/// Loads steering; `None`, having said so, where privileges or kernel do not allow it.
pub(crate) fn load(test: &str, options: &Options) -> Option<Steering> {
    match Steering::load(options) {
        Ok(steering) => Some(steering),
        Err(error @ LoadError::Unavailable { .. }) => {
            skip(test, &error.to_string());
            None
        }
        Err(error) => panic!("loading: {error}"),
    }
}

/// A listener with a socket for each worker, steered; and the workers' slots, started.
pub(crate) struct Setup {
    pub(crate) steering: Steering,
    pub(crate) sockets: Vec<Option<TcpListener>>,
    pub(crate) slots: Vec<WorkerSlot>,
    pub(crate) address: SocketAddr,
}

impl Setup {
    /// All workers run, the policy is that of the options.
    pub(crate) fn new(test: &str, options: &Options) -> Option<Self> {
        let mut steering = load(test, options)?;
        let sockets = group(options.workers);
        let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        steering.attach_listener("test", &descriptors).expect("attach");
        let slots = start_workers(&steering, options);
        let address = sockets[0].local_addr().expect("address");
        Some(Self { steering, sockets: sockets.into_iter().map(Some).collect(), slots, address })
    }

    /// As `new`, with a policy under which every connection of the test belongs to worker 0.
    pub(crate) fn all_to_worker_0(test: &str, options: &Options) -> Option<Self> {
        let mut setup = Self::new(test, options)?;
        let cpus = cpu_count();
        setup.steering.set_cpus(&(0..cpus).map(|cpu| (cpu, 0)).collect::<Vec<_>>()).expect("table");
        Some(setup)
    }

    /// Connects, and returns the connection with the worker whose socket accepted it.
    pub(crate) fn connect(&self) -> (TcpStream, usize) {
        let stream = TcpStream::connect_timeout(&self.address, DEADLINE).expect("connect");
        (stream, self.accept())
    }

    /// Connects so many times, and returns how many each worker got. The workers accept and publish it.
    pub(crate) fn spread(&self, connections: usize) -> Vec<usize> {
        let mut counts = vec![0; self.sockets.len()];
        for _ in 0..connections {
            let (_stream, worker) = self.connect();
            self.slots[worker].accepted(1);
            counts[worker] += 1;
        }
        counts
    }

    /// Waits until one of the workers' sockets has a connection.
    pub(crate) fn accept(&self) -> usize {
        until("a connection at one of the workers", || {
            (0..self.sockets.len()).find(|&worker| self.accept_at(worker))
        })
    }

    /// Accepts a connection if the worker's socket has one.
    pub(crate) fn accept_at(&self, worker: usize) -> bool {
        let Some(socket) = &self.sockets[worker] else { return false };
        match socket.accept() {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("accept: {error}"),
        }
    }

    pub(crate) fn matrix(&self) -> Matrix {
        self.steering.matrix().expect("matrix")
    }

    pub(crate) fn counted(&self, worker: Option<u16>, outcome: Outcome) -> u64 {
        self.matrix().count(|cell| cell.worker == worker && cell.outcome == outcome)
    }
}

pub(crate) fn options(workers: u16, policy: Policy) -> Options {
    Options { policy, generation: 1, stall: NEVER_STALLS, ..Options::new(workers) }
}

pub(crate) fn start_workers(steering: &Steering, options: &Options) -> Vec<WorkerSlot> {
    (0..options.workers)
        .map(|index| {
            let slot = WorkerSlot::map(steering.slots_fd(), index).expect("slot");
            slot.start(options.generation, 0);
            slot
        })
        .collect()
}

/// Listening sockets of one SO_REUSEPORT group on loopback.
pub(crate) fn group(count: u16) -> Vec<TcpListener> {
    let first = listener(([127, 0, 0, 1], 0).into());
    let address = first.local_addr().expect("address");
    std::iter::once(first).chain((1..count).map(|_| listener(address))).collect()
}

pub(crate) fn listener(address: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.bind(&address.into()).expect("bind");
    socket.listen(1024).expect("listen");
    socket.set_nonblocking(true).expect("non-blocking");
    socket.into()
}

/// Binds the calling thread to a CPU: on loopback the sender's CPU handles the connection request.
pub(crate) fn pin(cpu: u32) {
    let mut set = CpuSet::new();
    set.set(cpu as usize).expect("CPU number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("affinity");
}

pub(crate) fn cpu_count() -> u32 {
    u32::try_from(std::thread::available_parallelism().expect("CPUs").get()).expect("few")
}

/// Tries until there is an answer; fails after the deadline.
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = attempt() {
            return answer;
        }
        assert!(Instant::now() < end, "within {DEADLINE:?}: no {what}");
        std::thread::yield_now();
    }
}
