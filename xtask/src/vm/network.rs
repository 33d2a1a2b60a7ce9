//! The network between the guest and the host's end: a namespace with a tap device of several queues.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

/// The guest's address. (RFC 5737: for documentation; nobody else has it.)
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The address of the namespace: where clients and backends are.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A network namespace with a tap device of the same name; both are gone when this is dropped.
pub(super) struct Network {
    name: String,
}

impl Network {
    /// Makes it; the error names the command that failed.
    pub(super) fn new() -> Result<Self> {
        // Of the limit of 15 bytes for the name of a device, ten at most are taken.
        let network = Self { name: format!("uvm{:x}", std::process::id()) };
        let name = network.name.as_str();
        ip(&["netns", "add", name])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "tuntap", "add", "dev", name, "mode", "tap", "multi_queue"])?;
        ip(&["-n", name, "address", "add", &format!("{HOST}/24"), "dev", name])?;
        ip(&["-n", name, "link", "set", name, "up"])?;
        Ok(network)
    }

    /// The name of the namespace and of its tap device.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> Result<()> {
        let path = format!("/run/netns/{}", self.name);
        let namespace = File::open(&path).with_context(|| format!("{path}: opening"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("{path}: entering"))
    }

    /// Does something inside the namespace, on a thread of its own.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|_| bail!("the thread in the namespace panicked"))
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It may not exist, if making it failed.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let text = format!("ip {}", arguments.join(" "));
    let output = Command::new("ip").args(arguments).output();
    let output = output.with_context(|| format!("{text}: could not be started"))?;
    if !output.status.success() {
        bail!("{text}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
