//! Health checks: each backend is asked by the supervisor, once for all workers, and taken out when it fails.
//!
//! The checks of all backends are spread over their interval, and a bounded number runs at a time; where that is not enough
//! they come later, not all at once.

mod probe;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use underpass_command::api::{DownBackend, EventKind};
use underpass_command::state::{Check, Cluster};

use super::link::{Letter, Told};
use super::supervisor::Supervisor;
use crate::balance::SplitMix64;
use crate::ipc::{Step, ToWorker};
use probe::Plan;

/// Checks that run at a time.
const RUNNING_MAX: usize = 256;
/// What is news is gathered for so long, so that the end of many backends does not become as many messages.
const GATHER: Duration = Duration::from_millis(20);
/// Backends in one message to a worker.
const TOLD_MAX: usize = 2048;

/// A backend that has come up or gone down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The number of the backend.
    pub(super) number: u32,
    /// The name of its cluster.
    pub(super) cluster: Arc<str>,
    pub(super) address: SocketAddr,
    pub(super) up: bool,
    /// What the last check has found.
    pub(super) reason: String,
}

/// What the checks of a backend have found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) up: bool,
    /// The last check, in words; empty before the first.
    pub(super) reason: String,
    /// When it came up or went down; none before it was found up, or was down, for the first time.
    pub(super) since: Option<SystemTime>,
}

/// The backends of all clusters, by number, and the checks of those that are checked.
#[derive(Debug)]
pub(super) struct Health {
    clusters: HashMap<u32, Group>,
    /// The cluster of each backend, checked or not.
    members: HashMap<u32, u32>,
    targets: HashMap<u32, Target>,
    /// When each target is checked next. Entries of targets that are no more are passed over.
    due: BinaryHeap<Reverse<(Instant, u32, u64)>>,
    running: JoinSet<Done>,
    /// Numbers may be given out again; this tells what had one from what has it.
    registrations: u64,
    lot: SplitMix64,
    news: Vec<Verdict>,
    /// When the news are told; none while there are none.
    tell_at: Option<Instant>,
}

/// A cluster.
#[derive(Debug)]
struct Group {
    name: Arc<str>,
    /// None if its backends are not checked.
    plan: Option<Arc<Plan>>,
    backends: HashMap<u32, SocketAddr>,
}

#[derive(Debug)]
struct Target {
    registration: u64,
    cluster: Arc<str>,
    address: SocketAddr,
    plan: Arc<Plan>,
    found: Found,
    /// Checks in a row that contradict `found`.
    against: u16,
}

impl Target {
    fn verdict(&self, number: u32, up: bool, reason: String) -> Verdict {
        Verdict { number, cluster: Arc::clone(&self.cluster), address: self.address, up, reason }
    }
}

/// A check that has ended.
#[derive(Debug)]
struct Done {
    number: u32,
    registration: u64,
    began: Instant,
    outcome: Result<String, String>,
}

