//! `underpass ctl`, as people and scripts call it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use underpass_command::api::WorkerStatus;
use underpass_command::state::Balance;
use underpass_tests::proxy::{Setup, executable};
use underpass_tests::{Backend, Peer, Proxy, until};

use crate::lifecycle::Held;
use crate::{GET, HELLO, text, underpass};

fn command(proxy: &Proxy, words: &[&str]) -> Command {
    let mut command = Command::new(executable());
    command.arg("ctl").arg("--socket").arg(proxy.client().socket()).args(words);
    command
}

fn ctl(proxy: &Proxy, words: &[&str]) -> Output {
    command(proxy, words).output().expect("the command runs")
}

/// A command that must be done; what it printed.
#[track_caller]
fn done(proxy: &Proxy, words: &[&str]) -> String {
    let output = ctl(proxy, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output));
    text(&output)
}

#[track_caller]
fn fails(proxy: &Proxy, code: i32, words: &[&str]) -> String {
    let output = ctl(proxy, words);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
    text(&output)
}

fn fetch(address: SocketAddr) -> String {
    let mut client = Peer::connect(address);
    client.send(GET);
    client.response().text().to_owned()
}

#[test]
fn blue_is_replaced_by_green_and_may_be_stopped() {
    let held = Held::start();
    let green = Backend::answering(HELLO.replace("hello", "green"));
    let setup = Setup::to(&[held.backend.address()]).with(|state| state.settings.workers = 2);
    let proxy = setup.start();
    let (blue, green) = (held.backend.address().to_string(), green.address().to_string());
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    proxy.until_counter("requests_active", 1);
    done(&proxy, &["backend", "add", "app", &green]);
    let mut drain = command(&proxy, &["backend", "drain", "app", &blue, "--wait", "--timeout", "60"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    // It says the new revision when every worker has it, and then waits.
    let mut said = BufReader::new(drain.stdout.take().expect("piped")).lines();
    let mut line = || said.next().expect("it goes on").expect("text");
    while !line().starts_with("revision") {}
    // New requests go to green, the one under way is finished by blue.
    for _ in 0..8 {
        assert_eq!(fetch(proxy.address()), "green");
    }
    assert!(drain.try_wait().expect("a child").is_none(), "blue still has a request");
    held.release();
    assert_eq!(client.response().text(), "hello");
    let last = line();
    assert!(last.contains("it may be stopped"), "{last}");
    assert!(drain.wait().expect("ends").success());
    done(&proxy, &["backend", "remove", "app", &blue]);
    let shown = done(&proxy, &["backend", "list", "app"]);
    assert!(shown.contains(&green) && !shown.contains(&blue), "{shown}");
    drop(client);
    proxy.stop();
}

#[test]
fn items_are_added_changed_and_removed() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("audit").expect_log("operations").start();
    let address = backend.address().to_string();
    done(&proxy, &["cluster", "add", "shop", "--backend", &address, "--set", "balance=least-loaded"]);
    assert_eq!(proxy.client().cluster("shop").expect("added").balance, Balance::LeastLoaded);
    done(&proxy, &["cluster", "change", "shop", "--set", "balance=", "--set", "redirect=copy"]);
    let changed = proxy.client().cluster("shop").expect("there");
    assert_eq!((changed.balance, changed.backends.len()), (Balance::RoundRobin, 1));
    done(&proxy, &["backend", "weight", "shop", &address, "7"]);
    assert_eq!(proxy.client().cluster("shop").expect("there").backends[0].weight, 7);
    done(
        &proxy,
        &["route", "add", "--host", "shop.example.com", "--path-prefix", "/buy", "--cluster", "shop"],
    );
    let shown = done(&proxy, &["route", "list"]);
    assert!(shown.contains("shop.example.com/buy...") && shown.contains("cluster shop"), "{shown}");
    let used = fails(&proxy, 1, &["cluster", "remove", "shop"]);
    assert!(used.contains("remove_cluster \"shop\"") || used.contains("cluster \"shop\""), "{used}");
    done(
        &proxy,
        &["route", "change", "--host", "shop.example.com", "--path-prefix", "/buy", "--cluster", "app"],
    );
    done(&proxy, &["route", "remove", "--host", "shop.example.com", "--path-prefix", "/buy"]);
    done(&proxy, &["cluster", "remove", "shop"]);
    let error = fails(&proxy, 1, &["cluster", "show", "shop"]);
    assert!(error.contains("there is no cluster \"shop\""), "{error}");
    let error = fails(&proxy, 2, &["cluster", "add", "x", "--set", "balanse=x"]);
    assert!(error.contains("cluster \"x\"") && error.contains("unknown field"), "{error}");
    proxy.stop();
}

#[test]
fn answers_are_named_and_used() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    done(&proxy, &["answer", "add", "closed", "we are closed", "--status", "503"]);
    done(&proxy, &["answer", "change", "closed", "--set", "content_type=text/html"]);
    let shown = done(&proxy, &["answer", "list"]);
    assert!(shown.contains("closed") && shown.contains("we are closed"), "{shown}");
    assert_eq!(proxy.client().state().expect("answers").state.answers[0].content_type, "text/html");
    done(&proxy, &["answer", "remove", "closed"]);
    assert_eq!(done(&proxy, &["answer", "list"]), "none\n");
    proxy.stop();
}

