//! What workers of root keep of root's rights.

use std::fs;

use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, OK};

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
