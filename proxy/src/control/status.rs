//! The status document.

use underpass_command::api::{ClusterStatus, Counters, Latency, ListenerStatus, Status, WorkerStatus};

use super::access_log::AccessLog;
use super::commands::redirect_status;
use super::supervisor::Supervisor;
use crate::http1::Reason;
use crate::metrics::{
    BackendCounter, Block, BlockPair, ClusterCounter, Counter, Histogram, ListenerCounter, Peer, View,
};

/// Counters that go down again: they describe a process, and end with it.
const GAUGES: [Counter; 9] = [
    Counter::ClientsActive,
    Counter::RequestsActive,
    Counter::QueueActive,
    Counter::BackendsIdle,
    Counter::BackendsOpen,
    Counter::TunnelsActive,
    Counter::PipesUsed,
    Counter::SockmapFlows,
    Counter::BuffersUsed,
];

/// Sets to zero what a dead process can no longer take back.
pub(super) fn clear_gauges(block: &Block) {
    for gauge in GAUGES {
        block.set(gauge, 0);
    }
    let view = View::new(block);
    view.clear_gauges::<ListenerCounter>();
    view.clear_gauges::<ClusterCounter>();
    view.clear_gauges::<BackendCounter>();
}

impl Supervisor {
    /// Describes the proxy as it is now.
    pub(super) fn status(&self) -> Status {
        let mut total = Counters::default();
        let mut total_latencies = Histogram::default();
        let mut workers = Vec::with_capacity(self.workers.len());
        for (index, (worker, block)) in self.workers.iter().zip(self.blocks.iter()).enumerate() {
            let latencies = block.latencies();
            let counters = counters(block, &latencies);
            add(&mut total, &counters);
            total_latencies.add(&latencies);
            workers.push(WorkerStatus {
                index: u16::try_from(index).unwrap_or(u16::MAX),
                pid: worker.link.as_ref().and_then(|link| link.pid),
                cpu: worker.cpu,
                state: worker.state,
                restarts: worker.restarts,
                last_exit: worker.last_exit.clone(),
                draining: self.predecessor(index),
                counters,
            });
        }
        total.latency = latency(&total_latencies);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            generation: self.generation,
            draining: self.is_draining(),
            admin_socket: self.configuration.settings().admin_socket.clone(),
            metrics_address: self.metrics.address(),
            workers,
            listeners: self
                .configuration
                .listeners()
                .values()
                .map(|listener| ListenerStatus {
                    name: listener.name.clone(),
                    protocol: listener.protocol,
                    address: self
                        .sockets
                        .get(&listener.name)
                        .map_or(listener.address, |opened| opened.address),
                })
                .collect(),
            clusters: self
                .configuration
                .clusters()
                .values()
                .map(|entry| ClusterStatus {
                    name: entry.own().name.clone(),
                    backends: entry.backends().keys().copied().collect(),
                    down: self.down_in(entry.own()),
                })
                .collect(),
            steering: self.steering.status(),
            redirect: redirect_status(&self.configuration),
            sockmap: self.redirection.status(),
            probes: self.steering.probes().to_vec(),
            access_log_lost_bytes: self.access_log.as_ref().map_or(0, AccessLog::lost_bytes),
            total,
        }
    }
}

fn counters(block: &BlockPair, latencies: &Histogram) -> Counters {
    let refused = |peer| {
        Reason::ALL
            .iter()
            .enumerate()
            .map(|(number, reason)| (reason.name().to_owned(), block.refusals(peer, number)))
            .filter(|(_, count)| *count > 0)
            .collect()
    };
    Counters {
        values: Counter::ALL.iter().map(|counter| (counter.name().to_owned(), block.get(*counter))).collect(),
        refused_requests: refused(Peer::Client),
        refused_responses: refused(Peer::Backend),
        latency: latency(latencies),
    }
}

/// Adds everything but the latency, whose percentiles cannot be added.
fn add(total: &mut Counters, one: &Counters) {
    let pairs = [
        (&mut total.values, &one.values),
        (&mut total.refused_requests, &one.refused_requests),
        (&mut total.refused_responses, &one.refused_responses),
    ];
    for (sums, values) in pairs {
        for (name, value) in values {
            *sums.entry(name.clone()).or_default() += value;
        }
    }
}

fn latency(histogram: &Histogram) -> Latency {
    Latency {
        count: histogram.total(),
        p50_us: histogram.quantile(0.5),
        p90_us: histogram.quantile(0.9),
        p99_us: histogram.quantile(0.99),
        p999_us: histogram.quantile(0.999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gauges_are_those_that_say_so() {
        let documented: Vec<Counter> =
            Counter::ALL.iter().copied().filter(|counter| counter.help().contains("(gauge)")).collect();
        assert_eq!(documented.len(), GAUGES.len());
        assert!(documented.iter().all(|counter| GAUGES.contains(counter)), "{documented:?}");
    }

    #[test]
    fn a_successor_goes_on_counting_but_inherits_no_gauge() {
        let block = Block::create().expect("memfd");
        block.add(Counter::Requests, 5);
        block.set(Counter::ClientsActive, 3);
        clear_gauges(&block);
        assert_eq!((block.get(Counter::Requests), block.get(Counter::ClientsActive)), (5, 0));
    }

    #[test]
    fn refusals_go_by_the_names_of_their_reasons() {
        let pair = BlockPair::create().expect("memfd");
        pair.of_turn(0).expect("there from the start").refused(Peer::Client, 1);
        let read = counters(&pair, &pair.latencies());
        assert_eq!(
            read.refused_requests.into_iter().collect::<Vec<_>>(),
            [(Reason::ALL[1].name().into(), 1)]
        );
        assert!(read.refused_responses.is_empty());
    }

    #[test]
    fn totals_are_sums() {
        let pair = BlockPair::create().expect("memfd");
        let block = pair.of_turn(0).expect("there from the start");
        block.add(Counter::Requests, 2);
        block.refused(Peer::Backend, 0);
        let one = counters(&pair, &pair.latencies());
        let mut total = Counters::default();
        add(&mut total, &one);
        add(&mut total, &one);
        assert_eq!(total.value("requests"), 4);
        assert_eq!(total.refused_responses[Reason::ALL[0].name()], 2);
    }
}
