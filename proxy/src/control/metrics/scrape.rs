//! What the supervisor knows and a scrape needs.

use tokio::sync::Semaphore;
use underpass_command::api::Top;

use super::{BackendItem, Item, Scrape, WorkerItem};
use crate::control::access_log::AccessLog;
use crate::control::commands::{Failure, Handle, Request};
use crate::control::supervisor::Supervisor;
use crate::metrics::Format;

/// One reading at a time, whoever asks: what is made of it can be large.
static TURN: Semaphore = Semaphore::const_new(1);

impl Handle {
    /// The metrics as text, made on a thread of its own.
    pub(in crate::control) async fn metrics(&self, format: Format) -> Result<String, Failure> {
        self.read_counters(move |scrape| scrape.render(format)).await
    }

    /// The busiest clusters and backends, `limit` of each at most.
    pub(in crate::control) async fn top(&self, limit: usize) -> Result<Top, Failure> {
        self.read_counters(move |scrape| scrape.top(limit)).await
    }

    async fn read_counters<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Scrape) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        // It is never closed.
        let _turn = TURN.acquire().await;
        let scrape = self.ask(Request::Scrape).await?;
        tokio::task::spawn_blocking(move || read(&scrape))
            .await
            .map_err(|error| Failure::new(500, format!("counters could not be read: {error}"), "try again"))
    }
}

impl Supervisor {
    /// Names, states and where the counters lie. Costs as much as copying the names.
    pub(in crate::control) fn scrape(&self) -> Scrape {
        let configuration = &self.configuration;
        let settings = configuration.settings();
        let listeners = configuration
            .listeners()
            .keys()
            .filter_map(|name| {
                let number = u32::from(self.registry.listener(name)?);
                Some(Item { number, name: name.clone() })
            })
            .collect();
        let mut clusters = Vec::with_capacity(configuration.clusters().len());
        let mut backends = Vec::with_capacity(configuration.backend_count());
        for (name, entry) in configuration.clusters() {
            let Some(number) = self.registry.cluster(name) else { continue };
            for (address, backend) in entry.backends() {
                let Some(number) = self.registry.backend(name, *address) else { continue };
                backends.push(BackendItem {
                    number,
                    cluster: clusters.len(),
                    address: address.to_string(),
                    up: self.health.found(number).map(|found| found.up),
                    drain: backend.drain,
                });
            }
            clusters.push(Item { number, name: name.clone() });
        }
        Scrape {
            settings: settings.metrics.clone(),
            limits: settings.limits.clone(),
            blocks: self.blocks.clone(),
            workers: self
                .workers
                .iter()
                .map(|worker| WorkerItem {
                    cpu: worker.cpu,
                    pid: worker.link.as_ref().and_then(|link| link.pid),
                    state: worker.state,
                    restarts: worker.restarts,
                    draining: worker.draining_pid(),
                })
                .collect(),
            listeners,
            clusters,
            backends,
            rankings: self.rankings.clone(),
            started: self.started,
            routes: configuration.routes().len(),
            revision: configuration.revision(),
            draining: self.is_draining(),
            steering: self.steering.status(),
            sockmap: self.redirection.status().available,
            access_log_lost_bytes: self.access_log.as_ref().map_or(0, AccessLog::lost_bytes),
        }
    }
}