impl Health {
    /// Checks nothing yet. The seed spreads the checks.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            clusters: HashMap::new(),
            members: HashMap::new(),
            targets: HashMap::new(),
            due: BinaryHeap::new(),
            running: JoinSet::new(),
            registrations: 0,
            lot: SplitMix64::new(seed),
            news: Vec::new(),
            tell_at: None,
        }
    }

    /// Follows a change of the configuration, as workers do.
    pub(super) fn follow(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::AddCluster { number, cluster } => {
                    let (name, plan) = (cluster.name.as_str().into(), Plan::of(cluster).map(Arc::new));
                    self.clusters.insert(*number, Group { name, plan, backends: HashMap::new() });
                }
                Step::ChangeCluster { number, cluster } => self.change_cluster(*number, cluster),
                Step::RemoveCluster { number } => {
                    self.clusters.remove(number);
                }
                Step::AddBackend { number, cluster, backend } => {
                    let Some(group) = self.clusters.get_mut(cluster) else { continue };
                    group.backends.insert(*number, backend.address);
                    self.members.insert(*number, *cluster);
                    self.watch(*cluster, *number);
                }
                Step::RemoveBackend { number } => self.remove_backend(*number),
                _ => {}
            }
        }
    }

    fn change_cluster(&mut self, cluster: u32, configured: &Cluster) {
        let Some(group) = self.clusters.get_mut(&cluster) else { return };
        let plan = Plan::of(configured);
        if group.plan.as_deref() == plan.as_ref() {
            return;
        }
        group.plan = plan.map(Arc::new);
        let numbers: Vec<u32> = group.backends.keys().copied().collect();
        for number in numbers {
            self.watch(cluster, number);
        }
    }

    fn remove_backend(&mut self, number: u32) {
        if let Some(group) = self.members.remove(&number).and_then(|cluster| self.clusters.get_mut(&cluster))
        {
            group.backends.remove(&number);
        }
        self.targets.remove(&number);
        // Nobody wants to know any more.
        self.news.retain(|verdict| verdict.number != number);
    }

    /// Checks a backend as its cluster says, from now on, or no more. What is known of it stays where it is still checked;
    /// otherwise it counts as up.
    fn watch(&mut self, cluster: u32, number: u32) {
        let Some(group) = self.clusters.get(&cluster) else { return };
        let Some(&address) = group.backends.get(&number) else { return };
        let before = self.targets.remove(&number);
        let Some(plan) = group.plan.clone() else {
            if let Some(target) = before.filter(|target| !target.found.up) {
                self.news.push(target.verdict(number, true, "is not checked any more".to_owned()));
            }
            return;
        };
        self.registrations += 1;
        let found =
            before.map_or(Found { up: true, reason: String::new(), since: None }, |target| target.found);
        let (registration, interval, cluster) = (self.registrations, plan.interval, Arc::clone(&group.name));
        self.targets.insert(number, Target { registration, cluster, address, plan, found, against: 0 });
        self.appoint(number, registration, Instant::now(), interval);
    }

    /// What is known of a backend; none if it is not checked.
    pub(super) fn found(&self, number: u32) -> Option<&Found> {
        self.targets.get(&number).map(|target| &target.found)
    }

    /// The backends of a cluster that are down, in the order of their addresses.
    fn down_in(&self, cluster: u32) -> Vec<DownBackend> {
        let Some(group) = self.clusters.get(&cluster) else { return Vec::new() };
        let found = group.backends.iter().filter_map(|(number, address)| {
            let found = self.found(*number).filter(|found| !found.up)?;
            Some(DownBackend { address: *address, reason: found.reason.clone() })
        });
        let mut down: Vec<DownBackend> = found.collect();
        down.sort_unstable_by_key(|backend| backend.address);
        down
    }

    /// The backends that are down.
    pub(super) fn down(&self) -> impl Iterator<Item = u32> {
        self.targets.iter().filter(|(_, target)| !target.found.up).map(|(number, _)| *number)
    }

    /// Some time in the first `within` from `from`.
    fn appoint(&mut self, number: u32, registration: u64, from: Instant, within: Duration) {
        let part = self.lot.next() >> 44;
        // 20 bits of it are fine enough.
        let offset = within.mul_f64(part as f64 / f64::from(1 << 20));
        self.due.push(Reverse((from + offset, number, registration)));
        if self.due.len() > 2 * self.targets.len() + 64 {
            // Each appointment that was given up is removed once, so this costs a constant for each that was made.
            let targets = &self.targets;
            self.due.retain(|Reverse((_, number, registration))| {
                targets.get(number).is_some_and(|target| target.registration == *registration)
            });
        }
    }

    /// Waits for backends to come up or go down. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Vec<Verdict> {
        loop {
            self.start_due(Instant::now());
            if !self.news.is_empty() {
                // Kept beyond this future: one that is dropped and made again all the time must come to its end too.
                let tell_at = *self.tell_at.get_or_insert_with(|| Instant::now() + GATHER);
                self.gather(tell_at).await;
                self.tell_at = None;
                return std::mem::take(&mut self.news);
            }
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            let may_start = self.running.len() < RUNNING_MAX;
            tokio::select! {
                Some(done) = self.running.join_next() => self.ended(done),
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && may_start => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Takes what else ends about now.
    async fn gather(&mut self, until: Instant) {
        loop {
            tokio::select! {
                Some(done) = self.running.join_next() => self.ended(done),
                () = sleep_until(until) => return,
            }
        }
    }

    fn start_due(&mut self, now: Instant) {
        while self.running.len() < RUNNING_MAX
            && let Some(Reverse((at, number, registration))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            let Some(target) = self.targets.get(&number) else { continue };
            if target.registration != registration {
                continue;
            }
            let (plan, address) = (Arc::clone(&target.plan), target.address);
            self.running.spawn(async move {
                let outcome = plan.run(address).await;
                Done { number, registration, began: now, outcome }
            });
        }
    }

    fn ended(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // A panic of ours: whatever was checked is not checked again, and stays what it is.
                tracing::error!("a health check ended without an outcome: {error}");
                return;
            }
        };
        let Some(target) = self.targets.get_mut(&done.number) else { return };
        if target.registration != done.registration {
            return;
        }
        let (up, reason) = match done.outcome {
            Ok(reason) => (true, reason),
            Err(reason) => (false, reason),
        };
        target.found.reason.clone_from(&reason);
        if up {
            // Until its first verdict it counts as up, but nobody has found it so.
            target.found.since.get_or_insert_with(SystemTime::now);
        }
        target.against = if up == target.found.up { 0 } else { target.against + 1 };
        if target.against >= if up { target.plan.rise } else { target.plan.fall } {
            target.against = 0;
            (target.found.up, target.found.since) = (up, Some(SystemTime::now()));
            let verdict = target.verdict(done.number, up, reason);
            self.news.push(verdict);
        }
        // A tenth by lot keeps those apart that were begun together.
        let interval = target.plan.interval;
        self.appoint(done.number, done.registration, done.began + interval * 19 / 20, interval / 10);
    }
}

