//! What comes to a worker in one turn of its loop: it is stopped until everything has arrived.

use std::fs;
use std::sync::{Mutex, mpsc};

use nix::sys::signal::Signal;
use underpass_command::state::{PathMatch, Route};
use underpass_tests::proxy::{Setup, send_signal};
use underpass_tests::{Backend, GET, PATIENCE, Peer, until};

use crate::failures::Unreachable;

/// Letter of a process's state: `T` when it is stopped.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// An event can come after its connection was closed and another took its number. What it says of the one that is gone must
/// not be believed of the other.
#[test]
fn the_end_of_a_connection_is_not_taken_for_the_end_of_its_successor() {
    let (end, ends) = mpsc::channel::<()>();
    let (ended, has_ended) = mpsc::channel::<()>();
    let script = Mutex::new((ends, ended));
    let backend = Backend::start(move |connection| {
        let Some(_) = connection.request() else { return };
        let script = script.lock().expect("one connection");
        script.0.recv_timeout(PATIENCE).expect("the test goes on");
        connection.peer.finish();
        script.1.send(()).expect("the test goes on");
    });
    let unreachable = Unreachable::new();
    let proxy = Setup::to(&[backend.address()])
        .cluster("gone", &[unreachable.address])
        .with(|state| {
            let mut route = Route::new("gone");
            route.path = PathMatch::Exact("/gone".into());
            state.routes.push(route);
            state.settings.timeouts.connect_ms = 300;
        })
        .start();
    let mut first = Peer::connect(proxy.address());
    first.send(GET);
    proxy.until_counter("requests_active", 1);
    let mut second = Peer::connect(proxy.address());
    proxy.until_counter("connections_active", 2);

    let [pid] = proxy.worker_pids()[..] else { panic!("one worker") };
    send_signal(pid, Signal::SIGSTOP);
    until("the worker is stopped", || (state_of(pid) == Some('T')).then_some(()));
    // In this order: the end of the first session frees the number of its connection to the backend, the second takes it, and
    // then comes the end of the connection that had it before.
    first.reset();
    second.send("GET /gone HTTP/1.1\r\nHost: a\r\n\r\n");
    end.send(()).expect("the backend runs");
    has_ended.recv_timeout(PATIENCE).expect("the backend runs");
    send_signal(pid, Signal::SIGCONT);

    assert_eq!(second.response().status(), 504);
    drop(second);
    assert_eq!(proxy.counter("timeout_connect"), 1);
    proxy.stop();
}
