//! The options with their defaults filled in.

use std::time::Duration;

use underpass_lab::ramp::{Bounds, Ladder};
use underpass_lab::report::{Kind, Workload};

use super::contender::Contender;
use super::{Options, What};

/// Bytes of a message through a tunnel, and of the response on a connection of its own.
const SMALL: usize = 1024;
/// Connections at a time, where each serves one request.
const SHORT_CONNECTIONS: usize = 256;

/// What is measured.
pub(super) struct Plan {
    pub(super) contenders: Vec<Contender>,
    pub(super) workloads: Vec<Workload>,
    pub(super) steering: bool,
    pub(super) rounds: u32,
    pub(super) span: Duration,
    pub(super) warm_up: Duration,
    pub(super) timeout: Duration,
    pub(super) bounds: Bounds,
    /// Rates as shares of what the fastest contender does in a closed loop.
    pub(super) ladder_shares: Vec<f64>,
    pub(super) ladder_factor: f64,
    pub(super) steps_max: usize,
    pub(super) refinements: usize,
    pub(super) load_share: f64,
    pub(super) time_max: Duration,
    pub(super) patience: Duration,
    pub(super) command: String,
}

impl Plan {
    pub(super) fn of(options: &Options) -> Self {
        let short = options.smoke || options.quick;
        let (rounds, span_ms, warm_up_ms, patience_s) = match () {
            () if options.smoke => (1, 150, 20, 0),
            () if options.quick => (6, 100, 30, 5),
            () => (7, 500, 100, 60),
        };
        let ladder_shares: &[f64] = match () {
            () if options.smoke => &[0.3],
            () if options.quick => &[0.5, 0.8, 1.0],
            () => &[0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0],
        };
        let mut contenders = if options.modes.is_empty() { Contender::all() } else { options.modes.clone() };
        contenders.dedup();
        Self {
            contenders,
            workloads: workloads(options),
            steering: options.kinds.is_empty() || options.kinds.contains(&What::Steering),
            rounds: options.rounds.unwrap_or(rounds),
            span: options.seconds.unwrap_or(Duration::from_millis(span_ms)),
            warm_up: Duration::from_millis(warm_up_ms),
            timeout: match () {
                // On a machine that is busy with other things nothing fails for that.
                () if options.smoke => Duration::from_secs(20),
                () if options.quick => Duration::from_millis(300),
                () => Duration::from_secs(1),
            },
            bounds: Bounds::default(),
            ladder_shares: ladder_shares.to_vec(),
            ladder_factor: if short { 1.3 } else { 1.15 },
            steps_max: match () {
                () if options.smoke => 1,
                () if options.quick => 6,
                () => 16,
            },
            refinements: if short { 0 } else { 2 },
            load_share: options.share,
            time_max: Duration::from_secs(60) * u32::from(options.minutes_max),
            patience: options.patience.unwrap_or(Duration::from_secs(patience_s)),
            command: command(),
        }
    }

    /// The rates to climb, when the fastest does so many operations per second in a closed loop.
    pub(super) fn ladder(&self, closed_per_s: f64) -> Ladder {
        Ladder {
            rates: self.ladder_shares.iter().map(|share| share * closed_per_s).collect(),
            factor: self.ladder_factor,
            per_s_max: closed_per_s * 3.0,
            steps_max: self.steps_max,
            refinements: self.refinements,
        }
    }
}

fn workloads(options: &Options) -> Vec<Workload> {
    let wanted = |kind: Kind| options.kinds.is_empty() || options.kinds.iter().any(|what| what.is(kind));
    let defaults: &[usize] = match () {
        () if options.smoke => &[64 << 10],
        () if options.quick => &[16 << 10, 256 << 10, 1 << 20],
        () => &[1 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 10 << 20],
    };
    let mut sizes = if options.sizes.is_empty() { defaults.to_vec() } else { options.sizes.clone() };
    sizes.sort_unstable();
    sizes.dedup();
    let bodies = |kind| {
        let connections = usize::from(options.connections);
        sizes.iter().map(move |&size| Workload { kind, size, connections })
    };
    let uploads: Vec<Workload> = if options.quick && options.sizes.is_empty() {
        // Half as many, for the sake of the minute.
        bodies(Kind::Upload).filter(|workload| workload.size == 256 << 10).collect()
    } else {
        bodies(Kind::Upload).collect()
    };
    let tunnels: &[usize] = if options.smoke || options.quick { &[16] } else { &[1, 16] };
    let small = |kind, connections| Workload { kind, size: SMALL, connections };
    bodies(Kind::Download)
        .chain(uploads)
        .chain(tunnels.iter().map(|&tunnels| small(Kind::Tunnel, tunnels)))
        .chain([small(Kind::Connections, SHORT_CONNECTIONS)])
        .filter(|workload| wanted(workload.kind))
        .collect()
}

/// The command line, as a user would write it.
fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", arguments.join(" "))
}
