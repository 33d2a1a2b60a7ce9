//! What was measured, what follows from it, and how it is written down.

mod compare;
mod html;
mod plots;
mod svg;
mod text;
mod threshold;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use underpass_command::api::Counters;

use crate::load::Step;
use crate::machine::Machine;
use crate::ramp::{Bounds, Climb};
use crate::statistics::Interval;

pub use compare::{Comparison, Measure};
pub use html::html;
pub use text::{bytes_name, text};
pub use threshold::{SizeRatio, Threshold};

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was measured.
    pub title: String,
    /// The command that measured it.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// What ran where, and what shares what.
    pub arrangement: Vec<String>,
    /// How.
    pub method: Method,
    /// What was compared: name, and what it is.
    pub contenders: BTreeMap<String, String>,
    /// What could not be measured, and why.
    pub refused: BTreeMap<String, String>,
    /// One for each kind and size.
    pub cells: Vec<Cell>,
    /// Policies of steering.
    pub steering: Vec<SteeringRun>,
    /// What is recommended for the mode `auto`.
    pub thresholds: Vec<Threshold>,
    /// What one must know to read the figures.
    pub notes: Vec<String>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// How it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// When a step counts as broken.
    pub bounds: Bounds,
    /// Length of each step's span in seconds.
    pub span_s: f64,
    /// Load before the span, in seconds.
    pub warm_up_s: f64,
    /// When an operation has timed out, in seconds after it was due.
    pub timeout_s: f64,
    /// Rounds in which contenders were compared side by side.
    pub rounds: u32,
    /// In the rounds, load as a share of the lowest knee among the contenders.
    pub load_share: f64,
}

/// What the load is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Bodies from backend to client.
    Download,
    /// Bodies from client to backend.
    Upload,
    /// Messages through a tunnel, one at a time in each, each echoed.
    Tunnel,
    /// A connection for each request.
    Connections,
}

impl Kind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Tunnel => "tunnel",
            Self::Connections => "connections",
        }
    }
}

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Workload {
    /// What is moved.
    pub kind: Kind,
    /// Bytes of each body or message.
    pub size: usize,
    /// Most connections at a time.
    pub connections: usize,
}

impl Workload {
    /// In words.
    pub fn name(&self) -> String {
        let size = bytes_name(self.size as f64);
        match self.kind {
            Kind::Download | Kind::Upload => format!("{} of {size}", self.kind.name()),
            Kind::Tunnel if self.connections == 1 => format!("{size} messages, 1 tunnel"),
            Kind::Tunnel => format!("{size} messages, {} tunnels", self.connections),
            Kind::Connections => format!("a connection for each {size}"),
        }
    }
}

/// One workload, all contenders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// What the load was made of.
    pub workload: Workload,
    /// Rate at which the contenders were compared.
    pub compared_per_s: Option<f64>,
    /// One for each contender.
    pub series: Vec<Series>,
    /// Contenders in proportion to others.
    pub comparisons: Vec<Comparison>,
}

/// One contender with one workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub contender: String,
    /// Operations per second in a closed loop over all connections.
    pub closed_per_s: Option<f64>,
    /// The steps up to where it broke.
    pub climb: Climb,
    /// What was measured side by side with the others.
    pub rounds: Vec<Round>,
    /// By which way the proxy says that it moved the bytes of the rounds, and how often it could not do as it was to:
    /// its counters `bytes_...` and `fallback_...`, those that are not 0.
    #[serde(default)]
    pub moved: BTreeMap<String, u64>,
    /// What follows from the rounds.
    pub figures: Option<Figures>,
}

/// One step of one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Number of the round.
    pub round: u32,
    /// How many of the step's processes, from the first on, are the proxy's.
    pub workers: usize,
    /// Others used the machine meanwhile.
    pub disturbed: bool,
    /// What was measured.
    pub step: Step,
}

impl Round {
    /// Processor time of the proxy's workers, in nanoseconds.
    pub fn proxy_ns(&self) -> f64 {
        self.step.processes.iter().take(self.workers).map(|process| process.run_ns as f64).sum()
    }

    /// How many operations' worth of work was done within the span: by bytes, where there are some, for with large bodies
    /// a good part of the work belongs to operations that began before the span or end after it.
    pub fn operations(&self, size: usize) -> f64 {
        if size == 0 { self.step.completed_in_span as f64 } else { self.step.body_bytes as f64 / size as f64 }
    }
}

