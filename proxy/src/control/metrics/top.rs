//! The clusters and backends that are busiest now, with all that was counted of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use underpass_command::api::{Distribution, Top, TopBackend, TopCluster, TopWorker, Traffic};

use super::families;
use super::{BackendItem, Item, Scrape};
use crate::metrics::{
    BackendCounter, BackendDuration, BlockPair, ClusterCounter, ClusterDuration, Counter, Durations,
    Histogram, Reading, SlotCounter, View, bucket_value_max, views,
};

/// The order is found anew after so long, so that those who look at the same time see the same.
const RANKING_AGE: Duration = Duration::from_millis(400);
/// So many bytes are as much as a request.
const BYTES_PER_REQUEST: u64 = 16 * 1024;

/// What the busiest were found by; shared by all who look.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Rankings(Arc<Mutex<[Ranking; 2]>>);

/// How much each number had done when somebody looked last, and their order then.
#[derive(Debug, Default)]
struct Ranking {
    at: Option<Instant>,
    done: Vec<u64>,
    /// By number, how much was done between the last two looks.
    lately: Vec<u64>,
}

impl Ranking {
    /// The indices of the busiest `limit` items, the busiest first; among equals the first in the list.
    fn busiest(
        &mut self,
        numbers: &[u32],
        limit: usize,
        work: impl Fn(u32) -> u64,
        now: Instant,
    ) -> Vec<usize> {
        let size = numbers.iter().max().map_or(0, |number| *number as usize + 1);
        if self.at.is_none_or(|at| now.saturating_duration_since(at) >= RANKING_AGE) {
            self.at = Some(now);
            self.done.resize(size, 0);
            self.lately.clear();
            self.lately.resize(size, 0);
            for &number in numbers {
                let (done, index) = (work(number), number as usize);
                // A number that was given to another item begins at 0 again.
                self.lately[index] = done.saturating_sub(self.done[index]);
                self.done[index] = done;
            }
        }
        let lately = |index: &usize| self.lately.get(numbers[*index] as usize).copied().unwrap_or(0);
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(lately(index)));
        order.truncate(limit);
        order
    }
}

impl Scrape {
    /// The document of `underpass top`. As with [`Self::render`], no work for the supervisor's loop.
    pub(crate) fn top(&self, limit: usize) -> Top {
        let views = views(&self.blocks);
        let now = Instant::now();
        let mut rankings = self.rankings.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [of_clusters, of_backends] = &mut *rankings;
        let numbers: Vec<u32> = self.clusters.iter().map(|item| item.number).collect();
        let clusters = of_clusters.busiest(&numbers, limit, |number| cluster_work(&views, number), now);
        let numbers: Vec<u32> = self.backends.iter().map(|item| item.number).collect();
        let backends = of_backends.busiest(&numbers, limit, |number| backend_work(&views, number), now);
        drop(rankings);
        Top {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            revision: self.revision,
            draining: self.draining,
            workers: self.top_workers(),
            clusters_total: self.clusters.len() as u64,
            clusters: clusters.into_iter().map(|index| top_cluster(&self.clusters[index], &views)).collect(),
            backends_total: self.backends.len() as u64,
            backends: backends
                .into_iter()
                .filter_map(|index| self.top_backend(&self.backends[index], &views))
                .collect(),
            steering: self.steering.clone(),
        }
    }

    fn top_workers(&self) -> Vec<TopWorker> {
        let each = self.workers.iter().zip(self.blocks.iter()).enumerate();
        each.map(|(index, (worker, block))| TopWorker {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            cpu: worker.cpu,
            state: worker.state,
            traffic: worker_traffic(block),
            accepted: block.get(Counter::Accepted),
            connections: block.get(Counter::ClientsActive),
            active: block.get(Counter::RequestsActive),
            fallbacks: families::members_of("underpass_worker_fallbacks")
                .map(|counter| block.get(counter))
                .sum(),
            total: of_histogram(&block.latencies()),
        })
        .collect()
    }

