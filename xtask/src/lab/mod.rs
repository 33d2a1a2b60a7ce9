//! `cargo xtask lab`: load that rises until it breaks, on a network of its own.
//!
//! One underpass runs all the time; its mode is switched while it runs. Beside it runs HAProxy with splice, reading HTTP or
//! passing bytes on. For each workload every contender is first driven in a closed loop, to learn what rates to ask
//! for, then up a ladder of rates until it breaks; then all are compared in rounds, side by side, at a rate that all can
//! serve. A second underpass with a worker for each core shows what the steering policies do.

mod contender;
mod measure;
mod network;
mod plan;
mod steering;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use underpass_bench::load::seconds;
use underpass_lab::report::{self, Kind};

use crate::bench::contender::HAPROXY;
use crate::bench::{build, parse_size};
use crate::machine::Cores;
use crate::process;
use crate::process::Launcher;
use crate::tools::{Tool, ensure as ensure_tools};
use contender::Contender;
use measure::Lab;
use plan::Plan;

/// What to measure, and for how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only check, in a few seconds, that everything runs; the figures say nothing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// The same with fewer sizes and shorter steps: about a minute
    #[arg(long)]
    quick: bool,
    /// What to move: download, upload, tunnel, connections, steering
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<What>,
    /// Body sizes in bytes, or with k or m behind [default: 1k,16k,64k,256k,1m,10m; quick: 16k,256k,1m]
    #[arg(long, value_delimiter = ',', value_parser = parse_size)]
    sizes: Vec<usize>,
    /// Redirect modes, direct, haproxy-http, haproxy-tcp [default: all of them]
    #[arg(long, value_delimiter = ',')]
    modes: Vec<Contender>,
    /// Rounds in which contenders are compared; six are needed to tell a difference from noise [default: 7]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Length of a step [default: 0.5; quick: 0.1]
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Most connections at a time, for downloads and uploads
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4000))]
    connections: u16,
    /// In the rounds, load as a share of the lowest knee
    #[arg(long, default_value_t = 0.6)]
    share: f64,
    /// No step is begun after so many minutes; what was measured until then is reported
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    minutes_max: u16,
    /// Measure this executable, and don't build one
    #[arg(long, value_name = "FILE")]
    underpass: Option<PathBuf>,
    /// Folder for lab.json and lab.html
    #[arg(long, value_name = "FOLDER", default_value = "target/lab")]
    out: PathBuf,
    /// Seconds, in all, to wait for other processes to leave the machine alone [default: 60; quick: 5, smoke: 0]
    #[arg(long, value_parser = seconds)]
    patience: Option<Duration>,
    /// Don't install missing programs, say which they are
    #[arg(long)]
    no_install: bool,
}

/// What can be asked for by `--kinds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Bodies from backend to client
    Download,
    /// Bodies from client to backend
    Upload,
    /// Small messages there and back
    Tunnel,
    /// A connection for each request
    Connections,
    /// Policies of steering
    Steering,
}

impl What {
    fn is(self, kind: Kind) -> bool {
        matches!(
            (self, kind),
            (Self::Download, Kind::Download)
                | (Self::Upload, Kind::Upload)
                | (Self::Tunnel, Kind::Tunnel)
                | (Self::Connections, Kind::Connections)
        )
    }
}

const TOOLS: &[Tool] = &[Tool::new("ip", "iproute2"), Tool::new("ethtool", "ethtool")];

/// Measures, prints the tables, writes the report; an error if anything did not run.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(crate::tools::is_root(), "the lab makes network namespaces, which needs root: run it as root");
    ensure!(options.share > 0.0 && options.share < 1.0, "--share {}: not between 0 and 1", options.share);
    let plan = Plan::of(options);
    let mut tools = TOOLS.to_vec();
    if plan.contenders.iter().any(|contender| contender.is_haproxy()) {
        tools.push(HAPROXY);
    }
    ensure_tools(&tools, !options.no_install)?;
    let tool = build("underpass-bench")?;
    let underpass = options.underpass.clone().map_or_else(|| build("underpass"), Ok)?;
    // Not before: what cargo starts would inherit the blocked signals.
    process::catch_interrupts()?;
    let folder = tempfile::Builder::new().prefix("underpass-lab-").tempdir()?;
    let launcher = Launcher { tool, underpass: Some(underpass), folder: folder.path().to_owned() };
    let cores = Cores::choose()?;
    cores.step_aside()?;
    let mut lab = Lab::new(&plan, launcher, cores)?;
    let interrupted = lab.measure().err();
    let mut report = lab.finish();
    report.conclude();
    if !options.smoke {
        print!("{}", report::text(&report));
    }
    let [json, page] = report.write(&options.out)?;
    println!("\n{}\n{}", json.display(), page.display());
    if let Some(error) = interrupted {
        return Err(error);
    }
    ensure!(report.failures.is_empty(), "failed:\n  {}", report.failures.join("\n  "));
    Ok(())
}
