//! The admin API: documents, refusals, and callers that misbehave.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use underpass_command::api::{RedirectChange, RedirectScope, SteeringChange};
use underpass_command::state::{RedirectMode, SteeringPolicy};
use underpass_command::{Client, ClientError};
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, PATIENCE, Peer, Proxy, until};

use crate::{GET, HELLO, signal_worker};

/// Sends bytes and no more than them; returns the whole answer.
#[track_caller]
fn raw(proxy: &Proxy, request: impl AsRef<[u8]>) -> String {
    let mut stream = UnixStream::connect(proxy.client().socket()).expect("the admin socket listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    // What does not want to hear it all closes early.
    let _ = stream.write_all(request.as_ref());
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn put(path: &str, body: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[track_caller]
fn expect_refusal(answer: &str, status: u16, part: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains(r#"{"error":""#) && answer.contains(r#""remedy":""#), "{answer}");
    assert!(answer.contains(part), "{answer}");
}

#[test]
fn the_status_tells_what_runs() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).with(|state| state.settings.workers = 2).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    client.response();
    client.send("GET / HTTP/1.1\r\nHost : x\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    proxy.until_counter("requests", 1);
    let status = proxy.status();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((status.pid, status.generation, status.draining), (proxy.pid(), 1, false));
    assert_eq!(status.workers.len(), 2);
    assert!(status.workers.iter().all(|worker| worker.pid.is_some() && worker.restarts == 0));
    assert_eq!(status.clusters[0].backends, [backend.address()]);
    assert_ne!(status.listeners[0].address.port(), 0);
    assert_eq!(status.total.refused_requests.get("space_before_colon"), Some(&1), "{status:?}");
    assert!(status.total.latency.count >= 1);
    let probes =
        until("the probes are done", || Some(proxy.status().probes).filter(|probes| !probes.is_empty()));
    assert!(probes.iter().any(|probe| probe.name == "kernel" && !probe.detail.is_empty()), "{probes:?}");
    assert!(status.total.latency.p50_us <= status.total.latency.p999_us);
    let per_worker: u64 = status.workers.iter().map(|worker| worker.counters.value("requests")).sum();
    assert_eq!(per_worker, status.total.value("requests"));
    drop(client);
    proxy.stop();
}

#[test]
fn redirect_modes_change_by_scope() {
    let backend = Backend::answering(HELLO);
    let setup = Setup::to(&[backend.address()]).with(|state| state.settings.workers = 3);
    let proxy = setup.expect_log("there is no cluster \"ap\"").start();
    let set = |mode, scope| proxy.client().set_redirect(&RedirectChange { mode, scope });
    let (listener, cluster) = (RedirectScope::Listener("web".into()), RedirectScope::Cluster("app".into()));
    set(Some(RedirectMode::Splice), RedirectScope::Process).expect("valid");
    set(Some(RedirectMode::Copy), listener.clone()).expect("valid");
    let status = set(Some(RedirectMode::Auto), cluster).expect("valid");
    assert_eq!(status.process, RedirectMode::Splice);
    assert_eq!(status.listeners["web"], Some(RedirectMode::Copy));
    assert_eq!(status.clusters["app"], Some(RedirectMode::Auto));
    assert_eq!(set(None, listener).expect("valid").listeners["web"], None);
    let ClientError::Refused { status: code, body } =
        set(None, RedirectScope::Cluster("ap".into())).expect_err("unknown")
    else {
        panic!("refused")
    };
    assert_eq!((code, body.remedy.as_deref()), (404, Some("use one of: \"app\"")));
    assert_eq!(proxy.client().redirect().expect("answers"), proxy.status().redirect);
    proxy.stop();
}

#[test]
fn a_worker_that_does_not_answer_is_named() {
    let backend = Backend::answering(HELLO);
    let setup = Setup::to(&[backend.address()]).expect_log("no answer within").with(|state| {
        state.settings.workers = 2;
    });
    let proxy = setup.start();
    signal_worker(&proxy, 1, Signal::SIGSTOP);
    let change = RedirectChange { mode: Some(RedirectMode::Copy), scope: RedirectScope::Process };
    let error = proxy.client().set_redirect(&change).expect_err("one is stopped");
    assert!(matches!(&error, ClientError::Refused { status: 504, .. }), "{error}");
    assert!(error.to_string().contains("from worker 1;"), "{error}");
    signal_worker(&proxy, 1, Signal::SIGCONT);
    proxy.client().set_redirect(&change).expect("both answer");
    proxy.stop();
}

#[test]
fn what_is_no_request_is_refused_with_a_remedy() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("nothing to inherit").start();
    expect_refusal(&raw(&proxy, "GET /v2/status HTTP/1.1\r\nHost: x\r\n\r\n"), 404, "/v1/status");
    expect_refusal(&raw(&proxy, "DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"), 405, "use GET");
    expect_refusal(&raw(&proxy, put("/v1/redirect", r#"{"mode":"fast"}"#)), 422, "fast");
    expect_refusal(&raw(&proxy, put("/v1/redirect", r#"{"mode":null}"#)), 422, "inherit");
    expect_refusal(&raw(&proxy, put("/v1/redirect", r#"{"mode":"copy","scope":"all"}"#)), 422, "all");
    expect_refusal(&raw(&proxy, put("/v1/steering", "")), 400, "not understood");
    let large = "PUT /v1/redirect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    expect_refusal(&raw(&proxy, large), 413, "65536");
    assert!(raw(&proxy, "no HTTP\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert_eq!(proxy.status().redirect.process, RedirectMode::Auto);
    proxy.stop();
}

#[test]
fn only_its_own_user_may_open_the_socket() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).start();
    let metadata = std::fs::metadata(proxy.client().socket()).expect("exists");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    proxy.stop();
}

#[test]
fn the_steering_policy_is_changed_or_said_to_be_impossible() {
    let backend = Backend::answering(HELLO);
    let proxy = Setup::to(&[backend.address()]).expect_log("cannot be had").start();
    let answer = proxy.client().set_steering(SteeringChange { policy: SteeringPolicy::Hash });
    let status = proxy.client().steering().expect("answers");
    match answer {
        Ok(changed) => {
            assert!(changed.active && changed.policy == SteeringPolicy::Hash, "{changed:?}");
            assert_eq!(status.policy, SteeringPolicy::Hash);
        }
        Err(error) => {
            assert!(matches!(&error, ClientError::Refused { status: 409, .. }), "{error}");
            let reason = status.reason.expect("a reason");
            assert!(error.to_string().contains(&reason), "{error}");
            assert_eq!((status.policy, status.active), (SteeringPolicy::Off, false));
        }
    }
    let off = proxy.client().set_steering(SteeringChange { policy: SteeringPolicy::Off }).expect("always");
    assert_eq!((off.policy, off.active), (SteeringPolicy::Off, false));
    proxy.stop();
}

#[test]
fn a_socket_of_a_dead_proxy_is_replaced() {
    let backend = Backend::answering(HELLO);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("admin.sock");
    let stale = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    drop(stale);
    assert!(path.exists());
    assert!(Client::new(&path).status().expect_err("dead").to_string().contains("is gone"));
    crate::command_line::run_until_ready(&path, backend.address(), |_| {
        Client::new(&path).status().expect("the new one answers");
    });
}
