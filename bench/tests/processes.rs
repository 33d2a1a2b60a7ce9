//! Load generator, floor and backend as the processes that a benchmark starts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use underpass_bench::report::LoadReport;
use underpass_lab::exchange::Pattern;
use underpass_lab::load::Step;

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

/// A step of load, made by a process of its own against the benchmark's backend.
fn step(address: &str, exchange: &str, connections: usize) -> Step {
    let plan = format!(
        r#"{{"address":"{address}","exchange":{exchange},"arrivals":{{"open":{{"per_s":300.0,"seed":1}}}},
        "connections_max":{connections},"connections_at_start":{connections},"warm_up":{{"secs":0,"nanos":10000000}},
        "span":{{"secs":0,"nanos":100000000}},"timeout":{{"secs":20,"nanos":0}},"watched":[]}}"#
    );
    let output = Command::new(TOOL).args(["step", &plan]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_exchange_of_the_lab_is_served() {
    let backend = Server::backend();
    let floor = Server::start(&["floor", "--splice", "--backend", backend.address.as_str()]);
    for address in [&backend.address, &floor.address] {
        for exchange in [
            r#"{"download":{"size":100000,"reuse":true}}"#,
            r#"{"download":{"size":1000,"reuse":false}}"#,
            r#"{"upload":{"size":0}}"#,
            r#"{"upload":{"size":500000}}"#,
            r#"{"tunnel":{"message_size":1024,"upgrade":true}}"#,
        ] {
            let step = step(address, exchange, 8);
            assert!(step.due > 0 && step.completed == step.due, "{exchange} at {address}: {step:?}");
        }
    }
}

#[test]
fn a_wrong_upload_is_not_answered() {
    let backend = Server::backend();
    let upload = |body: &[u8]| {
        let mut stream = std::net::TcpStream::connect(&backend.address).unwrap();
        let head = format!("POST /upload/from/3 HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut response = Vec::new();
        // A connection that is closed with unread bytes is reset.
        let _ = stream.read_to_end(&mut response);
        response
    };
    let right = Pattern::new(20_000).body(3, 20_000).unwrap().to_vec();
    assert!(upload(&right).starts_with(b"HTTP/1.1 200 OK\r\n"));
    let mut wrong = right;
    wrong[19_999] ^= 1;
    assert_eq!(upload(&wrong), b"");
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
