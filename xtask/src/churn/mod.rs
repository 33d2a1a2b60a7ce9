//! `cargo xtask churn`: a large configuration through the admin API, then a stream of changes to it under load.
//!
//! One worker on a core of its own; the supervisor, the load generator, the backend and those who send changes share the
//! other core. What is asked is what changes do to the worker, not what they do to the load generator. So the supervisor and those
//! who send changes run when nobody else there wants to (SCHED_IDLE); and there are three kinds of spans, which take turns so that
//! what drifts on the machine meets all: without changes; with the same changes to a second proxy that has no load, the whole of it on
//! that other core; and with changes to the proxy under load. Between the last two only the worker differs.

mod changes;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use serde::Serialize;
use underpass_bench::load::seconds;
use underpass_command::Client;
use underpass_command::api::ChangeRequest;
use underpass_command::live::Operation;
use underpass_lab::load::{Arrivals, Exchange, Plan, Step};
use underpass_lab::statistics::{Interval, Ratio};

use crate::bench::build;
use crate::machine::Cores;
use crate::process::{self, Launcher, Process, check_interrupt};
use changes::{Drawer, Size};

/// Operations in one change while the configuration is loaded.
const BATCH: usize = 2000;
/// Those who send changes at a time, each on a connection of its own.
const SENDERS: u32 = 4;

/// How much to configure, and how long to change it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Clusters beside the one that the load goes to
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..=16_000))]
    clusters: u32,
    /// Their backends, all together
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(4..=60_000))]
    backends: u32,
    /// Routes to them
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(4..=60_000))]
    routes: u32,
    /// Changes per second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Requests per second
    #[arg(long, default_value_t = 2000.0)]
    load: f64,
    /// Seconds of each span
    #[arg(long, value_parser = seconds, default_value = "1")]
    span: Duration,
    /// Rounds of three spans: without changes, with changes to another proxy, with changes to this one
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// Only check in a few seconds that everything runs
    #[arg(long)]
    smoke: bool,
    /// Also write everything into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    clusters: u32,
    backends: u32,
    routes: u32,
    load_s: f64,
    unload_s: f64,
    memory: Vec<Memory>,
    rounds: Vec<Round>,
}

impl Report {
    fn failed(&self) -> u64 {
        self.rounds.iter().flat_map(Round::spans).map(failures).sum()
    }
}

/// Resident memory in bytes.
#[derive(Debug, Serialize)]
struct Memory {
    when: &'static str,
    supervisor: u64,
    worker: u64,
}

/// Three spans.
#[derive(Debug, Serialize)]
struct Round {
    /// Without changes.
    still: Step,
    /// With changes to another proxy.
    beside: Step,
    /// With changes to the proxy under load.
    changing: Step,
    changes: u64,
    /// From the request to the answer, which comes when the worker has the change.
    change_p50_us: u64,
    change_p99_us: u64,
}

impl Round {
    fn spans(&self) -> [&Step; 3] {
        [&self.still, &self.beside, &self.changing]
    }
}

/// What a span is about.
#[derive(Clone, Copy)]
enum Kind {
    Still,
    Beside,
    Changing,
}

/// Loads, changes, removes, and tells what it took.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tool = build("underpass-bench")?;
    let underpass = build("underpass")?;
    process::catch_interrupts()?;
    let folder = tempfile::Builder::new().prefix("underpass-churn-").tempdir()?;
    let launcher = Launcher { tool, underpass: Some(underpass), folder: folder.path().to_owned() };
    let cores = Cores::choose()?;
    cores.step_aside()?;
    let (size, rounds, span) = if options.smoke {
        (Size { clusters: 100, backends: 200, routes: 500 }, 1, Duration::from_secs(1))
    } else {
        let size = Size { clusters: options.clusters, backends: options.backends, routes: options.routes };
        (size, options.rounds, options.span)
    };
    let churn = Churn::start(&launcher, cores, size)?;
    let report = churn.measure(options, rounds, span)?;
    print!("{}", text(&report));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("{}: cannot write", path.display()))?;
    }
    let failed = report.failed();
    ensure!(failed == 0, "{failed} requests failed: {}", reasons(&report));
    Ok(())
}

