//! `cargo xtask test`: builds and runs every test of the workspace, and says what was not run and why.

mod tally;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, bail};
use tally::{Tally, Verdict};

use crate::tools::{Tool, cargo, ensure, is_root};

/// The cargo profile that tests and the proxy under test are built in: optimised, assertions on.
pub(crate) const PROFILE: &str = "checked";

/// What the end-to-end tests start.
const TOOLS: &[Tool] = &[
    Tool::new("curl", "curl"),
    Tool::new("ethtool", "ethtool"),
    Tool::new("haproxy", "haproxy"),
    Tool::new("ip", "iproute2"),
    Tool::new("nginx", "nginx-light"),
    Tool::new("openssl", "openssl"),
    Tool::new("promtool", "prometheus"),
    Tool::new("strace", "strace"),
    Tool::new("varnishtest", "varnish"),
    Tool::new("wrk", "wrk"),
];

/// Tests that root may skip, by the end of their name, each with its reason. Any other skip as root is a failure:
/// what should have been tested was not.
const SKIPS_ALLOWED_AS_ROOT: &[(&str, &str)] =
    &[("semantics::ipv6_on_both_sides", "containers often have no IPv6, not even on loopback")];

/// Which tests to run.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only tests of this package; may be repeated
    #[arg(short, long)]
    package: Vec<String>,
    /// Don't install missing programs, say which they are
    #[arg(long)]
    no_install: bool,
}

/// Runs the tests; an error if one failed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure(TOOLS, !options.no_install)?;
    let proxy = build_proxy()?;
    eprintln!("proxy under test: {}", proxy.display());
    let mut tally = Tally::default();
    let ended_well = run_cargo_test(options, &proxy, &mut tally)?;
    let report = tally.report(&Verdict { ended_well, root: is_root(), allowed: SKIPS_ALLOWED_AS_ROOT });
    for line in &report.lines {
        println!("{line}");
    }
    println!("{}", report.closing_line());
    if report.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// Builds the binary that the end-to-end tests start; returns its path.
pub(crate) fn build_proxy() -> anyhow::Result<PathBuf> {
    let output = cargo()
        .args(["build", "--profile", PROFILE, "--package", "underpass", "--bin", "underpass"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo build could not be started")?;
    if !output.status.success() {
        bail!("the proxy could not be built");
    }
    executable_of(&output.stdout).context("cargo build named no executable \"underpass\"")
}

/// The executable that cargo's JSON messages name last.
pub(crate) fn executable_of(messages: &[u8]) -> Option<PathBuf> {
    let lines = messages.split(|&byte| byte == b'\n').rev();
    lines
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
}

enum Line {
    Out(String),
    Err(String),
}

/// Runs `cargo test`, echoes what it prints and counts it; returns whether cargo was content.
fn run_cargo_test(options: &Options, proxy: &PathBuf, tally: &mut Tally) -> anyhow::Result<bool> {
    let mut child = test_command(options, proxy)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cargo test could not be started")?;
    let (sender, lines) = mpsc::channel();
    let out = child.stdout.take().context("no pipe to cargo's standard output")?;
    let err = child.stderr.take().context("no pipe to cargo's standard error")?;
    let readers = [
        {
            let sender = sender.clone();
            thread::spawn(move || read_lines(out, |line| sender.send(Line::Out(line)).is_ok()))
        },
        thread::spawn(move || read_lines(err, |line| sender.send(Line::Err(line)).is_ok())),
    ];
    for line in lines {
        match line {
            Line::Out(line) => {
                if tally.stdout_line(&line) {
                    println!("{line}");
                }
            }
            Line::Err(line) => {
                tally.stderr_line(&line);
                eprintln!("{line}");
            }
        }
    }
    for reader in readers {
        if reader.join().is_err() {
            bail!("the thread that reads cargo's output panicked");
        }
    }
    Ok(child.wait().context("cargo test could not be waited for")?.success())
}

fn test_command(options: &Options, proxy: &PathBuf) -> Command {
    let mut command = cargo();
    command.args(["test", "--profile", PROFILE, "--no-fail-fast"]);
    if options.package.is_empty() {
        command.arg("--workspace");
    }
    for package in &options.package {
        command.args(["--package", package]);
    }
    command.arg("--").args(&options.filter);
    // The output of tests that pass is where a test says that it skipped itself.
    command.arg("--show-output");
    command.env("UNDERPASS_BIN", proxy);
    command.env("PATH", path_with_sbin());
    command
}

/// An ordinary user's PATH lacks the folders where nginx and ethtool are.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// Hands on line by line, also what is not UTF-8, until the end or until nobody wants more.
fn read_lines(from: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(length @ 1..) = from.read_until(b'\n', &mut line) {
        let text = line[..length].strip_suffix(b"\n").unwrap_or(&line[..length]);
        if !take(String::from_utf8_lossy(text).into_owned()) {
            return;
        }
        line.clear();
    }
}

/// What `cargo xtask ci` checks before it starts, so that it does not fail half an hour later.
pub(crate) fn ensure_tools() -> anyhow::Result<()> {
    ensure(TOOLS, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_read_from_cargos_messages() {
        let messages = b"{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/underpass\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable_of(messages), Some(PathBuf::from("/t/underpass")));
        assert_eq!(executable_of(b"{\"reason\":\"build-finished\",\"success\":true}\n"), None);
    }

    #[test]
    fn lines_are_read_also_where_they_are_no_text() {
        let mut lines = Vec::new();
        read_lines(&b"one\n\xff\nlast"[..], |line| {
            lines.push(line);
            true
        });
        assert_eq!(lines, ["one", "\u{fffd}", "last"]);
    }
}
