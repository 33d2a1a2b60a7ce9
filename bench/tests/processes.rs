//! Load generator, floor and backend as the processes that a benchmark starts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use underpass_bench::report::LoadReport;

const TOOL: &str = env!("CARGO_BIN_EXE_underpass-bench");
const SIZE_MAX: usize = 3 << 20;

/// A server that ends with this.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut child =
            Command::new(TOOL).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }

    fn backend() -> Self {
        Self::start(&["backend", &format!("--size-max={SIZE_MAX}")])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load(address: &str, size: usize, more: &[&str]) -> Output {
    Command::new(TOOL)
        .args(["load", "--address", address, "--size", &size.to_string(), "--connections=8"])
        .args(["--seconds=0.02", "--warm-up=0.01"])
        .args(more)
        .output()
        .unwrap()
}

fn report(output: &Output) -> LoadReport {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn bodies_come_through_the_floor_unchanged() {
    let backend = Server::backend();
    for more in [&[][..], &["--buffer-size=1000"], &["--splice"]] {
        let floor = Server::start(&[&["floor", "--backend", backend.address.as_str()], more].concat());
        for size in [0, 1, 1000, 100_000, SIZE_MAX] {
            let compared = report(&load(&floor.address, size, &["--compare-fully"]));
            assert_eq!(compared.responses_compared_fully, compared.responses, "size {size}, floor {more:?}");
            let sampled = report(&load(&floor.address, size, &[]));
            assert!(sampled.responses >= 8 && sampled.responses_overall >= sampled.responses);
        }
    }
}

#[test]
fn watched_processes_are_reported() {
    let backend = Server::backend();
    let pid = backend.child.id();
    let report = report(&load(&backend.address, 1000, &["--watch", &pid.to_string()]));
    assert_eq!(report.processes.len(), 1);
    assert_eq!(report.processes[0].pid, pid);
    assert!(report.processes[0].run_ns > 0 && report.load.run_ns > 0 && report.pss_kib[0] > 0);
    assert!(report.latency.p50_ns > 0 && report.latency.p50_ns <= report.latency.max_ns);
}

#[test]
fn wrong_status_ends_the_load_with_its_reason() {
    let backend = Server::backend();
    let output = load(&backend.address, SIZE_MAX * 2, &[]);
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains("status 404"), "{complaint}");
}

#[test]
fn command_runs_on_its_core_and_not_without_its_parent() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let core = (0..CpuSet::count()).find(|&core| allowed.is_set(core).unwrap()).unwrap().to_string();
    let run = |parent: u32| {
        Command::new(TOOL)
            .args(["run", "--core", &core, "--parent", &parent.to_string(), "--"])
            .args(["grep", "Cpus_allowed_list", "/proc/self/status"])
            .output()
            .unwrap()
    };
    let output = run(std::process::id());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).split_whitespace().last(), Some(core.as_str()));
    let orphan = run(u32::MAX / 4);
    assert!(String::from_utf8_lossy(&orphan.stderr).contains("has ended"));
}
