//! A worker that drains: what is under way is finished, what is idle is closed, nothing new begins.

use std::net::TcpStream;
use std::thread;

use underpass::ipc::{ToSupervisor, ToWorker};
use underpass::metrics::Counter;
use underpass::worker::Ended;
use underpass_tests::body::Content;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, OK, Peer, until};

use underpass_tests::worker::Worker;

#[test]
fn every_connection_is_finished_where_it_stands() {
    for mode in MODES {
        let (backend, permit) = Backend::holding(OK);
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        permit.send(()).expect("the backend runs");
        let mut idle = Peer::connect(worker.address());
        idle.send(GET);
        assert_eq!(idle.response().text(), "ok");
        let mut waiting = Peer::connect(worker.address());
        waiting.send(GET);
        worker.until(Counter::RequestsActive, 1);
        let mut half = Peer::connect(worker.address());
        half.send("GET / HTTP/1.1\r\nHost:");
        worker.until(Counter::BuffersUsed, 2);
        let mut refused = Peer::connect(worker.address());
        refused.send("GET / HTTP/1.1\r\n\r\n");
        assert_eq!(refused.response().status(), 400);
        refused.expect_end();

        worker.order(&ToWorker::Drain { deadline_ms: 3_600_000 });
        idle.expect_end();
        worker.until(Counter::BackendsIdle, 0);
        assert!(TcpStream::connect(worker.address()).is_err(), "a worker that drains must not accept");
        drop(refused);
        half.send(" a\r\n\r\n");
        worker.until(Counter::RequestsActive, 2);
        // Whichever of the two the backend answers first.
        for _ in 0..2 {
            permit.send(()).expect("the backend runs");
        }
        for peer in [&mut waiting, &mut half] {
            let response = peer.response();
            assert_eq!((response.text(), response.value("Connection")), ("ok", Some("close")));
            peer.expect_end();
        }
        drop((waiting, half));
        assert_eq!(worker.join(), Ended::Drained);
    }
}

/// Its next request may be on its way when another process takes over.
#[test]
fn an_idle_connection_gets_one_more_answer_where_a_successor_takes_over() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut clients = [0; 3].map(|_| Peer::connect(worker.address()));
    for client in &mut clients {
        client.send(GET);
        assert_eq!(client.response().value("Connection"), None);
    }
    worker.order(&ToWorker::HandOver { deadline_ms: 3_600_000 });
    assert!(matches!(worker.told(), ToSupervisor::HandedOver));
    assert!(TcpStream::connect(worker.address()).is_err(), "its listening sockets are closed");
    let [asking, silent, late] = &mut clients;
    asking.send(GET);
    let response = asking.response();
    assert_eq!((response.text(), response.value("Connection")), ("ok", Some("close")));
    asking.expect_end();
    // Who has nothing to ask is not waited for.
    silent.expect_end();
    late.expect_end();
    assert_eq!(worker.join(), Ended::Drained);
}

/// A nearer deadline holds, a farther one does not.
#[test]
fn a_drain_after_a_handover_ends_what_is_idle_and_what_is_late() {
    let (backend, _permit) = Backend::holding(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut waiting = Peer::connect(worker.address());
    waiting.send(GET);
    worker.until(Counter::RequestsActive, 1);
    worker.order(&ToWorker::HandOver { deadline_ms: 3_600_000 });
    worker.order(&ToWorker::Drain { deadline_ms: 0 });
    waiting.expect_gone();
    drop(waiting);
    assert_eq!(worker.join(), Ended::Cut(1));
}

/// What was accepted by the kernel before the drain is served.
#[test]
fn what_waits_in_the_accept_queue_is_served() {
    let backend = Backend::answering(OK);
    let worker = Worker::start(Setup::to(&[backend.address()]));
    let mut clients: Vec<Peer> = (0..100).map(|_| Peer::connect(worker.address())).collect();
    worker.order(&ToWorker::Drain { deadline_ms: 3_600_000 });
    for client in &mut clients {
        client.send(GET);
    }
    for mut client in clients {
        let response = client.response();
        assert_eq!((response.text(), response.value("Connection")), ("ok", Some("close")));
        client.expect_end();
    }
    assert_eq!(worker.join(), Ended::Drained);
}

/// Clients that never stop asking: each answer that begins is whole, and the worker gets to its end.
#[test]
fn a_drain_under_load_cuts_nothing() {
    for mode in MODES {
        let body = Content::new(9, 50_000).to_vec();
        let response =
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
        let backend = Backend::answering(response);
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode));
        let address = worker.address();
        thread::scope(|scope| {
            let body = &body;
            for number in 0..16 {
                scope.spawn(move || {
                    // Until nobody listens any more.
                    while let Ok(stream) = TcpStream::connect(address) {
                        let mut client = Peer::over(stream);
                        // Some keep their connection, some ask in advance.
                        for _ in 0..number {
                            if client.try_send(GET).is_err() {
                                break;
                            }
                            // A request that crosses the end of an idle connection gets nothing at all.
                            let Ok(Some(head)) = client.try_head() else { break };
                            assert!(client.try_bytes(body.len()).is_ok_and(|bytes| bytes == *body), "{mode}");
                            if head.value("Connection") == Some("close") {
                                break;
                            }
                        }
                    }
                });
            }
            until("some load", || (worker.counter(Counter::Requests) > 200).then_some(()));
            worker.order(&ToWorker::Drain { deadline_ms: 3_600_000 });
        });
        assert_eq!(worker.join(), Ended::Drained);
    }
}
