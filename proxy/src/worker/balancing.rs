//! Which backend a request goes to, and what becomes of it where none can take it: it waits, is refused, or is tried again.

use std::net::IpAddr;

use underpass_command::state::{self, Balance, HashKey, RetryOn, SameSite};

use super::core::{Core, Upstream};
use super::event_loop::Worker;
use super::session::{ATTEMPTS_MAX, Exchange, Phase, Session, Step};
use crate::balance::{Choice, FAILURE_US, PUBLIC, View, Wanted, siphash};
use crate::http1::{Reason, cookie_value, field_value};
use crate::metrics::{BackendCounter, ClusterCounter, Counter};

/// Sessions of one cluster's line that go on in one turn.
const CALLS_MAX: usize = 256;
/// Digits of what a sticky cookie says.
const STICKY_DIGITS: usize = 16;

/// The backends, as a balancer sees them.
pub(super) struct Upstreams<'a> {
    pub(super) list: &'a [Upstream],
    pub(super) now_us: u64,
}

impl View for Upstreams<'_> {
    #[inline]
    fn active(&self, backend: u32) -> u32 {
        self.list[backend as usize].active
    }

    fn latency_us(&self, backend: u32) -> f64 {
        self.list[backend as usize].latency.at(self.now_us)
    }
}

/// What draws a request to one backend rather than another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Affinity {
    /// Of what its cluster chooses by.
    hash: Option<u64>,
    /// What its sticky cookie says.
    sticky: Option<u64>,
}

// The choice, and the line of those who wait for one.

impl Worker {
    /// The backend for a request; `Err` is what to do where there is none now. `parsed` tells that the fields of this very
    /// request are at hand.
    pub(super) fn choose_upstream(&mut self, key: usize, parsed: bool) -> Result<u32, Step> {
        let session = &self.sessions[key];
        let Some(number) = session.exchange.cluster else {
            return Err(self.refuse(key, Reason::BackendMissing));
        };
        if session.exchange.attempts == 0 {
            self.core.note_affinity(&mut self.sessions[key], number, parsed);
            let cluster = &mut self.core.clusters[number as usize];
            cluster.budget.earn(&cluster.configured);
        }
        // Who came first goes first.
        let waiting = !self.core.clusters[number as usize].line.is_empty();
        match if waiting { Choice::Full } else { self.core.choose(number, &self.sessions[key].exchange) } {
            Choice::Backend(upstream) => Ok(upstream),
            Choice::Full => Err(self.join_line(key, number)),
            Choice::Missing => Err(self.refuse(key, Reason::BackendMissing)),
        }
    }

    fn join_line(&mut self, key: usize, number: u32) -> Step {
        let cluster = &mut self.core.clusters[number as usize];
        let most = cluster.configured.queue_length as usize;
        let Some(ticket) = cluster.line.join(key, most) else {
            self.core.count(Counter::QueueFull);
            self.core.metrics.cluster(number).add(ClusterCounter::QueueFull, 1);
            return self.refuse(key, Reason::QueueFull);
        };
        let timeout_ms = cluster.configured.queue_timeout_ms;
        self.core.count(Counter::Queued);
        self.core.metrics.cluster(number).add(ClusterCounter::Queued, 1);
        self.core.note_line(number, true);
        let session = &mut self.sessions[key];
        session.exchange.ticket = Some(ticket);
        session.exchange.timing.queue_begins(self.core.now.us);
        session.phase = Phase::Queued;
        self.deadline(key, timeout_ms);
        Step::Wait
    }

    /// A session waits no more, for whatever reason but its turn.
    pub(super) fn leave_line(&mut self, key: usize) {
        let exchange = &mut self.sessions[key].exchange;
        let (Some(_), Some(number)) = (exchange.ticket.take(), exchange.cluster) else { return };
        exchange.timing.queue_ends(self.core.now.us);
        let sessions = &self.sessions;
        let holds = |key: usize, ticket: u64| {
            sessions.get(key).is_some_and(|session| session.exchange.ticket == Some(ticket))
        };
        self.core.clusters[number as usize].line.leave(holds);
        self.core.note_line(number, false);
    }

    /// Lets those that wait for a backend go on, in the order they came, as far as there is room for them.
    pub(super) fn call_lines(&mut self) {
        for _ in 0..self.core.called.len() {
            let Some(number) = self.core.called.pop_front() else { return };
            self.core.clusters[number as usize].called = false;
            if (0..CALLS_MAX).all(|_| self.call_first(number)) {
                self.core.call_line(number); // the others have their turn in between
            }
        }
    }

