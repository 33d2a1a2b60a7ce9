//! A client that stops reading in the middle of a large download: what is under way stays bounded, with the system's own
//! settings for sockets, and when it reads on, every byte is there.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use underpass_command::state::RedirectMode;
use underpass_tests::body::Content;
use underpass_tests::message::Framing;
use underpass_tests::{Backend, GET, Peer, until};

use crate::rig::{Rig, each_mode};
use crate::wire::{Line, Pace};

const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 2048 * MIB;
const SEED: u64 = 0x57a1_1ed0;
/// What the client reads before it stops, each time.
const PARTS: [u64; 2] = [MIB / 16, 100 * MIB];
/// What it reads at last.
const REST: u64 = 100 * MIB;
/// The default of `limits.redirect_credit`.
const CREDIT: u64 = MIB;
/// How much more than at rest may be held for a client that does not read.
const GROWTH_MAX: u64 = 4 * CREDIT;
/// Buffers of the sockets that are not the proxy's, asked for; the kernel takes twice as much.
const PEERS: usize = 64 * 1024;

/// Sends the content, as much of it as is taken; counts the bytes.
fn generating(sent: Arc<AtomicU64>) -> Backend {
    Backend::start(move |connection| {
        let Some(_) = connection.request() else { return };
        SockRef::from(connection.peer.stream()).set_send_buffer_size(PEERS).expect("SO_SNDBUF");
        connection.peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        let mut content = Content::new(SEED, SIZE);
        let mut block = vec![0; 64 * 1024];
        while std::io::Read::read(&mut content, &mut block).is_ok_and(|count| count > 0) {
            if connection.peer.try_send(&block).is_err() {
                return;
            }
            sent.fetch_add(block.len() as u64, Relaxed);
        }
    })
}

/// Proportional set size of a process in bytes: Documentation/filesystems/proc.rst, `smaps_rollup`.
fn memory_of(pid: u32) -> u64 {
    let rollup =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("root or the owner may read it");
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Pss");
    pss.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
}

/// A client whose own socket holds little.
fn client(address: SocketAddr) -> Peer {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(PEERS).expect("SO_RCVBUF");
    socket.connect(&address.into()).expect("the proxy listens");
    Peer::over(socket.into())
}

/// Bytes queued in sockets, and the memory that sockets take for it.
#[derive(Clone, Copy, Default)]
struct Sockets {
    queued: u64,
    memory: u64,
}

/// What the sockets of all connections with one of these ports hold: ss(8), `skmem`.
fn held_by_sockets(ports: [u16; 2]) -> Sockets {
    let filter = format!("sport = :{0} or dport = :{0} or sport = :{1} or dport = :{1}", ports[0], ports[1]);
    let output = Command::new("ss").args(["-tmnHO", "state", "established", &filter]).output();
    let output = output.expect("ss of the Debian package iproute2 runs");
    assert!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.lines().count() >= 4, "two ends of two connections:\n{text}");
    let mut sum = Sockets::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a queue's length");
        sum.queued += number() + number();
        let memory = line.split_once("skmem:(").and_then(|(_, rest)| rest.split_once(')')).expect("skmem").0;
        let figures =
            memory.split(',').filter(|figure| figure.starts_with(['r', 'w']) && !figure.starts_with("rb"));
        sum.memory += figures.map(|figure| figure[1..].parse::<u64>().expect("bytes")).sum::<u64>();
    }
    sum
}

/// Waits until a count stands still for a second.
fn until_still(count: &AtomicU64) -> u64 {
    let mut last = (count.load(Relaxed), Instant::now());
    until("the backend is held up", || {
        let now = count.load(Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(now)
    })
}

/// Memory that holds what is under way: in pages of the worker, in sockets, and in pipes and queues between them.
fn stall(mode: RedirectMode) {
    let sent = Arc::new(AtomicU64::new(0));
    let backend = generating(Arc::clone(&sent));
    let port = backend.address().port();
    let rig = Rig::over(mode, vec![backend], |setup| {
        setup.with(|state| state.settings.limits.backend_receive_size = 256 * 1024)
    });
    let pid = rig.proxy.worker_pids()[0];
    let before = memory_of(pid);
    let mut peer = client(rig.proxy.address());
    peer.send(GET);
    let mut line = Line::new(peer.stream(), SEED, Pace::Fast);
    let head = line.head().expect("a response").expect("a response");
    assert_eq!(head.response_framing("GET").expect("framing"), Framing::Length(SIZE));
    let mut body = line.begin_body(SEED, SIZE);
    for part in PARTS {
        line.take(part, &mut body).expect("a part of the body");
        let under_way = until_still(&sent) - line.received();
        let worker = memory_of(pid).saturating_sub(before);
        let sockets = held_by_sockets([rig.proxy.address().port(), port]);
        let between = under_way.saturating_sub(sockets.queued);
        let grown = worker + sockets.memory + between;
        eprintln!(
            "{mode}, after {part} bytes: grown by {grown} bytes: worker {worker}, sockets {}, between {between}; {}",
            sockets.memory,
            rig.moved()
        );
        assert!(grown < GROWTH_MAX, "{mode}: {grown} bytes are held for a client that does not read");
    }
    line.take(REST, &mut body).expect("the rest");
    drop(line);
    drop(peer);
    rig.finish();
}

#[test]
fn a_client_that_does_not_read_costs_less_than_four_credits() {
    let _alone = crate::alone();
    each_mode(stall);
}
