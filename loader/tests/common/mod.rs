//! What the tests of steering share: listeners, pinned clients, and a way to say that a test cannot run.
#![allow(dead_code)] // each test file uses its part

pub(crate) mod network;

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};
use underpass_loader::{LoadError, Matrix, Options, Outcome, Policy, Steering, WorkerSlot, monotonic_ns};

/// Longer than any step of a test takes, even on a machine that is busy, or emulated.
pub(crate) const DEADLINE: Duration = Duration::from_secs(50);
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

    /// Attaches a second listener on loopback.
    pub(crate) fn attach_another(&mut self, name: &str) -> Vec<TcpListener> {
        self.attach_at(name, ([127, 0, 0, 1], 0).into())
    }

    /// Attaches a second listener.
    pub(crate) fn attach_at(&mut self, name: &str, address: SocketAddr) -> Vec<TcpListener> {
        let sockets = group_at(address, u16::try_from(self.slots.len()).expect("few"));
        let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        self.steering.attach_listener(name, &descriptors).expect("attach");
        sockets
    }

    /// Puts the worker's socket in its place.
    pub(crate) fn put_socket(&mut self, worker: u16) {
        let socket = self.sockets[usize::from(worker)].as_ref().expect("socket");
        self.steering.replace_socket("test", worker, socket.as_fd()).expect("replace");
    }

    /// Leaves a connection waiting for worker 0, longer than the threshold.
    pub(crate) fn leave_waiting(&self, stall: Duration) -> TcpStream {
        let before = self.counted(Some(0), Outcome::Own);
        let stream = TcpStream::connect_timeout(&self.address, DEADLINE).expect("connect");
        assert_eq!(self.counted(Some(0), Outcome::Own), before + 1);
        pass(stall);
        stream
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

/// Connects to the first listener's address, and returns the connection with the index of the socket that accepted it.
pub(crate) fn connect_and_accept(sockets: &[TcpListener]) -> (TcpStream, usize) {
    let address = sockets[0].local_addr().expect("address");
    let stream = TcpStream::connect_timeout(&address, DEADLINE).expect("connect");
    let accepted = || sockets.iter().position(|socket| socket.accept().is_ok());
    (stream, until("connection at one of the sockets", accepted))
}

/// Listening sockets of one SO_REUSEPORT group on loopback.
pub(crate) fn group(count: u16) -> Vec<TcpListener> {
    group_at(([127, 0, 0, 1], 0).into(), count)
}

/// Listening sockets of one SO_REUSEPORT group.
pub(crate) fn group_at(address: SocketAddr, count: u16) -> Vec<TcpListener> {
    let first = listener(address);
    let address = first.local_addr().expect("address");
    std::iter::once(first).chain((1..count).map(|_| listener(address))).collect()
}

pub(crate) fn listener(address: SocketAddr) -> TcpListener {
    listener_with_backlog(address, 1024)
}

pub(crate) fn listener_with_backlog(address: SocketAddr, backlog: i32) -> TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.bind(&address.into()).expect("bind");
    socket.listen(backlog).expect("listen");
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

/// Lets more than this time pass on the clock of the program, where time itself is what is tested.
pub(crate) fn pass(duration: Duration) {
    let end = monotonic_ns() + u64::try_from(duration.as_nanos()).expect("short");
    until("end of the wait", || (monotonic_ns() > end).then_some(()));
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

/// Sends single TCP segments over loopback, from a port that no socket has.
pub(crate) struct RawSender {
    socket: Socket,
    to: SocketAddr,
}

impl RawSender {
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const ACK: u8 = 0x10;

    /// `None`, having said so, without the privilege.
    pub(crate) fn new(test: &str, to: SocketAddr) -> Option<Self> {
        match Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)) {
            Ok(socket) => Some(Self { socket, to }),
            Err(error) => {
                skip(test, &format!("raw socket: {error}"));
                None
            }
        }
    }

    pub(crate) fn send(&self, flags: u8) {
        let mut segment = [0u8; 20];
        // Below the range of ports that the kernel gives to clients.
        segment[..2].copy_from_slice(&9u16.to_be_bytes());
        segment[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        segment[12] = 5 << 4; // length of the header in words
        segment[13] = flags;
        segment[14..16].copy_from_slice(&1024u16.to_be_bytes()); // window
        // RFC 9293 section 3.1: over the addresses, the protocol, the length, and the segment.
        let mut pseudo = [0u8; 32];
        pseudo[..12].copy_from_slice(&[127, 0, 0, 1, 127, 0, 0, 1, 0, 6, 0, 20]);
        pseudo[12..].copy_from_slice(&segment);
        let checksum = checksum(&pseudo);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        let sent = self.socket.send_to(&segment, &SocketAddr::new(self.to.ip(), 0).into()).expect("send");
        assert_eq!(sent, segment.len());
    }
}

/// RFC 1071: of an even number of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