    /// Lets the first of a line go on; false if nobody waits, or must still.
    fn call_first(&mut self, number: u32) -> bool {
        let Self { core, sessions, .. } = self;
        let holds = |key: usize, ticket: u64| {
            sessions.get(key).is_some_and(|session| session.exchange.ticket == Some(ticket))
        };
        let Some(key) = core.clusters[number as usize].line.first(holds) else { return false };
        let choice = core.choose(number, &sessions[key].exchange);
        if choice == Choice::Full {
            return false;
        }
        core.clusters[number as usize].line.take_first();
        core.note_line(number, false);
        sessions[key].exchange.ticket = None;
        sessions[key].exchange.timing.queue_ends(core.now.us);
        let step = match choice {
            Choice::Backend(upstream) => self.go_to(key, upstream, false),
            Choice::Full | Choice::Missing => self.refuse(key, Reason::BackendMissing),
        };
        self.follow(key, step);
        true
    }

    /// Does what a step says that was taken outside of [`Worker::drive`].
    fn follow(&mut self, key: usize, step: Step) {
        match step {
            Step::Close | Step::Reset => self.end(key, step),
            Step::Again | Step::Yield => self.drive(key),
            Step::Wait => {}
        }
    }

    /// The time in the line is over.
    pub(super) fn queue_timed_out(&mut self, key: usize) -> Step {
        self.core.count(Counter::TimeoutQueue);
        if let Some(number) = self.sessions[key].exchange.cluster {
            self.core.metrics.cluster(number).add(ClusterCounter::QueueTimeouts, 1);
        }
        self.leave_line(key);
        self.refuse(key, Reason::QueueTimeout)
    }
}

impl Core {
    /// Says that there may be room for those that wait for a backend of this cluster.
    #[inline]
    pub(super) fn call_line(&mut self, number: u32) {
        let cluster = &mut self.clusters[number as usize];
        if !cluster.line.is_empty() && !std::mem::replace(&mut cluster.called, true) {
            self.called.push_back(number);
        }
    }

    /// Somebody has joined a line, or left it.
    fn note_line(&self, number: u32, joined: bool) {
        self.gauge(Counter::QueueActive, joined);
        let waiting = self.clusters[number as usize].line.len() as u64;
        self.metrics.cluster(number).set(ClusterCounter::QueueActive, waiting);
    }

    #[inline]
    fn choose(&mut self, number: u32, exchange: &Exchange) -> Choice {
        let wanted = Wanted {
            hash: exchange.affinity.hash,
            sticky: exchange.affinity.sticky,
            tried: &exchange.tried[..usize::from(exchange.attempts)],
            now_ms: self.now.ms,
        };
        let view = Upstreams { list: &self.upstreams, now_us: self.now.us };
        self.clusters[number as usize].balancer.choose(&wanted, &view)
    }

    /// Notes what draws a request to a backend, where its cluster looks at that.
    #[inline]
    fn note_affinity(&self, session: &mut Session, number: u32, parsed: bool) {
        let cluster = &self.clusters[number as usize].configured;
        if cluster.balance == Balance::Maglev || cluster.sticky_cookie.is_some() {
            session.exchange.affinity = self.affinity(session, cluster, parsed);
        }
    }

    fn affinity(&self, session: &Session, cluster: &state::Cluster, parsed: bool) -> Affinity {
        let buffer = session.client.buffer.as_ref().filter(|_| parsed);
        let bytes = buffer.map(|buffer| self.buffers.bytes(buffer, buffer.unscanned..buffer.end));
        let cookie = |name: &str| bytes.and_then(|bytes| cookie_value(bytes, &self.fields, name.as_bytes()));
        let hash = match &cluster.hash {
            _ if cluster.balance != Balance::Maglev => None,
            HashKey::Ip => Some(match session.source.ip().to_canonical() {
                IpAddr::V4(ip) => siphash(PUBLIC, &ip.octets()),
                IpAddr::V6(ip) => siphash(PUBLIC, &ip.octets()),
            }),
            HashKey::Header(name) => bytes
                .and_then(|bytes| field_value(bytes, &self.fields, name.as_bytes()))
                .map(|value| siphash(PUBLIC, value)),
            HashKey::Cookie(name) => cookie(name).map(|value| siphash(PUBLIC, value)),
        };
        let sticky = cluster.sticky_cookie.as_deref().and_then(cookie).and_then(read_sticky);
        Affinity { hash, sticky }
    }

