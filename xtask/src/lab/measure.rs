//! The processes of the lab, and the steps that are made with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use underpass_command::Client;
use underpass_command::api::{Counters, RedirectChange};
use underpass_command::state::RedirectMode;
use underpass_lab::accounting::MachineClock;
use underpass_lab::deployed::unavailable;
use underpass_lab::load::{self, Arrivals, Exchange, Step};
use underpass_lab::machine::Machine;
use underpass_lab::ramp::{Climb, climb};
use underpass_lab::report::{Cell, Kind, Method, Report, Round, Series, Workload};

use super::contender::{Contender, backend_address, haproxy_configuration};
use super::network::{Network, PROXY, Side};
use super::plan::Plan;
use crate::bench::contender::{HAPROXY, first_line, forwards, path_of, underpass_with};
use crate::bench::rotated;
use crate::machine::{Cores, describe, wait_for_quiet};
use crate::process::{Launcher, Process, check_interrupt};

/// Connections of HTTP workloads that are opened before the load begins.
const CONNECTIONS_AT_START: usize = 8;
/// More of the machine than this that is nobody's known, and a round is disturbed. It is much, because interrupts that came
/// while a core idled (receive packet steering) are our own and no process's.
const OTHERS_SHARE_MAX: f64 = 0.25;
/// More than this taken by the hypervisor, and a round is disturbed.
const STEAL_SHARE_MAX: f64 = 0.02;

/// Everything that runs while the lab measures.
pub(super) struct Lab<'a> {
    pub(super) plan: &'a Plan,
    pub(super) launcher: Launcher,
    pub(super) cores: Cores,
    pub(super) report: Report,
    underpass: Process,
    haproxy: Option<Process>,
    backend: Process,
    admin: Client,
    mode: Option<RedirectMode>,
    clock: MachineClock,
    patience: Duration,
    began: Instant,
    // Last: the processes above run in it.
    pub(super) network: Network,
}

impl<'a> Lab<'a> {
    pub(super) fn new(plan: &'a Plan, launcher: Launcher, cores: Cores) -> Result<Self> {
        let network = Network::new(cores.load)?;
        network.receive_for_proxy(&[cores.proxy])?;
        network.enter(Side::Backend)?;
        let size_max = plan.workloads.iter().map(|workload| workload.size).max().unwrap_or(0).max(1 << 20);
        let listen = format!("--listen={}", backend_address());
        let arguments = ["backend".to_owned(), listen, format!("--size-max={size_max}")];
        let mut backend = launcher.start_own("backend", cores.load, arguments)?;
        backend.printed_address()?;
        network.enter(Side::Proxy)?;
        let admin = launcher.folder.join("admin.sock");
        let settings = "workers = 1\nsteering = \"off\"\n";
        let address = Contender::Mode(RedirectMode::Auto).address();
        let text = underpass_with(address, backend_address(), &admin, settings);
        let mut underpass = start_underpass(&launcher, "underpass", &[cores.proxy], &text)?;
        let has_haproxy = plan.contenders.iter().any(|contender| contender.is_haproxy());
        let mut haproxy = has_haproxy.then(|| start_haproxy(&launcher, cores.proxy)).transpose()?;
        network.enter(Side::Client)?;
        underpass.ready(|| forwards(address))?;
        if let Some(haproxy) = &mut haproxy {
            for contender in [Contender::HaproxyHttp, Contender::HaproxyTcp] {
                haproxy.ready(|| forwards(contender.address()))?;
            }
        }
        ensure!(forwards(backend_address()), "backend {}: no answer without a proxy", backend_address());
        // After the kernel threads of the queues have begun, so that they are known as such.
        let clock = MachineClock::new()?;
        let report = empty_report(plan, &launcher, cores, describe())?;
        Ok(Self {
            plan,
            admin: Client::new(admin),
            launcher,
            cores,
            report,
            underpass,
            haproxy,
            backend,
            mode: None,
            clock,
            patience: plan.patience,
            began: Instant::now(),
            network,
        })
    }

    /// Measures everything; what has been measured when it ends with an error is in the report all the same.
    pub(super) fn measure(&mut self) -> Result<()> {
        self.probe_modes()?;
        for number in 0..self.plan.workloads.len() {
            if self.is_over() {
                return Ok(());
            }
            let workload = self.plan.workloads[number];
            eprintln!(
                "[{}] {} of {}: {}",
                self.elapsed(),
                number + 1,
                self.plan.workloads.len(),
                workload.name()
            );
            let cell = self.cell(workload)?;
            self.report.cells.push(cell);
        }
        if self.plan.steering && !self.is_over() {
            self.steer()?;
        }
        Ok(())
    }

