//! Many peers that behave badly at once, by a seed: what arrives whole is right, nothing leaks, nothing hangs.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use underpass_command::state::RedirectMode;
use underpass_tests::body::Content;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, Peer, Proxy, is_root, until};

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    /// One of `0..sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64 (Marsaglia, 2003)
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.roll(100) < chance
    }
}

/// Sends what the target asks for, or part of it; `/SEED/SIZE`, chunked if the seed is odd.
fn backend() -> Backend {
    Backend::start(|connection| {
        let mut dice = Dice(0x5eed + connection.number as u64);
        while let Ok(Some(request)) = connection.peer.try_request() {
            let mut parts =
                request.target().split('/').skip(1).map(|part| part.parse::<u64>().expect("a number"));
            let (seed, size) = (parts.next().expect("a seed"), parts.next().expect("a size"));
            let body = Content::new(seed, size).to_vec();
            let mut response = Vec::new();
            if seed % 2 == 1 {
                response.extend(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(30_000) {
                    response.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    response.extend(chunk);
                    response.extend(b"\r\n");
                }
                response.extend(b"0\r\n\r\n");
            } else {
                response.extend(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes());
                response.extend(&body);
            }
            if dice.percent(10) {
                let part = dice.roll(response.len() as u64);
                response.truncate(usize::try_from(part).expect("a small number"));
            }
            let whole = response.len();
            let sent = connection.peer.try_send(&response);
            if sent.is_err() || response.len() < whole || dice.percent(10) {
                if dice.percent(50) {
                    connection.peer.reset_on_close();
                }
                return;
            }
        }
    })
}

/// One client's life: requests, some of them with a body, some abandoned in the middle.
fn client(proxy: &Proxy, seed: u64) {
    let mut dice = Dice(seed);
    for _ in 0..12 {
        let mut peer = Peer::connect(proxy.address());
        while !dice.percent(15) {
            let (content, size) = (dice.roll(1000), dice.roll(400_000));
            let upload = if dice.percent(40) { dice.roll(300_000) } else { 0 };
            let head =
                format!("PUT /{content}/{size} HTTP/1.1\r\nHost: a\r\nContent-Length: {upload}\r\n\r\n");
            let mut request = head.into_bytes();
            request.resize(request.len() + usize::try_from(upload).expect("a small number"), b'u');
            if dice.percent(8) {
                let part = dice.roll(request.len() as u64);
                // It may have been ended meanwhile by the other side.
                let _ = peer.try_send(&request[..usize::try_from(part).expect("a small number")]);
                break;
            }
            if peer.try_send(&request).is_err() {
                break;
            }
            if dice.percent(8) {
                let part = dice.roll(size + 1);
                let _ = peer.try_bytes(usize::try_from(part).expect("a small number"));
                break;
            }
            match peer.try_response_to("PUT") {
                Ok(response) if response.status() == 200 => {
                    assert!(
                        response.body == Content::new(content, size).to_vec(),
                        "/{content}/{size} came changed"
                    );
                }
                // The backend went before it had answered, or never sent the rest of its head.
                Ok(response) => assert!(matches!(response.status(), 502 | 504), "/{content}/{size}"),
                Err(error) => {
                    let hung = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(!hung, "/{content}/{size} hangs");
                    break;
                }
            }
        }
        if dice.percent(50) {
            peer.reset();
        }
    }
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

fn chaos(mode: RedirectMode) {
    let backends = [backend(), backend()];
    let addresses = backends.each_ref().map(Backend::address);
    let proxy = Setup::to(&addresses)
        .redirect(mode)
        .with(|state| {
            state.settings.workers = 2;
            state.settings.limits.pipes = 8;
            state.settings.timeouts.body_idle_ms = 5_000;
            // A backend may stop in the middle of a head too.
            state.settings.timeouts.response_ms = 5_000;
        })
        .start();
    let pids = proxy.worker_pids();
    let count = |pids: &[u32]| pids.iter().map(|&pid| descriptors(pid)).sum::<u64>();
    let before = count(&pids);
    thread::scope(|scope| {
        for seed in 1..=24 {
            let proxy = &proxy;
            scope.spawn(move || client(proxy, seed * 0x9e37_79b9));
        }
    });
    proxy.expect_quiet();
    let status = proxy.status();
    assert!(status.total.value("requests") > 500, "{}", status.total.value("requests"));
    assert_eq!(status.workers.iter().map(|worker| worker.restarts).sum::<u64>(), 0);
    assert_eq!(proxy.worker_pids(), pids);
    if is_root() {
        // Others may not look at a process that has dropped its privileges.
        until("all descriptors but those of pools are closed", || {
            let pooled = proxy.counter("backend_connections_open") + 2 * 2 * 8;
            (count(&pids) <= before + pooled).then_some(())
        });
    }
    proxy.stop();
    drop(backends);
}

#[test]
fn bad_peers_by_copy() {
    chaos(RedirectMode::Copy);
}

#[test]
fn bad_peers_by_splice() {
    chaos(RedirectMode::Splice);
}

/// A byte now and then does not extend the time for a head.
#[test]
fn a_head_that_comes_byte_by_byte_is_too_slow() {
    let backend = Backend::answering(underpass_tests::OK);
    let proxy = Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.head_ms = 500).start();
    let mut client = Peer::connect(proxy.address());
    let mut sent = 0;
    let answer = until("the proxy gives up", || {
        // Each silence is the time between two bytes.
        client.set_patience(Duration::from_millis(20));
        match client.some() {
            Ok(answer) => Some(answer),
            Err(_) => {
                sent += 1;
                let byte = if sent == 1 { "G" } else { "E" };
                client.try_send(byte).is_err().then(Vec::new)
            }
        }
    });
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    drop(client);
    assert_eq!(proxy.counter("timeout_head"), 1);
    backend.expect_untouched();
    proxy.stop();
}
