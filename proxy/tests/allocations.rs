//! A worker's steady state allocates nothing: every allocation of its thread is counted while keep-alive requests pass.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use underpass::ipc::{Channel, ToWorker};
use underpass::metrics::{Block, Counter};
use underpass::worker::{Confinement, Ended, serve};
use underpass_command::state::{Backend, Cluster, Limits, Listener, RedirectMode, Settings};

/// Counts what threads that asked for it allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract of GlobalAlloc.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEADLINE: Duration = Duration::from_secs(20);

/// A backend that answers every request with a body of `size` bytes, on any number of connections.
fn backend(size: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
            response.resize(response.len() + size, b'x');
            thread::spawn(
                move || while read_head(&mut stream).is_some() && stream.write_all(&response).is_ok() {},
            );
        }
    });
    address
}

/// Reads up to the end of a head; returns what came behind it.
fn read_head(stream: &mut TcpStream) -> Option<usize> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            return Some(bytes.len() - end - 4);
        }
        match stream.read(&mut chunk) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

fn request(stream: &mut TcpStream, size: usize) {
    stream
        .write_all(b"GET /some/path?query HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n")
        .expect("send");
    let mut left = size - read_head(stream).expect("head");
    let mut chunk = vec![0; 64 * 1024];
    while left > 0 {
        let n = stream.read(&mut chunk[..left.min(64 * 1024)]).expect("body");
        assert!(n > 0, "{left} bytes missing");
        left -= n;
    }
}

/// Runs a worker on a thread that is counted, and hands its address and metrics to `test`.
fn with_worker(mode: RedirectMode, backend: SocketAddr, test: impl FnOnce(SocketAddr, &Block)) {
    let (ours, theirs) = Channel::pair().expect("channel");
    let block = Block::create().expect("metrics");
    let settings = Settings {
        redirect: mode,
        limits: Limits { connections: 64, pipes: 4, ..Limits::default() },
        ..Settings::default()
    };
    let hello = ToWorker::Hello {
        index: 0,
        cpu: None,
        generation: 1,
        access_log: false,
        steering: false,
        seed: 1,
        settings: Box::new(settings),
    };
    let socket = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = socket.local_addr().expect("address");
    let mut listener = Listener::new("web", address);
    listener.default_cluster = Some("app".into());
    let cluster = Cluster::new("app");
    ours.send(&hello, &[block.fd()]).expect("hello");
    ours.send(&ToWorker::AddCluster(cluster), &[]).expect("cluster");
    let backend = Backend { address: backend };
    ours.send(&ToWorker::AddBackend { cluster: "app".into(), backend }, &[]).expect("backend");
    ours.send(&ToWorker::AddListener(listener), &[socket.as_fd()]).expect("listener");
    ours.send(&ToWorker::Run, &[]).expect("run");
    let worker = thread::spawn(move || {
        COUNTED.set(true);
        let ended = serve(theirs, Confinement::None).expect("worker");
        COUNTED.set(false);
        ended
    });
    test(address, &block);
    ours.send(&ToWorker::Drain { deadline_ms: 10_000 }, &[]).expect("drain");
    assert_eq!(worker.join().expect("worker thread"), Ended::Drained);
    for gauge in [Counter::ClientsActive, Counter::RequestsActive, Counter::BuffersUsed, Counter::PipesUsed] {
        assert_eq!(block.get(gauge), 0, "{}", gauge.name());
    }
}

/// Both modes in one test: the count is the process's, so nothing else may run beside it.
#[test]
fn a_keep_alive_request_allocates_nothing() {
    for (mode, size) in [
        (RedirectMode::Copy, 0),
        (RedirectMode::Copy, 1024),
        (RedirectMode::Copy, 300_000),
        (RedirectMode::Splice, 300_000),
        (RedirectMode::Auto, 1_000_000),
    ] {
        with_worker(mode, backend(size), |address, block| {
            let mut clients: Vec<TcpStream> = (0..4)
                .map(|_| {
                    let stream = TcpStream::connect(address).expect("connect");
                    stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
                    stream
                })
                .collect();
            let round =
                |clients: &mut Vec<TcpStream>| clients.iter_mut().for_each(|client| request(client, size));
            // The first requests open the connections to the backend.
            (0..5).for_each(|_| round(&mut clients));
            let before = ALLOCATIONS.load(SeqCst);
            (0..50).for_each(|_| round(&mut clients));
            assert_eq!(ALLOCATIONS.load(SeqCst) - before, 0, "{mode} of {size} bytes");
            assert_eq!(block.get(Counter::Retries), 0);
            let spliced = block.get(Counter::BytesSpliced);
            assert_eq!(spliced > 0, mode != RedirectMode::Copy, "{mode} spliced {spliced} bytes");
        });
    }
    assert!(ALLOCATIONS.load(SeqCst) > 0, "the count counts: a worker's start allocates");
}
