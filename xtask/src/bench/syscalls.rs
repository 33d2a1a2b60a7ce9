//! Counts the system calls of a proxy, in a pass of its own: the counting costs time.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::Serialize;
use underpass_bench::report::LoadReport;

use crate::process::{Launcher, wait_for};
use crate::tools::{find, is_root};

/// What counts.
#[derive(Clone, Debug)]
pub(super) enum Counter {
    /// The kernel's tracepoints: hardly slows the proxy, and counts exactly the measured span.
    Perf(PathBuf),
    /// Stops the proxy at each call: counts from the first connection to the last response, with other batches.
    Strace(PathBuf),
}

/// System calls of a proxy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Count {
    /// Per response.
    pub(super) per_response: f64,
    /// What counted.
    pub(super) method: &'static str,
    /// Per response, by name, the most frequent ones.
    pub(super) by_name: BTreeMap<String, f64>,
}

/// Tracepoints of the calls that proxies make; others are part of the sum only.
const NAMED: &[&str] = &[
    "accept4",
    "clock_gettime",
    "close",
    "connect",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "futex",
    "getsockopt",
    "ioctl",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "sendfile64",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socket",
    "splice",
    "tee",
    "timerfd_settime",
    "write",
    "writev",
];

/// Until perf or strace has seen the proxy.
const ATTACH_PATIENCE: Duration = Duration::from_secs(10);

