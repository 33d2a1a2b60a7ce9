//! What was measured, and the figures that follow from it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use underpass_bench::report::LoadReport;
use underpass_lab::accounting::ProcessTime;

use super::contender::Contender;
use super::syscalls::Count;
use crate::machine::Cores;
use underpass_lab::machine::Machine;
use underpass_lab::statistics::{Ratio, Spread, Verdict};

/// One contender, one size, one round.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) contender: Contender,
    /// Its processes are the proxy's workers and, last, the backend.
    pub(super) report: LoadReport,
}

/// What a contender is.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Description {
    pub(super) version: String,
    pub(super) configuration: Option<String>,
}

/// Everything that was measured.
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) cores: Cores,
    pub(super) connections: u16,
    pub(super) span: Duration,
    pub(super) contenders: BTreeMap<Contender, Description>,
    pub(super) runs: Vec<Run>,
    pub(super) syscalls: BTreeMap<(usize, Contender), Count>,
    pub(super) failures: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// More of the machine than this in other processes' hands, and a run is disturbed.
const OTHERS_SHARE_MAX: f64 = 0.03;
/// A proxy that waits for its core for more than this share of the time shares it with others.
const WAIT_SHARE_MAX: f64 = 0.02;
/// More than this taken by the hypervisor, and a run is disturbed.
const STEAL_SHARE_MAX: f64 = 0.02;

impl Run {
    fn workers(&self) -> &[ProcessTime] {
        self.report.processes.split_last().map_or(&[], |(_, workers)| workers)
    }

    fn span_s(&self) -> f64 {
        self.report.span_ns as f64 / 1e9
    }

    fn proxy_ns(&self) -> f64 {
        self.workers().iter().map(|process| process.run_ns as f64).sum()
    }

    pub(super) fn responses_per_s(&self) -> f64 {
        self.report.responses_worth() / self.span_s()
    }

    pub(super) fn megabytes_per_s(&self) -> f64 {
        self.report.body_bytes as f64 / 1e6 / self.span_s()
    }

    /// Processor time of the proxy per response.
    pub(super) fn proxy_us(&self) -> f64 {
        self.proxy_ns() / 1e3 / self.report.responses_worth()
    }

    /// How much of its core the proxy used.
    pub(super) fn proxy_share(&self) -> f64 {
        self.proxy_ns() / self.report.span_ns as f64
    }

    /// Busy time of all cores per response: proxy, load, backend, kernel threads, interrupts.
    pub(super) fn machine_us(&self) -> f64 {
        self.report.machine.busy_ns as f64 / 1e3 / self.report.responses_worth()
    }

    pub(super) fn pss_kib(&self) -> f64 {
        let workers = self.workers().len();
        self.report.pss_kib.iter().take(workers).map(|&kib| kib as f64).sum()
    }

    /// How much of the machine neither we nor kernel threads used.
    pub(super) fn others_share(&self, cores: usize) -> f64 {
        let report = &self.report;
        let ours: u64 = report.processes.iter().map(|process| process.run_ns).sum();
        let known = ours + report.load.run_ns + report.machine.kernel_threads_ns;
        report.machine.busy_ns.saturating_sub(known) as f64 / (report.span_ns as f64 * cores as f64)
    }

    /// Whether others used the machine meanwhile, judged by their time alone and not by the result.
    pub(super) fn is_disturbed(&self, cores: usize) -> bool {
        let span_ns = self.report.span_ns as f64;
        let waited: u64 = self.workers().iter().map(|process| process.wait_ns).sum();
        self.others_share(cores) > OTHERS_SHARE_MAX
            || waited as f64 / span_ns > WAIT_SHARE_MAX
            || self.report.machine.steal_ns as f64 / (span_ns * cores as f64) > STEAL_SHARE_MAX
    }

    /// One line of progress.
    pub(super) fn line(&self) -> String {
        format!(
            "{:>9.0} req/s {:>9.1} MB/s {:>9.2} us of proxy CPU per request",
            self.responses_per_s(),
            self.megabytes_per_s(),
            self.proxy_us()
        )
    }
}

