//! `cargo xtask`: everything a developer runs that is not the proxy itself.
#![forbid(unsafe_code)]

use clap::Parser;

/// Builds, tests and measures underpass.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {}

fn main() -> anyhow::Result<()> {
    match Command::parse() {}
}
