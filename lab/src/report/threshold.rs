//! From which size on one mode beats another.

use serde::{Deserialize, Serialize};

use super::text::bytes_name;
use super::{Cell, Kind, Measure};
use crate::statistics::{Ratio, Verdict};

/// The smallest body from which one mode costs less than another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// Which way bodies go.
    pub kind: Kind,
    /// By which cost.
    pub measure: Measure,
    /// The mode that costs less.
    pub mode: String,
    /// The mode that costs more.
    pub than: String,
    /// The smallest size measured from which on `mode` costs less than `than`, beyond the noise, and at no larger size more;
    /// none if there is no such size.
    pub from_size: Option<usize>,
    /// What this follows from, by ascending size.
    pub sizes: Vec<SizeRatio>,
}

/// `mode` in proportion to `than` at one size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizeRatio {
    /// Bytes of each body.
    pub size: usize,
    /// Cost of one in proportion to the other's.
    pub ratio: Ratio,
}

impl Threshold {
    /// In words.
    pub fn sentence(&self) -> String {
        let Self { mode, than, kind, measure, .. } = self;
        let at = self.from_size.and_then(|size| self.sizes.iter().find(|entry| entry.size == size));
        let what = format!("{}, {}: {mode} beats {than}", kind.name(), measure.name());
        match at {
            Some(SizeRatio { size, ratio }) => format!(
                "{what} from {} on ({:.2} [{:.2}, {:.2}])",
                bytes_name(*size as f64),
                ratio.median,
                ratio.low,
                ratio.high
            ),
            None => format!("{what} from no size on: {}", self.why_none()),
        }
    }

    fn why_none(&self) -> &'static str {
        let all = |verdict| self.sizes.iter().all(|entry| entry.ratio.verdict == verdict);
        if all(Verdict::Disturbed) {
            "others used the machine in every round, so there is no verdict"
        } else if all(Verdict::TooFewRounds) {
            "too few rounds for a verdict"
        } else {
            "none beyond the noise"
        }
    }
}

/// Which pairs of modes, each for the one that may come with larger bodies.
const PAIRS: &[(&str, &str)] = &[("splice", "copy"), ("sockmap", "splice"), ("sockmap", "copy")];

pub(super) fn thresholds(cells: &[Cell]) -> Vec<Threshold> {
    let mut thresholds = Vec::new();
    for kind in [Kind::Download, Kind::Upload] {
        for &(mode, than) in PAIRS {
            for measure in [Measure::ProxyCpu, Measure::MachineCpu] {
                let mut sizes: Vec<SizeRatio> = cells
                    .iter()
                    .filter(|cell| cell.workload.kind == kind)
                    .filter_map(|cell| {
                        let ratio = *cell.comparison(mode, than, measure)?;
                        Some(SizeRatio { size: cell.workload.size, ratio })
                    })
                    .collect();
                sizes.sort_unstable_by_key(|entry| entry.size);
                if !sizes.is_empty() {
                    let (mode, than) = (mode.to_owned(), than.to_owned());
                    thresholds.push(Threshold {
                        kind,
                        measure,
                        mode,
                        than,
                        from_size: first_of(&sizes),
                        sizes,
                    });
                }
            }
        }
    }
    thresholds
}

/// The smallest size that is surely better, with none above it that is surely worse.
fn first_of(sizes: &[SizeRatio]) -> Option<usize> {
    let after_worse =
        sizes.iter().rposition(|entry| entry.ratio.verdict == Verdict::More).map_or(0, |at| at + 1);
    sizes[after_worse..].iter().find(|entry| entry.ratio.verdict == Verdict::Less).map(|entry| entry.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(verdicts: &[Verdict]) -> Vec<SizeRatio> {
        let ratio =
            |verdict| Ratio { median: 1.0, low: 0.9, high: 1.1, confidence: 0.97, rounds: 6, verdict };
        verdicts.iter().zip(1..).map(|(&verdict, size)| SizeRatio { size, ratio: ratio(verdict) }).collect()
    }

    #[test]
    fn why_there_is_none_is_told() {
        use Verdict::{Disturbed, TooFewRounds, WithinNoise};
        for (verdict, reason) in
            [(Disturbed, "others used"), (TooFewRounds, "too few rounds"), (WithinNoise, "beyond the noise")]
        {
            let threshold = Threshold {
                kind: Kind::Upload,
                measure: Measure::MachineCpu,
                mode: "splice".into(),
                than: "copy".into(),
                from_size: None,
                sizes: sizes(&[verdict, verdict]),
            };
            assert!(threshold.sentence().contains(reason), "{}", threshold.sentence());
        }
    }

    #[test]
    fn the_smallest_size_that_is_surely_better_counts() {
        use Verdict::{Disturbed, Less, More, TooFewRounds, WithinNoise};
        for (verdicts, first) in [
            (&[More, WithinNoise, Less, Less][..], Some(3)),
            (&[Less, More, Less][..], Some(3)),
            (&[Less, WithinNoise, Less][..], Some(1)),
            (&[Less, Less, More][..], None),
            (&[WithinNoise, Disturbed, TooFewRounds][..], None),
            (&[][..], None),
        ] {
            assert_eq!(first_of(&sizes(verdicts)), first, "{verdicts:?}");
        }
    }
}
