//! Figures over the rounds, and contenders in proportion to others.

use serde::{Deserialize, Serialize};

use super::{Cell, Figures, Round, Series};
use crate::statistics::{Interval, Ratio, Verdict};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Processor time of the proxy's workers.
    ProxyCpu,
    /// Busy time of the whole machine.
    MachineCpu,
    /// Median latency.
    P50,
    /// 99th percentile of the latency.
    P99,
}

impl Measure {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::ProxyCpu, Self::MachineCpu, Self::P50, Self::P99];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProxyCpu => "proxy CPU",
            Self::MachineCpu => "machine CPU",
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }

    /// Its value in one round, for each operation; none where it makes no sense.
    fn of(self, round: &Round, size: usize) -> Option<f64> {
        if self == Self::ProxyCpu && round.workers == 0 {
            return None;
        }
        let operations = round.operations(size);
        let value = match self {
            Self::ProxyCpu => round.proxy_ns() / operations,
            Self::MachineCpu => round.step.machine.busy_ns as f64 / operations,
            Self::P50 => round.step.latency.p50_ns as f64,
            Self::P99 => round.step.latency.p99_ns as f64,
        };
        // Nothing done: no figure. A cost may well be zero: a worker sleeps while the kernel forwards.
        value.is_finite().then_some(value)
    }
}

/// One contender in proportion to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The contender.
    pub contender: String,
    /// The other.
    pub base: String,
    /// What of it.
    pub measure: Measure,
    /// Contender / other.
    pub ratio: Ratio,
}

/// Undisturbed rounds; all of them if there are no undisturbed ones.
fn counted(rounds: &[Round]) -> Vec<&Round> {
    let quiet: Vec<&Round> = rounds.iter().filter(|round| !round.disturbed).collect();
    if quiet.is_empty() { rounds.iter().collect() } else { quiet }
}

/// The figures over the rounds; none if nothing was measured.
pub(super) fn figures(rounds: &[Round], size: usize) -> Option<Figures> {
    let counted = counted(rounds);
    let over = |value: &dyn Fn(&Round) -> Option<f64>| {
        Interval::of(counted.iter().filter_map(|round| value(round)).collect())
    };
    let latency = |of: fn(&Round) -> u64| over(&|round| Some(of(round) as f64 / 1e3));
    let scaled = |measure: Measure, factor: f64| over(&|round| Some(measure.of(round, size)? * factor));
    // Nanoseconds for each operation of `size` bytes to seconds for each GiB.
    let per_gib = (size > 0).then(|| (1u64 << 30) as f64 / size as f64 / 1e9);
    Some(Figures {
        proxy_us: scaled(Measure::ProxyCpu, 1e-3),
        machine_us: scaled(Measure::MachineCpu, 1e-3)?,
        proxy_s_per_gib: per_gib.and_then(|factor| scaled(Measure::ProxyCpu, factor)),
        machine_s_per_gib: per_gib.and_then(|factor| scaled(Measure::MachineCpu, factor)),
        p50_us: latency(|round| round.step.latency.p50_ns)?,
        p90_us: latency(|round| round.step.latency.p90_ns)?,
        p99_us: latency(|round| round.step.latency.p99_ns)?,
        p999_us: latency(|round| round.step.latency.p999_ns)?,
        p9999_us: latency(|round| round.step.latency.p9999_ns)?,
        lag_p99_us: latency(|round| round.step.lag.p99_ns)?,
        rounds: counted.len(),
        rounds_disturbed: rounds.iter().filter(|round| round.disturbed).count(),
    })
}

/// The ratio of two series by rounds measured side by side; rounds in which both were undisturbed if there are any. If not,
/// there is a ratio but no verdict.
pub(super) fn ratio(this: &Series, base: &Series, measure: Measure, size: usize) -> Option<Ratio> {
    let pairs = |disturbed_too: bool| -> Vec<(f64, f64)> {
        let counts = |round: &&Round| disturbed_too || !round.disturbed;
        let pair = |round: &Round| {
            let other = base.rounds.iter().filter(counts).find(|other| other.round == round.round)?;
            // There is no proportion to nothing.
            Some((measure.of(round, size)?, measure.of(other, size).filter(|value| *value > 0.0)?))
        };
        this.rounds.iter().filter(counts).filter_map(pair).collect()
    };
    let disturbed = || Some(Ratio { verdict: Verdict::Disturbed, ..Ratio::of(&pairs(true))? });
    Ratio::of(&pairs(false)).or_else(disturbed)
}

/// Every contender in proportion to every other.
pub(super) fn comparisons(cell: &Cell) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for this in &cell.series {
        for base in cell.series.iter().filter(|base| base.contender != this.contender) {
            for &measure in Measure::ALL {
                if let Some(ratio) = ratio(this, base, measure, cell.workload.size) {
                    comparisons.push(Comparison {
                        contender: this.contender.clone(),
                        base: base.contender.clone(),
                        measure,
                        ratio,
                    });
                }
            }
        }
    }
    comparisons
}

impl Cell {
    /// A contender in proportion to another.
    pub fn comparison(&self, contender: &str, base: &str, measure: Measure) -> Option<&Ratio> {
        let found = self.comparisons.iter().find(|comparison| {
            comparison.contender == contender && comparison.base == base && comparison.measure == measure
        });
        found.map(|comparison| &comparison.ratio)
    }

    /// One contender's series.
    pub fn of(&self, contender: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.contender == contender)
    }

    /// The mode with the lowest median among fixed modes, if any was measured.
    pub fn best_fixed(&self, measure: Measure) -> Option<&str> {
        let cost = |series: &&Series| {
            let figures = series.figures?;
            match measure {
                Measure::ProxyCpu => figures.proxy_us,
                Measure::MachineCpu => Some(figures.machine_us),
                Measure::P50 => Some(figures.p50_us),
                Measure::P99 => Some(figures.p99_us),
            }
            .map(|interval| interval.median)
        };
        let fixed = self.series.iter().filter(|series| FIXED_MODES.contains(&series.contender.as_str()));
        let best = fixed
            .filter_map(|series| Some((cost(&series)?, series)))
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        best.map(|(_, series)| series.contender.as_str())
    }
}

/// Redirect modes that do not choose.
pub(super) const FIXED_MODES: &[&str] = &["copy", "splice", "sockmap"];
