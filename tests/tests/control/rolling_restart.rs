//! Every worker's process is replaced under load.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use underpass_command::api::WorkerState;
use underpass_command::state::{RedirectMode, SteeringPolicy};
use underpass_tests::body::Content;
use underpass_tests::nginx::Nginx;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Proxy, is_root, skip};

use crate::worker_drain::{LONG_MS, drain, drained, events, outcome};

/// Large enough for each mode to have something to move.
const SIZE: u64 = 96 * 1024;

fn wrk(url: &str, more: &[&str]) -> Child {
    Command::new("wrk")
        .args(["--connections", "32", "--threads", "1", "--duration", "5s", "--timeout", "10s"])
        .args(more)
        .arg(url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("wrk is installed: `cargo xtask test` does")
}

/// What only grows.
fn totals(proxy: &Proxy) -> BTreeMap<String, u64> {
    let total = proxy.status().total;
    let mut values = total.values;
    values.retain(|name, _| {
        !["_active", "_idle", "_open", "_used", "_flows"].iter().any(|end| name.ends_with(end))
    });
    values.insert("latencies".into(), total.latency.count);
    values
}

/// Looks at the counters until it is told to stop: none goes down.
fn watch_totals(proxy: &Proxy, stop: &AtomicBool) {
    let mut before = totals(proxy);
    while !stop.load(Relaxed) {
        let now = totals(proxy);
        for (name, value) in &before {
            assert!(now[name] >= *value, "{name} went down from {value} to {}", now[name]);
        }
        before = now;
    }
}

#[test]
fn no_request_fails_when_every_worker_is_replaced_under_load() {
    for mode in MODES {
        if mode == RedirectMode::Sockmap && !is_root() {
            skip("mode sockmap needs root, to load BPF programs");
            continue;
        }
        // With one of them also the place in steering changes hands.
        let policy = if mode == RedirectMode::Splice { SteeringPolicy::Cpu } else { SteeringPolicy::Off };
        replace_all(mode, policy);
    }
}

fn replace_all(mode: RedirectMode, policy: SteeringPolicy) {
    let nginx = Nginx::start(&[("body", Content::new(1, SIZE))]);
    let setup = Setup::to(&[nginx.address()]).redirect(mode).expect_log("steering: ").with(|state| {
        state.settings.workers = 2;
        state.settings.steering = policy;
        state.settings.sockmap_size_min = 1;
    });
    let proxy = setup.start();
    let before = proxy.worker_pids();
    let mut events = events(&proxy);
    let url = format!("http://{}/length/body", proxy.address());
    let loads = [wrk(&url, &[]), wrk(&url, &["--header", "Connection: close"])];
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_totals(&proxy, &stop));
        for worker in [0, 1] {
            let requests = proxy.counter("requests");
            proxy.until_counter("requests", requests + 200);
            let draining = drain(&proxy, worker, LONG_MS);
            assert_eq!(draining.pid, before[usize::from(worker)]);
            assert_eq!(proxy.worker_pids()[usize::from(worker)], draining.successor);
            assert_eq!(drained(&mut events, worker), None, "{mode}");
            let requests = proxy.counter("requests");
            proxy.until_counter("requests", requests + 200);
        }
        stop.store(true, Relaxed);
        watcher.join().expect("counters only grow");
    });
    for load in loads {
        let output = load.wait_with_output().expect("wrk ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("requests in"), "{mode}: {text}");
        // wrk tells of what went wrong, and only then.
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{mode}: {text}");
    }
    let status = proxy.status();
    // Steering found somebody all the time.
    assert_eq!(outcome(&proxy, "down"), 0, "{mode}: {:?}", status.steering.outcomes);
    for name in ["responses_4xx", "responses_5xx", "aborts_backend", "drain_cut"] {
        assert_eq!(status.total.value(name), 0, "{mode}: {name}");
    }
    let serving = status.workers.iter().filter(|worker| {
        worker.state == WorkerState::Running && worker.restarts == 0 && worker.draining.is_none()
    });
    assert_eq!(serving.count(), 2, "{:?}", status.workers);
    assert!(proxy.worker_pids().iter().all(|pid| !before.contains(pid)));
    drop(events);
    proxy.stop();
}