#[test]
fn a_listener_comes_and_goes() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    done(&proxy, &["listener", "add", "second", "127.0.0.1:0", "--default-cluster", "app"]);
    let address =
        proxy.status().listeners.iter().find(|listener| listener.name == "second").map(|l| l.address);
    let address = address.expect("it listens");
    assert_eq!(fetch(address), "hello");
    let gone = done(&proxy, &["listener", "remove", "second", "--wait", "--timeout", "60"]);
    assert!(gone.contains("has drained"), "{gone}");
    assert!(std::net::TcpStream::connect(address).is_err());
    proxy.stop();
}

#[test]
fn conditions_are_kept() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("revision").start();
    let revision = proxy.client().state().expect("answers").revision;
    let trial = done(&proxy, &["cluster", "add", "x", "--dry-run"]);
    assert!(trial.contains("add_cluster \"x\"") && trial.contains("dry run"), "{trial}");
    let old = (revision + 1).to_string();
    let error = fails(&proxy, 1, &["cluster", "add", "x", "--if-revision", &old]);
    assert!(error.contains(&revision.to_string()), "{error}");
    assert_eq!(proxy.client().state().expect("answers").revision, revision);
    done(&proxy, &["cluster", "add", "x", "--if-revision", &revision.to_string()]);
    proxy.stop();
}

#[test]
fn a_configuration_is_shown_compared_and_loaded() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let file = proxy.folder().join("other.toml");
    let path = file.display().to_string();
    let shown = done(&proxy, &["state", "show"]);
    std::fs::write(&file, &shown).expect("written");
    assert_eq!(done(&proxy, &["state", "diff", &path]), "");
    let addition =
        format!("\n[[cluster]]\nname = \"new\"\n[[cluster.backend]]\naddress = \"{}\"\n", backend.address());
    std::fs::write(&file, shown + &addition).expect("written");
    let difference = fails(&proxy, 1, &["state", "diff", &path]);
    assert!(difference.contains("add_cluster \"new\" with 1 backend"), "{difference}");
    done(&proxy, &["state", "load", &path]);
    assert_eq!(done(&proxy, &["state", "diff", &path]), "");
    let document = done(&proxy, &["state", "show", "--json"]);
    std::fs::write(&file, document).expect("written");
    assert_eq!(done(&proxy, &["state", "diff", &path]), "");
    proxy.stop();
}

#[test]
fn operations_come_from_the_standard_input() {
    use std::io::Write;
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let mut child = command(&proxy, &["change", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let operations = br#"[{"op":"add_cluster","cluster":{"name":"piped"}}]"#;
    child.stdin.take().expect("piped").write_all(operations).expect("taken");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success() && text(&output).contains("\"revision\""), "{}", text(&output));
    proxy.client().cluster("piped").expect("added");
    proxy.stop();
}

#[test]
fn events_are_lines_of_json() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    let first = proxy.client().events(Some(0)).expect("listens").next().expect("lasts").expect("an event");
    let all = done(&proxy, &["events", "--after", "0", "--count", "1", "--json"]);
    assert_eq!(serde_json::from_str::<underpass_command::api::Event>(&all).expect("JSON"), first);
    let told = done(&proxy, &["events", "--after", "0", "--count", "1"]);
    assert!(told.contains("worker up"), "{told}");
    proxy.stop();
}

