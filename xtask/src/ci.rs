//! `cargo xtask ci`: everything a change must pass, step by step, each timed.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::tools::{self, cargo, find, workspace_root};
use crate::{build_ebpf, fuzz, test, vm};

/// The version of cargo-deny that is installed where there is none; it builds with the toolchain of `rust-version`.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Go on after a step that failed
    #[arg(long)]
    keep_going: bool,
    /// Only this step; may be repeated
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Without this step; may be repeated
    #[arg(long, value_name = "STEP")]
    skip: Vec<String>,
}

/// How a step ended.
enum Outcome {
    Passed,
    /// Not run, with the reason.
    Skipped(String),
}

struct Step {
    name: &'static str,
    run: fn() -> anyhow::Result<Outcome>,
}

/// Cheap steps first: what fails often should fail early.
const STEPS: &[Step] = &[
    Step { name: "fmt", run: || command(cargo().args(["fmt", "--all", "--check"])) },
    Step { name: "deny", run: deny },
    Step { name: "clippy", run: clippy },
    Step { name: "doc", run: doc },
    // Before the tests: they load the object that this step has just built from source.
    Step { name: "build-ebpf", run: || xtask(&["build-ebpf", "--check", "--install-deps"]) },
    Step { name: "test", run: || xtask(&["test"]) },
    Step { name: "api-check", run: || xtask(&["api-check"]) },
    Step { name: "fuzz", run: fuzz_smoke },
    Step { name: "bench", run: || xtask(&["bench", "--smoke"]) },
    Step { name: "lab", run: lab_smoke },
    // Last: it uses the release build of the steps before.
    Step { name: "vm-test", run: vm_test },
];

/// Runs the steps; an error if one failed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let steps = selected(options)?;
    if steps.iter().any(|step| step.name == "test") {
        test::ensure_tools()?;
    }
    let began = Instant::now();
    let mut summary = Vec::new();
    let mut failed = Vec::new();
    for step in steps {
        eprintln!("==== {} ====", step.name);
        let step_began = Instant::now();
        let result = (step.run)();
        let took = step_began.elapsed();
        let text = match &result {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(reason)) => format!("skipped: {reason}"),
            Err(error) => format!("FAILED: {error:#}"),
        };
        summary.push(summary_line(step.name, took, &text));
        if result.is_err() {
            failed.push(step.name);
            if !options.keep_going {
                break;
            }
        }
    }
    println!("\n{}", summary.join("\n"));
    println!("{}", summary_line("all", began.elapsed(), if failed.is_empty() { "passed" } else { "FAILED" }));
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn summary_line(name: &str, took: Duration, text: &str) -> String {
    format!("{name:<12} {:>8.1} s  {text}", took.as_secs_f64())
}

/// The steps that the options leave, in order.
fn selected(options: &Options) -> anyhow::Result<Vec<&'static Step>> {
    let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    if let Some(unknown) =
        options.only.iter().chain(&options.skip).find(|name| !names.contains(&name.as_str()))
    {
        bail!("there is no step \"{unknown}\"; use one of: {}", names.join(", "));
    }
    let wanted = |step: &&Step| {
        let named = |list: &[String]| list.iter().any(|name| name == step.name);
        (options.only.is_empty() || named(&options.only)) && !named(&options.skip)
    };
    Ok(STEPS.iter().filter(wanted).collect())
}

fn command(command: &mut Command) -> anyhow::Result<Outcome> {
    tools::run(command).map(|()| Outcome::Passed)
}

/// Runs another subcommand of this program as a process of its own, so that its output and exit code are as users see them.
fn xtask(arguments: &[&str]) -> anyhow::Result<Outcome> {
    let itself = std::env::current_exe().context("the path of this program is unknown")?;
    let mut subcommand = Command::new(itself);
    if let Some(object) = build_ebpf::fresh() {
        // Everything that is built or run from here on uses it instead of the one in the repository.
        subcommand.env("UNDERPASS_BPF_OBJECT", object);
    }
    command(subcommand.args(arguments).current_dir(workspace_root()))
}

fn clippy() -> anyhow::Result<Outcome> {
    command(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn doc() -> anyhow::Result<Outcome> {
    command(
        cargo()
            .args(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// Checks deny.toml. Advisories are left to a scheduled job: they change without a change of ours.
fn deny() -> anyhow::Result<Outcome> {
    if find("cargo-deny").is_none() {
        command(cargo().args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY_VERSION]))?;
    }
    command(cargo().args(["deny", "--locked", "check", "bans", "licenses", "sources"]))
}

fn fuzz_smoke() -> anyhow::Result<Outcome> {
    match fuzz::missing() {
        Some(reason) => Ok(Outcome::Skipped(reason)),
        None => xtask(&["fuzz", "--seconds", "30"]),
    }
}

fn lab_smoke() -> anyhow::Result<Outcome> {
    if !tools::is_root() {
        return Ok(Outcome::Skipped("needs root, for network namespaces".into()));
    }
    xtask(&["lab", "--smoke"])
}

/// The kernels of Debian's releases; the newest there is changes without a change of ours: by hand.
fn vm_test() -> anyhow::Result<Outcome> {
    match vm::missing() {
        Some(reason) => Ok(Outcome::Skipped(reason)),
        None => xtask(&["vm-test", "--kernel", "6.1", "--kernel", "6.12", "--again", "--may-skip"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str], skip: &[&str]) -> anyhow::Result<Vec<&'static str>> {
        let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        let options = Options { keep_going: false, only: owned(only), skip: owned(skip) };
        Ok(selected(&options)?.iter().map(|step| step.name).collect())
    }

    #[test]
    fn steps_are_selected_by_name() {
        assert_eq!(names(&[], &[]).unwrap().len(), STEPS.len());
        assert_eq!(names(&["test", "fmt"], &[]).unwrap(), ["fmt", "test"]);
        assert_eq!(names(&["test", "fmt"], &["fmt"]).unwrap(), ["test"]);
    }

    #[test]
    fn an_unknown_step_is_refused() {
        let error = names(&["tset"], &[]).unwrap_err().to_string();
        assert!(error.contains("no step \"tset\""), "{error}");
    }
}
