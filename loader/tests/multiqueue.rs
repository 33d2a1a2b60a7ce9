//! Steering by the queues of a network device: a pair of virtual devices with two queues each, whose receiving side has
//! a kernel thread per queue, each pinned to a CPU of its own. That is what a network card with two queues and an
//! interrupt for each looks like to the program. (But such a device does not record the queue in the packet: for the policy
//! `rx-queue` see rx_queue.rs.)

mod common;

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;

use common::*;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;
use underpass_loader::{Matrix, Outcome, Policy, Steering};

const PER_QUEUE: usize = 200;
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CLIENT: &str = "192.0.2.2";

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

/// Two network namespaces, joined by a pair of virtual devices; gone when dropped. Each is named as its device.
struct Network {
    server: String,
    client: String,
}

impl Network {
    fn new() -> io::Result<Self> {
        let id = std::process::id();
        let network = Self { server: format!("u{id:x}s"), client: format!("u{id:x}c") };
        let Self { server, client } = &network;
        run(&["ip", "netns", "add", server])?;
        run(&["ip", "netns", "add", client])?;
        let queues = ["numrxqueues", "2", "numtxqueues", "2"];
        let mut link = vec!["ip", "link", "add", server, "netns", server];
        link.extend(queues);
        link.extend(["type", "veth", "peer", "name", client, "netns", client]);
        link.extend(queues);
        run(&link)?;
        for (name, address) in [(server, SERVER.to_string()), (client, CLIENT.to_owned())] {
            run(&["ip", "-n", name, "address", "add", &format!("{address}/24"), "dev", name])?;
        }
        // Without these the devices hand segments over directly, past the queues.
        run(&["ip", "netns", "exec", client, "ethtool", "-K", client, "tso", "off", "gso", "off"])?;
        run(&["ip", "netns", "exec", server, "ethtool", "-K", server, "gro", "on"])?;
        for name in [server, client] {
            run(&["ip", "-n", name, "link", "set", name, "up"])?;
        }
        let threaded = format!("echo 1 > /sys/class/net/{server}/threaded");
        run(&["ip", "netns", "exec", server, "sh", "-c", &threaded])?;
        Ok(network)
    }

    /// Moves the calling thread into a network.
    fn enter(&self, name: &str) {
        let network = File::open(format!("/run/netns/{name}")).expect("network namespace");
        setns(network, CloneFlags::CLONE_NEWNET).expect("setns");
    }

    /// Pins the kernel thread of each receive queue to the CPU of the same number; returns the queues' NAPI contexts.
    fn pin_queues(&self) -> [u32; 2] {
        let prefix = format!("napi/{}-", self.server);
        let mut threads: Vec<(u32, i32)> = fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter_map(|pid| Some((pid, fs::read_to_string(format!("/proc/{pid}/comm")).ok()?)))
            .filter_map(|(pid, comm)| Some((comm.trim().strip_prefix(&prefix)?.parse().ok()?, pid)))
            .collect();
        // Contexts are numbered in the order of the queues.
        threads.sort_unstable();
        let [first, second] = threads[..] else { panic!("threads of the queues: {threads:?}") };
        for (cpu, (_, pid)) in [first, second].into_iter().enumerate() {
            let mut set = CpuSet::new();
            set.set(cpu).expect("CPU number");
            sched_setaffinity(Pid::from_raw(pid), &set).expect("affinity of a kernel thread");
        }
        [first.0, second.0]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            // May not exist, if making it failed.
            let _ = run(&["ip", "netns", "delete", name]);
        }
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

fn run(command: &[&str]) -> io::Result<()> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.map_err(|error| io::Error::other(format!("{}: {error}", command[0])))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{}: {}", command.join(" "), error.trim())))
}
