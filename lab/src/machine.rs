//! What the figures belong to: the machine that they were measured on.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// When it was measured.
    pub date: String,
    /// Its processor's name.
    pub processor: String,
    /// Number of its cores.
    pub cores: usize,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its kernel's version.
    pub kernel: String,
    /// What was measured: a version, or a commit.
    pub source: String,
}

impl Machine {
    /// Reads /proc; a thing that cannot be learned is called unknown.
    pub fn describe(source: Option<String>) -> Self {
        let unknown = || "unknown".to_owned();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib = field(&meminfo, "MemTotal")
            .and_then(|text| text.split(' ').next().and_then(|number| number.parse::<u64>().ok()));
        Self {
            date: printed(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])).unwrap_or_else(unknown),
            processor: field(&cpuinfo, "model name").unwrap_or_else(unknown),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            source: source.unwrap_or_else(unknown),
        }
    }
}

/// What a command prints; none if it fails.
pub fn printed(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
