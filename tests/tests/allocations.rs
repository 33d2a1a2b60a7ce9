//! A worker in its steady state allocates nothing: not per request, not per connection, in neither redirect mode.
//!
//! The worker runs on a thread of this process, under an allocator that counts what that thread does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use underpass::ipc::{Channel, ToSupervisor, ToWorker};
use underpass::metrics::{Block, Counter};
use underpass::worker::{Confinement, Ended, serve};
use underpass_command::state::{
    AccessLogFormat, AtLimit, Backend as BackendState, Cluster, Listener, RedirectMode, Settings,
};
use underpass_tests::proxy::MODES;
use underpass_tests::{Backend, GET, Peer, until};

/// Calls of the allocator on threads that are counted.
static CALLS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count() {
    // Not at the end of a thread, when the variable is gone.
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        CALLS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call is handed on to the system's allocator as it came; counting touches neither the memory nor the
// allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the rules of `alloc`, which are the same for the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the memory came from the system's allocator by one of the functions here.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A worker on a thread, for which the test plays the supervisor.
struct Worker {
    channel: Channel,
    metrics: Block,
    address: SocketAddr,
    thread: JoinHandle<anyhow::Result<Ended>>,
    log: JoinHandle<usize>,
}

impl Worker {
    fn start(backend: SocketAddr, redirect: RedirectMode) -> Self {
        let (channel, worker) = Channel::pair().expect("a socket pair");
        let thread = thread::spawn(move || {
            COUNTED.set(true);
            serve(worker, Confinement::None)
        });
        let metrics = Block::create().expect("memory for metrics");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        let address = listener.local_addr().expect("the address of a bound socket");
        let (log_end, worker_log) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
        let log = thread::spawn(move || read_all(log_end));
        configure(&channel, &metrics, &worker_log, &listener, backend, redirect);
        let worker = Self { channel, metrics, address, thread, log };
        until("the worker runs", || match worker.channel.receive::<ToSupervisor>() {
            Ok(Some((ToSupervisor::Running { .. }, _))) => Some(()),
            Ok(Some((other, _))) => panic!("{other:?}"),
            Ok(None) => panic!("the worker has ended"),
            Err(_) => None,
        });
        worker
    }

    fn stop(self) {
        self.channel.send(&ToWorker::Drain { deadline_ms: 10_000 }, &[]).expect("sending a message");
        let ended = self.thread.join().expect("the worker's thread");
        assert!(ended.is_ok(), "{:?}", ended.err());
        assert!(self.log.join().expect("the reader of the log") > 0, "the access log is empty");
    }
}

/// Drains the access log as the supervisor would; returns its size.
fn read_all(pipe: OwnedFd) -> usize {
    let mut pipe = File::from(pipe);
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        total += count;
    }
    total
}

fn configure(
    channel: &Channel,
    metrics: &Block,
    log: &OwnedFd,
    listener: &TcpListener,
    backend: SocketAddr,
    redirect: RedirectMode,
) {
    let mut settings = Settings { redirect, splice_size_min: 1, ..Settings::default() };
    settings.limits.connections = 128;
    settings.limits.pipes = 16;
    settings.log.access = AccessLogFormat::Json;
    let address = listener.local_addr().expect("the address of a bound socket");
    let mut web = Listener::new("web", address);
    web.default_cluster = Some("app".into());
    web.at_limit = AtLimit::Refuse;
    let hello = ToWorker::Hello {
        index: 0,
        cpu: None,
        generation: 1,
        access_log: true,
        steering: false,
        seed: 1,
        settings: Box::new(settings),
    };
    nix::fcntl::fcntl(log, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("O_NONBLOCK");
    let send = |message: &ToWorker, descriptors: &[BorrowedFd<'_>]| {
        channel.send(message, descriptors).expect("sending a message");
    };
    send(&hello, &[metrics.fd(), log.as_fd()]);
    send(&ToWorker::AddCluster(Cluster::new("app")), &[]);
    send(&ToWorker::AddBackend { cluster: "app".into(), backend: BackendState { address: backend } }, &[]);
    send(&ToWorker::AddListener(web), &[listener.as_fd()]);
    send(&ToWorker::Run, &[]);
}

/// Answers with what the path asks for: a small body, a large one, a chunked one.
fn backend() -> Backend {
    const LARGE: usize = 1024 * 1024;
    Backend::start(|connection| {
        while let Some(request) = connection.request_without_copy() {
            let mut response = match request.target() {
                "/large" => format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").into_bytes(),
                "/chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
            };
            match request.target() {
                "/large" => response.resize(response.len() + LARGE, b'x'),
                "/chunked" => {
                    for _ in 0..8 {
                        response.extend(b"8000;extension=1\r\n");
                        response.resize(response.len() + 0x8000, b'x');
                        response.extend(b"\r\n");
                    }
                    response.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
                }
                _ => {}
            }
            connection.peer.send(response);
        }
    })
}

/// Small and large bodies, both ways, by length and chunked, on all connections at once.
fn round(clients: &mut [Peer], rounds: usize) {
    let upload =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        200_000,
        "x".repeat(200_000)
    );
    for _ in 0..rounds {
        for request in [
            GET,
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.0 fred\r\nConnection: x\r\nX: 1\r\n\r\n",
            "GET /large HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /chunked HTTP/1.1\r\nHost: a\r\n\r\n",
            &upload,
            &chunked,
        ] {
            for client in &mut *clients {
                client.send(request);
            }
            for client in &mut *clients {
                assert_eq!(client.response().status(), 200);
            }
        }
    }
}

fn steady_state_allocates_nothing(mode: RedirectMode) {
    let backend = backend();
    let worker = Worker::start(backend.address(), mode);
    let mut clients: Vec<Peer> = (0..8).map(|_| Peer::connect(worker.address)).collect();
    // The first requests of each connection fill pools and open connections to the backend.
    round(&mut clients, 2);
    let requests = worker.metrics.get(Counter::Requests);
    let before = CALLS.load(Ordering::SeqCst);
    assert!(before > 0, "the worker's thread is not counted");
    round(&mut clients, 20);
    let calls = CALLS.load(Ordering::SeqCst) - before;
    let requests = worker.metrics.get(Counter::Requests) - requests;
    assert!(requests >= 20 * 8 * 6 - 1, "{requests}");
    assert_eq!(calls, 0, "{mode}: {calls} calls of the allocator for {requests} requests");
    let spliced = worker.metrics.get(Counter::BytesSpliced);
    assert_eq!(spliced > 0, mode == RedirectMode::Splice, "{spliced} bytes spliced");

    // New connections take their place in pools, too.
    for _ in 0..3 {
        drop(clients);
        clients = (0..8).map(|_| Peer::connect(worker.address)).collect();
        round(&mut clients, 1);
    }
    let calls = CALLS.load(Ordering::SeqCst) - before;
    assert_eq!(calls, 0, "{mode}: {calls} calls of the allocator for 24 connections");
    drop(clients);
    worker.stop();
}

/// One test, because the count is one for the whole process.
#[test]
fn a_worker_in_its_steady_state_allocates_nothing() {
    for mode in MODES {
        steady_state_allocates_nothing(mode);
    }
}
