//! One version of an application is replaced by another under load, and no request fails.

use std::process::{Command, Stdio};

use underpass_command::api::{ChangeRequest, EventKind};
use underpass_command::live::Operation;
use underpass_command::state::{Backend as Configured, RedirectMode};
use underpass_tests::body::Content;
use underpass_tests::nginx::Nginx;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Proxy, is_root, until};

/// Large enough for each mode to have something to move.
const SIZE: u64 = 96 * 1024;

fn change(proxy: &Proxy, operation: Operation) {
    let request = ChangeRequest { operations: vec![operation], ..ChangeRequest::default() };
    proxy.client().change(&request).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn no_request_fails_when_green_takes_the_place_of_blue() {
    for mode in MODES {
        if mode == RedirectMode::Sockmap && !is_root() {
            continue; // it needs BPF, and is tested where there is
        }
        replace(mode);
    }
}

fn replace(mode: RedirectMode) {
    let files = [("body", Content::new(1, SIZE))];
    let blue = Nginx::start(&files);
    let green = Nginx::start(&files);
    let (blue_address, green_address) = (blue.address(), green.address());
    let setup = Setup::to(&[blue_address]).redirect(mode).with(|state| {
        state.settings.workers = 2;
        state.settings.sockmap_size_min = 1;
    });
    let proxy = setup.start();
    let mut events = proxy.client().events(None).unwrap_or_else(|error| panic!("{error}"));
    let url = format!("http://{}/length/body", proxy.address());
    let load = Command::new("wrk")
        .args(["--connections", "64", "--threads", "2", "--duration", "4s", "--timeout", "10s", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("wrk is installed: `cargo xtask test` does");
    proxy.until_counter("requests", 500);
    change(&proxy, Operation::AddBackend { cluster: "app".into(), backend: Configured::new(green_address) });
    let draining = Configured { drain: true, ..Configured::new(blue_address) };
    change(&proxy, Operation::ChangeBackend { cluster: "app".into(), backend: draining });
    let drained = events.find(|event| {
        let event = event.as_ref().unwrap_or_else(|error| panic!("{error}"));
        matches!(&event.kind, EventKind::BackendDrained { backend, .. } if *backend == blue_address)
    });
    assert!(drained.is_some(), "the stream of events has ended");
    drop(blue);
    let before = proxy.counter("requests");
    until("requests go on without blue", || (proxy.counter("requests") > before + 500).then_some(()));
    change(&proxy, Operation::RemoveBackend { cluster: "app".into(), address: blue_address });
    let output = load.wait_with_output().expect("wrk ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("requests in"), "{mode}: {text}");
    // wrk tells of what went wrong, and only then.
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{mode}: {text}");
    let status = proxy.status();
    let failed: u64 = ["responses_4xx", "responses_5xx", "aborts_backend"]
        .iter()
        .map(|name| status.total.value(name))
        .sum();
    assert_eq!(failed, 0, "{mode}: {:?}", status.total.values);
    drop(events);
    proxy.stop();
}
