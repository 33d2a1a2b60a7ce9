//! What is measured of each request: when its parts began, and the counters of its listener, its cluster and its backends.

use super::core::Core;
use super::event_loop::Worker;
use super::session::{Ending, Session};
use crate::metrics::{
    BackendCounter, BackendDuration, ClusterCounter, ClusterDuration, ListenerCounter, ListenerDuration,
};

/// How long the parts of a request took, in microseconds. The clock is that of the turn, so what began and ended in the same
/// turn took none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    /// When it began to wait for a backend with room; none while it does not wait.
    queued_at: Option<u64>,
    /// Waited for a backend with room, all waits together.
    queue_us: Option<u64>,
    /// When the connection to the backend was begun.
    connect_at: Option<u64>,
    /// Until the connection was made or given up, all attempts together; none where a pooled one served.
    connect_us: Option<u64>,
    /// When the request's head was sent.
    sent_at: Option<u64>,
    /// When the first byte of the response came.
    first_byte_at: Option<u64>,
}

impl Timing {
    /// The request begins to wait for a backend with room.
    pub(super) fn queue_begins(&mut self, now_us: u64) {
        self.queued_at = Some(now_us);
    }

    /// The wait has ended, whatever comes of it.
    pub(super) fn queue_ends(&mut self, now_us: u64) {
        if let Some(began) = self.queued_at.take() {
            self.queue_us = Some(self.queue_us.unwrap_or(0) + now_us.saturating_sub(began));
        }
    }

    fn connect_ends(&mut self, now_us: u64) -> Option<u64> {
        let took = now_us.saturating_sub(self.connect_at.take()?);
        self.connect_us = Some(self.connect_us.unwrap_or(0) + took);
        Some(took)
    }

    /// Waited for a backend with room; none if it never did.
    pub(super) fn queue_us(&self) -> Option<u64> {
        self.queue_us
    }

    /// Waited for connections to backends; none if it never did.
    pub(super) fn connect_us(&self) -> Option<u64> {
        self.connect_us
    }

    /// From the first byte of the request, which came at `began_us`, to the first byte of the response.
    pub(super) fn first_byte_us(&self, began_us: u64) -> Option<u64> {
        self.first_byte_at.map(|at| at.saturating_sub(began_us))
    }
}

impl Worker {
    /// A connection to the backend was begun.
    pub(super) fn note_connect_begun(&mut self, key: usize) {
        let exchange = &mut self.sessions[key].exchange;
        exchange.timing.connect_at = Some(self.core.now.us);
        if let Some(upstream) = exchange.upstream {
            self.core.metrics.backend(upstream).add(BackendCounter::Connects, 1);
        }
    }

    /// The connection to the backend was made.
    pub(super) fn note_connected(&mut self, key: usize) {
        let exchange = &mut self.sessions[key].exchange;
        if let (Some(took), Some(upstream)) =
            (exchange.timing.connect_ends(self.core.now.us), exchange.upstream)
        {
            self.core.metrics.backend(upstream).duration(BackendDuration::Connect as usize, took);
        }
    }

    /// No connection to the backend was made.
    pub(super) fn note_connect_failed(&mut self, key: usize) {
        let exchange = &mut self.sessions[key].exchange;
        exchange.timing.connect_ends(self.core.now.us);
        if let Some(upstream) = exchange.upstream {
            self.core.metrics.backend(upstream).add(BackendCounter::ConnectFailures, 1);
        }
    }

    /// A pooled connection serves the request.
    #[inline]
    pub(super) fn note_reused(&mut self, key: usize) {
        if let Some(upstream) = self.sessions[key].exchange.upstream {
            self.core.metrics.backend(upstream).add(BackendCounter::Reuses, 1);
        }
    }

    /// The backend went, or said what cannot be passed on.
    pub(super) fn note_backend_broken(&mut self, key: usize) {
        if let Some(upstream) = self.sessions[key].exchange.upstream {
            self.core.metrics.backend(upstream).add(BackendCounter::Broken, 1);
        }
    }
}

impl Session {
    /// The request's head has gone to the backend.
    #[inline]
    pub(super) fn note_sent(&mut self, now_us: u64) {
        self.exchange.timing.sent_at = Some(now_us);
    }
}

/// A byte of the response has come.
#[inline]
pub(super) fn note_first_byte(core: &Core, session: &mut Session) {
    let exchange = &mut session.exchange;
    if std::mem::replace(&mut exchange.response_begun, true) {
        return;
    }
    exchange.timing.first_byte_at = Some(core.now.us);
    if let (Some(sent), Some(upstream)) = (exchange.timing.sent_at, exchange.upstream) {
        let took = core.now.us.saturating_sub(sent);
        core.metrics.backend(upstream).duration(BackendDuration::Response as usize, took);
    }
}

/// The counters of a kind for the classes of responses, 1xx to 5xx.
macro_rules! classes {
    ($kind:ident) => {
        [
            $kind::Responses1xx,
            $kind::Responses2xx,
            $kind::Responses3xx,
            $kind::Responses4xx,
            $kind::Responses5xx,
        ]
    };
}

/// Counts a request, or a TCP connection, that has ended. `upstream` is the backend tried last.
#[inline]
pub(super) fn count_exchange(core: &Core, session: &Session, upstream: Option<u32>, total_us: u64) {
    let exchange = &session.exchange;
    // Statuses have three digits, and a response of none of the classes is passed on as what it is: an error.
    let class = match exchange.status {
        0 => None,
        status => Some(usize::from((status / 100).clamp(1, 5)) - 1),
    };
    let listener = core.metrics.listener(u32::from(session.listener));
    listener.add(ListenerCounter::Requests, 1);
    listener.add(ListenerCounter::BytesIn, exchange.bytes_up);
    listener.add(ListenerCounter::BytesOut, exchange.bytes);
    if let Some(class) = class {
        listener.add(classes!(ListenerCounter)[class], 1);
        listener.duration(ListenerDuration::Total as usize, total_us);
    }
    let Some(cluster) = exchange.routed_to() else { return };
    let cluster = core.metrics.cluster(cluster);
    cluster.add(ClusterCounter::Requests, 1);
    cluster.add(ClusterCounter::BytesIn, exchange.bytes_up);
    cluster.add(ClusterCounter::BytesOut, exchange.bytes);
    if let Some(class) = class {
        cluster.add(classes!(ClusterCounter)[class], 1);
        cluster.duration(ClusterDuration::Total as usize, total_us);
    }
    if let Some(first_byte_us) = exchange.timing.first_byte_us(session.first_byte_us) {
        cluster.duration(ClusterDuration::FirstByte as usize, first_byte_us);
    }
    if exchange.attempts > 1 {
        cluster.add(ClusterCounter::Retries, u64::from(exchange.attempts) - 1);
    }
    // On a TCP connection nothing can be answered.
    if exchange.ending != Ending::Closed || (class.is_none() && exchange.reason.is_some()) {
        cluster.add(ClusterCounter::Broken, 1);
    }
    let own = class.is_some() && exchange.reason.is_some() && !exchange.response_head_done;
    if own {
        cluster.add(ClusterCounter::OwnAnswers, 1);
    }
    let Some(upstream) = upstream else { return };
    let backend = core.metrics.backend(upstream);
    backend.add(BackendCounter::Requests, 1);
    backend.add(BackendCounter::BytesIn, exchange.bytes_up);
    backend.add(BackendCounter::BytesOut, exchange.bytes);
    if let (Some(class), false) = (class, own) {
        backend.add(classes!(BackendCounter)[class], 1);
    }
}
