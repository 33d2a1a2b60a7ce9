//! Keys of clusters and backends.

use underpass_command::state::{Backend, Balance, Check, Cluster, RetryOn, SameSite, SendProxy, WhenAllDown};

use super::{redirect_modes, store};
use crate::config::syntax::{Syntax, parse_address, parse_choice, parse_hash_key, parse_status_ranges};
use crate::config::table::{Access, Key, Need};

/// An hour: longer waits of this kind are mistakes.
const HOUR_MS: u64 = 3600 * 1000;
/// A day.
const DAY_MS: u64 = 24 * HOUR_MS;
/// Ten minutes.
const TEN_MINUTES_MS: u64 = 600 * 1000;

/// Keys of `[[cluster]]`.
pub(in crate::config) static CLUSTER: &[Key<Cluster>] = &[
    text!("name", name, Need::Required("app"), Syntax::Name, "Unique among clusters."),
    choice!(
        "balance",
        balance,
        Balance,
        "How a backend is chosen, by each worker for itself: round-robin takes one after the other; random draws; \
         least-loaded takes the one with the fewest requests and tunnels of this worker under way; power-of-two the less \
         loaded of two drawn; peak-ewma the one of two drawn that answers faster, its requests under way counted in; \
         maglev the same one for the same hash, also after others came or went."
    ),
    Key {
        name: "hash",
        doc: "What maglev chooses by: ip is the client's address; requests without the header or cookie go to a backend \
              drawn.",
        need: Need::Default,
        access: Access::Text {
            syntax: Syntax::HashKey,
            get: |cluster| Some(cluster.hash.to_string()),
            set: |cluster, text| {
                cluster.hash = parse_hash_key(text)?;
                Ok(())
            },
        },
    },
    choice!(
        "when_all_down",
        when_all_down,
        WhenAllDown,
        "What becomes of requests while no backend is available: answer refuses them with 503; use-all sends them to \
         backends that are down or ejected, never to those that drain."
    ),
    integer!(
        "slow_start_ms",
        slow_start_ms,
        0..=HOUR_MS,
        "milliseconds",
        "How long the share of a backend grows after it was added or came up. 0 gives it its whole share at once."
    ),
    optional_text!(
        "sticky_cookie",
        sticky_cookie,
        "backend",
        Syntax::Token,
        "Name of a cookie that keeps a client at the backend of its first request while that is available. It tells no \
         address. One whose name begins with __Secure-, __Host- or __Http- is marked as secure."
    ),
    choice!(
        "sticky_same_site",
        sticky_same_site,
        SameSite,
        "With which requests of other sites clients send the sticky cookie: lax, those by which somebody comes from there; \
         strict, none; none, all, for what is embedded elsewhere. Clients take the last over HTTPS only, so it is marked as \
         secure, and TLS must end in front of this proxy."
    ),
    integer!(
        "queue_length",
        queue_length,
        0..=65_536,
        "requests",
        "Requests and tunnels of one worker that may wait while every available backend has in_flight_max of them; more \
         are refused with 503."
    ),
    integer!(
        "queue_timeout_ms",
        queue_timeout_ms,
        1..=TEN_MINUTES_MS,
        "milliseconds",
        "Longest wait there; then 503."
    ),
    choice!(
        "retry_on",
        retry_on,
        RetryOn,
        "What another backend is tried for: connect is a connection that cannot be made; idempotent also one that is \
         lost before a byte of the response, if the request is idempotent and still at hand. A pooled connection that \
         has just become stale is replaced once in any case. No body is ever sent twice."
    ),
    integer!(
        "retry_attempts",
        retry_attempts,
        1..=5,
        "attempts",
        "Backends that are tried for one request, the first included."
    ),
    integer!(
        "retry_budget_percent",
        retry_budget_percent,
        0..=1000,
        "percent",
        "Retries of one worker for each hundred requests to the cluster, so that retries do not overload what is left of \
         it."
    ),
    integer!(
        "retry_floor",
        retry_floor,
        0..=1_000_000,
        "retries",
        "Retries of one worker in each second that are allowed whatever retry_budget_percent says."
    ),
    choice!(
        "check",
        check,
        Check,
        "Whether the supervisor checks each backend, once for all workers: http wants an answer with check_status, tcp a \
         connection. Backends count as up until checks have failed."
    ),
    text!(
        "check_path",
        check_path,
        Need::Default,
        Syntax::CheckTarget,
        "What check = \"http\" asks for, by GET."
    ),
    optional_text!(
        "check_host",
        check_host,
        "app.example.com",
        Syntax::Host,
        "The host that check = \"http\" names. Without it: the backend's address."
    ),
    Key {
        name: "check_status",
        doc: "The statuses by which a backend tells check = \"http\" that it is healthy.",
        need: Need::Default,
        access: Access::Text {
            syntax: Syntax::StatusRanges,
            get: |cluster| Some(cluster.check_status.to_string()),
            set: |cluster, text| {
                cluster.check_status = parse_status_ranges(text)?;
                Ok(())
            },
        },
    },
    integer!(
        "check_interval_ms",
        check_interval_ms,
        100..=HOUR_MS,
        "milliseconds",
        "From one check of a backend to the next. The checks of all backends are spread over it."
    ),
    integer!(
        "check_timeout_ms",
        check_timeout_ms,
        10..=TEN_MINUTES_MS,
        "milliseconds",
        "Longest time of one check; then it has failed."
    ),
    integer!(
        "check_rise",
        check_rise,
        1..=1000,
        "checks",
        "Checks in a row that must succeed before a backend that is down counts as up."
    ),
    integer!(
        "check_fall",
        check_fall,
        1..=1000,
        "checks",
        "Checks in a row that must fail before a backend that is up counts as down."
    ),
    integer!(
        "eject_failures",
        eject_failures,
        0..=10_000,
        "failures",
        "After so many failures in a row (connections that cannot be made or are lost, responses 500 to 599) a worker \
         takes a backend out for eject_ms. 0 never does."
    ),
    integer!(
        "eject_ms",
        eject_ms,
        1..=HOUR_MS,
        "milliseconds",
        "How long a backend is taken out the first time; twice that the second time, and so on, up to eject_ms_max."
    ),
    integer!(
        "eject_ms_max",
        eject_ms_max,
        1..=DAY_MS,
        "milliseconds",
        "Longest time that a backend is taken out at once. At least eject_ms."
    ),
    integer!(
        "eject_percent_max",
        eject_percent_max,
        1..=100,
        "percent",
        "The part of the cluster's backends that may be taken out at a time."
    ),
    redirect_override!("Overrides the redirect mode of the process and of the listener."),
    boolean!(
        "chunked_requests",
        chunked_requests,
        "Whether request bodies of unknown length may be sent to these backends; otherwise 411."
    ),
    choice!(
        "send_proxy",
        send_proxy,
        SendProxy,
        "Whether each connection to these backends begins with a PROXY protocol header of this version, which tells the \
         client's address. Connections are not shared between clients then, so requests find none in the pool."
    ),
];

/// Keys of `[[cluster.backend]]`.
pub(in crate::config) static BACKEND: &[Key<Backend>] = &[
    address!("127.0.0.1:9000", Syntax::BackendAddress, "Address of the backend. Unique in its cluster."),
    optional_text!(
        "name",
        name,
        "app-1",
        Syntax::Name,
        "What its sticky cookie is made from instead of its address, so that its clients follow it to another address. \
         Unique in its cluster."
    ),
    integer!(
        "weight",
        weight,
        0..=256,
        "shares",
        "Its share of the requests in relation to the other backends. 0 gets no new ones."
    ),
    boolean!("backup", backup, "Whether it serves only while no other backend is available."),
    boolean!(
        "drain",
        drain,
        "Whether it gets no new requests, not even from clients that are kept there by a cookie. Those under way are \
         finished."
    ),
    integer!(
        "in_flight_max",
        in_flight_max,
        0..=1_000_000,
        "requests",
        "Requests and tunnels of one worker that may be under way there at a time. 0 means no limit."
    ),
];