/// The figures of one contender at the rate of the comparison, over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Processor time of the proxy's workers for each operation, in microseconds; none without a proxy.
    pub proxy_us: Option<Interval>,
    /// Busy time of the whole machine for each operation, in microseconds.
    pub machine_us: Interval,
    /// Processor time of the proxy's workers for each GiB, in seconds.
    pub proxy_s_per_gib: Option<Interval>,
    /// Busy time of the whole machine for each GiB, in seconds.
    pub machine_s_per_gib: Option<Interval>,
    /// Latency in microseconds.
    pub p50_us: Interval,
    /// Latency in microseconds.
    pub p90_us: Interval,
    /// Latency in microseconds.
    pub p99_us: Interval,
    /// Latency in microseconds.
    pub p999_us: Interval,
    /// Latency in microseconds.
    pub p9999_us: Interval,
    /// How late the load generator itself was with 1 of 100 operations, in microseconds: part of the latencies above.
    pub lag_p99_us: Interval,
    /// Rounds that count.
    pub rounds: usize,
    /// Rounds in which others used the machine. They are left out, unless there are no others.
    pub rounds_disturbed: usize,
}

/// One policy of steering under many short connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SteeringRun {
    /// The policy.
    pub policy: String,
    /// Why the BPF program did not choose, if it did not.
    pub reason: Option<String>,
    /// New connections by CPU that received them (row) and by worker (column); the last column is those that the
    /// kernel's hash placed.
    pub matrix: Vec<SteeringRow>,
    /// Connections per second in a closed loop.
    pub closed_per_s: Option<f64>,
    /// What was measured side by side with the other policies.
    pub rounds: Vec<Round>,
    /// What follows from the rounds.
    pub figures: Option<Figures>,
}

/// The connections that one CPU received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteeringRow {
    /// The CPU.
    pub cpu: u32,
    /// Connections by worker.
    pub workers: Vec<u64>,
}

/// The counters by which a running proxy tells how it moved bytes.
const WAYS: &[&str] = &["bytes_copied", "bytes_spliced", "bytes_sockmap"];

impl Series {
    /// Adds what the proxy has counted between two looks at it.
    pub fn add_moved(&mut self, before: &Counters, after: &Counters) {
        for (name, &value) in &after.values {
            let grown = value.saturating_sub(before.value(name));
            if grown > 0 && (WAYS.contains(&name.as_str()) || name.starts_with("fallback_")) {
                *self.moved.entry(name.clone()).or_default() += grown;
            }
        }
    }

    /// The same in words; none where it is not known.
    pub fn moved_by(&self) -> Option<String> {
        let of = |name: &str| self.moved.get(name).copied().unwrap_or(0);
        let total: u64 = WAYS.iter().map(|way| of(way)).sum();
        let share = |way: &&str| {
            let percent = of(way) as f64 * 100.0 / total.max(1) as f64;
            let name = way.strip_prefix("bytes_").unwrap_or(way);
            (of(way) > 0).then(|| format!("{name} {percent:.0} %"))
        };
        let fallbacks = self.moved.iter().filter(|(name, _)| name.starts_with("fallback_"));
        let parts: Vec<String> = WAYS
            .iter()
            .filter_map(share)
            .chain(fallbacks.map(|(name, count)| format!("{name} {count} times")))
            .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

impl Report {
    /// Fills in what follows from the rounds: figures, comparisons, thresholds.
    pub fn conclude(&mut self) {
        for cell in &mut self.cells {
            let size = cell.workload.size;
            for series in &mut cell.series {
                series.figures = compare::figures(&series.rounds, size);
            }
            cell.comparisons = compare::comparisons(cell);
        }
        for run in &mut self.steering {
            run.figures = compare::figures(&run.rounds, 0);
        }
        self.thresholds = threshold::thresholds(&self.cells);
    }

    /// Writes `lab.json` and `lab.html` into a folder; returns their paths.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, folder: &Path) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(folder).with_context(|| format!("{}: cannot make", folder.display()))?;
        let [json, page] = ["lab.json", "lab.html"].map(|name| folder.join(name));
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&json, text + "\n").with_context(|| format!("{}: cannot write", json.display()))?;
        fs::write(&page, html(self)).with_context(|| format!("{}: cannot write", page.display()))?;
        Ok([json, page])
    }
}

#[cfg(test)]
mod tests;
