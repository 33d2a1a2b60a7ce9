//! What an ordinary user gets, and what workers of root keep of root's rights.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use underpass_command::state::SteeringPolicy;
use underpass_tests::proxy::{Setup, executable};
use underpass_tests::{Backend, GET, OK, Peer};

/// Debian's nobody and nogroup.
const NOBODY: &str = "65534";

/// The value of a field in /proc/PID/status.
fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
}

#[test]
fn workers_of_root_keep_no_right_of_root() {
    if !underpass_tests::is_root() {
        underpass_tests::skip("needs root, to have something to drop");
        return;
    }
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()]).start();
    let pid = proxy.worker_pids()[0];
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(pid, capabilities).trim_start_matches('0'), "", "{capabilities}");
    }
    assert_eq!(field(pid, "NoNewPrivs"), "1");
    for ids in ["Uid", "Gid"] {
        assert!(field(pid, ids).split_whitespace().all(|id| id == NOBODY), "{ids}: {}", field(pid, ids));
    }
    assert!(["", NOBODY].contains(&field(pid, "Groups").as_str()), "{}", field(pid, "Groups"));
    proxy.stop();
}

#[test]
fn an_ordinary_user_gets_a_proxy_without_bpf_that_says_so() {
    let backend = Backend::answering(OK);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut setup = Setup::to(&[backend.address()])
        .with(|state| state.settings.steering = SteeringPolicy::Cpu)
        .expect_log("steering");
    if underpass_tests::is_root() {
        // The build's folder may be closed to others.
        let copy = folder.path().join("underpass");
        fs::copy(executable(), &copy).expect("copying the executable");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        setup = setup.executable(&copy).run_by(&["setpriv", &ids[0], &ids[1], "--clear-groups"]);
    }
    let proxy = setup.start();
    let steering = proxy.status().steering;
    assert!(!steering.active);
    assert!(steering.reason.is_some_and(|reason| !reason.is_empty()));
    assert!(proxy.log().contains("steering"), "{}", proxy.log());
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    assert_eq!(client.response().text(), "ok");
    drop(client);
    proxy.stop();
}
