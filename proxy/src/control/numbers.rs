//! The numbers of listeners, clusters and backends, and who still uses those that were removed.
//!
//! A number is the index of a table in every worker, and of the counters that they share. So it is given out again only
//! when every worker process, those that drain included, has said that nothing of it is left; one that has ended uses nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::net::SocketAddr;

use super::link::Source;
use crate::ipc::Finished;

/// Gives out the smallest number that is free.
#[derive(Debug, Default)]
struct Numbers {
    free: BinaryHeap<Reverse<u32>>,
    /// Whether a number is given out; those beyond have never been.
    taken: Vec<bool>,
}

impl Numbers {
    fn take(&mut self) -> u32 {
        if let Some(Reverse(number)) = self.free.pop() {
            self.taken[number as usize] = true;
            return number;
        }
        self.taken.push(true);
        // The configuration has bounds far below.
        u32::try_from(self.taken.len() - 1).unwrap_or(u32::MAX)
    }

    fn give_back(&mut self, number: u32) {
        self.taken[number as usize] = false;
        self.free.push(Reverse(number));
    }

    fn is_taken(&self, number: u32) -> bool {
        self.taken.get(number as usize).is_some_and(|taken| *taken)
    }
}

/// A cluster's number and those of its backends.
#[derive(Debug, Default)]
struct ClusterNumbers {
    number: u32,
    backends: HashMap<SocketAddr, u32>,
}

/// The processes that must still be heard of before something is done with. A worker may have two: one that serves, and one
/// before it that finishes what it has.
pub(super) type Waiting = BTreeSet<Source>;

/// A backend that is to have no request.
#[derive(Debug)]
struct Leaving {
    cluster: String,
    address: SocketAddr,
    /// What the workers' reports must be at least as new as.
    revision: u64,
    waiting: Waiting,
    /// Its drain has been told of.
    told: bool,
}

/// Something that all workers are done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// A backend that was removed, or put to drain.
    Backend { cluster: String, address: SocketAddr },
    /// A listener that was removed.
    Listener(String),
}

/// All numbers.
#[derive(Debug, Default)]
pub(super) struct Registry {
    clusters: HashMap<String, ClusterNumbers>,
    listeners: HashMap<String, u16>,
    cluster_numbers: Numbers,
    backend_numbers: Numbers,
    listener_numbers: Numbers,
    /// Backends that are configured and drain, by number.
    draining: BTreeMap<u32, Leaving>,
    removed_backends: BTreeMap<u32, Leaving>,
    removed_clusters: BTreeMap<u32, Waiting>,
    removed_listeners: BTreeMap<u16, (String, Waiting)>,
}

impl Registry {
    pub(super) fn add_cluster(&mut self, name: &str) -> u32 {
        let number = self.cluster_numbers.take();
        self.clusters.insert(name.to_owned(), ClusterNumbers { number, backends: HashMap::new() });
        number
    }

    /// The number of a cluster that is configured.
    pub(super) fn cluster(&self, name: &str) -> Option<u32> {
        self.clusters.get(name).map(|cluster| cluster.number)
    }

    /// Whether a number is that of a backend, be it one that was removed and is still in use.
    pub(super) fn is_backend(&self, number: u32) -> bool {
        self.backend_numbers.is_taken(number)
    }

    /// The same for clusters.
    pub(super) fn is_cluster(&self, number: u32) -> bool {
        self.cluster_numbers.is_taken(number)
    }

    /// The same for listeners.
    pub(super) fn is_listener(&self, number: u32) -> bool {
        self.listener_numbers.is_taken(number)
    }

    pub(super) fn add_backend(&mut self, cluster: &str, address: SocketAddr) -> u32 {
        let number = self.backend_numbers.take();
        if let Some(cluster) = self.clusters.get_mut(cluster) {
            cluster.backends.insert(address, number);
        }
        number
    }

    /// The number of a backend that is configured.
    pub(super) fn backend(&self, cluster: &str, address: SocketAddr) -> Option<u32> {
        self.clusters.get(cluster)?.backends.get(&address).copied()
    }

    pub(super) fn add_listener(&mut self, name: &str) -> u16 {
        // There are far fewer listeners, as the configuration is bounded.
        let number = u16::try_from(self.listener_numbers.take()).unwrap_or(u16::MAX);
        self.listeners.insert(name.to_owned(), number);
        number
    }

