//! `cargo xtask bench`: proxies side by side on this machine, and the floor under them.
//!
//! One worker each, on a core of its own; load generator and backend share the other core. In each round every
//! contender runs once with each body size, freshly started and alone, in an order that moves on from round to round.
//! So what drifts on the machine meets all of them, and what differs between two of them is compared round by round.

pub(crate) mod contender;
mod figures;
mod report;
mod syscalls;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use contender::{Contender, Started};
use figures::{Results, Run};
use syscalls::Counter;
use underpass_bench::load::seconds;
use underpass_bench::report::LoadReport;
use underpass_lab::accounting::MachineClock;
use underpass_lab::machine::Machine;

use crate::machine::{Cores, describe, wait_for_quiet};
use crate::process::{self, Launcher, Process, check_interrupt};
use crate::tools::{Tool, cargo, ensure as ensure_tools};

/// What to measure, and for how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only check, in a few seconds, that everything runs and every response is right; prints no figures
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Few and short rounds: figures for a first look
    #[arg(long)]
    quick: bool,
    /// Rounds; six are needed to tell a difference from noise
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds that each contender is measured for, with each size in each round
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// Body sizes in bytes, or with k or m behind
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "0,1k,100k,1m,10m")]
    sizes: Vec<usize>,
    /// Only these contenders
    #[arg(long, value_delimiter = ',')]
    only: Vec<Contender>,
    /// Client connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4000))]
    connections: u16,
    /// Also write everything, with each single run, into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds, in all, to wait for other processes to leave the machine alone [default: 60, smoke: 0]
    #[arg(long, value_parser = seconds)]
    patience: Option<Duration>,
    /// Don't install missing programs, say which they are
    #[arg(long)]
    no_install: bool,
}

/// The options with their defaults filled in.
struct Plan {
    contenders: Vec<Contender>,
    sizes: Vec<usize>,
    /// Sizes with which system calls are counted.
    sizes_counted: Vec<usize>,
    connections: u16,
    rounds: u32,
    span: Duration,
    warm_up: Duration,
    patience: Duration,
    compare_fully: bool,
}

impl Plan {
    fn of(options: &Options) -> Self {
        let (rounds, span_ms, warm_up_ms, patience) = match () {
            () if options.smoke => (1, 100, 50, 0),
            () if options.quick => (3, 500, 200, 60),
            () => (9, 2000, 500, 60),
        };
        let mut contenders = if options.only.is_empty() { Contender::all() } else { options.only.clone() };
        contenders.sort_unstable();
        contenders.dedup();
        let mut sizes = options.sizes.clone();
        sizes.sort_unstable();
        sizes.dedup();
        Self {
            contenders,
            sizes_counted: if options.smoke {
                sizes.first().copied().into_iter().collect()
            } else {
                sizes.clone()
            },
            sizes,
            connections: options.connections,
            rounds: options.rounds.unwrap_or(rounds),
            span: options.seconds.unwrap_or(Duration::from_millis(span_ms)),
            warm_up: Duration::from_millis(warm_up_ms),
            patience: options.patience.unwrap_or(Duration::from_secs(patience)),
            compare_fully: options.smoke,
        }
    }
}

/// Measures, prints the table, writes the JSON; an error if anything did not run or answered wrong.
pub(crate) fn run(options: &Options) -> Result<()> {
    let plan = Plan::of(options);
    let tools: Vec<Tool> = plan.contenders.iter().filter_map(|contender| contender.tool()).collect();
    ensure_tools(&tools, !options.no_install)?;
    let tool = build("underpass-bench")?;
    let has_underpass = plan.contenders.iter().any(|contender| contender.is_underpass());
    let underpass = has_underpass.then(|| build("underpass")).transpose()?;
    // Not before: what cargo starts would inherit the blocked signals.
    process::catch_interrupts()?;
    let folder = tempfile::Builder::new().prefix("underpass-bench-").tempdir()?;
    let launcher = Launcher { tool, underpass, folder: folder.path().to_owned() };
    let cores = Cores::choose()?;
    cores.step_aside()?;
    let bench = Bench::new(&plan, launcher, cores)?;
    let mut results = bench.run()?;
    results.contenders = bench.descriptions()?;
    if options.smoke {
        println!("{} runs, {} responses, all right", results.runs.len(), results.responses());
    } else {
        print!("{}", report::text(&results));
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report::json(&results))?;
        fs::write(path, text + "\n").with_context(|| format!("{}: cannot write", path.display()))?;
    }
    ensure!(results.failures.is_empty(), "failed:\n  {}", results.failures.join("\n  "));
    Ok(())
}

struct Bench<'a> {
    plan: &'a Plan,
    launcher: Launcher,
    cores: Cores,
    machine: Machine,
    clock: MachineClock,
    counter: Result<Counter, String>,
    backend_address: SocketAddr,
    backend: Process,
}

impl<'a> Bench<'a> {
    fn new(plan: &'a Plan, launcher: Launcher, cores: Cores) -> Result<Self> {
        let size_max = plan.sizes.iter().max().context("no body size given")?;
        let arguments = ["backend".to_owned(), format!("--size-max={size_max}")];
        let mut backend = launcher.start_own("backend", cores.load, arguments)?;
        Ok(Self {
            plan,
            cores,
            machine: describe(),
            clock: MachineClock::new()?,
            counter: Counter::find(),
            backend_address: backend.printed_address()?,
            backend,
            launcher,
        })
    }

