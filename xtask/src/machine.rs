//! The machine that is measured on: its cores, its name, and whether others use it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use underpass_lab::accounting::MachineClock;
use underpass_lab::machine::{Machine, printed};

use crate::process::check_interrupt;

/// The core of the proxy, and that of load generator and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cores {
    pub(crate) proxy: usize,
    pub(crate) load: usize,
    /// Whether both are threads of one physical core, and so take time from each other.
    pub(crate) share_physical_core: bool,
}

impl Cores {
    /// Takes two of those that this process may use, not of one physical core if that can be.
    pub(crate) fn choose() -> Result<Self> {
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
    pub(crate) fn step_aside(self) -> Result<()> {
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

/// The machine, with the commit of this source and "+changes" if there are some that are not committed.
pub(crate) fn describe() -> Machine {
    Machine::describe(source())
}

fn source() -> Option<String> {
    let git = |arguments: &[&str]| {
        printed(Command::new("git").arg("-C").arg(crate::tools::workspace_root()).args(arguments))
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}+changes") })
}

/// A machine is quiet when no more than this share of its time is used while we do nothing.
const QUIET_SHARE_MAX: f64 = 0.03;
/// How long is looked.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until other processes leave the machine alone, but not longer than `patience`; what is left of it.
pub(crate) fn wait_for_quiet(clock: &MachineClock, cores: usize, patience: Duration) -> Result<Duration> {
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
