//! What the proxy publishes for Prometheus.
//!
//! The supervisor's loop hands out a [`Scrape`]: names, and the workers' blocks. Reading the blocks and writing the text is
//! done elsewhere, on a thread that may take its time. How much there can be is bounded by `metrics.series_max`; what is beyond is
//! left out from the end, backends first, and counted.

mod backends;
mod endpoint;
mod families;
mod process;
mod scrape;
mod top;

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;
use underpass_command::api::{SteeringStatus, WorkerState};
use underpass_command::state::{Limits, Metrics};

pub(super) use backends::Listed;
pub(super) use endpoint::Server;
pub(super) use top::Rankings;

use self::families::Family;
use self::process::Usage;
use crate::http1::Reason;
use crate::metrics::{
    BackendCounter, BackendDuration, BlockPair, ClusterCounter, ClusterDuration, Exposition, Format, Kind,
    ListenerCounter, ListenerDuration, Peer, Reading, SlotCounter, View, views,
};

/// A listener or cluster, and where its counters lie.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) number: u32,
    pub(super) name: String,
}

/// A backend, and where its counters lie.
#[derive(Clone, Debug)]
pub(super) struct BackendItem {
    pub(super) number: u32,
    /// Index in the list of clusters.
    pub(super) cluster: usize,
    pub(super) address: String,
    /// What its health checks say, where there are some.
    pub(super) up: Option<bool>,
    /// Whether it gets no new requests.
    pub(super) drain: bool,
}

/// A worker, apart from its counters.
#[derive(Clone, Debug)]
pub(super) struct WorkerItem {
    pub(super) pid: Option<u32>,
    pub(super) cpu: Option<u16>,
    pub(super) state: WorkerState,
    pub(super) restarts: u64,
    /// The process that was replaced and has not ended yet.
    pub(super) draining: Option<u32>,
}

/// Everything that the text is made from.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(super) settings: Metrics,
    pub(super) limits: Limits,
    pub(super) blocks: Arc<Vec<BlockPair>>,
    pub(super) workers: Vec<WorkerItem>,
    pub(super) listeners: Vec<Item>,
    pub(super) clusters: Vec<Item>,
    pub(super) backends: Vec<BackendItem>,
    pub(super) rankings: Rankings,
    pub(super) started: Instant,
    pub(super) routes: usize,
    pub(super) revision: u64,
    pub(super) draining: bool,
    pub(super) steering: SteeringStatus,
    pub(super) sockmap: bool,
    pub(super) access_log_lost_bytes: u64,
}

impl Scrape {
    /// The text. Takes milliseconds for each ten thousand series, so it is no work for the supervisor's loop.
    pub(crate) fn render(&self, format: Format) -> String {
        let mut out = Exposition::new(format, u64::from(self.settings.series_max));
        let views = views(&self.blocks);
        self.supervisor(&mut out);
        self.steering(&mut out);
        self.workers(&mut out);
        self.listeners(&mut out, &views);
        self.clusters(&mut out, &views);
        if self.settings.backends {
            self.backends(&mut out, &views);
        }
        out.finish()
    }

