//! The end of a worker: nothing new is taken, what is under way is finished within a time.

use super::connection;
use super::event_loop::Worker;
use super::session::{Ending, Phase, Step};
use super::steering::SteeringPlace;
use crate::metrics::Counter;

/// So long a connection without a request is kept when another process goes on in the place of this one: its next request may
/// be on its way, and would be lost. It is served, and then the connection ends with the response.
const IDLE_GRACE_MS: u64 = 1000;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All connections were finished.
    Drained,
    /// The deadline of the drain cut so many connections.
    Cut(usize),
}

impl Worker {
    /// Begins to drain: what is in the accept queues is still served, what is idle is closed.
    pub(super) fn drain(&mut self, deadline_ms: u64) {
        self.place.iter().for_each(SteeringPlace::close);
        if !self.core.draining {
            for index in 0..self.core.listeners.len() {
                self.accept_all(index);
            }
        }
        self.finish(deadline_ms, 0);
    }

    /// Begins to drain, and leaves everything new to a successor that has the same sockets: what waits in the accept queues
    /// too.
    pub(super) fn hand_over(&mut self, deadline_ms: u64) {
        self.place.iter_mut().for_each(SteeringPlace::leave);
        self.finish(deadline_ms, IDLE_GRACE_MS);
    }

    /// Takes nothing new, and ends when nothing is left. Of two deadlines the nearer one holds.
    fn finish(&mut self, deadline_ms: u64, idle_grace_ms: u64) {
        let deadline = self.core.now.ms.saturating_add(deadline_ms);
        self.drain_deadline_ms = Some(self.drain_deadline_ms.map_or(deadline, |before| before.min(deadline)));
        self.core.idle_grace_ms = idle_grace_ms;
        self.core.draining = true;
        for number in 0..self.core.listeners.len() {
            self.core.close_listener(u16::try_from(number).unwrap_or(u16::MAX));
        }
        let pooled: Vec<usize> =
            self.connections.iter().filter(|(_, c)| c.session.is_none()).map(|(k, _)| k).collect();
        for key in pooled {
            connection::close(&mut self.core, &mut self.connections, key);
        }
        let idle = self.sessions.iter().filter(|(_, session)| {
            session.phase == Phase::Head && session.requests > 0 && session.client.buffer.is_none()
        });
        let idle: Vec<usize> = idle.map(|(key, _)| key).collect();
        for key in idle {
            match self.core.idle_ms() {
                Some(ms) => self.deadline(key, ms),
                None => self.end(key, Step::Close),
            }
        }
    }

    /// How the drain has ended, once it has.
    pub(super) fn drained(&mut self) -> Option<Ended> {
        let deadline = self.drain_deadline_ms?;
        if self.sessions.is_empty() {
            self.check_empty();
            return Some(Ended::Drained);
        }
        if self.core.now.ms < deadline {
            return None;
        }
        let cut = self.sessions.len();
        self.core.metrics.add(Counter::DrainCut, cut as u64);
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.sessions[key].exchange.ending = Ending::Cut;
            self.end(key, Step::Close);
        }
        self.check_empty();
        Some(Ended::Cut(cut))
    }

    /// Whatever sessions held is back in its place when the last has ended.
    fn check_empty(&self) {
        let core = &self.core;
        debug_assert_eq!((core.buffers.used(), core.buffers.reserved()), (0, 0), "buffers used and reserved");
        debug_assert_eq!(core.pipes.used(), 0, "pipes used");
        if let Some(redirector) = &core.redirector {
            debug_assert_eq!((redirector.running(), redirector.used()), (0, 0), "redirections, accounts");
            debug_assert!(matches!(redirector.population(), Ok((0, 0)) | Err(_)), "sockets in maps");
        }
        debug_assert!(self.connections.is_empty(), "connections to backends");
        debug_assert!(core.upstreams.iter().all(|upstream| upstream.active == 0), "requests under way");
        debug_assert!(core.clusters.iter().all(|cluster| cluster.active == 0), "requests led to clusters");
        debug_assert!(
            core.listeners.iter().all(|listener| listener.sessions == 0),
            "connections of listeners"
        );
        debug_assert_eq!(self.overflow, 0, "connections beyond the limit");
        debug_assert!(core.waiting.is_empty(), "tunnels that wait for buffers");
        debug_assert!(core.clusters.iter().all(|cluster| cluster.line.is_empty()), "waiting for a backend");
    }
}
