//! Every metric by its published name, and the counter that it comes from.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: what is counted has the unit in its name and ends in `_total`,
//! times are in seconds. What is true of one thing in several ways is one family with a label.

use crate::metrics::{BackendCounter, ClusterCounter, Counter, Kind, ListenerCounter};

/// A family that is read from counters.
pub(super) struct Family<C: 'static> {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    /// The label that tells the members apart, where there are several.
    pub(super) label: &'static str,
    /// The value of that label, and the counter.
    pub(super) members: &'static [(&'static str, C)],
}

macro_rules! families {
    ($($name:literal $kind:ident $help:literal $($label:literal)? [$($member:expr),+ $(,)?])+) => {
        &[$(Family {
            name: $name,
            kind: Kind::$kind,
            help: $help,
            label: concat!($($label)?),
            members: &[$($member),+],
        }),+]
    };
}

/// Of each worker. `Bytes{Copied,Spliced,Redirected}` are left out: they are the sums over the kinds of flows.
pub(super) static WORKER: &[Family<Counter>] = families! {
    "underpass_worker_connections" Counter "Client connections accepted." [("", Counter::Accepted)]
    "underpass_worker_connections_active" Gauge "Client connections open now." [("", Counter::ClientsActive)]
    "underpass_worker_connections_limit_reached" Counter
        "Client connections refused or left waiting because of the limit of connections." [("", Counter::LimitReached)]
    "underpass_worker_buffers_exhausted" Counter
        "Times a client connection found no buffer left: it was refused, or as a tunnel waited."
        [("", Counter::BuffersExhausted)]
    "underpass_worker_accept_failures" Counter "Times accept failed other than for want of connections."
        [("", Counter::AcceptFailed)]
    "underpass_worker_requests" Counter "Requests that were answered, by a backend or by the proxy itself."
        [("", Counter::Requests)]
    "underpass_worker_requests_active" Gauge "Requests under way now." [("", Counter::RequestsActive)]
    "underpass_worker_responses" Counter "Responses sent to clients, by class." "class" [
        ("1xx", Counter::Responses1xx), ("2xx", Counter::Responses2xx), ("3xx", Counter::Responses3xx),
        ("4xx", Counter::Responses4xx), ("5xx", Counter::Responses5xx),
    ]
    "underpass_worker_backend_connects" Counter "Connections to backends opened." [("", Counter::BackendConnects)]
    "underpass_worker_backend_connect_failures" Counter "Connections to backends that could not be opened."
        [("", Counter::BackendConnectsFailed)]
    "underpass_worker_backend_reuses" Counter "Requests sent on a pooled connection to a backend."
        [("", Counter::BackendReuses)]
    "underpass_worker_backend_connections_active" Gauge "Connections to backends open now, idle or not."
        [("", Counter::BackendsOpen)]
    "underpass_worker_backend_connections_idle" Gauge "Idle connections to backends in the pool now."
        [("", Counter::BackendsIdle)]
    "underpass_worker_backend_unsolicited" Counter
        "Idle connections on which a backend sent bytes nobody asked for." [("", Counter::BackendUnsolicited)]
    "underpass_worker_retries" Counter "Backends tried again or in place of another, by what had failed." "because" [
        ("stale", Counter::Retries), ("connect", Counter::RetriesConnect), ("lost", Counter::RetriesLost),
    ]
    "underpass_worker_retries_denied" Counter "Retries that the budget did not allow." [("", Counter::RetriesDenied)]
    "underpass_worker_backend_ejections" Counter "Backends taken out for a while because they failed."
        [("", Counter::Ejections)]
    "underpass_worker_queued" Counter "Requests and TCP connections that had to wait for a backend with room."
        [("", Counter::Queued)]
    "underpass_worker_queue_refusals" Counter "Requests and TCP connections refused because too many waited."
        [("", Counter::QueueFull)]
    "underpass_worker_queue_active" Gauge "Requests and TCP connections that wait for a backend with room now."
        [("", Counter::QueueActive)]
    "underpass_worker_aborts" Counter
        "Requests that ended before their response was whole, and TCP connections broken off, by who went." "by"
        [("client", Counter::AbortsClient), ("backend", Counter::AbortsBackend)]
    "underpass_worker_tunnels" Counter "Connections turned into tunnels, by an upgrade, CONNECT or a TCP listener."
        [("", Counter::Tunnels)]
    "underpass_worker_tunnels_active" Gauge "Tunnels open now." [("", Counter::TunnelsActive)]
    "underpass_worker_tcp_connections" Counter "Connections to TCP listeners for which a backend was reached."
        [("", Counter::TcpConnections)]
    "underpass_worker_bodies" Counter "Bodies and directions of tunnels, by the farthest-reaching way they went." "mode" [
        ("copy", Counter::BodiesCopied), ("splice", Counter::BodiesSpliced), ("sockmap", Counter::BodiesRedirected),
    ]
    "underpass_worker_fallbacks" Counter "Bodies that did not go the way they were to go, by reason." "reason" [
        ("no_pipe", Counter::FallbackNoPipe), ("splice_refused", Counter::FallbackRefused),
        ("sockmap_off", Counter::FallbackSockmapOff), ("sockmap_no_flow", Counter::FallbackSockmapNoFlow),
        ("sockmap_refused", Counter::FallbackSockmapRefused), ("sockmap_held", Counter::FallbackSockmapHeld),
        ("sockmap_recent", Counter::FallbackSockmapRecent),
    ]
    "underpass_worker_sockmap_stops" Counter "Times the kernel stopped at the end of a credit or of a body."
        [("", Counter::SockmapStops)]
    "underpass_worker_sockmap_directions" Gauge "Directions redirected by sockmap now." [("", Counter::SockmapFlows)]
    "underpass_worker_pool_used" Gauge "What is taken of a pool that was sized at start." "pool" [
        ("connections", Counter::ClientsActive), ("buffers", Counter::BuffersUsed), ("pipes", Counter::PipesUsed),
    ]
    "underpass_worker_timeouts" Counter "Waits that took too long, by what was waited for." "wait" [
        ("head", Counter::TimeoutHead), ("body_idle", Counter::TimeoutBody), ("queue", Counter::TimeoutQueue),
        ("connect", Counter::TimeoutConnect),
        ("response", Counter::TimeoutResponse), ("keep_alive", Counter::TimeoutKeepAlive),
        ("tunnel_idle", Counter::TimeoutTunnel), ("tcp_idle", Counter::TimeoutTcp), ("linger", Counter::TimeoutLinger),
    ]
    "underpass_worker_drain_cuts" Counter "Connections cut at the end of a drain." [("", Counter::DrainCut)]
    "underpass_worker_access_log_dropped" Counter "Lines of the access log dropped because nobody took them."
        [("", Counter::AccessLogDropped)]
    "underpass_worker_loop_turns" Counter "Turns of the event loop." [("", Counter::LoopTurns)]
    "underpass_worker_loop_events" Counter "Events handled." [("", Counter::LoopEvents)]
};

