//! Load that rises until it breaks.
#![deny(clippy::disallowed_methods)]

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::load::Step;

/// What a step must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Most operations that fail or time out, as a share of all.
    pub failed_share_max: f64,
    /// Least operations that are completed within the span, as a share of those due in it.
    pub achieved_share_min: f64,
    /// Longest 99th percentile of the latency, in nanoseconds.
    pub p99_ns_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { failed_share_max: 0.01, achieved_share_min: 0.9, p99_ns_max: 100_000_000 }
    }
}

/// How a step broke.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Break {
    /// Too many operations failed or timed out: this share.
    Failures(f64),
    /// Too few were completed: this share.
    Behind(f64),
    /// The 99th percentile was too long: so many nanoseconds.
    Slow(u64),
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures(share) => {
                write!(f, "{:.1} % of the operations failed or timed out", share * 100.0)
            }
            Self::Behind(share) => write!(f, "only {:.0} % of the asked rate was achieved", share * 100.0),
            Self::Slow(ns) => write!(f, "p99 of {:.1} ms", *ns as f64 / 1e6),
        }
    }
}

impl Bounds {
    /// Whether a step broke them, and how.
    pub fn broken_by(&self, step: &Step) -> Option<Break> {
        let achieved = step.completed_in_span as f64 / step.due.max(1) as f64;
        if step.failed_share() > self.failed_share_max {
            Some(Break::Failures(step.failed_share()))
        } else if achieved < self.achieved_share_min {
            Some(Break::Behind(achieved))
        } else if step.latency.p99_ns > self.p99_ns_max {
            Some(Break::Slow(step.latency.p99_ns))
        } else {
            None
        }
    }
}

/// The rates of the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// Rates to begin with, ascending; not empty.
    pub rates: Vec<f64>,
    /// Beyond them each is so much higher than the one before; above 1.
    pub factor: f64,
    /// Highest rate.
    pub per_s_max: f64,
    /// Most steps, repeated ones included.
    pub steps_max: usize,
    /// After the break: steps between the highest rate that held and the lowest that broke, each in the middle.
    pub refinements: usize,
}

/// Where it broke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Knee {
    /// Highest rate that held; none if the first broke already.
    pub held_per_s: Option<f64>,
    /// Lowest rate that broke; none if none did.
    pub broke_per_s: Option<f64>,
    /// How it broke there.
    pub how: Option<Break>,
}

impl Knee {
    /// A rate that can be shared out: the highest that held, or else the lowest that was tried.
    pub fn rate(&self) -> Option<f64> {
        self.held_per_s.or(self.broke_per_s)
    }
}

/// All steps of one climb.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Climb {
    /// In the order in which they were made.
    pub steps: Vec<Step>,
    /// Where it broke.
    pub knee: Knee,
}

/// Climbs until a step breaks, then narrows the knee down. A step that broke is repeated once: only twice in a row counts,
/// so that one hiccup of the machine is no knee.
///
/// # Errors
/// What `measure` returns.
pub fn climb(
    ladder: &Ladder,
    bounds: &Bounds,
    mut measure: impl FnMut(f64) -> Result<Step>,
) -> Result<Climb> {
    let mut climb = Climb::default();
    let beyond =
        std::iter::successors(ladder.rates.last().copied(), |rate| Some(rate * ladder.factor)).skip(1);
    for rate in ladder.rates.iter().copied().chain(beyond) {
        if rate > ladder.per_s_max || climb.steps.len() >= ladder.steps_max {
            break;
        }
        if !climb.holds(rate, bounds, ladder.steps_max, &mut measure)? {
            break;
        }
    }
    for _ in 0..ladder.refinements {
        let Knee { held_per_s: Some(held), broke_per_s: Some(broke), .. } = climb.knee else { break };
        if climb.steps.len() >= ladder.steps_max {
            break;
        }
        climb.holds((held * broke).sqrt(), bounds, ladder.steps_max, &mut measure)?;
    }
    Ok(climb)
}

