//! A cluster in memory: backends, what is under way, and a clock.

mod availability;
mod changes;
mod hashing;
mod shares;

use std::cell::RefCell;
use std::collections::BTreeMap;

use underpass_command::state::{Backend, Balance, Cluster};

use super::{Balancer, Choice, View, Wanted};

/// What is under way, and how long answers take, by id.
#[derive(Debug, Default)]
struct World {
    active: RefCell<BTreeMap<u32, u32>>,
    latency_us: BTreeMap<u32, f64>,
}

impl View for World {
    fn active(&self, backend: u32) -> u32 {
        self.active.borrow().get(&backend).copied().unwrap_or(0)
    }

    fn latency_us(&self, backend: u32) -> f64 {
        self.latency_us.get(&backend).copied().unwrap_or(0.0)
    }
}

fn cluster(balance: Balance) -> Cluster {
    Cluster { balance, ..Cluster::new("app") }
}

fn backend(id: u32) -> Backend {
    Backend::new((std::net::Ipv4Addr::from_bits(0x0a00_0000 + id), 80).into())
}

fn weighted(id: u32, weight: u16) -> Backend {
    Backend { weight, ..backend(id) }
}

/// A balancer of backends with these weights, whose ids are their positions.
fn balancer(cluster: &Cluster, weights: &[u16]) -> Balancer {
    let mut balancer = Balancer::new(cluster, 1);
    for (id, weight) in (0..).zip(weights) {
        balancer.add(id, &weighted(id, *weight), u64::from(id) + 1000, 0);
    }
    balancer
}

/// Chooses `times`, with hash n for the n-th, and counts by id.
fn count(balancer: &mut Balancer, world: &World, times: u64, now_ms: u64) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for n in 0..times {
        let wanted =
            Wanted { hash: Some(super::siphash([7, 7], &n.to_le_bytes())), now_ms, ..Wanted::default() };
        match balancer.choose(&wanted, world) {
            Choice::Backend(id) => *counts.entry(id).or_insert(0) += 1,
            other => panic!("{other:?} though backends are available"),
        }
    }
    counts
}