impl Supervisor {
    /// Tells everybody that backends have come up or gone down.
    pub(super) fn on_health(&mut self, verdicts: Vec<Verdict>) {
        let told: Vec<(u32, bool)> = verdicts.iter().map(|verdict| (verdict.number, verdict.up)).collect();
        for (process, link) in self.processes() {
            let letters = messages(&told).map(Letter::from).collect();
            if link.tell(letters) == Told::Stuck {
                // It would go on sending requests to what is down: its successor will not.
                tracing::error!(worker = process.worker, "worker does not take its commands; it is killed");
                link.kill();
            }
        }
        for Verdict { cluster, address, up, reason, .. } in verdicts {
            let (cluster, backend) = (cluster.to_string(), address);
            self.events.tell(if up {
                tracing::info!("cluster \"{cluster}\": backend {backend} is up: {reason}");
                EventKind::BackendUp { cluster, backend, reason }
            } else {
                tracing::warn!("cluster \"{cluster}\": backend {backend} is down: {reason}");
                EventKind::BackendDown { cluster, backend, reason }
            });
        }
    }

    /// The backends of a cluster that are down.
    pub(super) fn down_in(&self, cluster: &Cluster) -> Vec<DownBackend> {
        let number = self.registry.cluster(&cluster.name).filter(|_| cluster.check != Check::Off);
        number.map_or_else(Vec::new, |number| self.health.down_in(number))
    }

    /// What a worker that starts must know.
    pub(super) fn health_letters(&self) -> Vec<Letter> {
        let down: Vec<(u32, bool)> = self.health.down().map(|number| (number, false)).collect();
        messages(&down).map(Letter::from).collect()
    }
}

