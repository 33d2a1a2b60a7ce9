//! Scripts of varnishtest, played against a running proxy.
//!
//! A script finds the proxy's listener as `${proxy}` and listens itself at `${backend1}` to `${backend3}`, which are the
//! backends of the clusters "app", "two" and "three".

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ports::ReservedPort;
use crate::proxy::Setup;

/// The folder of the scripts.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vtc")
}

/// Starts a proxy, plays one script, and stops the proxy.
#[track_caller]
pub fn play(script: &str, configure: impl FnOnce(Setup) -> Setup) {
    // The ports must be known before the script runs, because the proxy is configured with them.
    let ports = [ReservedPort::new(), ReservedPort::new(), ReservedPort::new()];
    let setup = Setup::to(&[ports[0].address()])
        .cluster("two", &[ports[1].address()])
        .cluster("three", &[ports[2].address()])
        // Most scripts need the first cluster only.
        .expect_log("no route and no listener leads to it");
    let proxy = configure(setup).start();
    let mut command = Command::new("varnishtest");
    let mut define = |name: &str, address: std::net::SocketAddr| {
        command.arg("-D").arg(format!("{name}={} {}", address.ip(), address.port()));
    };
    define("proxy", proxy.address());
    for (number, port) in ports.iter().enumerate() {
        define(&format!("backend{}", number + 1), port.address());
    }
    command.args(["-t", "30"]).arg(folder().join(script)).env("TMPDIR", proxy.folder());
    let output = command.output().unwrap_or_else(|error| {
        panic!("varnishtest cannot be started: {error}; on Debian it is in the package varnish")
    });
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{text}", output.status);
    // varnishtest takes a script that ends by `feature` for skipped, with status 0.
    assert!(!text.contains("SKIPPED"), "{script} was skipped:\n{text}");
    proxy.stop();
}