struct Churn {
    size: Size,
    address: SocketAddr,
    port: u16,
    loaded: Proxy,
    /// Takes the same changes, and no load.
    beside: Proxy,
    _backend: Process,
}

struct Proxy {
    client: Client,
    process: Process,
    worker: u32,
}

impl Proxy {
    /// Starts one whose worker has this core; the supervisor shares the other.
    fn start(launcher: &Launcher, name: &str, cores: Cores, worker_core: usize) -> Result<Self> {
        let socket = launcher.folder.join(format!("{name}.sock"));
        let configuration = launcher.folder.join(format!("{name}.toml"));
        let text = format!(
            "workers = 1\nadmin_socket = \"{}\"\n[limits]\nconnections = 1000\n\
             [[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n",
            socket.display()
        );
        fs::write(&configuration, text)?;
        let arguments = ["start".into(), "--config".into(), configuration.into_os_string()];
        let mut process = launcher.start(name, &[worker_core], launcher.underpass()?, arguments)?;
        let client = Client::new(&socket);
        process.ready(|| {
            client.status().is_ok_and(|status| status.workers.iter().all(|worker| worker.pid.is_some()))
        })?;
        let worker = *process.children()?.first().context("the proxy has no worker")?;
        // The worker keeps its core; the supervisor goes where the rest is.
        let mut set = CpuSet::new();
        set.set(cores.load)?;
        sched_setaffinity(Pid::from_raw(i32::try_from(process.pid())?), &set)?;
        for thread in fs::read_dir(format!("/proc/{}/task", process.pid()))? {
            give_way(&thread?.file_name().to_string_lossy())?;
        }
        Ok(Self { client, process, worker })
    }

    fn change(&self, operations: Vec<Operation>) -> Result<()> {
        self.client.change(&ChangeRequest { operations, ..ChangeRequest::default() })?;
        Ok(())
    }

    /// Carries out many operations, in changes of some each.
    fn apply(&self, operations: impl Iterator<Item = Operation>) -> Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        for operation in operations {
            batch.push(operation);
            if batch.len() == BATCH {
                check_interrupt()?;
                self.change(std::mem::take(&mut batch))?;
            }
        }
        self.change(batch)
    }

    fn memory(&self, when: &'static str) -> Result<Memory> {
        Ok(Memory { when, supervisor: resident(self.process.pid())?, worker: resident(self.worker)? })
    }
}

impl Churn {
    fn start(launcher: &Launcher, cores: Cores, size: Size) -> Result<Self> {
        let arguments = ["backend", "--size-max=1024", "--listen=0.0.0.0:0"].map(str::to_owned);
        let mut backend = launcher.start_own("backend", cores.load, arguments)?;
        let port = backend.printed_address()?.port();
        let loaded = Proxy::start(launcher, "loaded", cores, cores.proxy)?;
        let beside = Proxy::start(launcher, "beside", cores, cores.load)?;
        give_way(&beside.worker.to_string())?;
        let address = loaded.client.status()?.listeners.first().context("the proxy has no listener")?.address;
        Ok(Self { size, address, port, loaded, beside, _backend: backend })
    }

    fn measure(&self, options: &Options, rounds: u32, span: Duration) -> Result<Report> {
        let mut memory = vec![self.loaded.memory("empty")?];
        self.loaded.change(changes::busy(self.port).into())?;
        let (load_s, ()) = timed(|| self.loaded.apply(changes::everything(self.size, self.port)))?;
        eprintln!(
            "{} items loaded in {load_s:.2} s",
            self.size.clusters + self.size.backends + self.size.routes
        );
        memory.push(self.loaded.memory("loaded")?);
        self.beside.change(changes::busy(self.port).into())?;
        self.beside.apply(changes::everything(self.size, self.port))?;
        let Size { clusters, backends, routes } = self.size;
        let mut report =
            Report { clusters, backends, routes, load_s, unload_s: 0.0, memory, rounds: Vec::new() };
        for number in 0..rounds {
            let round = self.round(options, span, number)?;
            eprintln!("round {}: {}", number + 1, line(&round));
            report.rounds.push(round);
        }
        report.memory.push(self.loaded.memory("changed")?);
        (report.unload_s, ()) = timed(|| self.loaded.apply(changes::nothing(self.size)))?;
        report.memory.push(self.loaded.memory("removed")?);
        Ok(report)
    }

