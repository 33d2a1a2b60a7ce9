//! Processor time of processes and of the machine, as the kernel counts it in /proc.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};

use serde::{Deserialize, Serialize};

/// What a process had of the cores within a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTime {
    /// Process id.
    pub pid: u32,
    /// Time on a core, user and kernel, in nanoseconds. Loopback's network interrupts run within it.
    pub run_ns: u64,
    /// Time in which it was ready to run and had to wait for its core, in nanoseconds.
    pub wait_ns: u64,
}

/// What the machine did within a span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineTime {
    /// Time in which a core was not idle, summed over the cores, in nanoseconds.
    pub busy_ns: u64,
    /// Time that the hypervisor gave to others; not part of `busy_ns`.
    pub steal_ns: u64,
    /// Part of `busy_ns` that kernel threads had.
    pub kernel_threads_ns: u64,
}

/// Processor time of one process since its start, summed over the threads that it has now.
///
/// # Errors
/// There is no such process, or the kernel does not count (`CONFIG_SCHED_INFO`).
pub fn process_time(pid: u32) -> Result<ProcessTime> {
    let tasks = format!("/proc/{pid}/task");
    let mut time = ProcessTime { pid, ..ProcessTime::default() };
    for task in fs::read_dir(&tasks).with_context(|| format!("{tasks}: process has ended"))? {
        let path = task?.path().join("schedstat");
        let text = match fs::read_to_string(&path) {
            // A thread may end between the listing and the reading.
            Err(error) if is_gone(&error) => continue,
            result => result.with_context(|| format!("{}: cannot read", path.display()))?,
        };
        let (run_ns, wait_ns) = parse_schedstat(&text)
            .with_context(|| format!("{}: \"{text}\" not understood", path.display()))?;
        time.run_ns += run_ns;
        time.wait_ns += wait_ns;
    }
    Ok(time)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// Time on a core and time waiting for one, in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn parse_schedstat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse().ok());
    Some((fields.next()??, fields.next()??))
}

/// Proportional set size of a process in KiB.
///
/// # Errors
/// There is no such process, or its memory may not be looked at.
pub fn pss_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: cannot read"))?;
    parse_pss(&text).with_context(|| format!("{path}: no line \"Pss:\""))
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Counts the machine's time over a span.
pub struct MachineClock {
    kernel_threads: Vec<u32>,
    tick: Duration,
}

/// The machine's counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineCounters {
    at: Instant,
    cores: u32,
    idle: Duration,
    steal: Duration,
    kernel_threads: Duration,
}

impl MachineClock {
    /// Finds the kernel threads that there are now; those that come later are not told apart.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn new() -> Result<Self> {
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?
            .and_then(|ticks| u32::try_from(ticks).ok())
            .filter(|&ticks| ticks > 0)
            .context("the kernel does not tell the length of its clock tick")?;
        let mut kernel_threads = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc: cannot read")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end between the listing and the reading.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            if parent(&stat) == Some(KTHREADD) {
                kernel_threads.push(pid);
            }
        }
        Ok(Self { kernel_threads, tick: Duration::from_secs(1) / ticks_per_second })
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// /proc/stat cannot be read.
    pub fn read(&self) -> Result<MachineCounters> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat: cannot read")?;
        let at = Instant::now();
        let stat = parse_stat(&text).context("/proc/stat: not understood")?;
        let mut kernel_threads = 0;
        for pid in &self.kernel_threads {
            // Kernel threads come and go; one that has gone did no more work.
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/schedstat")) else { continue };
            kernel_threads += parse_schedstat(&text).map_or(0, |(run_ns, _)| run_ns);
        }
        let kernel_threads = Duration::from_nanos(kernel_threads);
        Ok(MachineCounters {
            at,
            cores: stat.cores,
            idle: self.tick * stat.idle,
            steal: self.tick * stat.steal,
            kernel_threads,
        })
    }
}

impl MachineCounters {
    /// What was counted since `earlier`.
    ///
    /// Busy is what is not idle: idle time is measured by the clock, while the kernel's own sums of user and system
    /// time are samples taken at each timer interrupt.
    pub fn since(self, earlier: Self) -> MachineTime {
        let span = self.at.saturating_duration_since(earlier.at);
        let idle = self.idle.saturating_sub(earlier.idle);
        let steal = self.steal.saturating_sub(earlier.steal);
        let kernel_threads = self.kernel_threads.saturating_sub(earlier.kernel_threads);
        MachineTime {
            busy_ns: nanoseconds((span * self.cores).saturating_sub(idle + steal)),
            steal_ns: nanoseconds(steal),
            kernel_threads_ns: nanoseconds(kernel_threads),
        }
    }
}

/// A duration as whole nanoseconds.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What a process had since `earlier`.
pub fn process_since(now: ProcessTime, earlier: ProcessTime) -> ProcessTime {
    ProcessTime {
        pid: now.pid,
        run_ns: now.run_ns.saturating_sub(earlier.run_ns),
        wait_ns: now.wait_ns.saturating_sub(earlier.wait_ns),
    }
}

/// The parent of all kernel threads.
const KTHREADD: u32 = 2;

/// The parent in a line of /proc/PID/stat; the command's name before it may hold spaces and brackets.
fn parent(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Ticks of all cores together.
#[derive(Debug, PartialEq, Eq)]
struct Ticks {
    cores: u32,
    idle: u32,
    steal: u32,
}

/// The lines "cpu" (user nice system idle iowait irq softirq steal ...) and "cpu0", "cpu1", ... of /proc/stat.
fn parse_stat(text: &str) -> Option<Ticks> {
    let sums = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u32> = sums.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let cores = text.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
    Some(Ticks {
        cores: u32::try_from(cores).ok().filter(|&cores| cores > 0)?,
        // Waiting for a disk is idle too.
        idle: ticks.get(3)?.checked_add(*ticks.get(4)?)?,
        steal: *ticks.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_steal_are_summed_over_the_cores() {
        let text = "cpu  24344 1 5683 151932 822 3 55 121 0 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 7\n";
        assert_eq!(parse_stat(text), Some(Ticks { cores: 2, idle: 151932 + 822, steal: 121 }));
        assert_eq!(parse_stat("cpu 1 2\ncpu0 1 2\n"), None);
    }

    #[test]
    fn parent_is_found_behind_a_name_with_brackets() {
        assert_eq!(parent("77 (kworker) 1 (x) I 2 0 0 0"), Some(2));
        assert_eq!(parent("77 kworker"), None);
    }

    #[test]
    fn pss_is_read_in_kib() {
        assert_eq!(parse_pss("Rss:    100 kB\nPss:               4711 kB\nPss_Dirty: 3 kB\n"), Some(4711));
        assert_eq!(parse_pss("Rss: 100 kB\n"), None);
    }

    #[test]
    fn own_time_is_counted() -> Result<()> {
        let pid = std::process::id();
        // The reading itself takes time, which the next reading counts.
        let counted = (0..10_000).any(|_| process_time(pid).is_ok_and(|time| time.run_ns > 0));
        assert!(counted);
        assert!(pss_kib(pid)? > 0);
        assert!(process_time(u32::MAX).is_err());
        Ok(())
    }
}