    fn supervisor(&self, out: &mut Exposition) {
        use Kind::{Counter, Gauge};
        if let Some(usage) = Usage::of(std::process::id()) {
            let cpu_s = usage.cpu_s;
            out.single("process_cpu_seconds", Counter, "CPU time that the supervisor has used.", cpu_s);
            let (resident, mapped) = (usage.resident_bytes, usage.virtual_bytes);
            out.single("process_resident_memory_bytes", Gauge, "Memory of the supervisor.", resident);
            out.single("process_virtual_memory_bytes", Gauge, "Address space of the supervisor.", mapped);
            if let Some(start) = usage.start_time_s(SystemTime::now()) {
                let help = "When the supervisor started, in seconds since 1970.";
                out.single("process_start_time_seconds", Gauge, help, start);
            }
        }
        if let Some(open) = process::open_descriptors() {
            out.single("process_open_fds", Gauge, "Descriptors that the supervisor has open.", open);
        }
        if let Some(max) = process::descriptors_max() {
            out.single("process_max_fds", Gauge, "Descriptors that the supervisor may have.", max);
        }
        out.family("underpass_build_info", Gauge, "The version that runs; always 1.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        let draining = u8::from(self.draining);
        out.single("underpass_draining", Gauge, "1 when nothing new is taken any more.", draining);
        let revision = self.revision;
        out.single("underpass_configuration_revision", Gauge, "Revision of the configuration.", revision);
        let mut items = out.family("underpass_configured", Gauge, "Configured items, by kind.");
        for (kind, count) in [
            ("listener", self.listeners.len()),
            ("cluster", self.clusters.len()),
            ("backend", self.backends.len()),
            ("route", self.routes),
        ] {
            items.sample(&[("kind", kind)], count);
        }
        let lost = self.access_log_lost_bytes;
        let help = "Bytes of the access log that could not be written to its file.";
        out.single("underpass_access_log_lost_bytes", Counter, help, lost);
        let sockmap = u8::from(self.sockmap);
        out.single("underpass_sockmap_available", Gauge, "1 when sockmap has passed its test.", sockmap);
    }

    fn steering(&self, out: &mut Exposition) {
        let steering = &self.steering;
        let help = "1 when the BPF program chooses workers, 0 when the kernel does by its hash.";
        out.single("underpass_steering_active", Kind::Gauge, help, u8::from(steering.active));
        let help = "Connections, by how their worker was found.";
        let mut outcomes = out.family("underpass_steering_outcomes", Kind::Counter, help);
        for (outcome, count) in &steering.outcomes {
            outcomes.sample(&[("outcome", outcome)], count);
        }
        let help = "Connections, by the CPU that handled the connection request and the worker they went to.";
        let mut matrix = out.family("underpass_steering_connections", Kind::Counter, help);
        for row in &steering.matrix {
            let cpu = row.cpu.to_string();
            for (worker, count) in row.workers.iter().enumerate() {
                matrix.sample(&[("cpu", &cpu), ("worker", &worker.to_string())], count);
            }
            matrix.sample(&[("cpu", &cpu), ("worker", "kernel")], row.kernel);
        }
    }

    fn workers(&self, out: &mut Exposition) {
        let numbers: Vec<String> = (0..self.workers.len()).map(|number| number.to_string()).collect();
        let each = || numbers.iter().zip(&self.workers).zip(self.blocks.iter());
        let mut usages: Vec<(&String, &str, Usage)> = Vec::new();
        for (number, worker) in numbers.iter().zip(&self.workers) {
            let processes = [("serving", worker.pid), ("draining", worker.draining)];
            let of = |(name, pid): (_, Option<u32>)| Some((number, name, Usage::of(pid?)?));
            usages.extend(processes.into_iter().filter_map(of));
        }
        let mut up = out.family("underpass_worker_up", Kind::Gauge, "1 when it accepts connections.");
        for ((number, worker), _) in each() {
            up.sample(&[("worker", number)], u8::from(worker.state == WorkerState::Running));
        }
        let help = "1 while a process that was replaced finishes what it has.";
        let mut draining = out.family("underpass_worker_draining", Kind::Gauge, help);
        for ((number, worker), _) in each() {
            draining.sample(&[("worker", number)], u8::from(worker.draining.is_some()));
        }
        let mut restarts =
            out.family("underpass_worker_restarts", Kind::Counter, "Times it was started again.");
        for ((number, worker), _) in each() {
            restarts.sample(&[("worker", number)], worker.restarts);
        }
        let help = "CPU time that a process of the worker has used; it begins anew with each process.";
        let mut cpu = out.family("underpass_worker_cpu_seconds", Kind::Counter, help);
        for (number, process, usage) in &usages {
            cpu.sample(&[("worker", number), ("process", process)], usage.cpu_s);
        }
        let help = "Memory of a process of the worker.";
        let mut memory = out.family("underpass_worker_resident_memory_bytes", Kind::Gauge, help);
        for (number, process, usage) in &usages {
            memory.sample(&[("worker", number), ("process", process)], usage.resident_bytes);
        }
        let mut limit =
            out.family("underpass_worker_pool_limit", Kind::Gauge, "Size of a pool that was sized at start.");
        for number in &numbers {
            for (pool, size) in [
                ("connections", self.limits.connections),
                ("buffers", crate::worker::buffer_count(&self.limits)),
                ("pipes", self.limits.pipes),
            ] {
                limit.sample(&[("worker", number), ("pool", pool)], size);
            }
        }
        for Family { name, kind, help, label, members } in families::WORKER {
            let mut family = out.family(name, *kind, help);
            for ((number, _), block) in each() {
                for (value, counter) in *members {
                    let labels = [("worker", number.as_str()), (*label, *value)];
                    family.sample(labelled(&labels, label), block.get(*counter));
                }
            }
        }
        self.forwarded(out, &numbers);
        self.refused(out, &numbers);
    }

    fn forwarded(&self, out: &mut Exposition, numbers: &[String]) {
        let help =
            "Bytes of bodies and tunnels passed on, by what they were part of and how they were moved.";
        let mut forwarded = out.family("underpass_worker_forwarded_bytes", Kind::Counter, help);
        for (number, block) in numbers.iter().zip(self.blocks.iter()) {
            for (flow, mode, counter) in families::FORWARDED {
                let labels = [("worker", number.as_str()), ("flow", flow), ("mode", mode)];
                forwarded.sample(&labels, block.get(counter));
            }
        }
    }

    /// Reasons that never occurred are left out: there are many, and most never do.
    fn refused(&self, out: &mut Exposition, numbers: &[String]) {
        let help =
            "Messages and connections that were refused or broken off, by who is to blame and the reason.";
        let mut refused = out.family("underpass_worker_refused", Kind::Counter, help);
        for (number, block) in numbers.iter().zip(self.blocks.iter()) {
            for (peer, name) in [(Peer::Client, "client"), (Peer::Backend, "backend")] {
                for (index, reason) in Reason::ALL.iter().enumerate() {
                    let count = block.refusals(peer, index);
                    if count > 0 {
                        let labels = [("worker", number.as_str()), ("peer", name), ("reason", reason.name())];
                        refused.sample(&labels, count);
                    }
                }
            }
        }
    }

    fn listeners(&self, out: &mut Exposition, views: &[View<'_>]) {
        let labels: Vec<(u32, Vec<(&str, &str)>)> =
            self.listeners.iter().map(|item| (item.number, vec![("listener", item.name.as_str())])).collect();
        counters(out, families::LISTENER, &labels, views);
        let help = "From the first byte of a request to the last byte of its response.";
        let name = "underpass_listener_request_duration_seconds";
        let place = ListenerDuration::Total as usize;
        durations::<ListenerCounter>(out, (name, Kind::Histogram, help), &labels, (views, place));
    }

    fn clusters(&self, out: &mut Exposition, views: &[View<'_>]) {
        let labels: Vec<(u32, Vec<(&str, &str)>)> =
            self.clusters.iter().map(|item| (item.number, vec![("cluster", item.name.as_str())])).collect();
        counters(out, families::CLUSTER, &labels, views);
        let help = "From the first byte of a request to the last byte of its response.";
        let name = "underpass_cluster_request_duration_seconds";
        let place = ClusterDuration::Total as usize;
        durations::<ClusterCounter>(out, (name, Kind::Histogram, help), &labels, (views, place));
        let help = "From the first byte of a request to the first byte of its response.";
        let name = "underpass_cluster_first_byte_seconds";
        let place = ClusterDuration::FirstByte as usize;
        durations::<ClusterCounter>(out, (name, Kind::Histogram, help), &labels, (views, place));
    }

    fn backends(&self, out: &mut Exposition, views: &[View<'_>]) {
        let labels: Vec<(u32, Vec<(&str, &str)>)> = self
            .backends
            .iter()
            .map(|item| {
                let cluster = self.clusters.get(item.cluster).map_or("", |cluster| cluster.name.as_str());
                (item.number, vec![("cluster", cluster), ("backend", item.address.as_str())])
            })
            .collect();
        let mut up = out.family("underpass_backend_up", Kind::Gauge, "1 when its health checks succeed.");
        for (item, (_, labels)) in self.backends.iter().zip(&labels) {
            item.up.iter().for_each(|state| up.sample(labels, u8::from(*state)));
        }
        let help = "1 when it is in drain: it gets no new requests.";
        let mut drain = out.family("underpass_backend_draining", Kind::Gauge, help);
        for (item, (_, labels)) in self.backends.iter().zip(&labels) {
            drain.sample(labels, u8::from(item.drain));
        }
        counters(out, families::BACKEND, &labels, views);
        let help = "From the start of a connection until it was made.";
        let name = "underpass_backend_connect_seconds";
        let place = BackendDuration::Connect as usize;
        durations::<BackendCounter>(out, (name, Kind::Summary, help), &labels, (views, place));
        let help = "From the end of a request's head to the first byte of the response.";
        let name = "underpass_backend_response_seconds";
        let place = BackendDuration::Response as usize;
        durations::<BackendCounter>(out, (name, Kind::Summary, help), &labels, (views, place));
    }
}

/// Without the last label where the family has no label of its own.
fn labelled<'a>(labels: &'a [(&'a str, &'a str)], own: &str) -> &'a [(&'a str, &'a str)] {
    if own.is_empty() { &labels[..labels.len() - 1] } else { labels }
}

/// Families of counters, for each item the sum over the workers.
fn counters<C: SlotCounter>(
    out: &mut Exposition,
    families: &[Family<C>],
    items: &[(u32, Vec<(&str, &str)>)],
    views: &[View<'_>],
) {
    for Family { name, kind, help, label, members } in families {
        let mut family = out.family(name, *kind, help);
        for (number, labels) in items {
            for (value, counter) in *members {
                let mut labels = labels.clone();
                labels.push((label, value));
                let sum: u64 = views.iter().map(|view| view.get(*number, *counter)).sum();
                family.sample(labelled(&labels, label), sum);
            }
        }
    }
}

/// A family of durations, for each item of all workers together.
fn durations<C: SlotCounter>(
    out: &mut Exposition,
    (name, kind, help): (&str, Kind, &str),
    items: &[(u32, Vec<(&str, &str)>)],
    (views, place): (&[View<'_>], usize),
) {
    let mut family = out.family(name, kind, help);
    for (number, labels) in items {
        family.durations(labels, Reading::<C>::of(views, *number).durations(place));
    }
}

#[cfg(test)]
mod tests;