    fn round(&self, options: &Options, span: Duration, number: u32) -> Result<Round> {
        let (mut still, mut beside, mut changing) = (None, None, None);
        // Who comes first changes, so that none has always the warmer machine.
        let mut kinds = [Kind::Still, Kind::Beside, Kind::Changing];
        kinds.rotate_left(number as usize % 3);
        for kind in kinds {
            match kind {
                Kind::Still => still = Some(self.load(options, span, number)?),
                Kind::Beside => beside = Some(self.load_with_changes(options, span, number, &self.beside)?.0),
                Kind::Changing => {
                    changing = Some(self.load_with_changes(options, span, number, &self.loaded)?);
                }
            }
        }
        let (Some(still), Some(beside), Some((changing, mut took_us))) = (still, beside, changing) else {
            bail!("a span was left out");
        };
        took_us.sort_unstable();
        let at = |percent: usize| took_us.get(took_us.len() * percent / 100).copied().unwrap_or(0);
        let changes = took_us.len() as u64;
        Ok(Round { still, beside, changing, changes, change_p50_us: at(50), change_p99_us: at(99) })
    }

    /// Makes the load, and tells what it met.
    fn load(&self, options: &Options, span: Duration, number: u32) -> Result<Step> {
        check_interrupt()?;
        underpass_lab::load::run(&Plan {
            address: self.address,
            exchange: Exchange::Download { size: 1024, reuse: true },
            arrivals: Arrivals::Open { per_s: options.load, seed: u64::from(number) },
            connections_max: 256,
            connections_at_start: 64,
            warm_up: Duration::from_millis(500),
            span,
            timeout: Duration::from_secs(2),
            watched: vec![self.loaded.worker, self.loaded.process.pid()],
        })
    }

    /// The same while changes come to a proxy. The second part is how long each took, in microseconds.
    fn load_with_changes(
        &self,
        options: &Options,
        span: Duration,
        number: u32,
        changed: &Proxy,
    ) -> Result<(Step, Vec<u64>)> {
        let done = AtomicBool::new(false);
        let rate = f64::from(options.rate) / f64::from(SENDERS);
        thread::scope(|scope| {
            let senders: Vec<_> = (0..SENDERS)
                .map(|share| {
                    let drawer = Drawer::new(self.size, self.port, (share, SENDERS), number);
                    let done = &done;
                    scope.spawn(move || send_changes(&changed.client, drawer, rate, done))
                })
                .collect();
            let step = self.load(options, span, number);
            done.store(true, Ordering::Relaxed);
            let mut took_us = Vec::new();
            for sender in senders {
                let sent = sender.join().map_err(|_| anyhow::anyhow!("a sender of changes has panicked"))?;
                took_us.extend(sent?);
            }
            Ok((step?, took_us))
        })
    }
}

/// Sends changes at a rate, then takes back what they have added.
fn send_changes(client: &Client, mut drawer: Drawer, rate: f64, done: &AtomicBool) -> Result<Vec<u64>> {
    give_way(&gettid().to_string())?;
    let client = client.clone();
    let began = Instant::now();
    let mut took_us = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let due = began + Duration::from_secs_f64(took_us.len() as f64 / rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let operations = vec![drawer.next()];
        client.change(&ChangeRequest { operations, ..ChangeRequest::default() })?;
        // From when it was due: one that keeps the next waiting costs that one too.
        took_us.push(u64::try_from(due.elapsed().as_micros())?);
    }
    client.change(&ChangeRequest { operations: drawer.rest(), ..ChangeRequest::default() })?;
    Ok(took_us)
}

