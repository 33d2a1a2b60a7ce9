//! Steering by the queues of a network device: a pair of virtual devices with two queues each, whose receiving side has
//! a kernel thread per queue, each pinned to a CPU of its own. That is what a network card with two queues and an
//! interrupt for each looks like to the program. (But such a device does not record the queue in the packet: for the policy
//! `rx-queue` see rx_queue.rs.)

mod common;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use common::network::{Network, SERVER};
use common::*;
use underpass_loader::{Matrix, Outcome, Policy, Steering};

const PER_QUEUE: usize = 200;

#[test]
fn each_queues_connections_go_to_its_own_worker() {
    let test = "each_queues_connections_go_to_its_own_worker";
    let Some(mut setup) = TwoQueues::new(test) else { return };

    let by_cpu = setup.connect_many();
    assert!(by_cpu.share_of_own(|queue| queue) >= 0.99, "policy cpu: {by_cpu:?}");
    let own = |cpu: u32| {
        by_cpu.matrix.count(|cell| {
            cell.cpu == cpu && cell.worker.map(u32::from) == Some(cpu) && cell.outcome == Outcome::Own
        })
    };
    let counted = by_cpu.matrix.count(|_| true);
    assert_eq!(counted, by_cpu.total() as u64, "{}", by_cpu.matrix);
    assert!((own(0) + own(1)) * 100 >= counted * 99, "{}", by_cpu.matrix);

    setup.steering.set_policy(Policy::Hash).expect("policy");
    let by_hash = setup.connect_many();
    assert!(by_hash.share_of_own(|queue| queue) < 0.75, "policy hash: {by_hash:?}");
}

/// Steered listening sockets behind a device with two queues.
struct TwoQueues {
    steering: Steering,
    sockets: Vec<TcpListener>,
    /// The NAPI context of each queue.
    contexts: [u32; 2],
    slots: Vec<underpass_loader::WorkerSlot>,
    _network: Network,
}

/// Where connections went.
#[derive(Debug)]
struct Seen {
    /// By queue, then by worker.
    counts: [[usize; 2]; 2],
    matrix: Matrix,
}

impl Seen {
    fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    /// What part went to the worker that a queue should have.
    fn share_of_own(&self, worker_of: impl Fn(usize) -> usize) -> f64 {
        let own: usize = (0..2).map(|queue| self.counts[queue][worker_of(queue)]).sum();
        own as f64 / self.total() as f64
    }
}

impl TwoQueues {
    /// Leaves the calling thread in the client's network.
    fn new(test: &str) -> Option<Self> {
        if cpu_count() < 2 {
            skip(test, "there is just one CPU");
            return None;
        }
        let options = options(2, Policy::Cpu);
        let mut steering = load(test, &options)?;
        let network = match Network::new() {
            Ok(network) => network,
            Err(error) => {
                skip(test, &error.to_string());
                return None;
            }
        };
        network.enter(&network.server);
        let sockets = group_at(SocketAddr::new(SERVER, 0), 2);
        let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        steering.attach_listener("test", &descriptors).expect("attach");
        steering.set_cpus(&[(0, 0), (1, 1)]).expect("table");
        let slots = start_workers(&steering, &options);
        let contexts = network.pin_queues();
        network.enter(&network.client);
        // On its own CPU the sender's work would be done by its softirq; it shall not matter where the client runs.
        pin(0);
        Some(Self { steering, sockets, contexts, slots, _network: network })
    }

    /// Connects until each queue has had enough.
    fn connect_many(&self) -> Seen {
        let before = self.steering.matrix().expect("matrix");
        let address = self.sockets[0].local_addr().expect("address");
        let mut counts = [[0; 2]; 2];
        // The device spreads connections over its queues by their hash: a few more are needed than twice that many.
        for _ in 0..4 * PER_QUEUE {
            let _stream = TcpStream::connect_timeout(&address, DEADLINE).expect("connect");
            let accepted = || {
                let mut sockets = self.sockets.iter().enumerate();
                sockets.find_map(|(worker, socket)| Some((worker, socket.accept().ok()?.0)))
            };
            let (worker, accepted) = until("connection at one of the workers", accepted);
            self.slots[worker].accepted(1);
            let context = napi_context(&accepted);
            let queue = self.contexts.iter().position(|known| *known == context);
            let queue = queue.unwrap_or_else(|| panic!("context {context}, not in {:?}", self.contexts));
            counts[queue][worker] += 1;
            if counts.iter().all(|queue| queue.iter().sum::<usize>() >= PER_QUEUE) {
                let matrix = self.steering.matrix().expect("matrix").since(&before);
                return Seen { counts, matrix };
            }
        }
        panic!("the device does not use both queues: {counts:?}");
    }
}

/// The receive queue of the last segment of a connection, by the number of its NAPI context.
fn napi_context(stream: &TcpStream) -> u32 {
    let mut context = 0u32;
    let mut length = libc::socklen_t::try_from(size_of::<u32>()).expect("small");
    // SAFETY: `context` is writable for `length` bytes, `length` for its own size; the kernel keeps neither.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_NAPI_ID,
            (&raw mut context).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "SO_INCOMING_NAPI_ID: {}", io::Error::last_os_error());
    context
}
