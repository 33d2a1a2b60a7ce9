//! What the load generator prints: one JSON object.

use serde::{Deserialize, Serialize};
use underpass_lab::accounting::{MachineTime, ProcessTime};

/// One measured span of load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Bytes in each response's body.
    pub size: usize,
    /// Client connections.
    pub connections: usize,
    /// Length of the span in nanoseconds.
    pub span_ns: u64,
    /// Responses that were completed within the span. All were right: a wrong one ends the run with an error.
    pub responses: u64,
    /// Body bytes that were received within the span.
    pub body_bytes: u64,
    /// Of the responses, those whose every body byte was compared. Of the others the beginning and the end were.
    pub responses_compared_fully: u64,
    /// Responses from the first connection to the end, warm-up included.
    pub responses_overall: u64,
    /// From the request's first byte out to the response's last byte in.
    pub latency: Latency,
    /// The processes that were watched, in the order of the command line.
    pub processes: Vec<ProcessTime>,
    /// The load generator itself.
    pub load: ProcessTime,
    /// All cores.
    pub machine: MachineTime,
    /// Proportional set size of the watched processes at the end of the span, in KiB.
    pub pss_kib: Vec<u64>,
}

impl LoadReport {
    /// How many responses' worth of work was done within the span.
    ///
    /// Counted by body bytes where there are bodies: with large ones a good part of the work belongs to responses that
    /// began before the span or end after it.
    pub fn responses_worth(&self) -> f64 {
        if self.size == 0 { self.responses as f64 } else { self.body_bytes as f64 / self.size as f64 }
    }
}

/// Percentiles of the latency, in nanoseconds, with three significant digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50_ns: u64,
    /// 99 of 100 are at most this.
    pub p99_ns: u64,
    /// 999 of 1000 are at most this.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}