/// The counters of a family of workers.
pub(super) fn members_of(name: &str) -> impl Iterator<Item = Counter> {
    let families = WORKER.iter().filter(move |family| family.name == name);
    families.flat_map(|family| family.members).map(|(_, counter)| *counter)
}

/// Bytes of each worker by what they were part of and how they were moved.
pub(super) static FORWARDED: [(&str, &str, Counter); 12] = [
    ("request", "copy", Counter::BytesRequestCopied),
    ("request", "splice", Counter::BytesRequestSpliced),
    ("request", "sockmap", Counter::BytesRequestRedirected),
    ("response", "copy", Counter::BytesResponseCopied),
    ("response", "splice", Counter::BytesResponseSpliced),
    ("response", "sockmap", Counter::BytesResponseRedirected),
    ("tunnel", "copy", Counter::BytesTunnelCopied),
    ("tunnel", "splice", Counter::BytesTunnelSpliced),
    ("tunnel", "sockmap", Counter::BytesTunnelRedirected),
    ("tcp", "copy", Counter::BytesTcpCopied),
    ("tcp", "splice", Counter::BytesTcpSpliced),
    ("tcp", "sockmap", Counter::BytesTcpRedirected),
];

/// Of each listener, all workers together.
pub(super) static LISTENER: &[Family<ListenerCounter>] = families! {
    "underpass_listener_connections" Counter "Client connections accepted." [("", ListenerCounter::Connections)]
    "underpass_listener_connections_active" Gauge "Client connections open now."
        [("", ListenerCounter::ConnectionsActive)]
    "underpass_listener_connections_limit_reached" Counter
        "Client connections refused because of the limit of connections." [("", ListenerCounter::LimitReached)]
    "underpass_listener_requests" Counter "Requests that have ended, and TCP connections."
        [("", ListenerCounter::Requests)]
    "underpass_listener_responses" Counter "Responses sent to clients, by class." "class" [
        ("1xx", ListenerCounter::Responses1xx), ("2xx", ListenerCounter::Responses2xx),
        ("3xx", ListenerCounter::Responses3xx), ("4xx", ListenerCounter::Responses4xx),
        ("5xx", ListenerCounter::Responses5xx),
    ]
    "underpass_listener_received_bytes" Counter
        "Bytes of bodies and tunnels that came from clients and were passed on." [("", ListenerCounter::BytesIn)]
    "underpass_listener_sent_bytes" Counter "Bytes of bodies and tunnels sent to clients."
        [("", ListenerCounter::BytesOut)]
};

