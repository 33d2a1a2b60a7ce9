//! The redirect mode is switched a hundred times under load, and no byte is lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use underpass_command::state::RedirectMode;
use underpass_tests::body::Content;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, Peer, Proxy, until};

/// Large enough that a switch finds bodies under way, small enough that many begin between two switches.
const SIZE: u64 = 3_000_000;

/// A request that sends the body, and gets it back in the form that the path asks for.
fn exchange(client: &mut Peer, body: &[u8], chunked: bool) {
    let mut request = Vec::new();
    if chunked {
        request.extend(b"POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        push_chunks(&mut request, body);
    } else {
        request.extend(
            format!("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes(),
        );
        request.extend(body);
    }
    client.send(&request);
    let response = client.response();
    assert_eq!(response.status(), 200);
    assert!(response.body == body, "the body came back changed");
}

/// Chunks of sizes that buffers and pipes do not divide.
fn push_chunks(out: &mut Vec<u8>, body: &[u8]) {
    for (chunk, size) in body.chunks(70_001).zip((1..).map(|n: usize| n % 3)) {
        let (head, tail) = chunk.split_at(chunk.len() * size / 3);
        for part in [head, tail] {
            if !part.is_empty() {
                out.extend(format!("{:x}\r\n", part.len()).into_bytes());
                out.extend(part);
                out.extend(b"\r\n");
            }
        }
    }
    out.extend(b"0\r\n\r\n");
}

fn echo() -> Backend {
    Backend::start(|connection| {
        while let Some(request) = connection.request_without_copy() {
            let mut response = Vec::new();
            if request.target() == "/chunked" {
                response.extend(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                push_chunks(&mut response, &request.body);
            } else {
                response.extend(
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", request.body.len()).bytes(),
                );
                response.extend(&request.body);
            }
            connection.peer.send(response);
        }
    })
}

fn load(proxy: &Proxy, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let body = Content::new(seed, SIZE).to_vec();
    let mut client = Peer::connect(proxy.address());
    let mut chunked = seed.is_multiple_of(2);
    while !stop.load(Ordering::Relaxed) {
        exchange(&mut client, &body, chunked);
        done.fetch_add(1, Ordering::Relaxed);
        chunked = !chunked;
    }
}

#[test]
fn a_hundred_switches_under_load_lose_no_byte() {
    let _alone = crate::alone();
    let backend = echo();
    let proxy = Setup::to(&[backend.address()]).redirect(RedirectMode::Copy).start();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for seed in 0..6 {
            let (proxy, stop, done) = (&proxy, &stop, &done);
            scope.spawn(move || load(proxy, seed, stop, done));
        }
        for switch in 1..=100 {
            let before = done.load(Ordering::Relaxed);
            proxy.set_redirect(MODES[switch % MODES.len()]);
            // Some bodies begin in each mode.
            until("bodies arrive", || (done.load(Ordering::Relaxed) > before + 1).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let counts = MODES.map(|mode| match mode {
        RedirectMode::Copy => proxy.counter("bodies_copied"),
        RedirectMode::Splice => proxy.counter("bodies_spliced"),
        _ => proxy.counter("bodies_sockmap"),
    });
    assert!(counts.iter().all(|&count| count >= 30), "{counts:?} bodies in {MODES:?}");
    let moved: u64 =
        ["bytes_copied", "bytes_spliced", "bytes_sockmap"].map(|name| proxy.counter(name)).iter().sum();
    // Both directions; chunk framing counts too or not.
    assert!(moved >= 2 * SIZE * done.load(Ordering::Relaxed), "{moved} bytes counted");
    proxy.stop();
}