fn messages(backends: &[(u32, bool)]) -> impl Iterator<Item = ToWorker> {
    backends.chunks(TOLD_MAX).map(|part| ToWorker::Health { backends: part.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use underpass_command::state::Backend;

    use super::*;

    /// A server whose answer to checks can be changed.
    struct Server {
        address: SocketAddr,
        healthy: Arc<AtomicBool>,
        asked: Arc<AtomicU64>,
    }

    async fn server() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (healthy, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (says, counts) = (Arc::clone(&healthy), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                counts.fetch_add(1, Ordering::Relaxed);
                let status = if says.load(Ordering::Relaxed) { "200" } else { "500" };
                let _ = stream.write_all(format!("HTTP/1.1 {status} \r\n\r\n").as_bytes()).await;
            }
        });
        Server { address, healthy, asked }
    }

    fn checked(rise: u16, fall: u16) -> Cluster {
        Cluster {
            check: Check::Http,
            check_interval_ms: 100,
            check_timeout_ms: 20_000,
            check_rise: rise,
            check_fall: fall,
            ..Cluster::new("app")
        }
    }

    /// Cluster 0 with these backends.
    fn health(cluster: &Cluster, backends: &[(u32, SocketAddr)]) -> Health {
        let mut health = Health::new(1);
        health.follow(&[Step::AddCluster { number: 0, cluster: cluster.clone() }]);
        for (number, address) in backends {
            health.follow(&[add(*number, *address)]);
        }
        health
    }

    fn add(number: u32, address: SocketAddr) -> Step {
        Step::AddBackend { number, cluster: 0, backend: Backend::new(address) }
    }

    #[tokio::test]
    async fn a_backend_that_fails_its_first_checks_is_not_called_up() {
        let server = server().await;
        server.healthy.store(false, Ordering::Relaxed);
        let mut health = health(&checked(2, 1000), &[(7, server.address)]);
        while health.found(7).is_some_and(|found| found.reason.is_empty()) {
            // No verdict comes; what ends is entered all the same.
            let _ = tokio::time::timeout(Duration::from_millis(50), health.next()).await;
        }
        assert!(health.found(7).is_some_and(|found| found.up && found.since.is_none()));
    }

    #[tokio::test]
    async fn a_backend_falls_and_rises_after_so_many_checks() {
        let server = server().await;
        let mut health = health(&checked(2, 3), &[(7, server.address)]);
        assert_eq!(health.found(7), Some(&Found { up: true, reason: String::new(), since: None }));
        server.healthy.store(false, Ordering::Relaxed);
        let reason = "answers with 500, not one of 200-399".to_owned();
        let verdict =
            |up, reason| Verdict { number: 7, cluster: "app".into(), address: server.address, up, reason };
        assert_eq!(health.next().await, [verdict(false, reason.clone())]);
        assert_eq!(server.asked.load(Ordering::Relaxed), 3);
        let found = health.found(7).expect("it is checked").clone();
        assert_eq!((found.up, found.reason), (false, reason));
        assert_eq!(health.down().collect::<Vec<_>>(), [7]);
        server.healthy.store(true, Ordering::Relaxed);
        let reason = "answers with 200".to_owned();
        assert_eq!(health.next().await, [verdict(true, reason)]);
        assert!(health.found(7).is_some_and(|now| now.up && now.since >= found.since));
        assert_eq!(server.asked.load(Ordering::Relaxed), 5);
    }

    #[tokio::test]
    async fn news_are_told_although_something_else_happens_all_the_time() {
        let server = server().await;
        server.healthy.store(false, Ordering::Relaxed);
        let mut health = health(&checked(1, 1), &[(1, server.address)]);
        let interrupted = async {
            loop {
                if let Ok(news) = tokio::time::timeout(Duration::from_millis(2), health.next()).await {
                    return news;
                }
            }
        };
        let news = tokio::time::timeout(Duration::from_secs(20), interrupted).await;
        assert!(!news.expect("the news are told")[0].up);
    }

    #[tokio::test]
    async fn one_that_is_not_checked_any_more_counts_as_up() {
        let server = server().await;
        server.healthy.store(false, Ordering::Relaxed);
        let mut health = health(&checked(1, 1), &[(1, server.address)]);
        assert!(!health.next().await[0].up);
        health.follow(&[Step::ChangeCluster { number: 0, cluster: Cluster::new("app") }]);
        assert_eq!(health.found(1), None);
        let news = health.next().await;
        assert!(news.len() == 1 && news[0].up && news[0].number == 1, "{news:?}");
        // And checked again, it is found out again.
        health.follow(&[Step::ChangeCluster { number: 0, cluster: checked(1, 1) }]);
        assert!(!health.next().await[0].up);
    }

    #[tokio::test]
    async fn the_outcome_of_one_that_was_removed_is_not_told() {
        let (sick, well) = (server().await, server().await);
        sick.healthy.store(false, Ordering::Relaxed);
        let mut health = health(&checked(1, 1), &[(1, sick.address), (2, sick.address)]);
        // Its check is under way when the number is given to another.
        health.start_due(Instant::now() + Duration::from_secs(1));
        assert_eq!(health.running.len(), 2);
        health.follow(&[Step::RemoveBackend { number: 1 }, add(1, well.address)]);
        let news = health.next().await;
        assert_eq!(news.iter().map(|verdict| verdict.number).collect::<Vec<_>>(), [2]);
        assert!(health.found(1).is_some_and(|found| found.up));
    }

    #[tokio::test]
    async fn many_are_spread_and_few_run_at_a_time() {
        // Nobody answers, so that checks stay under way.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let began = Instant::now();
        let cluster = Cluster { check_interval_ms: 10_000, ..checked(1, 1) };
        let backends: Vec<_> = (0..2000).map(|number| (number, address)).collect();
        let mut health = health(&cluster, &backends);
        let mut tenths = [0; 10];
        for Reverse((at, ..)) in &health.due {
            tenths[usize::try_from(at.duration_since(began).as_millis() / 1000).expect("small").min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| (130..=270).contains(count)), "{tenths:?}");
        health.start_due(Instant::now() + Duration::from_secs(60));
        assert_eq!((health.running.len(), health.due.len()), (RUNNING_MAX, 2000 - RUNNING_MAX));
    }
}
