//! A line per second about what the workers do, from their counters in shared memory.

use std::sync::Arc;
use std::time::Instant;

use crate::cli::bytes;
use crate::metrics::{BlockPair, Counter, Histogram};

/// The titles are repeated after so many lines.
const TITLES_EVERY: u64 = 20;
/// More workers than this are shown as a range.
const WORKERS_SHOWN_MAX: usize = 16;

/// The counters as they were last.
pub(super) struct Live {
    blocks: Arc<Vec<BlockPair>>,
    last: Sample,
    last_failed: u64,
    lines: u64,
}

#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    requests: u64,
    copied: u64,
    spliced: u64,
    accepted: Vec<u64>,
    latencies: Histogram,
}

impl Sample {
    fn take(blocks: &[BlockPair]) -> Self {
        let sum = |counter| blocks.iter().map(|block| block.get(counter)).sum();
        let mut latencies = Histogram::default();
        for block in blocks {
            latencies.add(&block.latencies());
        }
        Self {
            at: Instant::now(),
            requests: sum(Counter::Requests),
            copied: sum(Counter::BytesCopied),
            spliced: sum(Counter::BytesSpliced),
            accepted: blocks.iter().map(|block| block.get(Counter::Accepted)).collect(),
            latencies,
        }
    }
}

impl Live {
    pub(super) fn new(blocks: Arc<Vec<BlockPair>>) -> Self {
        let last = Sample::take(&blocks);
        Self { blocks, last, last_failed: 0, lines: 0 }
    }

    /// What happened since the last line; `failed` counts the load's failures since the start.
    pub(super) fn line(&mut self, failed: u64) -> String {
        let now = Sample::take(&self.blocks);
        let mut text = String::new();
        if self.lines.is_multiple_of(TITLES_EVERY) {
            text.push_str(
                "requests/s   p50 us   p99 us     copied/s    spliced/s  failed  new connections by worker\n",
            );
        }
        self.lines += 1;
        text.push_str(&describe(&self.last, &now, failed - self.last_failed));
        self.last = now;
        self.last_failed = failed;
        text
    }
}

fn describe(last: &Sample, now: &Sample, failed: u64) -> String {
    let seconds = now.at.duration_since(last.at).as_secs_f64().max(1e-3);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, rounded down")]
    let rate = |now: u64, last: u64| (now.wrapping_sub(last) as f64 / seconds) as u64;
    let latencies = now.latencies.since(&last.latencies);
    let quantile = |at| latencies.quantile(at).map_or_else(|| "-".to_owned(), |value| value.to_string());
    let accepted: Vec<u64> = now.accepted.iter().zip(&last.accepted).map(|(now, last)| now - last).collect();
    format!(
        "{:>10} {:>8} {:>8} {:>12} {:>12} {:>7}  {}",
        rate(now.requests, last.requests),
        quantile(0.5),
        quantile(0.99),
        bytes(rate(now.copied, last.copied)),
        bytes(rate(now.spliced, last.spliced)),
        failed,
        connections(&accepted),
    )
}

fn connections(accepted: &[u64]) -> String {
    match (accepted.iter().min(), accepted.iter().max()) {
        (Some(least), Some(most)) if accepted.len() > WORKERS_SHOWN_MAX => format!("{least} to {most} each"),
        _ => accepted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_about_the_time_since_the_last() {
        let blocks = [BlockPair::create().expect("memfd")];
        let block = blocks[0].of_turn(0).expect("there from the start");
        block.add(Counter::Requests, 100);
        block.add(Counter::Accepted, 1);
        let last = Sample::take(&blocks);
        block.add(Counter::Requests, 50);
        block.add(Counter::Accepted, 7);
        block.add(Counter::BytesSpliced, 4096);
        block.latency(10);
        let mut now = Sample::take(&blocks);
        now.at = last.at + Duration::from_secs(2);
        let words: Vec<String> = describe(&last, &now, 3).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["25", "10", "10", "0", "B", "2.0", "KiB", "3", "7"]);
    }

    #[test]
    fn many_workers_are_a_range() {
        assert_eq!(connections(&[1, 2]), "1 2");
        assert_eq!(connections(&(0..=WORKERS_SHOWN_MAX as u64).collect::<Vec<_>>()), "0 to 16 each");
    }
}
