//! What Prometheus reads, from a proxy that has something to tell.

use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, Message, Peer, Proxy, until};

use crate::{GET, HELLO, signal_worker, text, underpass, until_restarted};

fn measured(backend: &Backend) -> Proxy {
    let address = "127.0.0.1:0".parse().expect("an address");
    Setup::to(&[backend.address()]).with(|state| state.settings.metrics.address = Some(address)).start()
}

#[track_caller]
fn ask(proxy: &Proxy, request: &str) -> Message {
    let address = proxy.status().metrics_address.expect("it listens");
    let mut peer = Peer::connect(address);
    peer.send(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let method = request.split(' ').next().unwrap_or_default().to_owned();
    peer.response_to(&method)
}

#[track_caller]
fn scrape(proxy: &Proxy) -> String {
    let answer = ask(proxy, "GET /metrics");
    assert_eq!(answer.status(), 200);
    answer.text().to_owned()
}

/// The value of a series, named with its labels.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = line.unwrap_or_else(|| panic!("{series} is missing in {text}"));
    value.parse().unwrap_or_else(|_| panic!("{series} has the value {value}"))
}

#[test]
fn requests_are_counted_where_they_came_in_and_where_they_went() {
    let backend = Backend::answering(HELLO);
    let proxy = measured(&backend);
    let mut client = Peer::connect(proxy.address());
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
        assert_eq!(client.response().text(), "hello");
    }
    // The last is counted in the turn that has sent it.
    let requests = "underpass_cluster_requests_total{cluster=\"app\"}";
    let all = until("three requests", || {
        let text = scrape(&proxy);
        (value(&text, requests) >= 3.0).then_some(text)
    });
    let address = backend.address();
    for (series, expected) in [
        (requests.to_owned(), 3.0),
        ("underpass_cluster_responses_total{cluster=\"app\",class=\"2xx\"}".to_owned(), 3.0),
        ("underpass_cluster_responses_total{cluster=\"app\",class=\"5xx\"}".to_owned(), 0.0),
        ("underpass_cluster_received_bytes_total{cluster=\"app\"}".to_owned(), 12.0),
        ("underpass_cluster_sent_bytes_total{cluster=\"app\"}".to_owned(), 15.0),
        ("underpass_cluster_request_duration_seconds_count{cluster=\"app\"}".to_owned(), 3.0),
        ("underpass_cluster_first_byte_seconds_count{cluster=\"app\"}".to_owned(), 3.0),
        ("underpass_listener_requests_total{listener=\"web\"}".to_owned(), 3.0),
        ("underpass_listener_connections_total{listener=\"web\"}".to_owned(), 1.0),
        ("underpass_listener_connections_active{listener=\"web\"}".to_owned(), 1.0),
        (format!("underpass_backend_requests_total{{cluster=\"app\",backend=\"{address}\"}}"), 3.0),
        (format!("underpass_backend_connects_total{{cluster=\"app\",backend=\"{address}\"}}"), 1.0),
        (format!("underpass_backend_reuses_total{{cluster=\"app\",backend=\"{address}\"}}"), 2.0),
        (format!("underpass_backend_requests_active{{cluster=\"app\",backend=\"{address}\"}}"), 0.0),
        (format!("underpass_backend_response_seconds_count{{cluster=\"app\",backend=\"{address}\"}}"), 3.0),
        ("underpass_worker_up{worker=\"0\"}".to_owned(), 1.0),
        ("underpass_metrics_series_left_out".to_owned(), 0.0),
    ] {
        assert_eq!(value(&all, &series), expected, "{series}");
    }
    drop(client);
    proxy.stop();
}

#[test]
fn what_a_dead_worker_cannot_take_back_is_taken_back() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()])
        .with(|state| state.settings.metrics.address = Some("127.0.0.1:0".parse().expect("an address")))
        .expect_log("worker died")
        .start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
    let active = "underpass_listener_connections_active{listener=\"web\"}";
    until("the connection is counted", || (value(&scrape(&proxy), active) == 1.0).then_some(()));
    signal_worker(&proxy, 0, Signal::SIGKILL);
    until_restarted(&proxy, 0, 1);
    let text = scrape(&proxy);
    assert_eq!(value(&text, active), 0.0);
    assert_eq!(value(&text, "underpass_listener_connections_total{listener=\"web\"}"), 1.0);
    assert_eq!(value(&text, "underpass_worker_restarts_total{worker=\"0\"}"), 1.0);
    drop(client);
    proxy.stop();
}

