//! A client that stops reading in the middle of a large download: what is under way stays bounded, and when it reads on,
//! every byte is there.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use underpass_command::state::RedirectMode;
use underpass_tests::body::Content;
use underpass_tests::message::Framing;
use underpass_tests::{Backend, GET, Peer, is_root, skip, until};

use crate::network::Network;
use crate::rig::{Rig, each_mode};
use crate::wire::{Line, Pace};

const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 2048 * MIB;
const SEED: u64 = 0x57a1_1ed0;
/// What the client reads before it stops, and when it goes on.
const PARTS: [u64; 2] = [MIB / 16, 200 * MIB];
/// The default of `limits.redirect_credit`.
const CREDIT: u64 = MIB;
/// How much more than at rest may be held for a client that does not read: by the worker, and on the way.
const GROWTH_MAX: u64 = 4 * CREDIT;
/// What the kernel itself gives to sockets for bulk, tens of megabytes, would hide what the proxy adds.
const BUFFERS: &str = "4096 131072 262144";

/// Sends the content, as much of it as is taken; counts the bytes.
fn generating(sent: Arc<AtomicU64>) -> Backend {
    Backend::start(move |connection| {
        let Some(_) = connection.request() else { return };
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

/// Memory of all TCP sockets in bytes: proc(5), `/proc/net/sockstat`, in pages.
fn memory_of_sockets() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").expect("/proc/net/sockstat");
    let line = text.lines().find(|line| line.starts_with("TCP:")).expect("a line about TCP");
    let pages = line.split_whitespace().skip_while(|word| *word != "mem").nth(1).expect("mem");
    pages.parse::<u64>().expect("pages") * 4096
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

fn stall(mode: RedirectMode, network: Option<&Network>) {
    let sent = Arc::new(AtomicU64::new(0));
    let rig = Rig::over(mode, vec![generating(Arc::clone(&sent))], |setup| match network {
        None => setup,
        Some(network) => setup.run_by(&network.prefix()),
    });
    let pid = rig.proxy.worker_pids()[0];
    let mut peer = Peer::connect(rig.proxy.address());
    let before = (memory_of(pid), memory_of_sockets());
    peer.send(GET);
    let mut line = Line::new(peer.stream(), SEED, Pace::Fast);
    let head = line.head().expect("a response").expect("a response");
    assert_eq!(head.response_framing("GET").expect("framing"), Framing::Length(SIZE));
    let mut body = line.begin_body(SEED, SIZE);
    line.take(PARTS[0], &mut body).expect("the first part");
    // What has left the backend and is not at the client lies in sockets, pipes or queues of the kernel, or in the worker.
    let held = until_still(&sent) - line.received();
    let grown = memory_of(pid).saturating_sub(before.0);
    let sockets = memory_of_sockets().saturating_sub(before.1);
    line.take(PARTS[1], &mut body).expect("the second part");
    drop(line);
    drop(peer);
    eprintln!(
        "{mode}, small buffers {}: {held} bytes under way, worker + {grown}, all TCP sockets + {sockets}; {}",
        network.is_some(),
        rig.moved()
    );
    assert!(grown < GROWTH_MAX, "{mode}: the worker has grown by {grown} bytes");
    let most = if network.is_some() { GROWTH_MAX } else { GROWTH_MAX + sockets_max() };
    assert!(held < most, "{mode}: {held} bytes are under way, at most {most} may be");
    rig.finish();
}

/// As much as four sockets may hold: the largest receive buffer and the largest send buffer, twice each.
fn sockets_max() -> u64 {
    let largest = |name: &str| -> u64 {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("tcp(7)");
        text.split_whitespace().nth(2).expect("three sizes").parse().expect("bytes")
    };
    2 * (largest("tcp_rmem") + largest("tcp_wmem"))
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_memory() {
    let _alone = crate::alone();
    each_mode(|mode| stall(mode, None));
}

#[test]
fn a_client_that_does_not_read_costs_less_than_four_credits_beside_its_sockets() {
    let _alone = crate::alone();
    if !is_root() {
        return skip("needs root, to make a network namespace");
    }
    let network = Network::new(BUFFERS).expect("a network namespace");
    each_mode(|mode| {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                network.enter();
                stall(mode, Some(&network));
            });
            inside.join().expect("the test in its namespace");
        });
    });
}