    /// The number of a listener that is configured.
    pub(super) fn listener(&self, name: &str) -> Option<u16> {
        self.listeners.get(name).copied()
    }

    /// Whether a backend that is configured drains. `workers` are the processes that may have requests on it.
    pub(super) fn set_drain(
        &mut self,
        cluster: &str,
        address: SocketAddr,
        drain: bool,
        revision: u64,
        workers: &Waiting,
    ) {
        let Some(number) = self.backend(cluster, address) else { return };
        if !drain {
            self.draining.remove(&number);
        } else {
            self.draining.entry(number).or_insert_with(|| Leaving {
                cluster: cluster.to_owned(),
                address,
                revision,
                waiting: workers.clone(),
                told: false,
            });
        }
    }

    pub(super) fn remove_backend(
        &mut self,
        cluster: &str,
        address: SocketAddr,
        workers: &Waiting,
    ) -> Option<u32> {
        let number = self.clusters.get_mut(cluster)?.backends.remove(&address)?;
        // Once told that it is drained nobody wants to hear it again.
        let told = self.draining.remove(&number).is_some_and(|leaving| leaving.told);
        let (cluster, waiting) = (cluster.to_owned(), workers.clone());
        self.removed_backends.insert(number, Leaving { cluster, address, revision: 0, waiting, told });
        Some(number)
    }

    /// The backends of a cluster that is about to be removed.
    pub(super) fn backends_of(&self, cluster: &str) -> Vec<SocketAddr> {
        self.clusters.get(cluster).map_or_else(Vec::new, |found| found.backends.keys().copied().collect())
    }

    pub(super) fn remove_cluster(&mut self, name: &str, workers: &Waiting) -> Option<u32> {
        let number = self.clusters.remove(name)?.number;
        self.removed_clusters.insert(number, workers.clone());
        Some(number)
    }

    pub(super) fn remove_listener(&mut self, name: &str, workers: &Waiting) -> Option<u16> {
        let number = self.listeners.remove(name)?;
        self.removed_listeners.insert(number, (name.to_owned(), workers.clone()));
        Some(number)
    }

    /// Enters what a process is done with.
    pub(super) fn finished(&mut self, process: Source, finished: &Finished) {
        for (number, revision) in &finished.drained {
            if let Some(leaving) =
                self.draining.get_mut(number).filter(|leaving| leaving.revision <= *revision)
            {
                leaving.waiting.remove(&process);
            }
        }
        for number in &finished.backends {
            if let Some(leaving) = self.removed_backends.get_mut(number) {
                leaving.waiting.remove(&process);
            }
        }
        for number in &finished.clusters {
            if let Some(waiting) = self.removed_clusters.get_mut(number) {
                waiting.remove(&process);
            }
        }
        for number in &finished.listeners {
            if let Some((_, waiting)) = self.removed_listeners.get_mut(number) {
                waiting.remove(&process);
            }
        }
    }

    /// Enters that a process has ended: with it everything that it had under way.
    pub(super) fn ended(&mut self, process: Source) {
        let leaving = self.draining.values_mut().chain(self.removed_backends.values_mut());
        let backends = leaving.map(|leaving| &mut leaving.waiting);
        let listeners = self.removed_listeners.values_mut().map(|(_, waiting)| waiting);
        for waiting in backends.chain(self.removed_clusters.values_mut()).chain(listeners) {
            waiting.remove(&process);
        }
    }

