//! What a worker tells of its sessions when it is asked.

use underpass_command::api::SessionEntry;

use super::event_loop::Worker;
use super::session::{Phase, Session};

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Preface => "preface",
            Self::Head => "head",
            Self::Queued => "queued",
            Self::Connecting => "connecting",
            Self::Exchange => "exchange",
            Self::Reply => "reply",
            Self::Tunnel => "tunnel",
            Self::Linger => "linger",
        }
    }
}

impl Worker {
    /// How many sessions there are of a cluster, or at all, and those that have a request under way for longest.
    pub(super) fn describe_sessions(&self, limit: usize, cluster: Option<u32>) -> (u64, Vec<SessionEntry>) {
        let wanted = self
            .sessions
            .iter()
            .filter(|(_, session)| cluster.is_none_or(|cluster| session.exchange.cluster == Some(cluster)));
        let since =
            |session: &Session| if session.exchange.active { session.first_byte_us } else { u64::MAX };
        let mut sessions: Vec<(u64, usize)> = wanted.map(|(key, session)| (since(session), key)).collect();
        let total = sessions.len() as u64;
        // All of them need not be sorted for the first few.
        if sessions.len() > limit {
            sessions.select_nth_unstable(limit);
            sessions.truncate(limit);
        }
        sessions.sort_unstable();
        (total, sessions.into_iter().map(|(_, key)| self.describe(&self.sessions[key])).collect())
    }

    fn describe(&self, session: &Session) -> SessionEntry {
        let core = &self.core;
        let exchange = &session.exchange;
        let cluster = exchange.cluster.map(|number| core.clusters[number as usize].configured.name.clone());
        SessionEntry {
            worker: 0,
            client: session.source,
            listener: core.listeners[usize::from(session.listener)].configured.name.clone(),
            phase: session.phase.name().to_owned(),
            requests: session.requests,
            active_ms: exchange.active.then(|| core.now.us.saturating_sub(session.first_byte_us) / 1000),
            cluster,
            backend: exchange.upstream.map(|number| core.upstreams[number as usize].address),
        }
    }
}
