//! What is checked in a guest, in this order: each check leaves the guest as the next one expects it.

mod bodies;
mod nic;
mod steering;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use underpass_lab::exchange::Pattern;

use super::guest::{CPUS, Guest};
use super::image::{CONFIGURATION, TESTS};
use super::kernel::Kernel;
use super::network::Network;
use super::report::Report;
use crate::process::check_interrupt;

/// A guest, and the world outside of it.
pub(super) struct Scene<'a> {
    pub(super) guest: Guest,
    pub(super) network: &'a Network,
    pub(super) pattern: &'a Pattern,
    pub(super) kernel: &'a Kernel,
}

type Check = fn(&mut Scene<'_>) -> Result<String>;

const CHECKS: &[(&str, Check)] = &[
    ("machine", machine),
    ("proxy starts", start),
    ("nic shows what is misaligned", nic::misaligned),
    ("nic --apply aligns", nic::aligns),
    ("interrupts are where they were put", nic::interrupts),
    ("policy cpu", steering::by_cpu),
    ("policy rx-queue", steering::by_queue),
    ("bodies: copy", bodies::copy),
    ("bodies: splice", bodies::splice),
    ("sockmap's self-test", bodies::sockmap_available),
    ("bodies: sockmap", bodies::sockmap),
    ("bodies: auto", bodies::auto),
    ("proxy ends", end),
];

/// How long the proxy may take to start and to end, on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a program of tests.
const TEST_PATIENCE: Duration = Duration::from_secs(240);
/// Where the proxy logs to, and where its exit status goes.
const LOG: &str = "/var/log/underpass.log";
const EXIT: &str = "/run/underpass.exit";

/// Runs all checks, then all programs that test, as long as the guest lives; an error only if the run was interrupted.
pub(super) fn run(scene: &mut Scene<'_>, tests: &[(String, PathBuf)], report: &mut Report) -> Result<()> {
    for (name, check) in CHECKS {
        run_one(scene, name, *check, report)?;
    }
    for (name, _) in tests {
        run_one(scene, &format!("tests: {name}"), |scene| test_program(scene, name), report)?;
    }
    run_one(scene, "kernel log", kernel_log, report)
}

fn run_one(
    scene: &mut Scene<'_>,
    name: &str,
    check: impl FnOnce(&mut Scene<'_>) -> Result<String>,
    report: &mut Report,
) -> Result<()> {
    check_interrupt()?;
    // What is to come after a guest's end would only fail for that.
    if scene.guest.ensure_alive().is_ok() {
        report.check(&scene.kernel.release, name, || {
            let result = check(scene);
            scene.guest.ensure_alive()?;
            result
        });
    }
    Ok(())
}

/// Runs a program of tests. A guest has all that they need, so nothing may be skipped but what its kernel is too old for.
fn test_program(scene: &mut Scene<'_>, name: &str) -> Result<String> {
    let command = format!("{TESTS}/{name} --test-threads=1");
    let (status, output) = scene.guest.try_run_within(&command, TEST_PATIENCE)?;
    ensure!(status == 0, "status {status}:\n{output}");
    let old = bodies::too_old_for_sockmap(&scene.kernel.release)?;
    let skipped = skipped(&output, old.as_deref())?;
    let result = output.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    let result = result.with_context(|| format!("no result:\n{output}"))?;
    let result = result.split(';').next().unwrap_or_default();
    match skipped {
        0 => Ok(result.to_owned()),
        _ => Ok(format!("{result}, {skipped} of them skipped: {}", old.unwrap_or_default())),
    }
}

/// How many tests say that they are skipped; an error for one that does so for another reason than `excuse`.
fn skipped(output: &str, excuse: Option<&str>) -> Result<usize> {
    // libtest writes to the same line, before and after.
    let skips = || output.lines().filter(|line| line.contains("SKIP "));
    let bad = skips().find(|line| excuse.is_none_or(|excuse| !line.contains(excuse)));
    ensure!(bad.is_none(), "{}", bad.unwrap_or_default());
    Ok(skips().count())
}

impl Scene<'_> {
    /// The document of the admin API.
    fn status(&mut self) -> Result<Value> {
        let text = self.guest.query("underpass status --json")?;
        serde_json::from_str(&text).context("the status is not JSON")
    }
}

/// A number in a document; an error that names the path where there is none.
fn number(document: &Value, path: &str) -> Result<u64> {
    let found = document.pointer(path).and_then(Value::as_u64);
    found.with_context(|| format!("the status has no number {path}"))
}

/// An error that names both, unless they are equal.
fn ensure_equal<T: PartialEq<U> + Display, U: Display>(what: &str, found: T, expected: U) -> Result<()> {
    ensure!(found == expected, "{what}: {found} instead of {expected}");
    Ok(())
}

fn machine(scene: &mut Scene<'_>) -> Result<String> {
    let guest = &mut scene.guest;
    ensure_equal("kernel", guest.run("uname -r")?.trim(), &scene.kernel.release)?;
    ensure_equal("CPUs", guest.run("nproc")?.trim(), CPUS.to_string())?;
    let queues = guest.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
    ensure_equal("RX queues", queues.trim(), CPUS.to_string())?;
    let driver = guest.run("basename $(readlink -f /sys/class/net/eth0/device/driver)")?;
    Ok(format!("{CPUS} CPUs, eth0 is {} with {} RX queues", driver.trim(), queues.trim()))
}

fn start(scene: &mut Scene<'_>) -> Result<String> {
    let guest = &mut scene.guest;
    guest.run(&format!(
        "(underpass start --config {CONFIGURATION} >{LOG} 2>&1; echo $? >{EXIT}) >/dev/null 2>&1 &"
    ))?;
    let running =
        guest.until("underpass status --json | grep -c '\"state\": *\"running\"' | grep -x 4", PATIENCE);
    if let Err(error) = running {
        let log = guest.run(&format!("cat {LOG}"))?;
        return Err(error.context(format!("the proxy does not run; its log:\n{log}")));
    }
    let status = scene.status()?;
    for worker in 0..u64::from(CPUS) {
        ensure_equal("CPU of a worker", number(&status, &format!("/workers/{worker}/cpu"))?, worker)?;
    }
    let log = scene.guest.run(&format!("cat {LOG}"))?;
    ensure!(
        status["steering"]["active"] == true,
        "steering is off: {}; log:\n{log}",
        status["steering"]["reason"]
    );
    ensure!(
        status["steering"]["reduced"].is_null(),
        "steering is reduced: {}",
        status["steering"]["reduced"]
    );
    let user = scene.guest.run("ps -o user,args | grep underpass | grep -c ^nobody")?;
    ensure_equal("workers that run as nobody", user.trim(), CPUS.to_string())?;
    Ok(format!("{CPUS} workers, each on its CPU; steering is loaded, with reads of kernel memory"))
}

fn end(scene: &mut Scene<'_>) -> Result<String> {
    let supervisor = number(&scene.status()?, "/pid")?;
    let guest = &mut scene.guest;
    guest.run(&format!("kill -TERM {supervisor}"))?;
    let exit = guest.until(&format!("cat {EXIT}"), PATIENCE)?;
    let log = guest.run(&format!("cat {LOG}"))?;
    ensure!(exit.trim() == "0", "exit status {}; log:\n{log}", exit.trim());
    let bad = log.lines().find(|line| line.contains("panicked") || line.contains("ERROR"));
    ensure!(bad.is_none(), "it logged: {}", bad.unwrap_or_default());
    let left = guest.try_run("pidof underpass")?.1;
    ensure!(left.trim().is_empty(), "processes are left: {left}");
    Ok("drained, exit status 0, no process left, no error logged".into())
}

fn kernel_log(scene: &mut Scene<'_>) -> Result<String> {
    let console = scene.guest.console();
    // An emulated processor may be given so little time that the kernel takes it for stuck: that is the host's doing.
    let excused = ["soft lockup", "clocksource", "rcu:"];
    let bad = console.lines().find(|line| {
        let bad = ["BUG:", "WARNING:", "Oops", "general protection", "Call Trace"];
        bad.iter().any(|word| line.contains(word)) && !excused.iter().any(|word| line.contains(word))
    });
    ensure!(bad.is_none(), "{}", bad.unwrap_or_default());
    Ok("nothing that the kernel complains about".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_kernel_excuses_a_test_that_is_skipped() {
        let output = "test a ... SKIP a: BPF is not available: kernel 6.1.0 is older than 6.16, and\nok\ntest b ... ok\n";
        assert_eq!(skipped(output, Some("kernel 6.1.0 is older than 6.16")).unwrap(), 1);
        assert!(skipped(output, None).is_err());
        assert!(skipped("SKIP a: no CAP_BPF\n", Some("kernel 6.1.0 is older than 6.16")).is_err());
        assert_eq!(skipped("test b ... ok\n", None).unwrap(), 0);
    }
}