    /// What the client must be told so that it comes back to the backend that was chosen; empty if it knows, or if it was
    /// sent elsewhere only because its own backend is busy.
    pub(super) fn sticky_cookie(&self, exchange: &Exchange) -> StickyCookie {
        let mut cookie = StickyCookie::default();
        let (Some(number), Some(upstream)) = (exchange.cluster, exchange.upstream) else { return cookie };
        let cluster = &self.clusters[number as usize];
        let Some(name) = cluster.configured.sticky_cookie.as_deref() else { return cookie };
        let sticky = self.upstreams[upstream as usize].sticky;
        let tried = &exchange.tried[..usize::from(exchange.attempts)];
        let known = exchange
            .affinity
            .sticky
            .is_some_and(|known| known == sticky || cluster.balancer.may_keep(known, tried, self.now.ms));
        if !known {
            cookie.write(name, sticky, cluster.configured.sticky_same_site);
        }
        cookie
    }
}

// What backends have shown of themselves.

impl Core {
    /// The head of a final response has come.
    #[inline]
    pub(super) fn note_response(&mut self, exchange: &Exchange) {
        let (Some(number), Some(upstream)) = (exchange.cluster, exchange.upstream) else { return };
        if exchange.status >= 500 {
            return self.note_failure(number, upstream, exchange.sent_us);
        }
        let found = &mut self.upstreams[upstream as usize];
        found.outcomes.succeeded();
        if self.clusters[number as usize].configured.balance == Balance::PeakEwma {
            found.latency.observe(self.now.us.saturating_sub(exchange.sent_us), self.now.us);
        }
    }

    /// A backend could not be connected to, has broken off, has not answered in time, or with an error of its own. After some
    /// of these in a row it is taken out for a while.
    #[cold]
    fn note_failure(&mut self, number: u32, upstream: u32, sent_us: u64) {
        let cluster = &mut self.clusters[number as usize];
        let found = &mut self.upstreams[upstream as usize];
        if cluster.configured.balance == Balance::PeakEwma {
            let took_us = self.now.us.saturating_sub(sent_us).max(FAILURE_US);
            found.latency.observe(took_us, self.now.us);
        }
        let percent_max = cluster.configured.eject_percent_max;
        if found.outcomes.failed(&cluster.configured)
            && cluster.balancer.may_eject(upstream, percent_max, self.now.ms)
        {
            let until_ms = found.outcomes.eject(&cluster.configured, self.now.ms);
            cluster.balancer.eject(upstream, until_ms);
            self.count(Counter::Ejections);
            self.metrics.backend(upstream).add(BackendCounter::Ejections, 1);
        }
    }

    /// Enters what the health checks have found.
    pub(super) fn set_health(&mut self, backends: &[(u32, bool)]) {
        for (upstream, up) in backends {
            let Some(found) = self.upstreams.get(*upstream as usize) else { continue };
            let number = found.cluster;
            let Some(cluster) = self.clusters.get_mut(number as usize) else { continue };
            if cluster.balancer.set_up(*upstream, *up, self.now.ms) {
                // Those that wait have a place to go, or none to wait for.
                self.call_line(number);
            }
        }
    }
}

// Trying again.

impl Worker {
    /// The backend of a session has failed it.
    pub(super) fn note_failure_of(&mut self, key: usize) {
        let exchange = &self.sessions[key].exchange;
        if let (Some(number), Some(upstream)) = (exchange.cluster, exchange.upstream) {
            self.core.note_failure(number, upstream, exchange.sent_us);
        }
    }

    /// Whether another backend may be tried, because of a connection that could not be made (`Connect`) or was lost
    /// (`Idempotent`). Takes it from the budget.
    pub(super) fn may_retry(&mut self, key: usize, because: RetryOn) -> bool {
        let exchange = &self.sessions[key].exchange;
        let Some(number) = exchange.cluster else { return false };
        let cluster = &mut self.core.clusters[number as usize];
        let attempts_max = usize::from(cluster.configured.retry_attempts).min(ATTEMPTS_MAX);
        let covered = match cluster.configured.retry_on {
            RetryOn::Never => false,
            RetryOn::Connect => because == RetryOn::Connect,
            RetryOn::Idempotent => true,
        };
        let others = cluster.upstreams.len() > 1;
        if !covered || !others || usize::from(exchange.attempts) >= attempts_max {
            return false;
        }
        let granted = cluster.budget.spend(&cluster.configured, self.core.now.ms);
        self.core.count(match (granted, because) {
            (false, _) => Counter::RetriesDenied,
            (true, RetryOn::Connect) => Counter::RetriesConnect,
            (true, _) => Counter::RetriesLost,
        });
        granted
    }
}

