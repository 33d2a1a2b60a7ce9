//! What the configuration is after something has died in the middle of its changes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;

use nix::sys::signal::Signal;
use underpass_command::Client;
use underpass_command::api::ChangeRequest;
use underpass_command::live::Operation;
use underpass_command::state::{PathMatch, Route};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, Peer, Proxy, until};

use crate::{HELLO, signal_worker, until_restarted};

fn route(number: u32) -> Route {
    Route { path: PathMatch::Exact(format!("/{number}")), ..Route::new("app") }
}

fn add_route(client: &Client, number: u32) -> Result<u64, underpass_command::ClientError> {
    let operations = vec![Operation::AddRoute { route: Box::new(route(number)) }];
    client.change(&ChangeRequest { operations, ..ChangeRequest::default() }).map(|changed| changed.revision)
}

/// Serves nothing but what routes lead to.
fn setup(backend: &Backend) -> Setup {
    let setup = Setup::to(&[backend.address()]).with(|state| state.listeners[0].default_cluster = None);
    setup
        .expect_log("has neither default_cluster nor a route")
        .expect_log("no route and no listener leads to it")
}

/// Whether each worker serves a path; connections come to them as the kernel likes.
#[track_caller]
fn served_by_all(proxy: &Proxy, number: u32) {
    let workers = proxy.status().workers.len();
    let mut seen = BTreeSet::new();
    let served = |index: usize| proxy.status().workers[index].counters.value("responses_2xx");
    until("every worker has served it", || {
        let before: Vec<u64> = (0..workers).map(served).collect();
        let mut peer = Peer::connect(proxy.address());
        peer.send(format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(peer.response().status(), 200, "path {number}");
        seen.extend((0..workers).filter(|index| served(*index) > before[*index]));
        (seen.len() == workers).then_some(())
    });
}

#[test]
fn a_worker_that_is_killed_in_the_middle_of_changes_comes_back_with_all_of_them() {
    let backend = Backend::answering(HELLO);
    let proxy = setup(&backend)
        .with(|state| state.settings.workers = 2)
        .expect_log("worker died")
        .expect_log("change was")
        .start();
    let (stop, last) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let client = proxy.client().clone();
            for number in 1.. {
                if stop.load(Relaxed) {
                    return;
                }
                // A worker that dies has nothing left to answer: the change counts as carried out.
                add_route(&client, number).unwrap_or_else(|error| panic!("change {number}: {error}"));
                last.store(number, Relaxed);
            }
        });
        for restarts in 1..=3 {
            let before = last.load(Relaxed);
            until("changes come", || (last.load(Relaxed) > before + 20).then_some(()));
            signal_worker(&proxy, 0, Signal::SIGKILL);
            until_restarted(&proxy, 0, restarts);
        }
        stop.store(true, Relaxed);
        writer.join().expect("no change was refused");
    });
    let last = last.load(Relaxed);
    let document = proxy.client().state().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((document.revision, document.state.routes.len()), (u64::from(last) + 1, last as usize));
    for number in [1, last / 2, last] {
        served_by_all(&proxy, number);
    }
    proxy.stop();
}

#[test]
fn a_supervisor_that_is_killed_comes_back_with_what_was_changed() {
    let backend = Backend::answering(HELLO);
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("state.json");
    let start = || setup(&backend).with(|state| state.settings.saved_state = Some(saved.clone())).start();
    let mut proxy = start();
    for number in 1..=50 {
        add_route(proxy.client(), number).unwrap_or_else(|error| panic!("{error}"));
        if number == 25 {
            // What comes after it is in the journal.
            proxy.client().save().unwrap_or_else(|error| panic!("{error}"));
        }
    }
    let before = proxy.client().state().unwrap_or_else(|error| panic!("{error}"));
    proxy.signal(Signal::SIGKILL);
    proxy.wait();

    let proxy = start();
    let after = proxy.client().state().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(after.revision, before.revision);
    assert_eq!((after.state.routes, after.state.clusters), (before.state.routes, before.state.clusters));
    served_by_all(&proxy, 50);
    // The file has none of them: a reload takes them away, and tells so before.
    let tried = proxy.client().reload(true).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((tried.dry_run, tried.effects.len()), (true, 50));
    assert!(tried.effects.iter().all(|effect| effect.name() == "remove_route"), "{:?}", tried.effects);
    served_by_all(&proxy, 50);
    proxy.client().reload(false).unwrap_or_else(|error| panic!("{error}"));
    assert!(proxy.client().state().unwrap_or_else(|error| panic!("{error}")).state.routes.is_empty());
    proxy.stop();
}
