//! The document behind `underpass top`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{SteeringStatus, WorkerState};

/// The most clusters, and the most backends, that one [`Top`] holds.
pub const TOP_SIZE_MAX: u32 = 1000;

/// How much of a [`Top`] is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TopSelect {
    /// So many clusters, and so many backends.
    pub limit: u32,
}

impl Default for TopSelect {
    fn default() -> Self {
        Self { limit: 100 }
    }
}

/// What has been counted since the start: of every worker, and of the clusters and backends that were busiest lately.
///
/// Who wants rates takes the difference of two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Top {
    /// Version of the executable.
    pub version: String,
    /// Time since the supervisor started, when this was read.
    pub uptime_ms: u64,
    /// Revision of the configuration.
    pub revision: u64,
    /// Whether the proxy finishes what is under way and takes nothing new.
    pub draining: bool,
    /// The workers, in their order.
    pub workers: Vec<TopWorker>,
    /// How many clusters there are.
    pub clusters_total: u64,
    /// The clusters that were busiest since somebody looked last, the busiest first.
    pub clusters: Vec<TopCluster>,
    /// How many backends all clusters have together.
    pub backends_total: u64,
    /// The backends that were busiest since somebody looked last, the busiest first.
    pub backends: Vec<TopBackend>,
    /// How connections find their worker.
    pub steering: SteeringStatus,
}

/// What every part of the proxy counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Traffic {
    /// Requests that have ended, and TCP connections.
    pub requests: u64,
    /// Responses by class, 1xx to 5xx.
    pub responses: [u64; 5],
    /// Bytes of bodies and tunnels that came from clients.
    pub bytes_in: u64,
    /// Bytes of bodies and tunnels that went to clients.
    pub bytes_out: u64,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct TopWorker {
    /// Its number, from 0.
    pub index: u16,
    /// The CPU that it is pinned to.
    pub cpu: Option<u16>,
    /// What it does.
    pub state: WorkerState,
    /// What it has passed on.
    pub traffic: Traffic,
    /// Client connections accepted.
    pub accepted: u64,
    /// Client connections open now.
    pub connections: u64,
    /// Requests under way now.
    pub active: u64,
    /// Bodies that did not go the way they were to go.
    pub fallbacks: u64,
    /// From the first byte of a request to the last byte of its response.
    pub total: Distribution,
}

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct TopCluster {
    /// Its name.
    pub name: String,
    /// What it has passed on.
    pub traffic: Traffic,
    /// Times that another attempt was made for a request.
    pub retries: u64,
    /// Requests that wait for a backend with room now.
    pub queue: u64,
    /// Requests that the proxy answered itself, and those that were broken off.
    pub failures: u64,
    /// From the first byte of a request to the last byte of its response.
    pub total: Distribution,
    /// From the first byte of a request to the first byte of its response.
    pub first_byte: Distribution,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TopBackend {
    /// The cluster that it is in.
    pub cluster: String,
    /// Its address.
    pub address: SocketAddr,
    /// Whether its health checks succeed; none where there are none.
    #[serde(default)]
    pub up: Option<bool>,
    /// Whether it gets no new requests.
    #[serde(default)]
    pub drain: bool,
    /// What it has passed on.
    #[serde(default)]
    pub traffic: Traffic,
    /// Requests and TCP connections under way now.
    #[serde(default)]
    pub active: u64,
    /// Connections that could not be made, and requests for which it went away.
    #[serde(default)]
    pub failures: u64,
    /// From the end of a request's head to the first byte of the response.
    #[serde(default)]
    pub response: Distribution,
}

/// How long something took, counted by size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Distribution {
    /// All of them together, in microseconds.
    pub sum_us: u64,
    /// How many took no longer than this, in microseconds, and longer than what the entry before says. Entries without any are
    /// left out.
    pub buckets: BTreeMap<u64, u64>,
}

impl Distribution {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The time that this share (0 to 1) of them did not exceed, to the size of a bucket; none where none was counted.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let count = self.count();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank between 1 and count"
        )]
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0_u64;
        self.buckets.iter().find_map(|(bound_us, count)| {
            seen = seen.saturating_add(*count);
            (seen >= rank).then_some(*bound_us)
        })
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: &u64| earlier.buckets.get(bound).copied().unwrap_or(0);
        Self {
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            buckets: self
                .buckets
                .iter()
                .map(|(bound, count)| (*bound, count.saturating_sub(before(bound))))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        for (bound, count) in &other.buckets {
            let mine = self.buckets.entry(*bound).or_default();
            *mine = mine.saturating_add(*count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(buckets: &[(u64, u64)]) -> Distribution {
        Distribution { sum_us: 0, buckets: buckets.iter().copied().collect() }
    }

    #[test]
    fn quantiles_are_the_ends_of_their_buckets() {
        let distribution = of(&[(100, 90), (1000, 9), (5000, 1)]);
        let quantile = |share| distribution.quantile_us(share);
        assert_eq!((quantile(0.5), quantile(0.9), quantile(0.99)), (Some(100), Some(100), Some(1000)));
        assert_eq!((quantile(1.0), quantile(0.0)), (Some(5000), Some(100)));
        assert_eq!(of(&[]).quantile_us(0.5), None);
    }

    #[test]
    fn a_difference_and_what_it_came_from_give_the_whole() {
        let earlier = of(&[(100, 3), (200, 1)]);
        let later = of(&[(100, 5), (200, 1), (300, 2)]);
        let mut whole = later.since(&earlier);
        assert_eq!(whole, of(&[(100, 2), (300, 2)]));
        whole.add(&earlier);
        assert_eq!(whole, later);
        // A worker that was started anew on a new machine has counted less.
        assert_eq!(earlier.since(&later).count(), 0);
    }

    #[test]
    fn a_document_reads_back_with_its_buckets() {
        let mut top = Top { revision: 3, ..Top::default() };
        top.clusters.push(TopCluster { name: "app".into(), total: of(&[(250, 4)]), ..TopCluster::default() });
        let json = serde_json::to_string(&top).expect("it can be written");
        assert!(json.contains(r#""buckets":{"250":4}"#), "{json}");
        assert_eq!(serde_json::from_str::<Top>(&json).expect("it can be read"), top);
    }
}
