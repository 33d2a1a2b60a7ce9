//! A worker whose configuration changes while it runs. In each, cluster "app" and its first backend have number 0.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use underpass::ipc::{Finished, Step};
use underpass::metrics::Counter;
use underpass_command::state::{Backend as Configured, Cluster, Listener, PathMatch, Route, Settings};
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, GET, OK, Peer};

const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";

fn add_backend(number: u32, address: SocketAddr) -> Step {
    Step::AddBackend { number, cluster: 0, backend: Configured::new(address) }
}

fn drain(number: u32, address: SocketAddr, drain: bool) -> Step {
    Step::ChangeBackend { number, backend: Configured { drain, ..Configured::new(address) } }
}

fn put_route(path: &str, cluster: u32, name: &str) -> Step {
    let route = Route { path: PathMatch::Prefix(path.into()), ..Route::new(name) };
    Step::PutRoute { cluster: Some(cluster), route: Box::new(route) }
}

#[track_caller]
fn get(peer: &mut Peer) -> String {
    peer.send(GET);
    peer.response().text().to_owned()
}

#[test]
fn a_removed_backend_finishes_what_it_has_and_gets_nothing_new() {
    for mode in MODES {
        let (old, permit) = Backend::holding(OK);
        let new = Backend::answering(OTHER);
        let worker = Worker::start(Setup::to(&[old.address()]).redirect(mode));
        // An idle connection to it, and a request under way.
        permit.send(()).expect("the backend runs");
        let mut idle = Peer::connect(worker.address());
        assert_eq!(get(&mut idle), "ok");
        let mut waiting = Peer::connect(worker.address());
        waiting.send(GET);
        worker.until(Counter::RequestsActive, 1);
        let mut second = Peer::connect(worker.address());
        second.send(GET);
        worker.until(Counter::RequestsActive, 2);

        worker.change(2, &[add_backend(1, new.address()), Step::RemoveBackend { number: 0 }], &[]);
        worker.until(Counter::BackendsIdle, 0);
        assert_eq!(get(&mut idle), "other");
        assert!(!worker.has_finished_anything(), "two requests are still there");
        permit.send(()).expect("the backend runs");
        permit.send(()).expect("the backend runs");
        for peer in [&mut waiting, &mut second] {
            assert_eq!(peer.response().text(), "ok");
            // The connection goes on, and leads elsewhere.
            assert_eq!(get(peer), "other");
        }
        assert_eq!(worker.finished(), Finished { backends: vec![0], ..Finished::default() });
        // Its number may be given out again.
        worker.change(3, &[add_backend(0, old.address()), Step::RemoveBackend { number: 1 }], &[]);
        assert_eq!(worker.finished(), Finished { backends: vec![1], ..Finished::default() });
        permit.send(()).expect("the backend runs");
        assert_eq!(get(&mut idle), "ok");
        drop((idle, waiting, second));
        worker.stop();
    }
}

#[test]
fn a_backend_that_drains_is_told_of_when_its_last_request_has_ended() {
    let (old, permit) = Backend::holding(OK);
    let new = Backend::answering(OTHER);
    let worker = Worker::start(Setup::to(&[old.address()]));
    let mut waiting = Peer::connect(worker.address());
    waiting.send(GET);
    worker.until(Counter::RequestsActive, 1);
    worker.change(2, &[add_backend(1, new.address()), drain(0, old.address(), true)], &[]);
    let mut other = Peer::connect(worker.address());
    for _ in 0..4 {
        assert_eq!(get(&mut other), "other");
    }
    assert!(!worker.has_finished_anything());
    permit.send(()).expect("the backend runs");
    assert_eq!(waiting.response().text(), "ok");
    assert_eq!(worker.finished(), Finished { drained: vec![(0, 2)], ..Finished::default() });
    // Back to work, and to drain again without a request meanwhile: told at once, as of that revision.
    worker.change(3, &[drain(0, old.address(), false), drain(1, new.address(), true)], &[]);
    assert_eq!(worker.finished(), Finished { drained: vec![(1, 3)], ..Finished::default() });
    permit.send(()).expect("the backend runs");
    assert_eq!(get(&mut other), "ok");
    drop((waiting, other));
    worker.stop();
}

#[test]
fn a_tunnel_keeps_its_backend_from_being_drained() {
    let backend = Backend::start(|connection| {
        let bytes = connection.peer.bytes(4);
        connection.peer.send(bytes);
    });
    let setup = Setup::to(&[backend.address()]).with(|state| {
        state.listeners[0].protocol = underpass_command::state::Protocol::Tcp;
        state.listeners[0].x_forwarded = underpass_command::state::ForwardedFields::Off;
    });
    let worker = Worker::start(setup);
    let mut tunnel = Peer::connect(worker.address());
    worker.until(Counter::TunnelsActive, 1);
    worker.change(2, &[drain(0, backend.address(), true)], &[]);
    tunnel.send("ping");
    assert_eq!(tunnel.bytes(4), b"ping");
    assert!(!worker.has_finished_anything());
    tunnel.finish();
    tunnel.expect_end();
    assert_eq!(worker.finished(), Finished { drained: vec![(0, 2)], ..Finished::default() });
    worker.stop();
}

