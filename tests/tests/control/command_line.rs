//! What the executable prints, and its exit status.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_command::Client;
use underpass_command::state::{Backend as BackendState, Cluster, Listener, State, SteeringPolicy};
use underpass_tests::proxy::{Setup, executable, send_signal};
use underpass_tests::{Backend, PATIENCE, Proxy, until};

use crate::{HELLO, text, underpass};

/// A configuration for one worker, at this admin socket, in front of this backend.
fn state(socket: &Path, listen: SocketAddr, backend: SocketAddr) -> State {
    let mut state = State::default();
    state.settings.workers = 1;
    state.settings.steering = SteeringPolicy::Off;
    state.settings.limits.connections = 64;
    state.settings.admin_socket = socket.to_owned();
    let mut listener = Listener::new("web", listen);
    listener.default_cluster = Some("app".into());
    state.listeners.push(listener);
    let mut cluster = Cluster::new("app");
    cluster.backends.push(BackendState::new(backend));
    state.clusters.push(cluster);
    state
}

/// A backend of a proxy that is not to start.
fn no_backend() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 9))
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn write_config(socket: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
    let path = socket.with_file_name("underpass.toml");
    fs::write(&path, underpass::config::to_toml(&state(socket, listen, backend))).expect("written");
    path.display().to_string()
}

/// Runs a proxy at this admin socket, without the checks that [`Proxy`] makes.
pub(crate) fn run_until_ready(socket: &Path, backend: SocketAddr, look: impl FnOnce(&mut Child)) {
    let config = write_config(socket, any_port(), backend);
    let mut command = Command::new(executable());
    let mut child = command
        .args(["start", "--config", &config])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    until("it answers", || {
        assert!(child.try_wait().expect("a child").is_none(), "it ended");
        Client::new(socket).status().ok()
    });
    look(&mut child);
    send_signal(child.id(), Signal::SIGTERM);
    let status = until("it ends", || child.try_wait().expect("a child"));
    assert!(status.success(), "{status}");
}

