//! The end of the whole proxy: workers finish what is under way, within a time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use underpass_command::api::WorkerState;

use super::processes::tell_or_kill;
use super::supervisor::{Phase, Supervisor, notify_systemd};
use crate::ipc::ToWorker;

/// After the workers' own deadline to drain, until they are killed.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn on_end_signal(&mut self) {
        if self.is_draining() {
            tracing::warn!("second signal: workers are killed");
            self.kill_workers();
        } else {
            self.drain();
        }
    }

    /// Tells the workers to finish what is under way; the sockets of each are closed here once it was told.
    pub(super) fn drain(&mut self) {
        if self.is_draining() {
            return;
        }
        let deadline_ms = self.configuration.settings().timeouts.drain_ms;
        tracing::info!("draining: what is under way is finished, within {deadline_ms} ms");
        notify_systemd(sd_notify::NotifyState::Stopping);
        let kill_at = Instant::now() + Duration::from_millis(deadline_ms) + DRAIN_GRACE;
        self.phase = Phase::Draining { kill_at: Some(kill_at) };
        self.draining.store(true, Ordering::Relaxed);
        // Processes that drain already have the nearer of both deadlines; successors may have accepted something.
        for (process, link) in self.processes() {
            tell_or_kill(process.worker, link, ToWorker::Drain { deadline_ms });
        }
        for index in 0..self.workers.len() {
            self.no_successor(index, 503, "the proxy drains: all its workers do");
            if self.workers[index].link.is_none() {
                self.workers[index].ended();
            }
            if self.workers[index].state == WorkerState::Ended {
                self.let_go_of_sockets(index);
            }
        }
    }

    /// Closes the listening sockets of a worker that accepts what waits there, and then closes them too; or that has
    /// ended.
    pub(super) fn let_go_of_sockets(&mut self, worker: usize) {
        for listener in self.sockets.values_mut() {
            if let Some(socket) = listener.sockets.get_mut(worker) {
                *socket = None;
            }
        }
    }

    /// From here on it is over within moments, whatever the workers do.
    pub(super) fn kill_workers(&mut self) {
        self.processes().for_each(|(_, link)| link.kill());
        self.phase = Phase::Draining { kill_at: None };
    }
}