/// Of each cluster, all workers together.
pub(super) static CLUSTER: &[Family<ClusterCounter>] = families! {
    "underpass_cluster_requests" Counter "Requests that have ended, answered or not, and TCP connections."
        [("", ClusterCounter::Requests)]
    "underpass_cluster_responses" Counter "Responses sent to clients, by class, our own included." "class" [
        ("1xx", ClusterCounter::Responses1xx), ("2xx", ClusterCounter::Responses2xx),
        ("3xx", ClusterCounter::Responses3xx), ("4xx", ClusterCounter::Responses4xx),
        ("5xx", ClusterCounter::Responses5xx),
    ]
    "underpass_cluster_received_bytes" Counter
        "Bytes of bodies and tunnels that came from clients and were passed on." [("", ClusterCounter::BytesIn)]
    "underpass_cluster_sent_bytes" Counter "Bytes of bodies and tunnels sent to clients."
        [("", ClusterCounter::BytesOut)]
    "underpass_cluster_retries" Counter "Times that another attempt was made for a request."
        [("", ClusterCounter::Retries)]
    "underpass_cluster_broken" Counter
        "Requests that ended without their response, or in the middle of it, and connections that were broken off."
        [("", ClusterCounter::Broken)]
    "underpass_cluster_own_answers" Counter
        "Requests that the proxy answered itself because no backend did." [("", ClusterCounter::OwnAnswers)]
    "underpass_cluster_queued" Counter "Requests that waited for a backend with room." [("", ClusterCounter::Queued)]
    "underpass_cluster_queue_refusals" Counter "Requests refused because too many waited, or they for too long."
        "reason" [("full", ClusterCounter::QueueFull), ("timeout", ClusterCounter::QueueTimeouts)]
    "underpass_cluster_queue_active" Gauge "Requests that wait for a backend with room now."
        [("", ClusterCounter::QueueActive)]
};

/// Of each backend, all workers together.
pub(super) static BACKEND: &[Family<BackendCounter>] = families! {
    "underpass_backend_requests" Counter "Requests that have ended here, answered or not, and TCP connections."
        [("", BackendCounter::Requests)]
    "underpass_backend_responses" Counter "Responses passed on, by class." "class" [
        ("1xx", BackendCounter::Responses1xx), ("2xx", BackendCounter::Responses2xx),
        ("3xx", BackendCounter::Responses3xx), ("4xx", BackendCounter::Responses4xx),
        ("5xx", BackendCounter::Responses5xx),
    ]
    "underpass_backend_sent_bytes" Counter "Bytes of bodies and tunnels sent to the backend."
        [("", BackendCounter::BytesIn)]
    "underpass_backend_received_bytes" Counter
        "Bytes of bodies and tunnels that came from the backend and were passed on." [("", BackendCounter::BytesOut)]
    "underpass_backend_requests_active" Gauge "Requests and TCP connections under way now."
        [("", BackendCounter::Active)]
    "underpass_backend_connects" Counter "Connections that were begun." [("", BackendCounter::Connects)]
    "underpass_backend_connect_failures" Counter "Connections that could not be made."
        [("", BackendCounter::ConnectFailures)]
    "underpass_backend_reuses" Counter "Requests sent on a pooled connection." [("", BackendCounter::Reuses)]
    "underpass_backend_broken" Counter
        "Requests for which it went away, or answered what cannot be passed on." [("", BackendCounter::Broken)]
    "underpass_backend_ejections" Counter "Times that it was taken out of the choice because requests failed."
        [("", BackendCounter::Ejections)]
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::SlotCounter;

    #[test]
    fn every_counter_of_a_worker_is_published_but_the_sums() {
        let sums = [Counter::BytesCopied, Counter::BytesSpliced, Counter::BytesRedirected];
        for counter in Counter::ALL {
            let in_families =
                WORKER.iter().flat_map(|family| family.members).any(|(_, member)| member == counter);
            let forwarded = FORWARDED.iter().any(|(.., member)| member == counter);
            assert_ne!(in_families || forwarded, sums.contains(counter), "{counter:?}");
        }
    }

    fn each_once<C: SlotCounter + PartialEq + std::fmt::Debug>(families: &[Family<C>]) {
        for counter in C::ALL {
            let found: Vec<_> = families
                .iter()
                .filter(|family| family.members.iter().any(|(_, member)| member == counter))
                .collect();
            assert_eq!(found.len(), 1, "{counter:?}");
            assert_eq!(found[0].kind == Kind::Gauge, counter.is_gauge(), "{counter:?}");
        }
    }

    #[test]
    fn every_counter_of_an_item_is_published_once_as_what_it_is() {
        each_once(LISTENER);
        each_once(CLUSTER);
        each_once(BACKEND);
    }

    #[test]
    fn gauges_of_workers_are_those_that_say_so() {
        for family in WORKER {
            for (_, counter) in family.members {
                assert_eq!(family.kind == Kind::Gauge, counter.is_gauge(), "{}", family.name);
            }
        }
    }
}