impl Counter {
    /// What this machine can count with, or why it cannot.
    pub(super) fn find() -> Result<Self, String> {
        if let Some(perf) = find("perf") {
            let works = Command::new(&perf)
                .args(["stat", "-e", "raw_syscalls:sys_enter", "--", "true"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
            if works {
                return Ok(Self::Perf(perf));
            }
        }
        match find("strace") {
            Some(strace) if is_root() || may_trace() => Ok(Self::Strace(strace)),
            Some(_) => Err("perf needs root here, and so does strace (kernel.yama.ptrace_scope)".into()),
            None => {
                Err("neither perf (usable as root; package linux-perf) nor strace (package strace) is there"
                    .into())
            }
        }
    }

    /// Runs `load`, which gets the arguments that it must pass on to the load generator, and counts meanwhile.
    pub(super) fn count(
        &self,
        launcher: &Launcher,
        core: usize,
        workers: &[u32],
        load: impl FnOnce(Vec<String>) -> Result<LoadReport>,
    ) -> Result<Count> {
        match self {
            Self::Perf(perf) => count_by_perf(perf, launcher, core, workers, load),
            Self::Strace(strace) => count_by_strace(strace, launcher, core, workers, load),
        }
    }
}

/// Whether an ordinary user may trace processes that are not its children.
fn may_trace() -> bool {
    // Without the file there is no such restriction.
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").map_or(true, |text| text.trim() == "0")
}

fn count_by_perf(
    perf: &Path,
    launcher: &Launcher,
    core: usize,
    workers: &[u32],
    load: impl FnOnce(Vec<String>) -> Result<LoadReport>,
) -> Result<Count> {
    // A folder of its own: the pipes must be new.
    let folder = tempfile::tempdir_in(&launcher.folder)?;
    let [control, ack, output] = ["control", "ack", "output"].map(|name| folder.path().join(name));
    for pipe in [&control, &ack] {
        mkfifo(pipe, Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(|| format!("{}: cannot make", pipe.display()))?;
    }
    let events: Vec<String> = std::iter::once("raw_syscalls:sys_enter".to_owned())
        .chain(NAMED.iter().map(|name| format!("syscalls:sys_enter_{name}")))
        .collect();
    let arguments: Vec<String> = vec![
        "stat".into(),
        "--field-separator=,".into(),
        "--delay=-1".into(),
        format!("--control=fifo:{},{}", control.display(), ack.display()),
        format!("--output={}", output.display()),
        format!("--event={}", events.join(",")),
        format!("--pid={}", joined(workers)),
    ];
    let counting = launcher.start("perf", &[core], perf, arguments.into_iter().map(OsString::from))?;
    let report =
        load(vec![format!("--perf-control={}", control.display()), format!("--perf-ack={}", ack.display())])?;
    // perf writes its counts when it is interrupted.
    counting.end_by(Signal::SIGINT)?;
    let text = fs::read_to_string(&output).context("perf has written no counts")?;
    let counts = parse_perf(&text)?;
    let total = *counts.get("sys_enter").context("perf has not counted raw_syscalls:sys_enter")?;
    Ok(per_response(counts, total, report.responses_worth(), "perf"))
}

fn count_by_strace(
    strace: &Path,
    launcher: &Launcher,
    core: usize,
    workers: &[u32],
    load: impl FnOnce(Vec<String>) -> Result<LoadReport>,
) -> Result<Count> {
    let folder = tempfile::tempdir_in(&launcher.folder)?;
    let output = folder.path().join("output");
    let arguments: Vec<String> = vec![
        "-c".into(),
        "-f".into(),
        "-o".into(),
        output.display().to_string(),
        "-p".into(),
        joined(workers),
    ];
    let counting = launcher.start("strace", &[core], strace, arguments.into_iter().map(OsString::from))?;
    wait_for("strace to attach", ATTACH_PATIENCE, || {
        Ok(workers.iter().all(|&pid| is_traced(pid)).then_some(()))
    })?;
    let report = load(Vec::new())?;
    counting.end_by(Signal::SIGINT)?;
    let text = fs::read_to_string(&output).context("strace has written no counts")?;
    let mut counts = parse_strace(&text);
    let total = counts.remove("total").context("strace has written no total")?;
    Ok(per_response(counts, total, report.responses_overall as f64, "strace"))
}

fn joined(pids: &[u32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
}

fn per_response(counts: BTreeMap<String, u64>, total: u64, responses: f64, method: &'static str) -> Count {
    let rate = |count: u64| count as f64 / responses;
    let by_name = counts
        .into_iter()
        .filter(|(name, count)| name != "sys_enter" && rate(*count) >= 0.0005)
        .map(|(name, count)| (name, rate(count)))
        .collect();
    Count { per_response: rate(total), method, by_name }
}

/// Lines `COUNT,,GROUP:EVENT,...`; events of calls by their call's name.
fn parse_perf(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut fields = line.split(',');
        let (Some(count), Some(event)) = (fields.next(), fields.nth(1)) else {
            bail!("line of perf not understood: \"{line}\"");
        };
        let event = event.rsplit(':').next().unwrap_or(event);
        let name = event.strip_prefix("sys_enter_").unwrap_or(event);
        // A call that this kernel doesn't have is "<not supported>".
        if let Ok(count) = count.parse() {
            counts.insert(name.to_owned(), count);
        }
    }
    Ok(counts)
}

/// Lines `% time, seconds, usecs/call, calls, [errors,] name`.
fn parse_strace(text: &str) -> BTreeMap<String, u64> {
    let count_of = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = *fields.last()?;
        let count = fields.get(3)?.parse().ok()?;
        Some((name.to_owned(), count))
    };
    text.lines().filter_map(count_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_counts_are_read_by_name() -> Result<()> {
        let text = "# started on x\n\n400,,raw_syscalls:sys_enter,1000,100.00,,\n100,,syscalls:sys_enter_sendto,1,1,,\n\
                    <not supported>,,syscalls:sys_enter_tee,0,100.00,,\n";
        let counts = parse_perf(text)?;
        assert_eq!(counts.get("sys_enter"), Some(&400));
        assert_eq!(counts.get("sendto"), Some(&100));
        assert_eq!(counts.get("tee"), None);
        Ok(())
    }

    #[test]
    fn strace_counts_are_read_with_and_without_errors() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    60.00    0.000613           6       100        11 recvfrom\n\
                    40.00    0.000409           4        99           sendto\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.001022           5       199        11 total\n";
        let counts = parse_strace(text);
        assert_eq!(counts.get("recvfrom"), Some(&100));
        assert_eq!(counts.get("sendto"), Some(&99));
        assert_eq!(counts.get("total"), Some(&199));
        assert_eq!(counts.len(), 3);
    }
}
