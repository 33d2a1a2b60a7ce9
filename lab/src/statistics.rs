//! Medians, quartiles, and how sure a median is.

use serde::{Deserialize, Serialize};

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of the values are at most this.
    pub median: f64,
    /// A quarter of the values are at most this.
    pub quartile_1: f64,
    /// Three quarters of the values are at most this.
    pub quartile_3: f64,
}

impl Spread {
    /// None for no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median: quartile(&values, 2)?,
            quartile_1: quartile(&values, 1)?,
            quartile_3: quartile(&values, 3)?,
        })
    }
}

/// A quartile of sorted values, between two of them by proportion; 2 is the median.
fn quartile(sorted: &[f64], number: usize) -> Option<f64> {
    // The place among the values, in quarters of a step.
    let place = number * sorted.len().checked_sub(1)?;
    let (below, above) = (sorted.get(place / 4)?, sorted.get(place.div_ceil(4))?);
    Some(below + (above - below) * (place % 4) as f64 / 4.0)
}

/// The chance that an interval must have of holding the true median, for a difference to be called one.
const CONFIDENCE_MIN: f64 = 0.95;

/// A median, and how sure it is.
///
/// The interval is the one of the sign test: its ends are two of the values, and its probability follows from the
/// binomial distribution alone, whatever the noise looks like.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Median of the values.
    pub median: f64,
    /// Lower end of the interval that holds the true median with probability `confidence`.
    pub low: f64,
    /// Upper end of that interval.
    pub high: f64,
    /// At least 0.95 if there are values enough for that.
    pub confidence: f64,
    /// How many values there were.
    pub rounds: usize,
}

impl Interval {
    /// None for no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let rounds = values.len();
        let median = quartile(&values, 2)?;
        // The narrowest interval that is sure enough, or else the widest there is.
        let cut =
            (0..rounds.div_ceil(2)).rev().find(|&cut| coverage(rounds, cut) >= CONFIDENCE_MIN).unwrap_or(0);
        let (low, high) = (*values.get(cut)?, *values.get(rounds - 1 - cut)?);
        Some(Self { median, low, high, confidence: coverage(rounds, cut), rounds })
    }
}

/// How much of what another has: the median over the rounds of what was measured side by side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Median of the ratios.
    pub median: f64,
    /// Lower end of the interval that holds the true median with probability `confidence`.
    pub low: f64,
    /// Upper end of that interval.
    pub high: f64,
    /// At least 0.95 if there are rounds enough for that.
    pub confidence: f64,
    /// How many pairs there were.
    pub rounds: usize,
    /// What follows from the interval.
    pub verdict: Verdict,
}

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is below 1.
    Less,
    /// The whole interval is above 1.
    More,
    /// The interval holds 1.
    WithinNoise,
    /// Too few rounds for an interval of 95 %.
    TooFewRounds,
    /// Others used the machine in every round.
    Disturbed,
}

impl Ratio {
    /// The ratio of values that were measured in pairs, one pair in each round; none without pairs.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let Interval { median, low, high, confidence, rounds } =
            Interval::of(pairs.iter().map(|(this, other)| this / other).collect())?;
        let verdict = match () {
            () if confidence < CONFIDENCE_MIN => Verdict::TooFewRounds,
            () if high < 1.0 => Verdict::Less,
            () if low > 1.0 => Verdict::More,
            () => Verdict::WithinNoise,
        };
        Some(Self { median, low, high, confidence, rounds, verdict })
    }
}

/// The probability that the true median lies within `count` sorted values without the `cut` lowest and highest.
fn coverage(count: usize, cut: usize) -> f64 {
    // Outside means: at most `cut` of `count` fair coins fell on one side.
    let mut probability = 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut outside = 0.0;
    for heads in 0..=cut {
        outside += probability;
        probability *= (count - heads) as f64 / (heads + 1) as f64;
    }
    (1.0 - 2.0 * outside).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_between_the_values() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(spread, Some(Spread { median: 2.5, quartile_1: 1.75, quartile_3: 3.25 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn coverage_is_that_of_the_sign_test() {
        // From tables of the confidence interval of a median.
        for (count, cut, expected) in
            [(5, 0, 0.9375), (6, 0, 0.96875), (9, 1, 0.9609375), (15, 3, 0.96484375), (1, 0, 0.0)]
        {
            assert!((coverage(count, cut) - expected).abs() < 1e-12, "{count} {cut}");
        }
    }

    #[test]
    fn difference_within_the_spread_is_noise() {
        let pairs = |ratios: &[f64]| ratios.iter().map(|ratio| (ratio * 3.0, 3.0)).collect::<Vec<_>>();
        let verdict = |ratios: &[f64]| Ratio::of(&pairs(ratios)).map(|ratio| ratio.verdict);
        assert_eq!(verdict(&[0.9, 0.91, 0.89, 0.92, 0.9, 0.9]), Some(Verdict::Less));
        assert_eq!(verdict(&[1.1, 1.2, 1.1, 1.05, 1.1, 1.1]), Some(Verdict::More));
        assert_eq!(verdict(&[0.9, 1.2, 1.1, 0.95, 1.1, 1.1]), Some(Verdict::WithinNoise));
        assert_eq!(verdict(&[0.5, 0.5, 0.5]), Some(Verdict::TooFewRounds));
        assert_eq!(verdict(&[]), None);
    }

    #[test]
    fn one_outlier_in_nine_rounds_does_not_widen_the_interval() {
        let mut pairs = vec![(0.9, 1.0); 8];
        pairs.push((9.0, 1.0));
        let ratio = Ratio::of(&pairs).map(|ratio| (ratio.low, ratio.high, ratio.verdict));
        assert_eq!(ratio, Some((0.9, 0.9, Verdict::Less)));
    }
}
