//! The lab on a deployed host: load on a given URL, and if the proxy may be commanded, its modes compared.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use underpass_command::Client;
use underpass_command::api::{Counters, RedirectChange, RedirectStatus, Status};
use underpass_command::state::RedirectMode;

use crate::accounting::process_time;
use crate::load::{Arrivals, Exchange, Plan, Step, run_unless};
use crate::machine::Machine;
use crate::ramp::{Bounds, Climb, Ladder, climb};
use crate::report::{Cell, Kind, Method, Report, Round, Series, Workload};
use crate::url::Url;

/// What to load, and how far.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is downloaded, and what uploads are sent to.
    pub url: Option<Url>,
    /// Bytes of each upload; 0: none.
    pub upload_size: usize,
    /// A TCP server that sends back what it gets.
    pub tunnel: Option<SocketAddr>,
    /// Bytes of each message through a tunnel.
    pub message_size: usize,
    /// The proxy whose modes are switched.
    pub admin: Option<Client>,
    /// Its modes; one that it refuses is reported as such.
    pub modes: Vec<RedirectMode>,
    /// The rates.
    pub ladder: Ladder,
    /// When a step counts as broken.
    pub bounds: Bounds,
    /// Rounds in which modes are compared.
    pub rounds: u32,
    /// In the rounds, load as a share of the lowest knee.
    pub load_share: f64,
    /// Length of a step's span.
    pub span: Duration,
    /// Load before the span.
    pub warm_up: Duration,
    /// When an operation has timed out.
    pub timeout: Duration,
    /// Most connections at a time.
    pub connections: usize,
    /// The command line, for the report.
    pub command: String,
}

/// Name of what is measured where no mode is switched.
const AS_IT_IS: &str = "as it is";
/// Length of the look at what the server answers.
const PROBE: Duration = Duration::from_millis(300);

impl Options {
    /// The longest that it can take.
    pub fn duration_max(&self) -> Duration {
        let step = self.warm_up + self.span + self.timeout;
        let workloads = u32::from(self.url.is_some())
            + u32::from(self.upload_size > 0)
            + u32::from(self.tunnel.is_some());
        let contenders =
            if self.admin.is_some() { u32::try_from(self.modes.len()).unwrap_or(u32::MAX) } else { 1 };
        let rounds = if self.admin.is_some() { self.rounds } else { 0 };
        let steps = u32::try_from(self.ladder.steps_max).unwrap_or(u32::MAX).saturating_add(rounds);
        let probe = PROBE + self.timeout;
        workloads * (probe + step.saturating_mul(contenders.saturating_mul(steps)))
    }
}

/// Measures, and leaves the proxy in the mode in which it was.
///
/// # Errors
/// The server cannot be reached or answers wrong from the first request on, the proxy cannot be commanded, or it was
/// interrupted. What was measured before that is lost, the mode is restored.
pub fn run(options: &Options, interrupted: &AtomicBool, say: &mut dyn FnMut(&str)) -> Result<Report> {
    let mut lab = Deployed::new(options, interrupted)?;
    for (exchange, address, kind) in workloads(options)? {
        lab.workload(&exchange, address, kind, say)?;
    }
    let mut report = lab.report;
    report.conclude();
    Ok(report)
}

fn workloads(options: &Options) -> Result<Vec<(Exchange, SocketAddr, Kind)>> {
    let mut workloads = Vec::new();
    if let Some(url) = &options.url {
        let address = url.resolve()?;
        let exchange = |upload_size| Exchange::Url {
            authority: url.authority.clone(),
            target: url.target.clone(),
            upload_size,
        };
        workloads.push((exchange(0), address, Kind::Download));
        if options.upload_size > 0 {
            workloads.push((exchange(options.upload_size), address, Kind::Upload));
        }
    }
    if let Some(address) = options.tunnel {
        let message_size = options.message_size;
        workloads.push((Exchange::Tunnel { message_size, upgrade: false }, address, Kind::Tunnel));
    }
    ensure!(!workloads.is_empty(), "nothing to load: give a URL, or an address for --tunnel");
    Ok(workloads)
}