#[test]
fn limits_and_settings_are_shown_and_set() {
    let backend = Backend::answering(HELLO);
    let proxy = Proxy::to(&[backend.address()]);
    assert!(done(&proxy, &["limit", "show"]).contains("\nconnections=256\n"));
    done(&proxy, &["settings", "set", "timeouts.head_ms=4321"]);
    assert!(done(&proxy, &["settings", "show"]).contains("timeouts.head_ms=4321\n"));
    assert!(done(&proxy, &["worker", "list"]).contains("running"));
    proxy.stop();
}

#[test]
fn all_workers_are_replaced_one_after_the_other() {
    let held = Held::start();
    let setup = Setup::to(&[held.backend.address()]).with(|state| state.settings.workers = 2);
    let proxy = setup.expect_log("drain of worker").start();
    let before = proxy.worker_pids();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    proxy.until_counter("requests_active", 1);
    let active = |worker: &WorkerStatus| worker.counters.value("requests_active") == 1;
    let busy = proxy.status().workers.iter().position(active).expect("one of them").to_string();
    let told = done(&proxy, &["worker", "drain", &busy, "--deadline-ms", "3600000"]);
    assert!(told.contains("finishes what it has, what is left after 3600000 ms is cut"), "{told}");
    let shown = done(&proxy, &["worker", "list"]);
    assert!(shown.contains("running") && shown.contains(": 1 open, "), "{shown}");
    assert!(text(&underpass(&["status", "--socket", &socket(&proxy)])).contains("drains: process "));
    let again = fails(&proxy, 1, &["worker", "drain", &busy]);
    assert!(again.contains("drains already") && again.contains("worker_drained"), "{again}");
    assert!(fails(&proxy, 2, &["worker", "drain", "every"]).contains("neither the number of a worker"));
    held.release();
    assert_eq!(client.response().text(), "hello");
    drop(client);
    let drained = || proxy.status().workers.iter().all(|worker| worker.draining.is_none()).then_some(());
    until("the first drain has ended", drained);
    let told = done(&proxy, &["worker", "drain", "all", "--wait"]);
    for number in [0, 1] {
        assert!(told.contains(&format!("worker {number} has drained: process ")), "{told}");
    }
    assert!(proxy.worker_pids().iter().all(|pid| !before.contains(pid)));
    assert_eq!(fetch(proxy.address()), "hello");
    proxy.stop();
}

fn socket(proxy: &Proxy) -> String {
    proxy.client().socket().display().to_string()
}

#[test]
fn sessions_are_shown_with_what_they_wait_for() {
    let held = Held::start();
    let proxy = Setup::to(&[held.backend.address()]).start();
    let mut waiting = Peer::connect(proxy.address());
    waiting.send(GET);
    proxy.until_counter("requests_active", 1);
    let idle = Peer::connect(proxy.address());
    proxy.until_counter("connections_active", 2);
    let shown = done(&proxy, &["sessions"]);
    let lines: Vec<&str> = shown.lines().collect();
    // The one with a request stands first.
    assert!(lines[1].contains(" exchange ") && lines[1].contains(" app "), "{shown}");
    assert!(lines[1].contains(&held.backend.address().to_string()), "{shown}");
    assert!(lines[2].contains(" head "), "{shown}");
    assert_eq!(lines[3], "2 of 2 connections");
    let of_cluster = done(&proxy, &["sessions", "--cluster", "app", "--limit", "1"]);
    assert!(of_cluster.ends_with("1 of 1 connections\n"), "{of_cluster}");
    assert!(fails(&proxy, 1, &["sessions", "--cluster", "shop"]).contains("there is no cluster \"shop\""));
    assert!(fails(&proxy, 1, &["sessions", "--limit", "0"]).contains("not from 1 to 1000"));
    held.release();
    assert_eq!(waiting.response().text(), "hello");
    drop((waiting, idle));
    proxy.stop();
}
