//! `cargo xtask fuzz`: libFuzzer on the parsers, by cargo-fuzz.

use std::fs;
use std::process::Command;

use anyhow::{Context, bail};

use crate::tools::{find, run as run_command, workspace_root};

/// The version of cargo-fuzz that is installed where there is none.
const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// Only nightly compilers have the sanitizer's coverage that libFuzzer needs.
const TOOLCHAIN: &str = "nightly";

/// What to fuzz.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Time for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this target; may be repeated
    target: Vec<String>,
}

/// Why fuzzing is not possible here; none if it is.
pub(crate) fn missing() -> Option<String> {
    let nightly = Command::new("rustc").args([&format!("+{TOOLCHAIN}"), "--version"]).output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        return Some(format!("no {TOOLCHAIN} toolchain; get it by: rustup toolchain install {TOOLCHAIN}"));
    }
    None
}

/// Fuzzes each target for the time given; an error if one finds a crash.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(reason) = missing() {
        bail!("{reason}");
    }
    if find("cargo-fuzz").is_none() {
        run_command(Command::new("cargo").args([
            "install",
            "cargo-fuzz",
            "--locked",
            "--version",
            CARGO_FUZZ_VERSION,
        ]))?;
    }
    let targets = targets()?;
    if let Some(unknown) = options.target.iter().find(|name| !targets.contains(name)) {
        bail!("there is no target \"{unknown}\"; use one of: {}", targets.join(", "));
    }
    for target in targets {
        if !options.target.is_empty() && !options.target.contains(&target) {
            continue;
        }
        eprintln!("fuzzing {target} for {} s", options.seconds);
        run_command(
            Command::new("cargo")
                .arg(format!("+{TOOLCHAIN}"))
                // The parsers are safe code: what a sanitizer would find, the compiler has ruled out.
                .args(["fuzz", "run", "--sanitizer", "none", &target, "--"])
                .arg(format!("-max_total_time={}", options.seconds))
                // Longer input takes more time for each run and reaches no code that shorter input does not.
                .args(["-max_len=4096", "-rss_limit_mb=2048", "-timeout=10"])
                // Not a line for each input that is new, but the sum at the end.
                .args(["-verbosity=0", "-print_final_stats=1"])
                .current_dir(workspace_root()),
        )?;
    }
    Ok(())
}

/// The targets are the files of fuzz/fuzz_targets.
fn targets() -> anyhow::Result<Vec<String>> {
    let folder = workspace_root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("{} cannot be read", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    targets.sort_unstable();
    Ok(targets)
}