    fn top_backend(&self, item: &BackendItem, views: &[View<'_>]) -> Option<TopBackend> {
        use BackendCounter as C;
        let reading = Reading::<C>::of(views, item.number);
        Some(TopBackend {
            cluster: self.clusters.get(item.cluster)?.name.clone(),
            address: item.address.parse().ok()?,
            up: item.up,
            drain: item.drain,
            traffic: Traffic {
                requests: reading.get(C::Requests),
                responses: [
                    C::Responses1xx,
                    C::Responses2xx,
                    C::Responses3xx,
                    C::Responses4xx,
                    C::Responses5xx,
                ]
                .map(|class| reading.get(class)),
                bytes_in: reading.get(C::BytesIn),
                bytes_out: reading.get(C::BytesOut),
            },
            active: reading.get(C::Active),
            failures: reading.get(C::ConnectFailures) + reading.get(C::Broken),
            response: of_durations(reading.durations(BackendDuration::Response as usize)),
        })
    }
}

fn top_cluster(item: &Item, views: &[View<'_>]) -> TopCluster {
    use ClusterCounter as C;
    let reading = Reading::<C>::of(views, item.number);
    TopCluster {
        name: item.name.clone(),
        traffic: Traffic {
            requests: reading.get(C::Requests),
            responses: [C::Responses1xx, C::Responses2xx, C::Responses3xx, C::Responses4xx, C::Responses5xx]
                .map(|class| reading.get(class)),
            bytes_in: reading.get(C::BytesIn),
            bytes_out: reading.get(C::BytesOut),
        },
        retries: reading.get(C::Retries),
        queue: reading.get(C::QueueActive),
        failures: reading.get(C::OwnAnswers) + reading.get(C::Broken),
        total: of_durations(reading.durations(ClusterDuration::Total as usize)),
        first_byte: of_durations(reading.durations(ClusterDuration::FirstByte as usize)),
    }
}

fn worker_traffic(block: &BlockPair) -> Traffic {
    use Counter as C;
    let sum = |counters: &[C]| counters.iter().map(|counter| block.get(*counter)).sum();
    Traffic {
        // What is logged and counted as a request elsewhere too.
        requests: block.get(C::Requests) + block.get(C::TcpConnections),
        responses: [C::Responses1xx, C::Responses2xx, C::Responses3xx, C::Responses4xx, C::Responses5xx]
            .map(|class| block.get(class)),
        bytes_in: sum(&[C::BytesRequestCopied, C::BytesRequestSpliced, C::BytesRequestRedirected]),
        // Of tunnels the directions are not told apart while they last.
        bytes_out: sum(&[
            C::BytesResponseCopied,
            C::BytesResponseSpliced,
            C::BytesResponseRedirected,
            C::BytesTunnelCopied,
            C::BytesTunnelSpliced,
            C::BytesTunnelRedirected,
            C::BytesTcpCopied,
            C::BytesTcpSpliced,
            C::BytesTcpRedirected,
        ]),
    }
}

fn cluster_work(views: &[View<'_>], number: u32) -> u64 {
    use ClusterCounter as C;
    work(views, number, C::Requests, [C::BytesIn, C::BytesOut])
}

fn backend_work(views: &[View<'_>], number: u32) -> u64 {
    use BackendCounter as C;
    work(views, number, C::Requests, [C::BytesIn, C::BytesOut])
}

fn work<C: SlotCounter>(views: &[View<'_>], number: u32, requests: C, bytes: [C; 2]) -> u64 {
    let sum = |counter: C| views.iter().map(|view| view.get(number, counter)).sum::<u64>();
    sum(requests) + bytes.map(sum).iter().sum::<u64>() / BYTES_PER_REQUEST
}

fn of_durations(durations: &Durations) -> Distribution {
    Distribution { sum_us: durations.sum_us(), buckets: durations.buckets().collect() }
}

fn of_histogram(histogram: &Histogram) -> Distribution {
    let counts = histogram.counts().iter().enumerate();
    let buckets: std::collections::BTreeMap<u64, u64> = counts
        .filter(|(_, count)| **count > 0)
        .map(|(bucket, count)| (bucket_value_max(bucket), *count))
        .collect();
    // The sum is not counted; to the width of a bucket it is this.
    let sum_us =
        buckets.iter().map(|(bound, count)| bound.saturating_mul(*count)).fold(0, u64::saturating_add);
    Distribution { sum_us, buckets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_lately_come_first_not_those_that_were_busy_long_ago() {
        let mut ranking = Ranking::default();
        let begin = Instant::now();
        let numbers = [4, 0, 2];
        let old = |number: u32| if number == 0 { 1_000_000 } else { u64::from(number) };
        assert_eq!(ranking.busiest(&numbers, 9, old, begin), [1, 0, 2]);
        let new = |number: u32| old(number) + if number == 2 { 10 } else { 0 };
        // Too soon for a new look: everybody sees the same order.
        assert_eq!(ranking.busiest(&numbers, 9, new, begin), [1, 0, 2]);
        assert_eq!(ranking.busiest(&numbers, 2, new, begin + RANKING_AGE), [2, 0]);
    }

    #[test]
    fn items_that_come_and_go_between_two_looks_disturb_nothing() {
        let mut ranking = Ranking::default();
        let begin = Instant::now();
        assert_eq!(ranking.busiest(&[], 5, |_| 0, begin), Vec::<usize>::new());
        assert_eq!(ranking.busiest(&[7, 3], 5, |_| 1, begin), [0, 1]);
        assert_eq!(ranking.busiest(&[1], 5, |_| 1, begin + RANKING_AGE), [0]);
    }
}
