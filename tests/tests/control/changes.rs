//! The configuration through the admin API: read, changed, raced for, refused.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::thread;

use underpass_command::api::{ChangeRequest, ErrorBody, EventKind, Select};
use underpass_command::live::Operation;
use underpass_command::state::{Cluster, PathMatch, Route};
use underpass_command::{Client, ClientError, state};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, PATIENCE, Peer, Proxy};

use crate::{GET, HELLO};

fn add(name: &str) -> Operation {
    Operation::AddCluster { cluster: Cluster::new(name) }
}

fn remove(name: &str) -> Operation {
    Operation::RemoveCluster { name: name.into() }
}

fn request(operations: Vec<Operation>) -> ChangeRequest {
    ChangeRequest { operations, ..ChangeRequest::default() }
}

#[track_caller]
fn refused(error: ClientError) -> (u16, ErrorBody) {
    match error {
        ClientError::Refused { status, body } => (status, body),
        other => panic!("not refused: {other}"),
    }
}

fn names(client: &Client) -> Vec<String> {
    let page = client.clusters(&Select::default()).expect("answers");
    page.items.into_iter().map(|cluster| cluster.name).collect()
}

#[test]
fn of_two_writers_one_wins_and_the_other_learns_the_revision() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("revision").start();
    let socket = proxy.client().socket().to_owned();
    for round in 0..10 {
        let before = proxy.client().state().expect("answers").revision;
        let writers: Vec<_> = ["a", "b"]
            .map(|writer| {
                let client = Client::new(&socket);
                let operations = vec![add(&format!("{writer}{round}"))];
                let change = ChangeRequest { if_revision: Some(before), ..request(operations) };
                thread::spawn(move || client.change(&change))
            })
            .into_iter()
            .map(|writer| writer.join().expect("no panic"))
            .collect();
        let (won, lost): (Vec<_>, Vec<_>) = writers.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1));
        for result in won {
            assert_eq!(result.expect("won").revision, before + 1);
        }
        for result in lost {
            let (status, body) = refused(result.expect_err("lost"));
            assert_eq!((status, body.revision), (412, Some(before + 1)), "{body:?}");
        }
    }
    assert_eq!(names(proxy.client()).len(), 11);
    proxy.stop();
}

#[test]
fn a_dry_run_changes_nothing_and_tells_what_would() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let before = proxy.client().state().expect("answers");
    let change = ChangeRequest { dry_run: true, ..request(vec![add("green"), remove("app")]) };
    // The listener leads to it.
    let (status, body) = refused(proxy.client().change(&change).expect_err("app is used"));
    assert_eq!(status, 422, "{body:?}");
    let trial = ChangeRequest { dry_run: true, ..request(vec![add("green")]) };
    let changed = proxy.client().change(&trial).expect("valid");
    assert!(changed.dry_run && changed.effects == vec![add("green")], "{changed:?}");
    assert_eq!(proxy.client().state().expect("answers"), before);
    assert_eq!(proxy.client().state_unless(before.revision).expect("answers"), None);
    proxy.stop();
}

#[test]
fn what_cannot_be_names_each_operation() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("audit").expect_log("operations").start();
    let before = proxy.client().state().expect("answers");
    let nowhere: SocketAddr = ([127, 0, 0, 1], 1).into();
    let operations = vec![
        add("green"),
        add("app"),
        Operation::RemoveBackend { cluster: "app".into(), address: nowhere },
        remove("blue"),
    ];
    let error = proxy.client().change(&request(operations)).expect_err("three of four cannot be");
    let text = error.to_string();
    let (status, body) = refused(error);
    assert_eq!(status, 422);
    let steps: Vec<_> = body.operations.iter().map(|error| error.step).collect();
    assert_eq!(steps, [Some(1), Some(2), Some(3)], "{body:?}");
    assert!(body.operations.iter().all(|error| !error.remedy.is_empty()), "{body:?}");
    assert!(text.contains("operation 2: ") && text.contains("operation 4: "), "{text}");
    assert_eq!(proxy.client().state().expect("answers"), before, "all or nothing");
    proxy.stop();
}

#[test]
fn a_change_that_is_too_large_is_refused_unread() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let mut stream = UnixStream::connect(proxy.client().socket()).expect("the admin socket listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let head =
        "POST /v1/changes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 33554433\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("room");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered before the body has come");
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("33554432"), "{answer}");
    // What is long and not too long is taken as a whole.
    let operations: Vec<Operation> = (0..5_000).map(|number| add(&format!("cluster-{number}"))).collect();
    let changed = proxy.client().change(&request(operations)).expect("taken");
    assert_eq!(changed.effects.len(), 5_000);
    proxy.stop();
}