    fn run(&self) -> Result<Results> {
        let mut results =
            Results::new(self.machine.clone(), self.cores, self.plan.connections, self.plan.span);
        let mut patience = self.plan.patience;
        for round in 0..self.plan.rounds {
            for (number, &size) in self.plan.sizes.iter().enumerate() {
                for contender in rotated(&self.plan.contenders, round as usize + number) {
                    patience = wait_for_quiet(&self.clock, self.machine.cores, patience)?;
                    self.measure(&mut results, round, size, contender)?;
                }
            }
        }
        match &self.counter {
            Ok(counter) => self.count_all(counter, &mut results)?,
            Err(reason) => results.notes.push(format!("System calls were not counted: {reason}.")),
        }
        Ok(results)
    }

    /// One run; what goes wrong is noted, so that one contender's trouble does not cost the others' figures.
    fn measure(&self, results: &mut Results, round: u32, size: usize, contender: Contender) -> Result<()> {
        let name =
            format!("round {} of {}: {contender:<16} {:>8}", round + 1, self.plan.rounds, size_name(size));
        let started = contender.start(&self.launcher, self.cores.proxy, self.backend_address);
        match started.and_then(|started| self.load(&started, size, self.plan.span, Vec::new())) {
            Ok(report) => {
                let run = Run { round, contender, report };
                eprintln!("{name}  {}", run.line());
                results.runs.push(run);
            }
            Err(error) => {
                check_interrupt()?;
                eprintln!("{name}  FAILED: {error:#}");
                results.failures.push(format!("{name}: {error:#}"));
            }
        }
        Ok(())
    }

    fn count_all(&self, counter: &Counter, results: &mut Results) -> Result<()> {
        for &size in &self.plan.sizes_counted {
            for &contender in &self.plan.contenders {
                let counted = contender
                    .start(&self.launcher, self.cores.proxy, self.backend_address)
                    .and_then(|started| {
                        counter.count(&self.launcher, self.cores.load, &started.workers, |arguments| {
                            self.load(&started, size, self.plan.span, arguments)
                        })
                    });
                match counted {
                    Ok(count) => {
                        results.syscalls.insert((size, contender), count);
                    }
                    Err(error) => {
                        check_interrupt()?;
                        results
                            .failures
                            .push(format!("system calls of {contender}, {}: {error:#}", size_name(size)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs the load generator against a proxy; watches the proxy's workers and, last, the backend.
    fn load(&self, proxy: &Started, size: usize, span: Duration, more: Vec<String>) -> Result<LoadReport> {
        let mut arguments = vec![
            "load".to_owned(),
            format!("--address={}", proxy.address),
            format!("--size={size}"),
            format!("--connections={}", self.plan.connections),
            format!("--seconds={}", span.as_secs_f64()),
            format!("--warm-up={}", self.plan.warm_up.as_secs_f64()),
        ];
        if self.plan.compare_fully {
            arguments.push("--compare-fully".into());
        }
        arguments
            .extend(proxy.workers.iter().chain([&self.backend.pid()]).map(|pid| format!("--watch={pid}")));
        arguments.extend(more);
        let load = self.launcher.start_own("load", self.cores.load, arguments)?;
        // It gives up by itself when nothing moves; this is for the case that it cannot.
        let text = load.finish(span + self.plan.warm_up + Duration::from_secs(30))?;
        serde_json::from_str(&text).with_context(|| format!("load generator printed: {text}"))
    }

    fn descriptions(&self) -> Result<BTreeMap<Contender, figures::Description>> {
        let example = SocketAddr::from(([127, 0, 0, 1], 8080));
        let folder = &self.launcher.folder;
        let describe = |&contender: &Contender| {
            let configuration = contender.configuration(example, self.backend_address, folder);
            Ok((
                contender,
                figures::Description { version: contender.describe(&self.launcher)?, configuration },
            ))
        };
        self.plan.contenders.iter().map(describe).collect()
    }
}

/// The same in an order that moves on.
pub(crate) fn rotated<T: Copy>(contenders: &[T], by: usize) -> impl Iterator<Item = T> {
    contenders.iter().copied().cycle().skip(by % contenders.len().max(1)).take(contenders.len())
}

/// Builds a binary of the workspace as it is released.
pub(crate) fn build(binary: &str) -> Result<PathBuf> {
    let output = cargo()
        .args(["build", "--release", "--bin", binary, "--package", binary])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo build could not be started")?;
    if !output.status.success() {
        bail!("{binary} could not be built");
    }
    crate::test::executable_of(&output.stdout)
        .with_context(|| format!("cargo build named no executable \"{binary}\""))
}

/// Most bytes of a body: the backend keeps them in memory.
const SIZE_MAX: usize = 1 << 30;

/// A number of bytes, with k or m behind.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let size = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|&size| size <= SIZE_MAX)
        .ok_or_else(|| format!("\"{text}\" is no size up to 1024m; examples: 0, 1500, 100k, 1m"))
}

fn size_name(size: usize) -> String {
    match size {
        0 => "no body".into(),
        size if size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        size if size.is_multiple_of(1 << 10) => format!("{} KiB", size >> 10),
        size => format!("{size} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_named() {
        for (text, size, name) in
            [("0", 0, "no body"), ("1k", 1024, "1 KiB"), ("10M", 10 << 20, "10 MiB"), ("7", 7, "7 B")]
        {
            assert_eq!(parse_size(text), Ok(size));
            assert_eq!(size_name(size), name);
        }
        for text in ["", "k", "-1", "1g", "1025m", "99999999999999999999m"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_contender_has_each_place_in_turn() {
        let all = Contender::all();
        for place in 0..all.len() {
            let mut there: Vec<Contender> =
                (0..all.len()).filter_map(|round| rotated(&all, round).nth(place)).collect();
            there.sort_unstable();
            assert_eq!(there, all);
        }
    }
}
