//! A worker in its steady state allocates nothing: not per request, not per connection, in neither redirect mode.
//!
//! The worker runs on a thread of this process, under an allocator that counts what that thread does.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use underpass::metrics::Counter;
use underpass_command::state::{
    AccessLogEscape, AccessLogFormat, EditAction, EditOn, FieldEdit, HeaderMatch, Log, PathMatch, Protocol,
    RedirectMode, Rewrite, Route, State, ValueMatch,
};
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, Peer};

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

/// A template of the access log with what costs most: times, texts to be escaped, header fields, the user.
fn template() -> Log {
    let template = r#"{"t":"$time_local $time_iso","a":"$request $path $query $user","h":"$http_host $http_x $http_via",
        "r":"$route $cluster $backend $reason $end $id $trace_id","n":[$time_ms,$bytes_copied,$queue_us,$duration_us]}"#;
    Log {
        access: AccessLogFormat::Template,
        access_template: Some(template.lines().map(str::trim).collect()),
        access_escape: AccessLogEscape::Json,
        ..Log::default()
    }
}

/// Routes that match by regular expression, method and header field, and rewrite all that can be rewritten, with groups of what
/// has matched.
fn rewriting(state: &mut State) {
    let edit = |on, action, name: &str, value: &str| FieldEdit {
        on,
        action,
        name: name.into(),
        value: value.into(),
    };
    let route = |path: &str, rewritten: &str| Route {
        host_regex: Some("(?P<tenant>[a-z]+)".into()),
        path: PathMatch::Regex(path.into()),
        methods: vec!["GET".into(), "POST".into()],
        headers: vec![HeaderMatch { name: "X-Never".into(), value: ValueMatch::Any, not: true }],
        rewrite: Some(Rewrite {
            host: Some("${tenant}.internal".into()),
            path: Some(rewritten.into()),
            ..Rewrite::default()
        }),
        edits: vec![
            edit(
                EditOn::Request,
                EditAction::Set,
                "X-Client",
                "${client} ${request_id} at ${host} by ${listener}",
            ),
            edit(
                EditOn::Request,
                EditAction::Append,
                "X-Path",
                "$1 of ${path}?${query} for ${cluster} ${backend}",
            ),
            edit(EditOn::Request, EditAction::Remove, "X", ""),
            edit(EditOn::Response, EditAction::Set, "X-Served-By", "${backend} ${cluster} ${request_id}"),
        ],
        ..Route::new("app")
    };
    state.routes = vec![route("/(large|chunked)", "/$1"), route("/(.*)", "/new/$1")];
}

fn steady_state_allocates_nothing(mode: RedirectMode, change: impl FnOnce(&mut State)) {
    let backend = backend();
    let setup = Setup::to(&[backend.address()]).redirect(mode).with(change);
    let worker = Worker::start_after(|| COUNTED.set(true), setup);
    let mut clients: Vec<Peer> = (0..8).map(|_| Peer::connect(worker.address())).collect();
    // The first requests of each connection fill pools and open connections to the backend.
    round(&mut clients, 2);
    let requests = worker.counter(Counter::Requests);
    let before = CALLS.load(Ordering::SeqCst);
    assert!(before > 0, "the worker's thread is not counted");
    round(&mut clients, 20);
    let calls = CALLS.load(Ordering::SeqCst) - before;
    let requests = worker.counter(Counter::Requests) - requests;
    assert!(requests >= 20 * 8 * 6 - 1, "{requests}");
    assert_eq!(calls, 0, "{mode}: {calls} calls of the allocator for {requests} requests");
    let spliced = worker.counter(Counter::BytesSpliced);
    assert_eq!(spliced > 0, mode == RedirectMode::Splice, "{spliced} bytes spliced");
    let redirected = worker.counter(Counter::BytesRedirected);
    assert_eq!(redirected > 0, mode == RedirectMode::Sockmap, "{redirected} bytes redirected");

    // New connections take their place in pools, too.
    for _ in 0..3 {
        drop(clients);
        clients = (0..8).map(|_| Peer::connect(worker.address())).collect();
        round(&mut clients, 1);
    }
    let calls = CALLS.load(Ordering::SeqCst) - before;
    assert_eq!(calls, 0, "{mode}: {calls} calls of the allocator for 24 connections");
    drop(clients);
    worker.stop();
}

/// Connections to a TCP listener, each with a little said both ways.
fn talks(address: std::net::SocketAddr, count: usize) {
    for _ in 0..count {
        let mut clients: Vec<Peer> = (0..8).map(|_| Peer::connect(address)).collect();
        for size in [1, 1000, 200_000] {
            for client in &mut clients {
                client.send(vec![b'x'; size]);
            }
            for client in &mut clients {
                assert_eq!(client.bytes(size).len(), size);
            }
        }
        for client in &mut clients {
            client.finish();
            client.expect_end();
        }
    }
}

/// Nor does a connection to a TCP listener, whose tunnel rests and goes on and has buffers promised anew each time.
fn tcp_allocates_nothing(mode: RedirectMode) {
    let backend = Backend::start(|connection| {
        while let Ok(bytes) = connection.peer.some()
            && !bytes.is_empty()
        {
            connection.peer.send(bytes);
        }
    });
    let setup = Setup::to(&[backend.address()]).redirect(mode).with(|state| {
        state.settings.log.access = AccessLogFormat::Json;
        state.listeners[0].protocol = Protocol::Tcp;
    });
    let worker = Worker::start_after(|| COUNTED.set(true), setup);
    talks(worker.address(), 2);
    let before = CALLS.load(Ordering::SeqCst);
    talks(worker.address(), 5);
    worker.until(Counter::TcpConnections, 7 * 8);
    let calls = CALLS.load(Ordering::SeqCst) - before;
    assert_eq!(calls, 0, "{mode}: {calls} calls of the allocator for 40 connections");
    worker.stop();
}

/// One test, because the count is one for the whole process.
#[test]
fn a_worker_in_its_steady_state_allocates_nothing() {
    for mode in MODES {
        steady_state_allocates_nothing(mode, |state| state.settings.log.access = AccessLogFormat::Json);
        tcp_allocates_nothing(mode);
    }
    steady_state_allocates_nothing(RedirectMode::Copy, |state| {
        state.settings.log = template();
        rewriting(state);
    });
}
