//! What steering is loaded with.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use aya::include_bytes_aligned;
use underpass_ebpf::{Config, POLICY_CPU, POLICY_HASH, POLICY_OFF, POLICY_RX_QUEUE};

use crate::error::LoadError;
use crate::sys;

/// Names another BPF object than the one that is built in.
const OBJECT_VARIABLE: &str = "UNDERPASS_BPF_OBJECT";
static OBJECT: &[u8] = include_bytes_aligned!(env!("UNDERPASS_BPF_OBJECT_EMBEDDED"));

/// What steering is loaded with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of workers, 1 to 1024; fixed from then on.
    pub workers: u16,
    /// Most listeners at a time.
    pub listeners_max: u16,
    /// Most RX queues that can be assigned to workers.
    pub queues_max: u32,
    /// How connections are steered at first.
    pub policy: Policy,
    /// Only workers that publish this generation get connections.
    pub generation: u32,
    /// A worker that is in one turn of its loop for longer, or leaves connections waiting for longer, is stalled.
    pub stall: Duration,
    /// How often a stalled worker is tried again where accept queues cannot be looked into.
    pub probe: Duration,
    /// Whether the program may read kernel memory. Off, there is no policy `rx-queue`, and connections that wait for a
    /// worker are found by counting.
    pub kernel_reads: bool,
    /// The BPF object to load. `None`: that of the environment variable `UNDERPASS_BPF_OBJECT`, which is ignored in a
    /// program that has more privileges than its caller; else the built-in one.
    pub object: Option<PathBuf>,
}

impl Options {
    /// The defaults for so many workers.
    pub fn new(workers: u16) -> Self {
        Self {
            workers,
            listeners_max: 256,
            queues_max: 1024,
            policy: Policy::Cpu,
            generation: 0,
            stall: Duration::from_millis(100),
            probe: Duration::from_secs(1),
            kernel_reads: true,
            object: None,
        }
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        let refuse = |option, value: String, remedy| Err(LoadError::Option { option, value, remedy });
        if self.workers == 0 || self.workers > 1024 {
            return refuse("workers", self.workers.to_string(), "use 1 to 1024");
        }
        if self.listeners_max == 0 {
            return refuse("listeners_max", "0".into(), "use at least 1");
        }
        if self.queues_max == 0 {
            return refuse("queues_max", "0".into(), "use at least 1");
        }
        if self.stall < Duration::from_millis(1) || self.stall > Duration::from_secs(60) {
            return refuse("stall", format!("{:?}", self.stall), "use 1 ms to 60 s");
        }
        Ok(())
    }

    pub(super) fn config(&self) -> Config {
        Config {
            policy: self.policy.to_abi(),
            generation: self.generation,
            stall_ns: nanoseconds(self.stall),
            probe_ns: nanoseconds(self.probe),
        }
    }

    pub(crate) fn read_object(&self) -> Result<Vec<u8>, LoadError> {
        let from_environment =
            || std::env::var_os(OBJECT_VARIABLE).filter(|path| !path.is_empty() && !sys::is_secure());
        let path = self.object.clone().or_else(|| from_environment().map(PathBuf::from));
        match path {
            None => Ok(OBJECT.to_vec()),
            Some(path) => fs::read(&path).map_err(|error| LoadError::Read { path, error }),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How a new connection finds its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The worker of the CPU that handles the connection request.
    Cpu,
    /// The worker of the RX queue that the connection request came in by; the CPU's where no queue is known.
    RxQueue,
    /// A worker by the flow's hash.
    Hash,
    /// The kernel's own choice in the SO_REUSEPORT group.
    Off,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::RxQueue, Self::Hash, Self::Off];

    /// The name that files and commands use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::RxQueue => "rx-queue",
            Self::Hash => "hash",
            Self::Off => "off",
        }
    }

    pub(super) fn to_abi(self) -> u32 {
        match self {
            Self::Cpu => POLICY_CPU,
            Self::RxQueue => POLICY_RX_QUEUE,
            Self::Hash => POLICY_HASH,
            Self::Off => POLICY_OFF,
        }
    }

    pub(super) fn from_abi(policy: u32) -> Self {
        Self::ALL.into_iter().find(|known| known.to_abi() == policy).unwrap_or(Self::Off)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let known = Self::ALL.into_iter().find(|policy| policy.name() == text);
        known.ok_or_else(|| LoadError::Option {
            option: "policy",
            value: text.to_owned(),
            remedy: "use cpu, rx-queue, hash or off",
        })
    }
}