struct Deployed<'a> {
    options: &'a Options,
    interrupted: &'a AtomicBool,
    switch: Option<Switch>,
    workers: Vec<u32>,
    report: Report,
}

impl<'a> Deployed<'a> {
    fn new(options: &'a Options, interrupted: &'a AtomicBool) -> Result<Self> {
        let (mut source, mut workers, mut notes) = (None, Vec::new(), Vec::new());
        let mut refused = BTreeMap::new();
        let mut contenders = BTreeMap::from([(AS_IT_IS.to_owned(), "no mode was switched".to_owned())]);
        let mut switch = None;
        if let Some(admin) = &options.admin {
            let status = admin.status()?;
            source = Some(format!("underpass {}", status.version));
            refused.extend(unavailable(&status));
            workers = status.workers.iter().filter_map(|worker| worker.pid).collect();
            if let Some(error) = workers.iter().find_map(|&pid| process_time(pid).err()) {
                notes.push(format!("The proxy's processor time is not known: {error:#}."));
                workers.clear();
            }
            let before = admin.redirect()?;
            notes.extend(overrides(&before));
            contenders = options
                .modes
                .iter()
                .map(|mode| (mode.name().to_owned(), format!("the proxy, switched to mode {mode}")))
                .collect();
            switch = Some(Switch { admin: admin.clone(), before: before.process, now: before.process });
        }
        let report = Report {
            title: "underpass lab on a deployed host".into(),
            command: options.command.clone(),
            machine: Machine::describe(source),
            arrangement: vec![
                "The load generator ran on the machine named above, among whatever else runs there; its share of the machine's time is \
                 in \"machine CPU\"."
                    .into(),
            ],
            method: Method {
                bounds: options.bounds,
                span_s: options.span.as_secs_f64(),
                warm_up_s: options.warm_up.as_secs_f64(),
                timeout_s: options.timeout.as_secs_f64(),
                rounds: options.rounds,
                load_share: options.load_share,
            },
            contenders,
            refused,
            cells: Vec::new(),
            steering: Vec::new(),
            thresholds: Vec::new(),
            notes,
            failures: Vec::new(),
        };
        Ok(Self { options, interrupted, switch, workers, report })
    }

