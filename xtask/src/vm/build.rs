//! What runs in a guest is built here.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::tools::cargo;

/// Builds the executable as users have it; returns its path.
pub(super) fn proxy() -> Result<PathBuf> {
    let messages = build(&["build", "--release", "--package", "underpass", "--bin", "underpass"])?;
    crate::test::executable_of(&messages).context("cargo build named no executable \"underpass\"")
}

/// Builds the programs that test what depends on the kernel most, as `cargo xtask test` does; names and paths.
pub(super) fn tests() -> Result<Vec<(String, PathBuf)>> {
    let profile = crate::test::PROFILE;
    let messages = build(&["test", "--no-run", "--profile", profile, "--package", "underpass-loader"])?;
    let mut tests = test_programs(&messages);
    ensure!(!tests.is_empty(), "cargo test named no programs");
    tests.sort();
    Ok(tests)
}

fn build(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = cargo()
        .args(arguments)
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo could not be started")?;
    ensure!(output.status.success(), "cargo {} failed", arguments.join(" "));
    Ok(output.stdout)
}

/// Names and paths of the test programs in cargo's JSON messages.
fn test_programs(messages: &[u8]) -> Vec<(String, PathBuf)> {
    let lines = messages.split(|&byte| byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    messages
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_read_from_cargos_messages() {
        let messages =
            b"{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"build-script\"},\"profile\":\
            {\"test\":false},\"executable\":\"/t/build\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"steer\"},\"profile\":{\"test\":true},\
            \"executable\":\"/t/steer-1\"}\n{\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(test_programs(messages), [("steer".to_owned(), PathBuf::from("/t/steer-1"))]);
    }
}
