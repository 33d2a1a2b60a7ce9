//! `underpass lab` on a running proxy in front of a real server.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_command::state::RedirectMode;
use underpass_tests::body::Content;
use underpass_tests::nginx::Nginx;
use underpass_tests::proxy::{Setup, executable, send_signal};
use underpass_tests::{Proxy, until};

use crate::{text, underpass};

const SIZE: u64 = 100_000;

fn proxy_of(nginx: &Nginx) -> Proxy {
    Setup::to(&[nginx.address()]).redirect(RedirectMode::Copy).start()
}

fn nginx() -> Nginx {
    Nginx::start(&[("file", Content::new(1, SIZE))])
}

/// The report, and that its page is there.
fn report(folder: &Path) -> Value {
    assert!(fs::read_to_string(folder.join("lab.html")).expect("a page").contains("</html>"));
    serde_json::from_slice(&fs::read(folder.join("lab.json")).expect("a report")).expect("JSON")
}

/// One small step for each mode, which no machine is too slow for.
const SMALL: &[&str] = &[
    "--rate=200",
    "--rate-max=200",
    "--steps=1",
    "--rounds=1",
    "--seconds=0.2",
    "--timeout=20",
    "--p99-max=60000",
    "--connections=4",
];

#[test]
fn modes_are_compared_on_a_running_proxy_and_its_own_is_put_back() {
    let nginx = nginx();
    let proxy = proxy_of(&nginx);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("http://{}/length/file", proxy.address());
    let socket = proxy.client().socket().display().to_string();
    let out = folder.path().display().to_string();
    let words = [&["lab", &url, "--admin", &socket, "--out", &out], SMALL].concat();
    let output = underpass(&words);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("This makes load"), "{}", text(&output));

    let report = report(folder.path());
    let cell = &report["cells"][0];
    assert_eq!(cell["workload"]["size"], SIZE);
    let refused = report["refused"].as_object().expect("an object");
    for mode in RedirectMode::ALL {
        let series = cell["series"].as_array().expect("an array");
        let Some(series) = series.iter().find(|series| series["contender"] == mode.name()) else {
            assert!(refused.contains_key(mode.name()), "{mode} is neither measured nor refused");
            continue;
        };
        let steps = [&series["climb"]["steps"][0], &series["rounds"][0]["step"]];
        for step in steps {
            assert!(step["due"].as_u64() > Some(0) && step["completed"] == step["due"], "{mode}: {step}");
            assert!(step["processes"][0]["pid"] == proxy.worker_pids()[0], "{mode}: {step}");
        }
    }
    for mode in ["copy", "splice", "auto"] {
        assert!(!refused.contains_key(mode), "{mode}: {refused:?}");
    }
    // Each mode was really there while it was measured.
    assert!(proxy.counter("bodies_copied") > 0 && proxy.counter("bodies_spliced") > 0);
    assert_eq!(proxy.client().redirect().expect("an answer").process, RedirectMode::Copy);
    proxy.stop();
}

#[test]
fn an_interrupted_lab_puts_the_mode_back() {
    let nginx = nginx();
    let proxy = proxy_of(&nginx);
    let mut child = Command::new(executable())
        .args(["lab", &format!("http://{}/length/file", proxy.address()), "--modes=splice", "--seconds=600"])
        .arg("--admin")
        .arg(proxy.client().socket())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mode = || proxy.client().redirect().expect("an answer").process;
    until("the mode is switched", || (mode() == RedirectMode::Splice).then_some(()));
    send_signal(child.id(), Signal::SIGINT);
    let status = until("the lab ends", || child.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(1));
    assert_eq!(mode(), RedirectMode::Copy);
    let complaint = io::read_to_string(child.stderr.take().expect("a pipe")).expect("text");
    assert!(complaint.contains("underpass: interrupted"), "{complaint}");
    proxy.stop();
}

#[test]
fn a_url_and_a_tunnel_are_loaded_without_a_proxy() {
    let nginx = nginx();
    let echo = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = echo.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for mut stream in echo.incoming().flatten() {
            thread::spawn(move || io::copy(&mut stream.try_clone()?, &mut stream));
        }
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("http://{}/chunked/file", nginx.address());
    let out = folder.path().display().to_string();
    let output = underpass(&[&["lab", &url, "--tunnel", &address, "--out", &out], SMALL].concat());
    assert!(output.status.success(), "{}", text(&output));
    let report = report(folder.path());
    let done = |cell: usize| report["cells"][cell]["series"][0]["climb"]["steps"][0]["completed"].as_u64();
    assert!(done(0) > Some(0) && done(1) > Some(0), "{}", report["cells"]);
    assert_eq!(report["cells"][0]["workload"]["size"], SIZE);
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let output = underpass(&["lab", &format!("http://{address}/")]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&format!("underpass: {address}: cannot connect")), "{}", text(&output));
    let output = underpass(&["lab", "https://example.test/"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("TLS is not spoken here"), "{}", text(&output));
}
