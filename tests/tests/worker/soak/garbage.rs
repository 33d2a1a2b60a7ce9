//! Messages with faults in them, from both sides: nothing is asked but that the worker survives, that no connection outlives
//! its deadline, and that everything is back in its place.

use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use underpass::metrics::Counter;
use underpass_command::state::{RedirectMode, Route, Timeouts};
use underpass_tests::backend::Connection;
use underpass_tests::proxy::Setup;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, OK, Peer};

use super::plan::{Plan, Random};
use super::setting;

/// Bytes that mean something somewhere.
const WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "0\r\n\r\n",
    ":",
    " ",
    "\0",
    ",",
    ";",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: upgrade\r\nUpgrade: echo\r\n",
    "Connection: close\r\n",
    "ffffffffffffffff\r\n",
];

/// Puts a few faults into bytes, or none.
fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len().min(300));
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].bytes())),
            2 => bytes[at] = u8::try_from(random.below(256)).unwrap_or(0),
            3 => drop(bytes.remove(at)),
            _ => {
                let copy = bytes[at..(at + 200).min(bytes.len())].to_vec();
                bytes.extend_from_slice(&copy);
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

fn answer(connection: &mut Connection, seed: u64) {
    let mut random = Random::new(seed);
    let _ = connection.peer.stream().set_read_timeout(Some(std::time::Duration::from_millis(500)));
    // An answer before there is a request, now and then.
    while random.percent(3) || matches!(connection.peer.some(), Ok(some) if !some.is_empty()) {
        let mut bytes = Plan::new(random.below(1 << 30) as u64).response(&mut random);
        spoil(&mut bytes, &mut random);
        for piece in random.cut(&bytes) {
            if connection.peer.try_send(piece).is_err() {
                return;
            }
        }
        match random.below(10) {
            0 => return,
            1 => return connection.peer.reset_on_close(),
            2 => drop(connection.peer.stream().shutdown(Shutdown::Write)),
            _ => {}
        }
    }
}

fn ask(worker: &Worker, seed: u64) {
    let mut random = Random::new(seed);
    let mut peer = Peer::connect(worker.address());
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(3) {
        bytes.extend_from_slice(&Plan::new(random.below(1 << 30) as u64).request(&mut random));
    }
    spoil(&mut bytes, &mut random);
    for piece in random.cut(&bytes) {
        if peer.try_send(piece).is_err() {
            break;
        }
    }
    match random.below(4) {
        0 => return,
        1 => return peer.reset(),
        2 => drop(peer.stream().shutdown(Shutdown::Write)),
        _ => {}
    }
    // Ends when the worker ends it, which is what is to be shown.
    if let Err(error) = peer.try_rest() {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "seed {seed:#x}");
    }
}

#[test]
fn garbage() {
    for (number, mode) in [RedirectMode::Copy, RedirectMode::Splice].into_iter().enumerate() {
        let seeds = AtomicU64::new(setting("UNDERPASS_SOAK_SEED", 0) + ((number as u64) << 32));
        let seeds = std::sync::Arc::new(seeds);
        let backend = Backend::start({
            let seeds = std::sync::Arc::clone(&seeds);
            move |connection| answer(connection, seeds.fetch_add(1, Ordering::SeqCst))
        });
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode).with(|state| {
            let mut route = Route::new("app");
            route.allow_connect = true;
            state.routes.push(route);
            let short = 100;
            state.settings.timeouts = Timeouts {
                head_ms: short,
                body_idle_ms: short,
                connect_ms: short,
                response_ms: short,
                keep_alive_ms: short,
                backend_keep_alive_ms: short,
                tunnel_idle_ms: short,
                linger_ms: short,
                ..Timeouts::default()
            };
            let limits = &mut state.settings.limits;
            (limits.buffer_size, limits.head_size_max, limits.target_size_max) = (4096, 4096, 2048);
            (limits.pipes, limits.pipe_size) = (3, 16 * 1024);
        }));
        thread::scope(|scope| {
            for client in 0..16 {
                let worker = &worker;
                let connections = setting("UNDERPASS_SOAK_CONNECTIONS", 30);
                let seed = (setting("UNDERPASS_SOAK_SEED", 0) << 24 | client << 16) + ((number as u64) << 48);
                scope.spawn(move || (0..connections).for_each(|round| ask(worker, seed + round)));
            }
        });
        worker.until(Counter::ClientsActive, 0);
        drop(backend);
        worker.stop();
    }
}

/// After all that, a worker serves as before.
#[test]
fn a_worker_serves_on_after_garbage() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    for word in WORDS {
        let mut peer = Peer::connect(worker.address());
        peer.send(word);
        peer.reset();
    }
    let mut client = Peer::connect(worker.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    drop(client);
    worker.stop();
}