    /// Waits for others to leave the machine alone, as long as there is patience left. Only the rounds are worth it: a step that
    /// breaks for others' sake is repeated.
    pub(super) fn wait_until_quiet(&mut self) -> Result<()> {
        self.patience = wait_for_quiet(&self.clock, self.report.machine.cores, self.patience)?;
        Ok(())
    }

    /// Stops everything and hands out what was measured.
    pub(super) fn finish(self) -> Report {
        self.report
    }

    /// Whether the time is over; says so once.
    pub(super) fn is_over(&mut self) -> bool {
        let over = self.began.elapsed() >= self.plan.time_max;
        let note = format!(
            "Ended after {} s, as asked for; the rest was not measured.",
            self.plan.time_max.as_secs()
        );
        if over && !self.report.notes.contains(&note) {
            self.report.notes.push(note);
        }
        over
    }

    pub(super) fn elapsed(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        format!("{:>2}:{:02}", seconds / 60, seconds % 60)
    }

    /// Tries each mode once, so that one that cannot be had is reported as such and not measured as something else.
    fn probe_modes(&mut self) -> Result<()> {
        self.report.refused.extend(unavailable(&self.admin.status()?));
        for &contender in &self.plan.contenders {
            check_interrupt()?;
            if let Contender::Mode(mode) = contender
                && let Err(error) = self.switch(mode)
            {
                self.report.refused.insert(contender.name().to_owned(), format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// Contenders that can be measured.
    fn contenders(&self) -> Vec<Contender> {
        let usable = |contender: &&Contender| !self.report.refused.contains_key(contender.name());
        self.plan.contenders.iter().filter(usable).copied().collect()
    }

    /// Switches the running proxy; the next bodies go by this mode.
    fn switch(&mut self, mode: RedirectMode) -> Result<()> {
        if self.mode == Some(mode) {
            return Ok(());
        }
        self.mode = None;
        self.admin.set_redirect(&RedirectChange { mode: Some(mode), ..RedirectChange::default() })?;
        self.mode = Some(mode);
        Ok(())
    }

    fn cell(&mut self, workload: Workload) -> Result<Cell> {
        let contenders = self.contenders();
        let mut cell = Cell { workload, compared_per_s: None, series: Vec::new(), comparisons: Vec::new() };
        for &contender in &contenders {
            let closed = self.attempt(contender, workload, Arrivals::Closed)?;
            cell.series.push(Series {
                contender: contender.name().to_owned(),
                closed_per_s: closed.filter(|step| step.completed > 0).map(|step| step.achieved_per_s()),
                climb: Climb::default(),
                rounds: Vec::new(),
                moved: BTreeMap::new(),
                figures: None,
            });
        }
        // What the way without a proxy can do says nothing about proxies.
        let of_proxies = |cell: &Cell, of: fn(&Series) -> Option<f64>| -> Vec<f64> {
            cell.series.iter().filter(|series| series.contender != "direct").filter_map(of).collect()
        };
        let Some(fastest) = of_proxies(&cell, |series| series.closed_per_s).into_iter().reduce(f64::max)
        else {
            self.report.failures.push(format!("{}: nothing was completed in a closed loop", workload.name()));
            return Ok(cell);
        };
        for (series, &contender) in cell.series.iter_mut().zip(&contenders) {
            let is_needed = contender != Contender::Direct || workload.kind == Kind::Tunnel;
            if is_needed && series.closed_per_s.is_some() && !self.is_over() {
                series.climb = self.climb(contender, workload, fastest)?;
                let knee = series.climb.knee;
                let text = |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| format!("{rate:.0}/s"));
                let how = knee.how.map_or_else(String::new, |how| format!(" ({how})"));
                eprintln!(
                    "[{}]   {contender:<12} held {:>9}, broke {:>9}{how}",
                    self.elapsed(),
                    text(knee.held_per_s),
                    text(knee.broke_per_s)
                );
            }
        }
        let knees = of_proxies(&cell, |series| series.climb.knee.rate());
        if let Some(lowest) = knees.into_iter().reduce(f64::min) {
            let rate = lowest * self.plan.load_share;
            cell.compared_per_s = Some(rate);
            self.compare(&mut cell, &contenders, rate)?;
        }
        Ok(cell)
    }

    fn climb(&mut self, contender: Contender, workload: Workload, closed_per_s: f64) -> Result<Climb> {
        let (ladder, bounds) = (self.plan.ladder(closed_per_s), self.plan.bounds);
        let mut seed = 0;
        climb(&ladder, &bounds, |per_s| {
            seed += 1;
            self.step(contender, workload, Arrivals::Open { per_s, seed })
        })
        .or_else(|error| {
            self.note_failure(contender, workload, &error)?;
            Ok(Climb::default())
        })
    }

    /// Rounds in which all get the same load, one after the other, in an order that moves on.
    fn compare(&mut self, cell: &mut Cell, contenders: &[Contender], per_s: f64) -> Result<()> {
        for round in 0..self.plan.rounds {
            if self.is_over() {
                return Ok(());
            }
            for contender in rotated(contenders, round as usize) {
                let arrivals = Arrivals::Open { per_s, seed: 1000 + u64::from(round) };
                self.wait_until_quiet()?;
                let before = self.counters(contender)?;
                let Some(step) = self.attempt(contender, cell.workload, arrivals)? else { continue };
                let after = self.counters(contender)?;
                let workers = self.workers(contender)?.len();
                let disturbed = self.is_disturbed(&step);
                if let Some(series) =
                    cell.series.iter_mut().find(|series| series.contender == contender.name())
                {
                    series.rounds.push(Round { round, workers, disturbed, step });
                    series.add_moved(&before, &after);
                }
            }
        }
        eprintln!("[{}]   compared in {} rounds at {per_s:.0}/s", self.elapsed(), self.plan.rounds);
        Ok(())
    }

    /// What underpass has counted; nothing for the others.
    fn counters(&self, contender: Contender) -> Result<Counters> {
        Ok(if let Contender::Mode(_) = contender { self.admin.status()?.total } else { Counters::default() })
    }

    /// A step; none if it failed, which is noted.
    fn attempt(
        &mut self,
        contender: Contender,
        workload: Workload,
        arrivals: Arrivals,
    ) -> Result<Option<Step>> {
        match self.step(contender, workload, arrivals) {
            Ok(step) => Ok(Some(step)),
            Err(error) => {
                self.note_failure(contender, workload, &error)?;
                Ok(None)
            }
        }
    }

    /// One contender's trouble does not cost the others' figures.
    fn note_failure(
        &mut self,
        contender: Contender,
        workload: Workload,
        error: &anyhow::Error,
    ) -> Result<()> {
        check_interrupt()?;
        let failure = format!("{contender}, {}: {error:#}", workload.name());
        eprintln!("FAILED: {failure}");
        self.report.failures.push(failure);
        Ok(())
    }

    fn step(&mut self, contender: Contender, workload: Workload, arrivals: Arrivals) -> Result<Step> {
        if let Contender::Mode(mode) = contender {
            self.switch(mode)?;
        }
        let workers = self.workers(contender)?;
        self.load(contender.address(), workload, arrivals, &workers)
    }

    /// Makes load from the client's side; watches the workers and, last, the backend.
    pub(super) fn load(
        &mut self,
        address: std::net::SocketAddr,
        workload: Workload,
        arrivals: Arrivals,
        workers: &[u32],
    ) -> Result<Step> {
        let Workload { kind, size, connections } = workload;
        let plan = load::Plan {
            address,
            exchange: match kind {
                Kind::Download => Exchange::Download { size, reuse: true },
                Kind::Connections => Exchange::Download { size, reuse: false },
                Kind::Upload => Exchange::Upload { size },
                Kind::Tunnel => Exchange::Tunnel { message_size: size, upgrade: true },
            },
            arrivals,
            connections_max: connections,
            connections_at_start: match kind {
                Kind::Tunnel => connections,
                Kind::Connections => 0,
                _ => CONNECTIONS_AT_START.min(connections),
            },
            warm_up: self.plan.warm_up,
            span: self.plan.span,
            timeout: self.plan.timeout,
            watched: workers.iter().copied().chain([self.backend.pid()]).collect(),
        };
        self.network.enter(Side::Client)?;
        let arguments = ["step".to_owned(), serde_json::to_string(&plan)?];
        let process = self.launcher.start_own("load", self.cores.load, arguments)?;
        let patience = plan.warm_up + plan.span + plan.timeout + Duration::from_secs(10);
        let text = process.finish(patience)?;
        let step: Step =
            serde_json::from_str(&text).with_context(|| format!("load generator printed: {text}"))?;
        if let Some(reason) = step.error_reasons.keys().find(|reason| is_fatal(reason)) {
            anyhow::bail!("{reason}");
        }
        Ok(step)
    }

    /// The processes that do a contender's work.
    fn workers(&self, contender: Contender) -> Result<Vec<u32>> {
        match (contender, &self.haproxy) {
            (Contender::Direct, _) => Ok(Vec::new()),
            (Contender::Mode(_), _) => self.underpass.children(),
            (_, Some(haproxy)) => Ok(vec![haproxy.pid()]),
            (_, None) => Ok(Vec::new()),
        }
    }

    /// Whether others used the machine meanwhile, judged by their time alone and not by the result.
    pub(super) fn is_disturbed(&self, step: &Step) -> bool {
        let whole = step.span_ns as f64 * self.report.machine.cores as f64;
        let ours: u64 = step.processes.iter().map(|process| process.run_ns).sum();
        let known = ours + step.load.run_ns + step.machine.kernel_threads_ns;
        step.machine.busy_ns.saturating_sub(known) as f64 / whole > OTHERS_SHARE_MAX
            || step.machine.steal_ns as f64 / whole > STEAL_SHARE_MAX
    }
}

/// What was received is not what was sent: no figure is worth anything then.
fn is_fatal(reason: &str) -> bool {
    ["wrong body", "wrong echo", "nobody asked for", "after the"].iter().any(|sign| reason.contains(sign))
}

/// Starts an underpass in the namespace that the calling thread is in.
pub(super) fn start_underpass(
    launcher: &Launcher,
    name: &str,
    cores: &[usize],
    text: &str,
) -> Result<Process> {
    let file = launcher.folder.join(format!("{name}.toml"));
    fs::write(&file, text).with_context(|| format!("{}: cannot write", file.display()))?;
    let arguments: [OsString; 3] = ["start".into(), "--config".into(), file.into()];
    launcher.start(name, cores, launcher.underpass()?, arguments)
}

fn start_haproxy(launcher: &Launcher, core: usize) -> Result<Process> {
    let file: PathBuf = launcher.folder.join("haproxy.conf");
    fs::write(&file, haproxy_configuration()).with_context(|| format!("{}: cannot write", file.display()))?;
    // In the foreground; without a master process there is one process to watch.
    launcher.start("haproxy", &[core], &path_of(HAPROXY)?, ["-db".into(), "-f".into(), file.into()])
}

fn empty_report(plan: &Plan, launcher: &Launcher, cores: Cores, machine: Machine) -> Result<Report> {
    let Cores { proxy, load, .. } = cores;
    let mut contenders = BTreeMap::new();
    for &contender in &plan.contenders {
        let what = match contender {
            Contender::Direct => "no proxy: the kernel routes between client and backend".to_owned(),
            Contender::Mode(mode) => {
                let version = first_line(Command::new(launcher.underpass()?).arg("--version"))?;
                format!("{version}, switched to mode {mode} while it runs")
            }
            Contender::HaproxyHttp | Contender::HaproxyTcp => {
                let version = first_line(Command::new(path_of(HAPROXY)?).arg("-v"))?;
                let mode = if contender == Contender::HaproxyHttp { "http" } else { "tcp" };
                format!("{version}; mode {mode}, splice both ways, pipes of 1 MiB, one thread")
            }
        };
        contenders.insert(contender.name().to_owned(), what);
    }
    Ok(Report {
        title: "underpass lab".into(),
        command: plan.command.clone(),
        machine,
        arrangement: vec![
            format!(
                "Client, proxy and backend are in network namespaces of their own on one machine. The proxy's one worker has core {proxy}, \
                 where also everything is received that comes to the proxy at {PROXY}: by threaded NAPI from the client, \
                 by receive packet steering from the backend. Load generator and backend share core {load}."
            ),
            "The way without a proxy (direct) shows what load generator and backend can do on the core that they share: a knee near its \
             rate is theirs, not the proxy's."
                .into(),
            "What the kernel does in its threads and interrupts is part of the machine's time, and not of the proxy's."
                .into(),
        ],
        method: Method {
            bounds: plan.bounds,
            span_s: plan.span.as_secs_f64(),
            warm_up_s: plan.warm_up.as_secs_f64(),
            timeout_s: plan.timeout.as_secs_f64(),
            rounds: plan.rounds,
            load_share: plan.load_share,
        },
        contenders,
        refused: BTreeMap::new(),
        cells: Vec::new(),
        steering: Vec::new(),
        thresholds: Vec::new(),
        notes: Vec::new(),
        failures: Vec::new(),
    })
}
