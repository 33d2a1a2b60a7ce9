//! Client, proxy and backend in network namespaces of their own, joined by virtual devices.
//!
//! The client's link has several receive queues at the proxy's end, each with a kernel thread of its own (threaded
//! NAPI): as far as steering can tell that is a NIC with so many queues. Everything is gone when the value is dropped.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

/// Receive queues at the proxy's end of the client's link.
pub(super) const QUEUES: usize = 2;
/// The proxy, as the client reaches it. Addresses are those reserved for documentation (RFC 5737).
pub(super) const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const CLIENT: &str = "192.0.2.2";
const PROXY_INSIDE: &str = "198.51.100.1";
/// The backend.
pub(super) const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
const NAME_PREFIX: &str = "ulab";

/// The namespaces; each device that leads to a namespace is named as that one.
pub(super) struct Network {
    client: String,
    proxy: String,
    backend: String,
    /// The proxy's device towards the backend.
    inside: String,
}

/// One of the namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Proxy,
    Backend,
}

impl Network {
    /// Makes it; the error names the command that failed.
    pub(super) fn new(load_core: usize) -> Result<Self> {
        ensure!(
            crate::tools::is_root(),
            "network namespaces need root: run it as root, for instance by sudo"
        );
        remove_leftovers();
        let name = |side: &str| format!("{NAME_PREFIX}{:x}{side}", std::process::id());
        let network = Self { client: name("c"), proxy: name("p"), backend: name("b"), inside: name("i") };
        let Self { client, proxy, backend, inside } = &network;
        for namespace in [client, proxy, backend] {
            run(&format!("ip netns add {namespace}"))?;
            run(&format!("ip -n {namespace} link set lo up"))?;
        }
        let queues = format!("numrxqueues {QUEUES} numtxqueues {QUEUES}");
        run(&format!(
            "ip link add {proxy} netns {proxy} {queues} type veth peer name {client} netns {client} {queues}"
        ))?;
        run(&format!("ip link add {inside} netns {proxy} type veth peer name {backend} netns {backend}"))?;
        for (namespace, device, address) in [
            (client, client, CLIENT),
            (proxy, proxy, &PROXY.to_string()),
            (proxy, inside, PROXY_INSIDE),
            (backend, backend, &BACKEND.to_string()),
        ] {
            run(&format!("ip -n {namespace} address add {address}/24 dev {device}"))?;
        }
        // Without these the devices hand segments over directly, past the queues.
        run(&format!("ip netns exec {client} ethtool -K {client} tso off gso off"))?;
        run(&format!("ip netns exec {proxy} ethtool -K {proxy} gro on"))?;
        for (namespace, device) in [(client, client), (proxy, proxy), (proxy, inside), (backend, backend)] {
            run(&format!("ip -n {namespace} link set {device} up"))?;
        }
        // The way past the proxy, for comparison.
        run(&format!("ip -n {client} route add 198.51.100.0/24 via {PROXY}"))?;
        run(&format!("ip -n {backend} route add 192.0.2.0/24 via {PROXY_INSIDE}"))?;
        network.write(Side::Proxy, "/proc/sys/net/ipv4/ip_forward", "1")?;
        // Many short connections use up the ports otherwise.
        for side in [Side::Client, Side::Proxy] {
            network.write(side, "/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
        }
        network.write(Side::Proxy, &format!("/sys/class/net/{proxy}/threaded"), "1")?;
        // What client and backend receive costs their core, not the one that sends.
        for (side, device) in [(Side::Client, client), (Side::Backend, backend)] {
            network.receive_on(side, device, &[load_core])?;
        }
        Ok(network)
    }

    /// Moves the calling thread, and so what it starts, into a namespace.
    pub(super) fn enter(&self, side: Side) -> Result<()> {
        let path = Path::new("/run/netns").join(self.name(side));
        let file = File::open(&path).with_context(|| format!("{}: cannot open", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("{}: cannot enter", path.display()))
    }

    /// Lets the cores receive for the proxy: each queue of the client's link in turn, and what comes from the backend.
    pub(super) fn receive_for_proxy(&self, cores: &[usize]) -> Result<()> {
        let threads = self.queue_threads()?;
        for (thread, core) in threads.into_iter().zip(cores.iter().cycle()) {
            let mut set = CpuSet::new();
            set.set(*core)?;
            sched_setaffinity(Pid::from_raw(thread), &set)
                .with_context(|| format!("kernel thread {thread}: cannot be pinned to core {core}"))?;
        }
        self.receive_on(Side::Proxy, &self.inside, cores)
    }

    /// Receive packet steering: the kernel spreads what a device receives over these cores.
    fn receive_on(&self, side: Side, device: &str, cores: &[usize]) -> Result<()> {
        let mask: u64 = cores.iter().filter(|&&core| core < 64).map(|core| 1u64 << core).sum();
        // Bitmaps in sysfs are written as words of 32 bits, the highest first; one that there are no CPUs for is refused.
        let text = match mask >> 32 {
            0 => format!("{mask:x}"),
            high => format!("{high:x},{:08x}", mask & 0xffff_ffff),
        };
        let list = format!("ls -d /sys/class/net/{device}/queues/rx-*");
        let queues = self.output(side, &list)?;
        for queue in queues.split_whitespace() {
            self.write(side, &format!("{queue}/rps_cpus"), &text)?;
        }
        Ok(())
    }

    /// The kernel threads of the client link's queues, in the queues' order.
    fn queue_threads(&self) -> Result<Vec<i32>> {
        let prefix = format!("napi/{}-", self.proxy);
        let mut threads = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc: cannot read")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // A process may end between the listing and the reading.
            let Ok(comm) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            if let Some(context) = comm.trim().strip_prefix(&prefix).and_then(|id| id.parse::<u32>().ok()) {
                threads.push((context, pid));
            }
        }
        // Contexts are numbered in the order of the queues.
        threads.sort_unstable();
        ensure!(
            threads.len() == QUEUES,
            "{} kernel threads for {QUEUES} queues; threaded NAPI needs Linux 5.12",
            threads.len()
        );
        Ok(threads.into_iter().map(|(_, pid)| pid).collect())
    }

    fn name(&self, side: Side) -> &str {
        match side {
            Side::Client => &self.client,
            Side::Proxy => &self.proxy,
            Side::Backend => &self.backend,
        }
    }

    /// Writes a file as it is seen in a namespace.
    fn write(&self, side: Side, path: &str, text: &str) -> Result<()> {
        self.output(side, &format!("echo '{text}' > {path}")).map(drop)
    }

    fn output(&self, side: Side, shell: &str) -> Result<String> {
        output(Command::new("ip").args(["netns", "exec", self.name(side), "sh", "-c", shell]))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.client, &self.proxy, &self.backend] {
            // May not exist, if making it failed.
            let _ = run(&format!("ip netns delete {name}"));
        }
    }
}

/// Removes what a run left that was killed.
fn remove_leftovers() {
    let Ok(names) = fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = run(&format!("ip netns delete {name}"));
        }
    }
}

/// The process that made a namespace, if it is one of ours.
fn owner(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix(NAME_PREFIX)?.strip_suffix(['c', 'p', 'b'])?, 16).ok()
}

/// Runs a command whose words hold no spaces.
fn run(command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().context("no command given")?;
    output(Command::new(program).args(words)).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} could not be started"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_namespaces_are_taken_for_leftovers() {
        assert_eq!(owner("ulab1fc"), Some(0x1f));
        assert_eq!(owner("ulab1fp"), Some(0x1f));
        for name in ["default", "ulab", "ulabxyzp", "ulab1f", "u1fs"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