#[test]
fn systemd_is_told_of_start_and_end() {
    let backend = Backend::answering(HELLO);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let notify = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
    notify.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let next = || {
        let mut buffer = [0; 256];
        let length = notify.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let config = write_config(&folder.path().join("admin.sock"), any_port(), backend.address());
    let mut child = Command::new(executable())
        .args(["start", "--config", &config])
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    assert_eq!(next(), "READY=1");
    send_signal(child.id(), Signal::SIGTERM);
    assert_eq!(next(), "STOPPING=1");
    assert!(until("it ends", || child.try_wait().expect("a child")).success());
}

#[test]
fn a_second_proxy_at_the_same_socket_is_refused() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let config = proxy.folder().join("underpass.toml").display().to_string();
    let second = underpass(&["start", "--config", &config]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    let expected = format!("a proxy with process id {} listens there", proxy.pid());
    assert!(text(&second).contains(&expected), "{}", text(&second));
    assert_eq!(proxy.status().pid, proxy.pid());
    proxy.stop();
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind(any_port()).expect("a free port");
    let address = taken.local_addr().expect("bound");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = write_config(&folder.path().join("admin.sock"), address, no_backend());
    let output = underpass(&["start", "--config", &config]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let expected = format!("listener \"web\": address {address}: in use by another program");
    assert!(text(&output).contains(&expected), "{}", text(&output));
    assert!(!folder.path().join("admin.sock").exists(), "a proxy that did not start leaves no socket");
}

#[test]
fn a_path_that_is_no_socket_is_not_removed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("admin.sock");
    fs::write(&path, "precious").expect("written");
    let output = underpass(&["start", "--config", &write_config(&path, any_port(), no_backend())]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no socket"), "{}", text(&output));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_wrong_configuration_is_a_usage_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("bad.toml");
    fs::write(&path, "workers = 1\nworkrs = 2\n").expect("written");
    let path = path.display().to_string();
    for words in [&["start", "--config", &path][..], &["check", &path]] {
        let output = underpass(words);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(
            text(&output).contains("bad.toml:2:") && text(&output).contains("workrs"),
            "{}",
            text(&output)
        );
    }
    let missing = underpass(&["start", "--config", "/nonexistent/underpass.toml"]);
    assert_eq!(missing.status.code(), Some(2), "{}", text(&missing));
    assert!(text(&missing).contains("/nonexistent/underpass.toml"), "{}", text(&missing));
}

#[test]
fn an_unknown_user_is_refused_at_start() {
    if !underpass_tests::is_root() {
        return underpass_tests::skip("only root switches the user of workers");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut state = state(&folder.path().join("admin.sock"), any_port(), no_backend());
    state.settings.user = "no-such-user-here".into();
    let config = folder.path().join("underpass.toml");
    fs::write(&config, underpass::config::to_toml(&state)).expect("written");
    let output = underpass(&["start", "--config", &config.display().to_string()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no user \"no-such-user-here\""), "{}", text(&output));
}

#[test]
fn usage_errors_have_status_two() {
    for words in [
        &["strat"][..],
        &["start"],
        &["check"],
        &["redirect", "set", "fast"],
        &["redirect", "set", "inherit"],
    ] {
        let output = underpass(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output));
    }
    let version = underpass(&["--version"]);
    assert!(version.status.success());
    assert_eq!(text(&version), format!("underpass {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_key_is_explained() {
    let output = underpass(&["check", "--explain"]);
    assert!(output.status.success());
    assert!(text(&output).contains("redirect = \"auto\""), "{}", text(&output));
}

#[test]
fn commands_speak_to_the_proxy() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("there is no cluster").start();
    let socket = proxy.client().socket().display().to_string();
    let run = |words: &[&str]| underpass(&[words, &["--socket", &socket]].concat());
    let status = text(&run(&["status"]));
    assert!(status.contains(&proxy.address().to_string()) && status.contains("running"), "{status}");
    let json: Value = serde_json::from_str(&text(&run(&["status", "--json"]))).expect("JSON");
    assert_eq!(json["pid"], proxy.pid());
    assert!(text(&run(&["redirect", "set", "splice"])).contains("redirect  splice"));
    assert!(text(&run(&["redirect", "set", "copy", "--cluster", "app"])).contains("cluster app: copy"));
    assert!(text(&run(&["redirect", "get"])).contains("redirect  splice"));
    assert!(
        text(&run(&["redirect", "set", "inherit", "--cluster", "app"])).contains("cluster app: inherited")
    );
    assert!(text(&run(&["steering", "get"])).contains("steering  off"));
    let refused = run(&["redirect", "set", "copy", "--cluster", "none"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused).contains("there is no cluster \"none\"; use one of: \"app\""),
        "{}",
        text(&refused)
    );
    proxy.stop();
    let gone = underpass(&["status", "--socket", &socket]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone).contains("is the proxy running?"), "{}", text(&gone));
}

#[test]
fn nic_names_the_workers_and_the_interfaces_there_are() {
    let loopback = underpass(&["nic", "lo"]);
    assert!(loopback.status.success(), "{}", text(&loopback));
    assert!(text(&loopback).contains("lo (index 1"), "{}", text(&loopback));
    let unknown = underpass(&["nic", "no-such-interface"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("there are: ") && text(&unknown).contains("lo"), "{}", text(&unknown));
}

#[test]
fn the_demo_serves_its_own_load_and_ends() {
    let output = underpass(&["demo", "--listen", "127.0.0.1:0", "--workers", "2", "--seconds", "2"]);
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("listening    http://127.0.0.1:"), "{printed}");
    assert!(printed.contains("Ended cleanly"), "{printed}");
    assert!(!printed.contains("last problem"), "{printed}");
    let summary = printed.lines().find(|line| line.contains(" requests on ")).expect("a summary");
    assert!(!summary.starts_with("0 "), "{printed}");
}

#[test]
fn the_demo_says_what_to_do_when_its_port_is_taken() {
    let taken = TcpListener::bind(any_port()).expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let output = underpass(&["demo", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("--listen 127.0.0.1:0"), "{}", text(&output));
}
