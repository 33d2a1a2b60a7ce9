//! The processes of a benchmark, one subcommand each. `cargo xtask bench` and `cargo xtask lab` start them.
#![forbid(unsafe_code)]

use anyhow::Context as _;
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
    /// Makes load with a plan of underpass-lab, prints the step as JSON.
    Step {
        /// The plan as JSON.
        plan: String,
    },
    /// Runs a command on one core, or on some; it is told to stop (SIGTERM) when its parent ends.
    Run(launch::Options),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Backend(options) => backend::run(&options),
        Command::Floor(options) => floor::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Step { plan } => step(&plan),
        Command::Run(options) => launch::run(&options),
    }
}

fn step(plan: &str) -> anyhow::Result<()> {
    let plan = serde_json::from_str(plan).context("not a plan")?;
    println!("{}", serde_json::to_string(&underpass_lab::load::run(&plan)?)?);
    Ok(())
}