    /// What all workers are done with since this was asked last. The numbers of what was removed are free from here on: they
    /// are the second part.
    pub(super) fn take_drained(&mut self) -> (Vec<Drained>, Finished) {
        let mut freed = Finished::default();
        let mut drained = Vec::new();
        let mut tell = |leaving: &mut Leaving| {
            if !std::mem::replace(&mut leaving.told, true) {
                drained.push(Drained::Backend { cluster: leaving.cluster.clone(), address: leaving.address });
            }
        };
        self.draining.values_mut().filter(|leaving| leaving.waiting.is_empty()).for_each(&mut tell);
        self.removed_backends.retain(|number, leaving| {
            let done = leaving.waiting.is_empty();
            if done {
                tell(leaving);
                self.backend_numbers.give_back(*number);
                freed.backends.push(*number);
            }
            !done
        });
        self.removed_clusters.retain(|number, waiting| {
            if waiting.is_empty() {
                self.cluster_numbers.give_back(*number);
                freed.clusters.push(*number);
            }
            !waiting.is_empty()
        });
        self.removed_listeners.retain(|number, (name, waiting)| {
            if waiting.is_empty() {
                drained.push(Drained::Listener(std::mem::take(name)));
                self.listener_numbers.give_back(u32::from(*number));
                freed.listeners.push(*number);
            }
            !waiting.is_empty()
        });
        (drained, freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn process(worker: usize) -> Source {
        Source { worker, process: 1 }
    }

    fn backend(port: u16) -> Drained {
        Drained::Backend { cluster: "app".into(), address: address(port) }
    }

    /// A registry with cluster "app" (number 0) of two backends (numbers 0 and 1), and two workers.
    fn registry() -> (Registry, Waiting) {
        let mut registry = Registry::default();
        assert_eq!(registry.add_cluster("app"), 0);
        assert_eq!(
            (registry.add_backend("app", address(1)), registry.add_backend("app", address(2))),
            (0, 1)
        );
        (registry, BTreeSet::from([process(0), process(1)]))
    }

    #[test]
    fn a_number_is_free_when_every_worker_has_said_so() {
        let (mut registry, workers) = registry();
        assert_eq!(registry.remove_backend("app", address(1), &workers), Some(0));
        assert_eq!(registry.add_backend("app", address(3)), 2);
        let finished = Finished { backends: vec![0], ..Finished::default() };
        registry.finished(process(0), &finished);
        assert_eq!(registry.take_drained().0, []);
        registry.finished(process(1), &finished);
        assert_eq!(registry.take_drained().0, [backend(1)]);
        assert_eq!(registry.take_drained().0, []);
        assert_eq!(registry.add_backend("app", address(4)), 0);
    }

    #[test]
    fn a_drain_counts_only_reports_that_know_of_it() {
        let (mut registry, workers) = registry();
        registry.set_drain("app", address(2), true, 7, &workers);
        let report = |revision| Finished { drained: vec![(1, revision)], ..Finished::default() };
        registry.finished(process(0), &report(7));
        registry.finished(process(1), &report(6));
        assert_eq!(registry.take_drained().0, []);
        // Put back to work before all had finished, and to drain again: all must be heard of again.
        registry.set_drain("app", address(2), false, 8, &workers);
        registry.set_drain("app", address(2), true, 9, &workers);
        registry.finished(process(1), &report(7));
        registry.finished(process(0), &report(9));
        assert_eq!(registry.take_drained().0, []);
        registry.finished(process(1), &report(9));
        assert_eq!(registry.take_drained().0, [backend(2)]);
        // Removing it then tells nothing new, but frees the number.
        registry.remove_backend("app", address(2), &workers);
        let finished = Finished { backends: vec![1], ..Finished::default() };
        registry.finished(process(0), &finished);
        registry.finished(process(1), &finished);
        assert_eq!(registry.take_drained().0, []);
        assert_eq!(registry.add_backend("app", address(5)), 1);
    }

    #[test]
    fn a_worker_that_has_ended_has_finished() {
        let (mut registry, workers) = registry();
        registry.add_listener("web");
        registry.remove_listener("web", &workers);
        registry.remove_backend("app", address(1), &workers);
        registry.remove_backend("app", address(2), &workers);
        registry.remove_cluster("app", &workers);
        let finished =
            Finished { backends: vec![0, 1], clusters: vec![0], listeners: vec![0], ..Finished::default() };
        registry.finished(process(0), &finished);
        assert_eq!(registry.take_drained().0, []);
        registry.ended(process(1));
        assert_eq!(registry.take_drained().0, [backend(1), backend(2), Drained::Listener("web".into())]);
        assert_eq!((registry.add_cluster("new"), registry.add_listener("new")), (0, 0));
    }

    #[test]
    fn a_process_that_drains_keeps_a_number_from_being_given_out_again() {
        let (mut registry, mut processes) = registry();
        let successor = Source { worker: 0, process: 2 };
        processes.insert(successor);
        registry.remove_backend("app", address(1), &processes);
        let finished = Finished { backends: vec![0], ..Finished::default() };
        registry.finished(successor, &finished);
        registry.finished(process(1), &finished);
        assert_eq!(registry.take_drained().0, []);
        assert_eq!(registry.add_backend("app", address(3)), 2);
        registry.ended(process(0));
        assert_eq!(registry.take_drained().0, [backend(1)]);
        assert_eq!(registry.add_backend("app", address(4)), 0);
    }
}
