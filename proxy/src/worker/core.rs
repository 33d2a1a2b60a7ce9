//! What all sessions of a worker share: pools, tables, counters, the clock of the turn.

use std::collections::VecDeque;
use std::net::SocketAddr;

use mio::Registry;
use mio::net::TcpListener;
use underpass_command::state::{self, RedirectMode, Settings};

use super::log::AccessLog;
use super::own::OwnAnswers;
use super::random::Random;
use super::wheel::Wheel;
use crate::balance::{Balancer, Latency, Line, Outcomes, RetryBudget};
use crate::forward::{BufferPool, PipePool, Policy, Redirector, Tools, TrailerLimits};
use crate::http1::{Edit, Fields, Limits, Reason, Texts};
use crate::ipc::Finished;
use crate::metrics::{Block, Counter, Peer};
use crate::route::{Destination, Table};

/// The clock of one turn of the loop: read once, the same for all its events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Now {
    /// Milliseconds since the worker began.
    pub(super) ms: u64,
    /// Microseconds since the worker began.
    pub(super) us: u64,
}

/// What has become of something that the supervisor has given a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Presence {
    /// Nothing has this number.
    #[default]
    Vacant,
    /// It is part of the configuration.
    Present,
    /// It was removed, and is still used by what is under way.
    Leaving,
}

/// A listening socket of this worker.
pub(super) struct Listening {
    pub(super) presence: Presence,
    /// Connections that came in by it.
    pub(super) sessions: u32,
    /// None once the worker drains, or the listener is removed.
    pub(super) socket: Option<TcpListener>,
    pub(super) configured: state::Listener,
    /// Number of its own routes in the table.
    pub(super) scope: u32,
    /// Number of its own routes in the table of server names.
    pub(super) names_scope: u32,
    pub(super) default_cluster: Option<u32>,
    /// Its port, as `X-Forwarded-Port` tells it.
    pub(super) port: Vec<u8>,
    /// Connections may wait in the accept queue.
    pub(super) pending: bool,
}

impl Listening {
    /// Where requests go that no route takes.
    pub(super) fn default_destination(&self) -> Option<Destination> {
        self.default_cluster.map(|cluster| Destination { cluster: Some(cluster), ..Destination::default() })
    }
}

/// A cluster with the numbers of its backends.
pub(super) struct Cluster {
    pub(super) presence: Presence,
    /// Requests and connections that were led to it and have not ended.
    pub(super) active: u32,
    pub(super) configured: state::Cluster,
    pub(super) balancer: Balancer,
    pub(super) budget: RetryBudget,
    /// Sessions that wait for a backend.
    pub(super) line: Line,
    /// Stands in [`Core::called`].
    pub(super) called: bool,
    /// Indices into [`Core::upstreams`].
    pub(super) upstreams: Vec<u32>,
}

/// A backend, with its pool of idle connections.
pub(super) struct Upstream {
    pub(super) presence: Presence,
    /// Number of its cluster.
    pub(super) cluster: u32,
    pub(super) configured: state::Backend,
    pub(super) address: SocketAddr,
    /// Its address as text.
    pub(super) text: Vec<u8>,
    /// Requests under way.
    pub(super) active: u32,
    /// How long it takes to answer.
    pub(super) latency: Latency,
    pub(super) outcomes: Outcomes,
    /// What its sticky cookie says.
    pub(super) sticky: u64,
    /// Keys of idle connections; the one used last is at the end and is used first, so that few stay warm and the
    /// others time out.
    pub(super) idle: Vec<usize>,
}

/// Buffers of a worker.
pub(crate) fn buffer_count(limits: &state::Limits) -> u32 {
    match limits.buffers {
        0 => limits.connections.saturating_mul(super::session::BUFFERS_PER_REQUEST),
        set => set.max(super::session::BUFFERS_PER_REQUEST),
    }
}

