//! The processes of a benchmark, one subcommand each. `cargo xtask bench` starts them.
#![forbid(unsafe_code)]

use clap::Parser;
use underpass_bench::{backend, floor, launch, load};

/// Load generator, backend and floor of `cargo xtask bench`.
#[derive(Parser)]
#[command(name = "underpass-bench")]
enum Command {
    /// Serves fixed bodies from memory.
    Backend(backend::Options),
    /// Passes bytes between clients and a backend, and does nothing else.
    Floor(floor::Options),
    /// Sends requests, checks every response, prints what was measured as JSON.
    Load(load::Options),
    /// Runs a command on one core; it is told to stop (SIGTERM) when its parent ends.
    Run(launch::Options),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Backend(options) => backend::run(&options),
        Command::Floor(options) => floor::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Run(options) => launch::run(&options),
    }
}