/// The key of sticky cookies, from the configured secret.
pub(super) fn sticky_key(secret: &str) -> [u64; 2] {
    [siphash([1, 0], secret.as_bytes()), siphash([2, 0], secret.as_bytes())]
}

/// What the sticky cookie of a backend says: its name, or its address, made unreadable by the key.
pub(super) fn sticky_of(key: [u64; 2], cluster: &str, backend: &state::Backend) -> u64 {
    let text = match &backend.name {
        Some(name) => format!("{cluster}\0name\0{name}"),
        None => format!("{cluster}\0address\0{}", backend.address),
    };
    siphash(key, text.as_bytes())
}

/// What a sticky cookie says, if it is one of ours.
fn read_sticky(value: &[u8]) -> Option<u64> {
    let digits =
        value.len() == STICKY_DIGITS && value.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let text = std::str::from_utf8(value).ok().filter(|_| digits)?;
    u64::from_str_radix(text, 16).ok()
}

/// The value of a Set-Cookie field (RFC 6265bis section 4.1), in a fixed space.
pub(super) struct StickyCookie {
    bytes: [u8; Self::SIZE_MAX],
    length: usize,
}

impl Default for StickyCookie {
    fn default() -> Self {
        Self { bytes: [0; Self::SIZE_MAX], length: 0 }
    }
}

impl StickyCookie {
    /// The configuration bounds a name to 128 bytes; digits and attributes are fewer.
    const SIZE_MAX: usize = 128 + 64;

    fn write(&mut self, name: &str, sticky: u64, same_site: SameSite) {
        let site = match same_site {
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
            SameSite::None => "None",
        };
        // RFC 6265bis sections 4.1.2.7 and 4.1.3: without Secure, clients ignore it.
        let secure = same_site == SameSite::None || has_secure_prefix(name);
        let secure = if secure { "; Secure" } else { "" };
        let mut rest = &mut self.bytes[..];
        let value = format_args!("{name}={sticky:016x}; Path=/; HttpOnly; SameSite={site}{secure}");
        self.length = match std::io::Write::write_fmt(&mut rest, value) {
            Ok(()) => Self::SIZE_MAX - rest.len(),
            Err(_) => 0,
        };
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Names that clients take from secure origins only, whatever their case (RFC 6265bis section 4.1.3).
fn has_secure_prefix(name: &str) -> bool {
    ["__secure-", "__host-", "__http-"]
        .iter()
        .any(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sticky_cookie_says_where_it_may_go() {
        let attributes = |name: &str, same_site| {
            let mut cookie = StickyCookie::default();
            cookie.write(name, 1, same_site);
            let text = String::from_utf8(cookie.as_bytes().to_vec()).expect("ASCII");
            text.split_once("; Path=/; HttpOnly; ").expect("attributes").1.to_owned()
        };
        assert_eq!(attributes("a", SameSite::Lax), "SameSite=Lax");
        assert_eq!(attributes("a", SameSite::Strict), "SameSite=Strict");
        assert_eq!(attributes("a", SameSite::None), "SameSite=None; Secure");
        assert_eq!(attributes("__Host-a", SameSite::Lax), "SameSite=Lax; Secure");
        assert_eq!(attributes("__secure-a", SameSite::Strict), "SameSite=Strict; Secure");
        // The longest that can be.
        let name = format!("__Host-{}", "n".repeat(121));
        assert_eq!(attributes(&name, SameSite::Strict), "SameSite=Strict; Secure");
    }

    #[test]
    fn a_sticky_cookie_is_read_as_it_is_written() {
        let mut cookie = StickyCookie::default();
        cookie.write("b", 0xfe, SameSite::Lax);
        assert_eq!(cookie.as_bytes(), b"b=00000000000000fe; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(read_sticky(b"00000000000000fe"), Some(0xfe));
        for other in [&b""[..], b"fe", b"00000000000000FE", b"+0000000000000fe", b"00000000000000fe0"] {
            assert_eq!(read_sticky(other), None);
        }
        let longest = "n".repeat(128);
        cookie.write(&longest, u64::MAX, SameSite::Lax);
        assert!(cookie.as_bytes().ends_with(b"=ffffffffffffffff; Path=/; HttpOnly; SameSite=Lax"));
    }
}