/// Everything but the sessions and the connections to backends.
pub(super) struct Core {
    pub(super) registry: Registry,
    pub(super) settings: Settings,
    pub(super) buffers: BufferPool,
    pub(super) pipes: PipePool,
    /// The kernel's redirection, where it is available.
    pub(super) redirector: Option<Redirector>,
    pub(super) metrics: Block,
    pub(super) wheel: Wheel,
    pub(super) now: Now,
    pub(super) head_limits: Limits,
    pub(super) trailer_limits: TrailerLimits,
    /// Fields of the head that was parsed last.
    pub(super) fields: Fields,
    /// The head that was edited last.
    pub(super) edit: Edit,
    /// What the head that is edited now is changed with by its route.
    pub(super) texts: Texts,
    /// Answers of the proxy itself.
    pub(super) own: OwnAnswers,
    pub(super) routes: Table,
    /// Routes of TCP listeners by the server name of TLS; every path is `/`.
    pub(super) server_names: Table,
    pub(super) listeners: Vec<Listening>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) random: Random,
    pub(super) log: AccessLog,
    /// Sessions that gave way to others though both their sides were ready.
    pub(super) runnable: VecDeque<usize>,
    /// Clusters where somebody waits for a backend and there may be room.
    pub(super) called: VecDeque<u32>,
    /// Makes sticky cookies unreadable.
    pub(super) sticky_key: [u64; 2],
    /// Tunnels for whose bytes no buffer was left.
    pub(super) waiting: VecDeque<usize>,
    /// Connections registered so far: each has its number, so that an event for one before it is known as such.
    generations: u32,
    pub(super) draining: bool,
    /// While it drains: so long a connection without a request is kept.
    pub(super) idle_grace_ms: u64,
    /// The revision of the configuration.
    pub(super) revision: u64,
    /// What the supervisor must be told about.
    pub(super) finished: Finished,
    /// The last accept failed for want of something other than connections.
    pub(super) accept_failed: bool,
}

impl Core {
    /// A core sized by the settings. Whatever requests need later is allocated here.
    pub(super) fn new(
        registry: Registry,
        settings: Settings,
        metrics: Block,
        log: AccessLog,
        seed: u64,
    ) -> Self {
        let limits = &settings.limits;
        let sessions = limits.connections as usize + super::session::OVERFLOW;
        let buffers = buffer_count(limits);
        Self {
            registry,
            buffers: BufferPool::new(buffers, limits.buffer_size as usize),
            pipes: PipePool::new(limits.pipes, limits.pipe_size),
            redirector: None,
            metrics,
            wheel: Wheel::new(sessions + super::connection::most(&settings), 0),
            now: Now::default(),
            head_limits: Limits {
                head_size_max: limits.head_size_max,
                header_count_max: limits.header_count_max,
                target_size_max: limits.target_size_max,
            },
            trailer_limits: TrailerLimits {
                size_max: limits.head_size_max,
                count_max: limits.header_count_max,
            },
            fields: Fields::with_capacity(limits.header_count_max),
            edit: Edit::with_capacity(limits.head_size_max, limits.header_count_max),
            texts: Texts::new(),
            own: OwnAnswers::default(),
            routes: Table::default(),
            server_names: Table::default(),
            listeners: Vec::new(),
            clusters: Vec::new(),
            upstreams: Vec::new(),
            random: Random::new(seed),
            log,
            runnable: VecDeque::with_capacity(sessions),
            called: VecDeque::new(),
            sticky_key: super::balancing::sticky_key(&settings.sticky_secret),
            waiting: VecDeque::with_capacity(sessions),
            generations: 0,
            draining: false,
            idle_grace_ms: 0,
            revision: 0,
            finished: Finished::default(),
            accept_failed: false,
            settings,
        }
    }

    /// The generation of a connection that is about to be registered.
    pub(super) fn next_generation(&mut self) -> u32 {
        self.generations = self.generations.wrapping_add(1);
        self.generations
    }

    /// How long a connection may be without a request; none where it ends at once.
    #[inline]
    pub(super) fn idle_ms(&self) -> Option<u64> {
        let keep_alive_ms = self.settings.timeouts.keep_alive_ms;
        if self.draining {
            return Some(keep_alive_ms.min(self.idle_grace_ms)).filter(|ms| *ms > 0);
        }
        Some(keep_alive_ms)
    }

    /// What the flows of a session need.
    #[inline]
    pub(super) fn tools(&mut self, session: usize) -> Tools<'_> {
        Tools {
            buffers: &mut self.buffers,
            pipes: &mut self.pipes,
            metrics: &self.metrics,
            redirector: self.redirector.as_mut(),
            session,
        }
    }

    /// How bytes are to be moved in a mode.
    pub(super) fn policy(&self, mode: RedirectMode) -> Policy {
        Policy::new(mode, &self.settings)
    }

    #[inline]
    pub(super) fn count(&self, counter: Counter) {
        self.metrics.add(counter, 1);
    }

    /// A gauge goes up or down by one.
    #[inline]
    pub(super) fn gauge(&self, counter: Counter, up: bool) {
        self.metrics.add(counter, if up { 1 } else { u64::MAX });
    }

    pub(super) fn refused(&self, peer: Peer, reason: Reason) {
        self.metrics.refused(peer, reason.number());
    }

    /// The mode for a body of this cluster that came in by this listener.
    #[inline]
    pub(super) fn redirect_mode(&self, listener: u16, cluster: u32) -> RedirectMode {
        self.clusters[cluster as usize]
            .configured
            .redirect
            .or(self.listeners[usize::from(listener)].configured.redirect)
            .unwrap_or(self.settings.redirect)
    }
}
