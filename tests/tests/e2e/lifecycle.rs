//! Start, drain and stop.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::proxy::{Setup, executable};
use underpass_tests::{Backend, GET, OK, Peer, Proxy, until};

#[test]
fn a_proxy_that_has_done_nothing_stops_cleanly() {
    let backend = Backend::answering(OK);
    Proxy::to(&[backend.address()]).stop();
    backend.expect_untouched();
}

#[test]
fn several_workers_serve_one_listener() {
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()]).with(|state| state.settings.workers = 4).start();
    assert_eq!(proxy.worker_pids().len(), 4);
    let mut clients: Vec<Peer> = (0..64).map(|_| Peer::connect(proxy.address())).collect();
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.response().text(), "ok");
    }
    drop(clients);
    let status = proxy.status();
    let accepted: Vec<u64> =
        status.workers.iter().map(|worker| worker.counters.value("connections_accepted")).collect();
    assert_eq!(accepted.iter().sum::<u64>(), 64, "{accepted:?}");
    // The kernel's hash gives one of four workers none of 64 connections once in 25 million runs.
    assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
    proxy.stop();
}

#[test]
fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (backend, permit) = Backend::holding(OK);
        let mut proxy = Proxy::to(&[backend.address()]);
        let mut busy = Peer::connect(proxy.address());
        busy.send(GET);
        until("the request arrives", || (!backend.requests().is_empty()).then_some(()));
        let mut idle = Peer::connect(proxy.address());
        until("both are accepted", || (proxy.counter("connections_active") == 2).then_some(()));
        proxy.signal(signal);
        // A connection without a request has nothing to finish.
        idle.expect_end();
        permit.send(()).expect("the backend lives");
        let response = busy.response();
        assert_eq!((response.text(), response.value("Connection")), ("ok", Some("close")));
        busy.expect_end();
        let status = proxy.wait();
        assert!(status.success(), "{signal}: {status}\n{}", proxy.log());
    }
}

#[test]
fn what_is_still_under_way_at_the_end_of_the_drain_is_cut() {
    let (backend, _permit) = Backend::holding(OK);
    let mut proxy =
        Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.drain_ms = 300).start();
    let mut busy = Peer::connect(proxy.address());
    busy.send(GET);
    until("the request arrives", || (!backend.requests().is_empty()).then_some(()));
    proxy.signal(Signal::SIGTERM);
    // Whether it is told by a status or not.
    let _ = busy.try_rest();
    let status = proxy.wait();
    assert!(status.success(), "{status}\n{}", proxy.log());
}

#[test]
fn a_second_signal_ends_the_proxy_at_once() {
    let (backend, _permit) = Backend::holding(OK);
    let mut proxy =
        Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.drain_ms = 600_000).start();
    let mut busy = Peer::connect(proxy.address());
    busy.send(GET);
    until("the request arrives", || (!backend.requests().is_empty()).then_some(()));
    proxy.signal(Signal::SIGTERM);
    until("it drains", || proxy.client().status().map_or(true, |status| status.draining).then_some(()));
    proxy.signal(Signal::SIGTERM);
    proxy.wait();
    let _ = busy.try_rest();
}

fn underpass(arguments: &[&str]) -> Output {
    Command::new(executable()).args(arguments).output().expect("the executable can be started")
}

#[test]
fn an_address_in_use_is_named_with_its_listener() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("the address of a bound socket");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("underpass.toml");
    let mut setup = Setup::to(&[address]).with(|state| state.listeners[0].address = address);
    setup.state.settings.admin_socket = folder.path().join("admin.sock");
    std::fs::write(&config, underpass::config::to_toml(&setup.state)).expect("writing the configuration");
    let output = underpass(&["start", "--config", &config.display().to_string()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("web") && text.contains(&address.to_string()), "{text}");
}

#[test]
fn a_configuration_with_a_mistake_is_refused_with_its_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("underpass.toml");
    let path = config.display().to_string();
    std::fs::write(&config, "workers = 1\nworkerz = 2\n").expect("writing the configuration");
    for arguments in [["check", path.as_str()].as_slice(), &["start", "--config", path.as_str()]] {
        let output = underpass(arguments);
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{arguments:?}: {text}");
        assert!(text.contains("underpass.toml:2") || text.contains("line 2"), "{arguments:?}: {text}");
        assert!(text.contains("workerz"), "{arguments:?}: {text}");
    }
}

#[test]
fn the_admin_socket_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let mode = std::fs::metadata(proxy.client().socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    proxy.stop();
}

#[test]
fn the_commands_talk_to_the_running_proxy() {
    let backend = Backend::answering(OK);
    let proxy = Proxy::to(&[backend.address()]);
    let socket = proxy.client().socket().display().to_string();
    let run = |arguments: &[&str]| {
        let output = underpass(&[arguments, &["--socket", &socket]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert!(run(&["status"]).contains(&proxy.address().to_string()));
    run(&["redirect", "set", "splice"]);
    assert!(run(&["redirect", "get"]).contains("splice"));
    run(&["redirect", "set", "copy"]);
    assert!(run(&["redirect", "get"]).contains("copy"));
    assert!(run(&["steering", "get"]).contains("off"));
    // Another process of the same kind does not disturb this one.
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    client.expect_silence(Duration::from_millis(50));
    drop(client);
    proxy.stop();
}

#[test]
fn the_demo_serves_and_ends_cleanly() {
    let port = underpass_tests::ports::ReservedPort::new();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = std::fs::File::create(folder.path().join("log")).expect("a log file");
    let mut demo = Command::new(executable())
        .args(["demo", "--workers", "1", "--listen", &port.address().to_string()])
        .stdout(log.try_clone().expect("a second descriptor"))
        .stderr(log)
        .spawn()
        .expect("the executable can be started");
    let text = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    // It says how to try it, and then a line each second.
    until("the demo says where it listens", || {
        text().contains(&format!("curl -i http://{}/", port.address())).then_some(())
    });
    let stream = until("the demo listens", || std::net::TcpStream::connect(port.address()).ok());
    let mut client = Peer::over(stream);
    client.send(GET);
    assert_eq!(client.response().status(), 200);
    drop(client);
    until("a line of numbers", || {
        let text = text();
        let mut lines = text.lines().skip_while(|line| !line.starts_with("requests/s")).skip(1);
        lines
            .next()
            .is_some_and(|line| line.split_whitespace().next().is_some_and(|n| n.parse::<u64>().is_ok()))
            .then_some(())
    });
    underpass_tests::proxy::send_signal(demo.id(), Signal::SIGINT);
    let status = until("the demo ends", || demo.try_wait().expect("waiting for a child"));
    assert!(status.success(), "{status}\n{}", text());
}
