//! A network of a test's own, in which sockets have as much memory as the test says.

use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::sched::{CloneFlags, setns};

/// A network namespace with a loopback device, gone when dropped.
pub(crate) struct Network(String);

impl Network {
    /// `buffers` are the least, default and largest buffer of a socket in bytes, both for receiving and for sending: tcp(7).
    ///
    /// # Errors
    /// Names the command that failed.
    pub(crate) fn new(buffers: &str) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let network = Self(format!("ur{:x}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed)));
        run(&["netns", "add", &network.0])?;
        run(&["-n", &network.0, "link", "set", "lo", "up"])?;
        for name in ["tcp_rmem", "tcp_wmem"] {
            let set = format!("echo {buffers} > /proc/sys/net/ipv4/{name}");
            run(&["netns", "exec", &network.0, "sh", "-c", &set])?;
        }
        Ok(network)
    }

    /// Moves the calling thread, and those that it starts, into it.
    pub(crate) fn enter(&self) {
        let network = File::open(format!("/run/netns/{}", self.0)).expect("the network namespace");
        setns(network, CloneFlags::CLONE_NEWNET).expect("setns");
    }

    /// What a command line begins with that is to run in it.
    pub(crate) fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.0]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Not there when making it has failed.
        let _ = run(&["netns", "delete", &self.0]);
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr))))
}