#[test]
fn the_document_of_the_api_is_served_and_counters_too() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    assert!(proxy.client().metrics().expect("answers").contains("# TYPE "));
    let mut stream = UnixStream::connect(proxy.client().socket()).expect("the admin socket listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    stream.write_all(b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("room");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let document: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/v1/changes"]["post"]["requestBody"].is_object());
    proxy.stop();
}

#[test]
fn a_route_that_was_added_is_taken_at_once_and_one_that_was_removed_no_more() {
    let (blue, green) = (Backend::answering(HELLO), Backend::answering(HELLO.replace("hello", "green")));
    let proxy = Setup::to(&[blue.address()]).with(|state| state.settings.workers = 2).start();
    let mut cluster = Cluster::new("green");
    cluster.backends.push(state::Backend::new(green.address()));
    let route = Route { path: PathMatch::Prefix("/green".into()), ..Route::new("green") };
    let key = route.key();
    let operations = vec![Operation::AddCluster { cluster }, Operation::AddRoute { route: Box::new(route) }];
    let changed = proxy.client().change(&request(operations)).expect("valid");
    let get = |target: &str| {
        let mut client = Peer::connect(proxy.address());
        client.send(GET.replace("GET /", &format!("GET {target}")));
        client.response().text().to_owned()
    };
    for _ in 0..4 {
        assert_eq!((get("/green/x"), get("/")), ("green".into(), "hello".into()));
    }
    let operations = vec![Operation::RemoveRoute { route: key }, remove("green")];
    let removed = proxy.client().change(&request(operations)).expect("valid");
    assert_eq!(removed.revision, changed.revision + 1);
    for _ in 0..4 {
        assert_eq!(get("/green/x"), "hello");
    }
    assert_eq!(names(proxy.client()), ["app"]);
    proxy.stop();
}

#[test]
fn events_tell_of_changes_and_are_not_missed_by_who_comes_back() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let mut events = proxy.client().events(None).expect("listens");
    let revisions: Vec<u64> = (0..3)
        .map(|number| {
            proxy.client().change(&request(vec![add(&format!("c{number}"))])).expect("valid").revision
        })
        .collect();
    let mut changed = || loop {
        let event = events.next().expect("lasts").expect("an event");
        if let EventKind::Changed { revision, .. } = event.kind {
            return (event.sequence, revision);
        }
    };
    let told = [changed(), changed(), changed()];
    assert_eq!(told.map(|(_, revision)| revision).to_vec(), revisions);
    // Another one has seen the first of them and then was away.
    let again = proxy.client().events(Some(told[0].0)).expect("listens");
    let missed: Vec<u64> = again.take(2).map(|event| event.expect("an event").sequence).collect();
    assert_eq!(missed, [told[1].0, told[2].0]);
    proxy.stop();
}

#[test]
fn those_who_only_listen_leave_room_for_others() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("caller refused").start();
    // One connection is the client's own.
    proxy.status();
    let listening: Vec<_> =
        (0..31).map(|_| proxy.client().events(None).expect("one of as many as there may be")).collect();
    let (status, _) = refused(proxy.client().events(None).expect_err("this process has its share"));
    assert_eq!(status, 503);
    proxy.client().change(&request(vec![add("other")])).expect("listeners keep nobody from changing");
    for mut events in listening {
        assert!(matches!(events.next(), Some(Ok(_))), "each is told");
    }
    proxy.stop();
}

#[test]
fn lists_are_selected_and_paged() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let operations = (0..25).map(|number| add(&format!("shop-{number:02}"))).collect();
    proxy.client().change(&request(operations)).expect("valid");
    let mut select = Select { name: Some("shop".into()), limit: Some(10), ..Select::default() };
    let mut found = Vec::new();
    loop {
        let page = proxy.client().clusters(&select).expect("answers");
        found.extend(page.items.into_iter().map(|cluster| cluster.name));
        match page.next {
            Some(next) => select.after = Some(next),
            None => break,
        }
    }
    assert_eq!(found.len(), 25);
    let of_app = Select { cluster: Some("app".into()), ..Select::default() };
    let backends = proxy.client().backends(&of_app).expect("answers").items;
    assert_eq!(backends.iter().map(|entry| entry.backend.address).collect::<Vec<_>>(), [backend.address()]);
    assert_eq!(proxy.client().cluster("app").expect("answers").backends.len(), 1);
    assert_eq!(refused(proxy.client().cluster("a/b ä").expect_err("unknown")).0, 404);
    assert_eq!(
        refused(proxy.client().clusters(&Select { limit: Some(0), ..Select::default() }).expect_err("none"))
            .0,
        400
    );
    assert_eq!(proxy.client().listeners(&Select::default()).expect("answers").items[0].name, "web");
    proxy.stop();
}