/// The figures of one contender with one size, over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    pub(super) responses_per_s: Spread,
    pub(super) megabytes_per_s: Spread,
    pub(super) latency_p50_us: Spread,
    pub(super) latency_p99_us: Spread,
    pub(super) latency_p999_us: Spread,
    pub(super) proxy_us_per_response: Spread,
    pub(super) proxy_core_share: Spread,
    pub(super) machine_us_per_response: Spread,
    pub(super) pss_kib: Spread,
    pub(super) rounds: usize,
    pub(super) rounds_disturbed: usize,
}

/// What one run costs, for comparisons.
pub(super) type Cost = fn(&Run) -> f64;

impl Results {
    pub(super) fn new(machine: Machine, cores: Cores, connections: u16, span: Duration) -> Self {
        Self {
            machine,
            cores,
            connections,
            span,
            contenders: BTreeMap::new(),
            runs: Vec::new(),
            syscalls: BTreeMap::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Responses that were checked.
    pub(super) fn responses(&self) -> u64 {
        self.runs.iter().map(|run| run.report.responses_overall).sum()
    }

    /// Body sizes, ascending.
    pub(super) fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.runs.iter().map(|run| run.report.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Runs of one contender with one size.
    fn runs_of(&self, size: usize, contender: Contender) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.report.size == size && run.contender == contender)
    }

    pub(super) fn is_disturbed(&self, run: &Run) -> bool {
        run.is_disturbed(self.machine.cores)
    }

    /// The figures, from undisturbed rounds if there are any, otherwise from all; none if nothing was measured.
    pub(super) fn figures(&self, size: usize, contender: Contender) -> Option<Figures> {
        let all: Vec<&Run> = self.runs_of(size, contender).collect();
        let mut counted: Vec<&Run> = all.iter().copied().filter(|run| !self.is_disturbed(run)).collect();
        let rounds_disturbed = all.len() - counted.len();
        if counted.is_empty() {
            counted = all;
        }
        let over = |figure: Cost| Spread::of(counted.iter().map(|run| figure(run)).collect());
        Some(Figures {
            responses_per_s: over(Run::responses_per_s)?,
            megabytes_per_s: over(Run::megabytes_per_s)?,
            latency_p50_us: over(|run| run.report.latency.p50_ns as f64 / 1e3)?,
            latency_p99_us: over(|run| run.report.latency.p99_ns as f64 / 1e3)?,
            latency_p999_us: over(|run| run.report.latency.p999_ns as f64 / 1e3)?,
            proxy_us_per_response: over(Run::proxy_us)?,
            proxy_core_share: over(Run::proxy_share)?,
            machine_us_per_response: over(Run::machine_us)?,
            pss_kib: over(Run::pss_kib)?,
            rounds: counted.len(),
            rounds_disturbed,
        })
    }

    /// The cost of a contender in proportion to another's, round by round; rounds in which both were undisturbed if
    /// there are any. If not, there is a ratio, but no verdict.
    pub(super) fn ratio(
        &self,
        size: usize,
        contender: Contender,
        base: Contender,
        cost: Cost,
    ) -> Option<Ratio> {
        let pairs = |disturbed_too: bool| -> Vec<(f64, f64)> {
            let counts = |run: &&Run| disturbed_too || !self.is_disturbed(run);
            let mut pairs = Vec::new();
            for this in self.runs_of(size, contender).filter(counts) {
                let other = self.runs_of(size, base).filter(counts).find(|other| other.round == this.round);
                pairs.extend(other.map(|other| (cost(this), cost(other))));
            }
            pairs
        };
        let disturbed = || Some(Ratio { verdict: Verdict::Disturbed, ..Ratio::of(&pairs(true))? });
        Ratio::of(&pairs(false)).or_else(disturbed)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use underpass_bench::report::Latency;
    use underpass_lab::accounting::MachineTime;

    use super::*;

    /// A run of one second on two cores in which the proxy took `proxy_us` for each of 10,000 responses.
    pub(in super::super) fn run(round: u32, contender: Contender, proxy_us: u64, others_ms: u64) -> Run {
        let process = |run_ns| ProcessTime { pid: 1, run_ns, wait_ns: 0 };
        let (proxy, backend, load) =
            (process(proxy_us * 10_000_000), process(100_000_000), process(200_000_000));
        let report = LoadReport {
            size: 1024,
            connections: 64,
            span_ns: 1_000_000_000,
            responses: 10_001,
            body_bytes: 10_240_000,
            responses_compared_fully: 625,
            responses_overall: 15_000,
            latency: Latency { p50_ns: 100_000, p99_ns: 200_000, p999_ns: 300_000, max_ns: 400_000 },
            processes: vec![proxy, backend],
            load,
            machine: MachineTime {
                busy_ns: proxy.run_ns + 350_000_000 + others_ms * 1_000_000,
                steal_ns: 0,
                kernel_threads_ns: 50_000_000,
            },
            pss_kib: vec![2048, 9999],
        };
        Run { round, contender, report }
    }

    pub(in super::super) fn results(runs: Vec<Run>) -> Results {
        let machine = Machine {
            date: "today".into(),
            processor: "one".into(),
            cores: 2,
            memory_mib: 1024,
            kernel: "6.18".into(),
            source: "abc".into(),
        };
        let cores = Cores { proxy: 1, load: 0, share_physical_core: false };
        let mut results = Results::new(machine, cores, 64, Duration::from_secs(1));
        results.runs = runs;
        results
    }

    #[test]
    fn costs_are_counted_by_body_bytes() {
        let run = run(0, Contender::Floor, 10, 0);
        assert!((run.responses_per_s() - 10_000.0).abs() < 1e-6);
        assert!((run.proxy_us() - 10.0).abs() < 1e-9);
        assert!((run.proxy_share() - 0.1).abs() < 1e-9);
        assert!((run.machine_us() - 45.0).abs() < 1e-9);
        assert!((run.pss_kib() - 2048.0).abs() < 1e-9, "the backend's memory is not the proxy's");
    }

    #[test]
    fn disturbed_rounds_are_left_out_as_long_as_one_is_left() {
        let (quiet, disturbed) = (run(0, Contender::Floor, 10, 10), run(1, Contender::Floor, 90, 500));
        let median = |runs: Vec<Run>| {
            let figures = results(runs).figures(1024, Contender::Floor);
            figures.map(|figures| {
                (figures.proxy_us_per_response.median, figures.rounds, figures.rounds_disturbed)
            })
        };
        assert_eq!(median(vec![quiet, disturbed.clone()]), Some((10.0, 1, 1)));
        assert_eq!(median(vec![disturbed]), Some((90.0, 1, 1)));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn disturbed_rounds_alone_give_no_verdict() {
        let disturbed = |contender, cost| (0..6).map(move |round| run(round, contender, cost, 500));
        let runs = disturbed(Contender::Floor, 10).chain(disturbed(Contender::Haproxy, 20)).collect();
        let ratio = results(runs).ratio(1024, Contender::Haproxy, Contender::Floor, Run::proxy_us);
        assert_eq!(ratio.map(|ratio| (ratio.median, ratio.verdict)), Some((2.0, Verdict::Disturbed)));
    }

    #[test]
    fn ratios_pair_what_was_measured_in_the_same_round() {
        let mut runs = Vec::new();
        for (round, cost) in [(0, 10), (1, 20), (2, 40)] {
            runs.push(run(round, Contender::Floor, cost, 0));
            runs.push(run(round, Contender::Haproxy, cost * 2, 0));
        }
        runs.push(run(3, Contender::Haproxy, 500, 0));
        let ratio = results(runs).ratio(1024, Contender::Haproxy, Contender::Floor, Run::proxy_us);
        assert_eq!(
            ratio.map(|ratio| (ratio.low, ratio.median, ratio.high, ratio.rounds)),
            Some((2.0, 2.0, 2.0, 3))
        );
    }
}
