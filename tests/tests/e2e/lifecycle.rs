//! Start and stop from the outside; the supervisor's part is tested in control/.

use std::process::Command;

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