#[test]
fn formats_methods_and_paths() {
    let backend = Backend::answering(HELLO);
    let proxy = measured(&backend);
    let plain = ask(&proxy, "GET /metrics");
    assert_eq!(plain.value("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let address = proxy.status().metrics_address.expect("it listens");
    let mut peer = Peer::connect(address);
    peer.send(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
    );
    let open = peer.response();
    assert_eq!(
        open.value("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(open.text().ends_with("# EOF\n"));
    assert_eq!(ask(&proxy, "HEAD /metrics").status(), 200);
    assert_eq!(ask(&proxy, "GET /").status(), 404);
    assert_eq!(ask(&proxy, "POST /metrics").status(), 405);
    proxy.stop();
}

#[test]
fn callers_that_say_nothing_are_cut_and_keep_few_waiting() {
    let backend = Backend::answering(HELLO);
    let proxy = measured(&backend);
    let address = proxy.status().metrics_address.expect("it listens");
    let mut idle: Vec<Peer> = (0..7).map(|_| Peer::connect(address)).collect();
    assert!(scrape(&proxy).contains("underpass_worker_up"));
    // Now there is no place left until one of them is cut, because no head has come.
    idle.push(Peer::connect(address));
    assert!(scrape(&proxy).contains("underpass_worker_up"));
    drop(idle);
    proxy.stop();
}

#[test]
fn series_beyond_the_bound_are_left_out_and_counted() {
    let backend = Backend::answering(HELLO);
    let address = "127.0.0.1:0".parse().expect("an address");
    let proxy = Setup::to(&[backend.address()])
        .with(|state| {
            state.settings.metrics.address = Some(address);
            state.settings.metrics.series_max = 100;
        })
        .start();
    let text = scrape(&proxy);
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    // Those that tell of the bound itself are always there.
    assert_eq!(series, 100 + 2);
    assert!(value(&text, "underpass_metrics_series_left_out") > 0.0);
    assert!(!text.contains("underpass_backend_"), "those of backends go first");
    proxy.stop();
}

#[test]
fn top_shows_a_frame_as_text_and_refuses_what_is_no_terminal() {
    let backend = Backend::answering(HELLO);
    let proxy = measured(&backend);
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
    let socket = proxy.client().socket().to_str().expect("UTF-8").to_owned();
    for (view, part) in [
        ("workers", "running"),
        ("clusters", "\napp "),
        ("backends", &format!("\n{} ", backend.address())),
        ("steering", "policy off"),
    ] {
        let output = underpass(&["top", "--once", "--view", view, "--socket", &socket]);
        let said = text(&output);
        assert!(output.status.success() && said.contains(part), "{part:?} is missing in {said}");
        assert!(said.contains("clusters (1)") && said.contains("backends (1)"), "{said}");
    }
    let output = underpass(&["top", "--socket", &socket]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--once"), "{}", text(&output));
    let refused = proxy.client().top(0).expect_err("none is too few").to_string();
    assert!(refused.contains("limit=0"), "{refused}");
    drop(client);
    proxy.stop();
}

#[test]
fn promtool_finds_nothing_wrong() {
    let backend = Backend::answering(HELLO);
    let proxy = measured(&backend);
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "hello");
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = started.expect("promtool, of the package prometheus");
    let mut input = promtool.stdin.take().expect("a pipe");
    input.write_all(scrape(&proxy).as_bytes()).expect("it reads all");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
    assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
    drop(client);
    proxy.stop();
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("proxy.toml");
    let socket = folder.path().join("admin.sock");
    let toml = format!(
        "admin_socket = {socket:?}\n[metrics]\naddress = \"{address}\"\n[[listener]]\nname = \"web\"\n\
         address = \"127.0.0.1:0\"\ndefault_cluster = \"app\"\n[[cluster]]\nname = \"app\"\n[[cluster.backend]]\n\
         address = \"127.0.0.1:9\"\n"
    );
    std::fs::write(&config, toml).expect("a file");
    let output = underpass(&["start", "--config", config.to_str().expect("UTF-8")]);
    assert!(!output.status.success());
    let said = text(&output);
    assert!(
        said.contains(&format!("metrics.address {address}")) && said.contains("leave the key out"),
        "{said}"
    );
}