#[test]
fn a_removed_cluster_lasts_as_long_as_its_last_request() {
    let (old, permit) = Backend::holding(OK);
    let new = Backend::answering(OTHER);
    let worker = Worker::start(Setup::to(&[old.address()]));
    let mut waiting = Peer::connect(worker.address());
    waiting.send(GET);
    worker.until(Counter::RequestsActive, 1);
    let listener = Listener { default_cluster: Some("new".into()), ..Listener::new("web", worker.address()) };
    let steps = [
        Step::AddCluster { number: 1, cluster: Cluster::new("new") },
        Step::AddBackend { number: 1, cluster: 1, backend: Configured::new(new.address()) },
        Step::ChangeListener { number: 0, default_cluster: Some(1), listener },
        Step::RemoveBackend { number: 0 },
        Step::RemoveCluster { number: 0 },
    ];
    worker.change(2, &steps, &[]);
    let mut other = Peer::connect(worker.address());
    assert_eq!(get(&mut other), "other");
    assert!(!worker.has_finished_anything());
    permit.send(()).expect("the backend runs");
    assert_eq!(waiting.response().text(), "ok");
    assert_eq!(worker.finished(), Finished { backends: vec![0], clusters: vec![0], ..Finished::default() });
    drop((waiting, other));
    worker.stop();
}

#[test]
fn a_removed_listener_serves_what_has_come_and_takes_no_more() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    // What comes before the worker knows of it waits in the queue.
    let mut early = Peer::connect(address);
    early.send(GET);
    let listener = Listener { default_cluster: Some("app".into()), ..Listener::new("more", address) };
    let add = Step::AddListener { number: 3, default_cluster: Some(0), listener };
    worker.change(2, &[add], &[socket.as_fd()]);
    assert_eq!(early.response().text(), "ok");
    let mut late = Peer::connect(address);
    drop(socket);
    worker.change(3, &[Step::RemoveListener { number: 3 }], &[]);
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens there any more");
    assert_eq!(get(&mut late), "ok");
    assert_eq!(get(&mut early), "ok");
    drop(early);
    assert!(!worker.has_finished_anything());
    drop(late);
    assert_eq!(worker.finished(), Finished { listeners: vec![3], ..Finished::default() });
    assert_eq!(get(&mut Peer::connect(worker.address())), "ok");
    worker.stop();
}

#[test]
fn a_change_in_many_pieces_is_carried_out_at_its_end() {
    let first = Backend::answering(OK);
    let second = Backend::answering(OTHER);
    let worker = Worker::start(Setup::to(&[first.address()]));
    let mut peer = Peer::connect(worker.address());
    let mut steps = vec![
        Step::AddCluster { number: 1, cluster: Cluster::new("other") },
        Step::AddBackend { number: 1, cluster: 1, backend: Configured::new(second.address()) },
        put_route("/", 1, "other"),
    ];
    // Far more than a message holds.
    steps.extend((0..2000).map(|n| put_route(&format!("/{n}"), 0, "app")));
    assert!(underpass::ipc::pieces(2, 2, &steps).len() > 10);
    let (all, mut last) = (steps.len(), underpass::ipc::pieces(2, 2, &steps));
    let (end, range) = last.pop().expect("pieces");
    assert_eq!(range.end, all);
    for (piece, _) in &last {
        worker.order(piece);
        assert_eq!(get(&mut peer), "ok", "nothing has changed yet");
    }
    worker.order(&end);
    assert_eq!(worker.carried_out(2), None);
    assert_eq!(get(&mut peer), "other");
    peer.send("GET /1999/x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(peer.response().text(), "ok");
    let remove = |n: u32| {
        let route = Route { path: PathMatch::Prefix(format!("/{n}")), ..Route::default() };
        Step::RemoveRoute { route: route.key() }
    };
    worker.change(3, &(0..2000).map(remove).collect::<Vec<_>>(), &[]);
    peer.send("GET /1999/x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(peer.response().text(), "other");
    drop(peer);
    worker.stop();
}

#[test]
fn settings_change_for_what_comes_and_pools_stay_as_they_are() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut peer = Peer::connect(worker.address());
    assert_eq!(get(&mut peer), "ok");
    let mut settings = Settings { via: "elsewhere".into(), ..Settings::default() };
    settings.limits.requests_per_connection = 2;
    settings.limits.connections = 1;
    worker.change(2, &[Step::Settings(Box::new(settings))], &[]);
    let mut more = Peer::connect(worker.address());
    assert_eq!(get(&mut more), "ok");
    more.send(GET);
    assert_eq!(more.response().value("Connection"), Some("close"));
    more.expect_end();
    let vias: Vec<String> =
        backend.requests().iter().map(|request| request.values("Via").join(",")).collect();
    assert_eq!(vias, ["1.1 underpass", "1.1 elsewhere", "1.1 elsewhere"]);
    drop(peer);
    worker.stop();
}

#[test]
fn a_step_that_cannot_be_done_is_told() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    for (revision, step, part) in [
        (2, add_backend(0, backend.address()), "backend 0 is there already"),
        (3, Step::RemoveBackend { number: 9 }, "backend 9 does not exist"),
        (4, Step::RemoveListener { number: 9 }, "listener 9 does not exist"),
        (5, Step::RemoveCluster { number: 9 }, "cluster 9 does not exist"),
    ] {
        worker.send_change(revision, &[step], &[]);
        let told = worker.carried_out(revision);
        assert!(told.as_ref().is_some_and(|error| error.contains(part)), "{told:?}");
    }
    assert_eq!(get(&mut Peer::connect(worker.address())), "ok");
    worker.stop();
}
