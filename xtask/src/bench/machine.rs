//! The machine that is measured on: its cores, its name, and whether others use it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use underpass_bench::accounting::MachineClock;

use super::process::check_interrupt;

/// The core of the proxy, and that of load generator and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Cores {
    pub(super) proxy: usize,
    pub(super) load: usize,
    /// Whether both are threads of one physical core, and so take time from each other.
    pub(super) share_physical_core: bool,
}

impl Cores {
    /// Takes two of those that this process may use, not of one physical core if that can be.
    pub(super) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot tell which cores may be used")?;
        let cores: Vec<usize> =
            (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false)).collect();
        // Core 0 is what kernels use for odd jobs, so the proxy gets the last.
        let [rest @ .., proxy] = cores.as_slice() else { bail!("no core may be used") };
        let siblings = siblings(*proxy);
        let apart = rest.iter().rev().find(|core| !siblings.contains(core));
        let load = apart.or(rest.last()).context("two cores are needed, this process may use one")?;
        Ok(Self { proxy: *proxy, load: *load, share_physical_core: apart.is_none() })
    }

    /// Moves this process away from the proxy's core.
    pub(super) fn step_aside(self) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(self.load)?;
        sched_setaffinity(Pid::from_raw(0), &set)
            .with_context(|| format!("core {}: cannot move there", self.load))
    }
}

/// The cores that are threads of the same physical core.
fn siblings(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    parse_list(fs::read_to_string(path).unwrap_or_default().trim())
}

/// A list like `0-3,8`.
fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// What the figures belong to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) date: String,
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory_mib: u64,
    pub(super) kernel: String,
    /// Commit of this source, with "+changes" if there are some that are not committed.
    pub(super) source: String,
}

impl Machine {
    /// Reads /proc; a thing that cannot be learned is called unknown.
    pub(super) fn describe() -> Self {
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
            source: source().unwrap_or_else(unknown),
        }
    }
}

fn source() -> Option<String> {
    let git = |arguments: &[&str]| {
        printed(Command::new("git").arg("-C").arg(crate::tools::workspace_root()).args(arguments))
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}+changes") })
}

fn printed(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A machine is quiet when no more than this share of its time is used while we do nothing.
const QUIET_SHARE_MAX: f64 = 0.03;
/// How long is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until other processes leave the machine alone, but not longer than `patience`; what is left of it.
pub(super) fn wait_for_quiet(clock: &MachineClock, cores: usize, patience: Duration) -> Result<Duration> {
    let mut left = patience;
    while !left.is_zero() {
        check_interrupt()?;
        let before = clock.read()?;
        std::thread::sleep(LOOK);
        let busy = Duration::from_nanos(clock.read()?.since(before).busy_ns);
        if busy.as_secs_f64() <= QUIET_SHARE_MAX * LOOK.as_secs_f64() * cores as f64 {
            return Ok(left);
        }
        left = left.saturating_sub(LOOK);
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(parse_list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(parse_list("5"), [5]);
        assert_eq!(parse_list(""), Vec::<usize>::new());
    }
}
