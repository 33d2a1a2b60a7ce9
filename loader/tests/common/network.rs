//! A network device with two receive queues, each with a CPU of its own. The end-to-end tests use it too.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

/// The address on the server's side, where the two queues are.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CLIENT: &str = "192.0.2.2";

/// Two network namespaces, joined by a pair of virtual devices; gone when dropped. Each is named as its device.
pub(crate) struct Network {
    pub(crate) server: String,
    pub(crate) client: String,
}

impl Network {
    /// Makes them; the error names the command that failed.
    pub(crate) fn new() -> io::Result<Self> {
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
    pub(crate) fn enter(&self, name: &str) {
        let network = File::open(format!("/run/netns/{name}")).expect("network namespace");
        setns(network, CloneFlags::CLONE_NEWNET).expect("setns");
    }

    /// Pins the kernel thread of each receive queue to the CPU of the same number; returns the queues' NAPI contexts.
    pub(crate) fn pin_queues(&self) -> [u32; 2] {
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

fn run(command: &[&str]) -> io::Result<()> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.map_err(|error| io::Error::other(format!("{}: {error}", command[0])))?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{}: {}", command.join(" "), error.trim())))
}