    fn workload(
        &mut self,
        exchange: &Exchange,
        address: SocketAddr,
        kind: Kind,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let size = self.probe(exchange, address)?;
        let workload = Workload { kind, size, connections: self.options.connections };
        say(&format!("{} at {address}", workload.name()));
        let mut cell = Cell { workload, compared_per_s: None, series: Vec::new(), comparisons: Vec::new() };
        for mode in self.modes() {
            if !self.switch_to(mode)? {
                continue;
            }
            let climb = self.climb(exchange, address, say)?;
            let contender = mode.map_or(AS_IT_IS, RedirectMode::name).to_owned();
            let knee = climb.knee;
            let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}/s"));
            let how = knee.how.map_or_else(String::new, |how| format!(" ({how})"));
            say(&format!(
                "  {contender}: held {}, broke {}{how}",
                rate(knee.held_per_s),
                rate(knee.broke_per_s)
            ));
            cell.series.push(Series {
                contender,
                closed_per_s: None,
                climb,
                rounds: Vec::new(),
                moved: BTreeMap::new(),
                figures: None,
            });
        }
        let lowest = cell.series.iter().filter_map(|series| series.climb.knee.rate()).reduce(f64::min);
        if let (Some(lowest), Some(_)) = (lowest, &self.switch) {
            self.compare(&mut cell, exchange, address, lowest * self.options.load_share)?;
            say(&format!("  compared in {} rounds", self.options.rounds));
        }
        self.report.cells.push(cell);
        Ok(())
    }

    /// The size of the bodies that are moved; an error if the server does not answer.
    fn probe(&self, exchange: &Exchange, address: SocketAddr) -> Result<usize> {
        let plan = Plan {
            connections_max: 1,
            warm_up: Duration::ZERO,
            span: PROBE,
            ..self.plan(exchange, address, Arrivals::Closed)
        };
        let step = run_unless(&plan, self.interrupted)?;
        if let Some(reason) = step.error_reasons.keys().next() {
            bail!("{address}: {reason}");
        }
        let size = step.body_size_last.with_context(|| {
            format!("{address}: no answer within {} s", self.options.timeout.as_secs_f64())
        })?;
        usize::try_from(size).context("body too large")
    }

    /// The modes to measure; none stands for the proxy as it is.
    fn modes(&self) -> Vec<Option<RedirectMode>> {
        match self.switch {
            Some(_) => self.options.modes.iter().copied().map(Some).collect(),
            None => vec![None],
        }
    }

    /// Whether the proxy is in this mode now; one that it refuses is noted.
    fn switch_to(&mut self, mode: Option<RedirectMode>) -> Result<bool> {
        let (Some(mode), Some(switch)) = (mode, &mut self.switch) else { return Ok(true) };
        if self.report.refused.contains_key(mode.name()) {
            return Ok(false);
        }
        if let Err(error) = switch.to(mode) {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            self.report.refused.insert(mode.name().to_owned(), error.to_string());
            return Ok(false);
        }
        Ok(true)
    }

    fn climb(&self, exchange: &Exchange, address: SocketAddr, say: &mut dyn FnMut(&str)) -> Result<Climb> {
        let mut seed = 0;
        climb(&self.options.ladder, &self.options.bounds, |per_s| {
            seed += 1;
            let step =
                run_unless(&self.plan(exchange, address, Arrivals::Open { per_s, seed }), self.interrupted)?;
            say(&format!("    {}", line(&step)));
            Ok(step)
        })
    }

    fn compare(
        &mut self,
        cell: &mut Cell,
        exchange: &Exchange,
        address: SocketAddr,
        per_s: f64,
    ) -> Result<()> {
        cell.compared_per_s = Some(per_s);
        for round in 0..self.options.rounds {
            let count = self.options.modes.len();
            for place in 0..count {
                // Each mode has each place in turn.
                let mode = self.options.modes[(place + round as usize) % count];
                if !self.switch_to(Some(mode))? {
                    continue;
                }
                let arrivals = Arrivals::Open { per_s, seed: 1000 + u64::from(round) };
                let before = self.counters()?;
                let step = run_unless(&self.plan(exchange, address, arrivals), self.interrupted)?;
                let (after, workers) = (self.counters()?, self.workers.len());
                if let Some(series) = cell.series.iter_mut().find(|series| series.contender == mode.name()) {
                    series.rounds.push(Round { round, workers, disturbed: false, step });
                    series.add_moved(&before, &after);
                }
            }
        }
        Ok(())
    }

    /// What the proxy has counted, if there is one to ask.
    fn counters(&self) -> Result<Counters> {
        Ok(self.options.admin.as_ref().map(Client::status).transpose()?.unwrap_or_default().total)
    }

    fn plan(&self, exchange: &Exchange, address: SocketAddr, arrivals: Arrivals) -> Plan {
        let options = self.options;
        Plan {
            address,
            exchange: exchange.clone(),
            arrivals,
            connections_max: options.connections,
            connections_at_start: if matches!(exchange, Exchange::Tunnel { .. }) {
                options.connections
            } else {
                1
            },
            warm_up: options.warm_up,
            span: options.span,
            timeout: options.timeout,
            watched: self.workers.clone(),
        }
    }
}

/// One line of progress.
fn line(step: &Step) -> String {
    let ms = |ns: u64| ns as f64 / 1e6;
    let latency = &step.latency;
    format!(
        "{:>8.0}/s asked, {:>8.0}/s done; p50 {:.2} p90 {:.2} p99 {:.2} p99.9 {:.2} p99.99 {:.2} ms; {} timed out, {} failed",
        step.asked_per_s.unwrap_or_default(),
        step.achieved_per_s(),
        ms(latency.p50_ns),
        ms(latency.p90_ns),
        ms(latency.p99_ns),
        ms(latency.p999_ns),
        ms(latency.p9999_ns),
        step.timeouts,
        step.errors
    )
}