/// Lets a thread run only when nobody else wants to: sched(7), SCHED_IDLE.
fn give_way(thread: &str) -> Result<()> {
    let output = Command::new("chrt").args(["--idle", "--pid", "0", thread]).output();
    let output = output.context("chrt of the Debian package util-linux")?;
    ensure!(output.status.success(), "chrt: thread {thread}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Resident memory of a process in bytes: proc_pid_status(5), VmRSS.
fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS {line}"))?;
    Ok(kib * 1024)
}

fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let began = Instant::now();
    let value = run()?;
    Ok((began.elapsed().as_secs_f64(), value))
}

fn failures(step: &Step) -> u64 {
    step.errors + step.timeouts
}

fn reasons(report: &Report) -> String {
    let steps = report.rounds.iter().flat_map(Round::spans);
    let reasons = steps.flat_map(|step| &step.error_reasons);
    reasons.map(|(reason, count)| format!("{reason}: {count}")).collect::<Vec<_>>().join(", ")
}

fn line(round: &Round) -> String {
    let [still, beside, changing] = round.spans().map(|step| &step.latency);
    let us = |ns: u64| ns / 1000;
    format!(
        "p50 {}, {}, {} us, p99 {}, {}, {} us without changes, with {} to another proxy, with those to this one ({} and {} us each, \
         p50 and p99); {} requests, {} failed",
        us(still.p50_ns),
        us(beside.p50_ns),
        us(changing.p50_ns),
        us(still.p99_ns),
        us(beside.p99_ns),
        us(changing.p99_ns),
        round.changes,
        round.change_p50_us,
        round.change_p99_us,
        round.spans().map(|step| step.completed).iter().sum::<u64>(),
        round.spans().map(failures).iter().sum::<u64>(),
    )
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{} clusters, {} backends, {} routes: loaded in {:.2} s, removed in {:.2} s\n",
        report.clusters, report.backends, report.routes, report.load_s, report.unload_s
    );
    for Memory { when, supervisor, worker } in &report.memory {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(
            text,
            "memory {when:<8} supervisor {:7.1} MiB, worker {:7.1} MiB",
            mib(*supervisor),
            mib(*worker)
        );
    }
    for round in &report.rounds {
        let _ = writeln!(text, "{}", line(round));
    }
    let requests: u64 = report.rounds.iter().flat_map(Round::spans).map(|step| step.completed).sum();
    let changes: u64 = report.rounds.iter().map(|round| round.changes).sum();
    let failed = report.failed();
    let _ = writeln!(text, "{changes} changes to the proxy under load; {requests} requests, {failed} failed");
    type Span = fn(&Round) -> &Step;
    let p99 = |of: Span| {
        let values = report.rounds.iter().map(|round| of(round).latency.p99_ns as f64 / 1000.0).collect();
        Interval::of(values)
    };
    let kinds: [(&str, Span); 3] = [
        ("without changes", |round| &round.still),
        ("with changes to another proxy", |round| &round.beside),
        ("with changes to this one", |round| &round.changing),
    ];
    for (name, of) in kinds {
        if let Some(Interval { median, low, high, rounds, .. }) = p99(of) {
            let _ = writeln!(text, "p99 {name}: {median:.0} us [{low:.0}, {high:.0}], {rounds} rounds");
        }
    }
    let pairs: Vec<(f64, f64)> = report
        .rounds
        .iter()
        .map(|round| (round.changing.latency.p99_ns as f64, round.beside.latency.p99_ns.max(1) as f64))
        .collect();
    if let Some(Ratio { median, low, high, .. }) = Ratio::of(&pairs) {
        let _ = writeln!(text, "p99 of this one / of another: {median:.2} [{low:.2}, {high:.2}]");
    }
    text
}