impl Climb {
    /// Measures one rate; whether it held.
    fn holds(
        &mut self,
        rate: f64,
        bounds: &Bounds,
        steps_max: usize,
        measure: &mut impl FnMut(f64) -> Result<Step>,
    ) -> Result<bool> {
        for attempt in 0..2 {
            let step = measure(rate)?;
            let broken = bounds.broken_by(&step);
            self.steps.push(step);
            let Some(how) = broken else {
                self.knee.held_per_s = Some(self.knee.held_per_s.map_or(rate, |held| held.max(rate)));
                return Ok(true);
            };
            if attempt == 1 || self.steps.len() >= steps_max {
                (self.knee.broke_per_s, self.knee.how) = (Some(rate), Some(how));
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// How long a climb takes at most.
pub fn duration_max(ladder: &Ladder, step: Duration) -> Duration {
    step * u32::try_from(ladder.steps_max).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::accounting::{MachineTime, ProcessTime};
    use crate::latency::Percentiles;

    /// A step of one second at a rate, with this share completed and this p99.
    pub(crate) fn step(per_s: f64, completed_share: f64, p99_ns: u64) -> Step {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small numbers of a test"
        )]
        let count = |value: f64| value as u64;
        let completed = count(per_s * completed_share);
        Step {
            asked_per_s: Some(per_s),
            span_ns: 1_000_000_000,
            due: count(per_s),
            completed: count(per_s),
            timeouts: 0,
            errors: 0,
            error_reasons: BTreeMap::new(),
            completed_in_span: completed,
            body_bytes: completed << 10,
            body_size_last: Some(1 << 10),
            latency: Percentiles { count: completed, p50_ns: p99_ns / 2, p99_ns, ..Percentiles::default() },
            lag: Percentiles::default(),
            connections_opened: 1,
            processes: vec![ProcessTime { pid: 1, run_ns: completed * 10_000, wait_ns: 0 }],
            load: ProcessTime::default(),
            machine: MachineTime { busy_ns: completed * 25_000, ..MachineTime::default() },
        }
    }

    fn ladder() -> Ladder {
        Ladder { rates: vec![100.0, 200.0], factor: 2.0, per_s_max: 1e6, steps_max: 20, refinements: 3 }
    }

    /// A server that does 1,000 operations per second and no more.
    fn server(per_s: f64) -> Result<Step> {
        Ok(step(per_s, (1000.0 / per_s).min(1.0), 1_000_000))
    }

    #[test]
    fn the_knee_is_found_and_narrowed_down() -> Result<()> {
        let climb = climb(&ladder(), &Bounds::default(), server)?;
        let (held, broke) = (climb.knee.held_per_s.unwrap(), climb.knee.broke_per_s.unwrap());
        // 90 % of what is asked for is achieved up to 1,111 per second.
        assert!(held < 1000.0 / 0.9 && broke > 1000.0 / 0.9, "{held} {broke}");
        assert!(broke / held < 1.1, "{held} {broke}");
        assert!(matches!(climb.knee.how, Some(Break::Behind(share)) if share < 0.9));
        // What broke was tried twice: once on the ladder, and in the refinements that broke.
        let rates: Vec<f64> = climb.steps.iter().filter_map(|step| step.asked_per_s).collect();
        assert_eq!(rates[..6], [100.0, 200.0, 400.0, 800.0, 1600.0, 1600.0]);
        Ok(())
    }

    #[test]
    fn one_hiccup_is_no_knee() -> Result<()> {
        let mut calls = 0;
        let hiccup = |per_s| {
            calls += 1;
            if calls == 2 { Ok(step(per_s, 1.0, 900_000_000)) } else { server(per_s) }
        };
        let climb = climb(&ladder(), &Bounds::default(), hiccup)?;
        assert!(climb.knee.held_per_s.unwrap() >= 800.0);
        assert_eq!(climb.steps.len(), calls);
        Ok(())
    }

    #[test]
    fn a_climb_is_bounded() -> Result<()> {
        let endless = |per_s| Ok(step(per_s, 1.0, 1_000));
        let by_steps = climb(&Ladder { steps_max: 4, ..ladder() }, &Bounds::default(), endless)?;
        assert_eq!((by_steps.steps.len(), by_steps.knee.broke_per_s), (4, None));
        let by_rate = climb(&Ladder { per_s_max: 450.0, ..ladder() }, &Bounds::default(), endless)?;
        assert_eq!(by_rate.knee.held_per_s, Some(400.0));
        let at_once = climb(&ladder(), &Bounds { p99_ns_max: 1, ..Bounds::default() }, endless)?;
        assert_eq!((at_once.knee.held_per_s, at_once.knee.broke_per_s), (None, Some(100.0)));
        assert_eq!(at_once.knee.how, Some(Break::Slow(1_000)));
        assert_eq!((by_rate.knee.rate(), at_once.knee.rate()), (Some(400.0), Some(100.0)));
        Ok(())
    }

    #[test]
    fn failures_break_before_anything_else() {
        let failing = Step { errors: 30, timeouts: 20, ..step(1000.0, 0.1, 900_000_000) };
        assert_eq!(Bounds::default().broken_by(&failing), Some(Break::Failures(0.05)));
        assert_eq!(Bounds::default().broken_by(&step(1000.0, 1.0, 1_000)), None);
    }
}