/// The modes that the proxy takes but cannot do here, each with the reason: it would do another instead.
pub fn unavailable(status: &Status) -> Option<(String, String)> {
    let reason = || status.sockmap.reason.clone().unwrap_or_else(|| "not available".into());
    (!status.sockmap.available).then(|| (RedirectMode::Sockmap.name().to_owned(), reason()))
}

/// What the mode of the process does not reach.
fn overrides(status: &RedirectStatus) -> Vec<String> {
    let fixed = |what: &str, modes: &BTreeMap<String, Option<RedirectMode>>| -> Vec<String> {
        let set = modes.iter().filter_map(|(name, mode)| Some((name, (*mode)?)));
        set.map(|(name, mode)| {
            format!("The {what} \"{name}\" has a mode of its own, {mode}: its bodies are not switched.")
        })
        .collect()
    };
    [fixed("listener", &status.listeners), fixed("cluster", &status.clusters)].concat()
}

/// The mode of the proxy's process, put back when this is dropped.
struct Switch {
    admin: Client,
    before: RedirectMode,
    now: RedirectMode,
}

impl Switch {
    fn to(&mut self, mode: RedirectMode) -> Result<()> {
        if self.now != mode {
            self.admin.set_redirect(&RedirectChange { mode: Some(mode), ..RedirectChange::default() })?;
            self.now = mode;
        }
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = self.to(self.before) {
            // Nobody is left to take the error.
            eprintln!(
                "underpass: mode {} could not be restored: {error}; run: underpass redirect set {}",
                self.before, self.before
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            url: "http://127.0.0.1:1/".parse().ok(),
            upload_size: 0,
            tunnel: None,
            message_size: 1024,
            admin: None,
            modes: RedirectMode::ALL.to_vec(),
            ladder: Ladder { rates: vec![50.0], factor: 1.5, per_s_max: 100.0, steps_max: 2, refinements: 0 },
            bounds: Bounds::default(),
            rounds: 6,
            load_share: 0.5,
            span: Duration::from_millis(50),
            warm_up: Duration::from_millis(10),
            timeout: Duration::from_millis(200),
            connections: 4,
            command: "underpass lab".into(),
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_with_its_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let options = Options { url: url.parse().ok(), ..options() };
        let error = run(&options, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("cannot connect"), "{error:#}");
    }

    #[test]
    fn an_interrupt_ends_it() {
        let error = run(&options(), &AtomicBool::new(true), &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }

    #[test]
    fn nothing_to_load_is_refused() {
        let error =
            run(&Options { url: None, ..options() }, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("--tunnel"), "{error}");
    }

    #[test]
    fn its_time_is_bounded() {
        // One look and two steps, each with its rest.
        assert_eq!(options().duration_max(), Duration::from_millis(500 + 2 * 260));
        let compared = Options { admin: Some(Client::new("/nowhere")), upload_size: 1, ..options() };
        let steps = u32::try_from(RedirectMode::ALL.len()).unwrap() * (2 + 6);
        assert_eq!(
            compared.duration_max(),
            2 * (Duration::from_millis(500) + steps * Duration::from_millis(260))
        );
    }

    #[test]
    fn a_mode_that_the_kernel_refuses_is_not_measured_as_another() {
        let mut status = Status::default();
        status.sockmap.reason = Some("needs Linux 6.16".into());
        assert_eq!(unavailable(&status), Some(("sockmap".into(), "needs Linux 6.16".into())));
        status.sockmap.available = true;
        assert_eq!(unavailable(&status), None);
    }

    #[test]
    fn what_cannot_be_switched_is_told() {
        let status = RedirectStatus {
            clusters: [("app".to_owned(), Some(RedirectMode::Copy)), ("b".to_owned(), None)].into(),
            ..RedirectStatus::default()
        };
        let told = overrides(&status);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("cluster \"app\"") && told[0].contains("copy"), "{told:?}");
    }
}
