//! The table of keys: every key of the configuration file, once.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use underpass_command::state::{
    AccessLogFormat, AtLimit, Backend, Balance, Cluster, ForwardedFields, Listener, PathMatch, RedirectMode,
    RequestId, Route, Settings, SteeringPolicy,
};

use super::syntax::{Syntax, parse_address, parse_choice};
use super::table::{Access, Key, Need};

/// 30 days: long enough for any wait, short enough that no deadline overflows.
const TIMEOUT_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// No worker has more descriptors than this by default (`fs.nr_open`).
const DESCRIPTORS_MAX: u64 = 1024 * 1024;
const TIB: u64 = 1 << 40;

/// A whole number. The fields after `$doc` lead from the state's item to the number.
macro_rules! integer {
    ($name:literal, $($field:ident).+, $range:expr, $unit:literal, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Integer {
                range: $range,
                unit: $unit,
                #[allow(clippy::useless_conversion, reason = "some of the fields are u64 already")]
                get: |item| u64::from(item.$($field).+),
                #[allow(irrefutable_let_patterns, clippy::useless_conversion, reason = "some of the fields are u64 already")]
                set: |item, number| {
                    let fitting = number.try_into();
                    if let Ok(number) = fitting {
                        item.$($field).+ = number;
                    }
                    fitting.is_ok()
                },
            },
        }
    };
}

macro_rules! boolean {
    ($name:literal, $field:ident, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Boolean { get: |item| item.$field, set: |item, yes| item.$field = yes },
        }
    };
}

/// One of an enum's names.
macro_rules! choice {
    ($name:literal, $($field:ident).+, $kind:ty, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Text {
                syntax: Syntax::Choice(|| <$kind>::ALL.iter().map(|value| value.name()).collect()),
                get: |item| Some(item.$($field).+.name().to_owned()),
                set: |item, text| {
                    let names: Vec<_> = <$kind>::ALL.iter().map(|value| value.name()).collect();
                    item.$($field).+ = parse_choice(&names, text)?;
                    Ok(())
                },
            },
        }
    };
}

/// The redirect mode of a listener or cluster, which may be left to the wider scope.
macro_rules! redirect_override {
    ($doc:literal) => {
        Key {
            name: "redirect",
            doc: $doc,
            need: Need::Optional("splice"),
            access: Access::Text {
                syntax: Syntax::Choice(redirect_modes),
                get: |item| item.redirect.map(|mode| mode.name().to_owned()),
                set: |item, text| {
                    item.redirect = Some(parse_choice(&redirect_modes(), text)?);
                    Ok(())
                },
            },
        }
    };
}

fn redirect_modes() -> Vec<&'static str> {
    RedirectMode::ALL.iter().map(|mode| mode.name()).collect()
}

macro_rules! text {
    ($name:literal, $($field:ident).+, $need:expr, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: $need,
            access: Access::Text {
                syntax: $syntax,
                get: |item| Some(item.$($field).+.clone()),
                set: |item, text| {
                    item.$($field).+ = text.to_owned();
                    Ok(())
                },
            },
        }
    };
}

macro_rules! optional_text {
    ($name:literal, $field:ident, $example:literal, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Optional($example),
            access: Access::Text {
                syntax: $syntax,
                get: |item| item.$field.clone(),
                set: |item, text| {
                    item.$field = Some(text.to_owned());
                    Ok(())
                },
            },
        }
    };
}

macro_rules! path {
    ($name:literal, $($field:ident).+, $syntax:expr, $doc:literal) => {
        Key {
            name: $name,
            doc: $doc,
            need: Need::Default,
            access: Access::Text {
                syntax: $syntax,
                get: |item| item.$($field).+.to_str().map(str::to_owned),
                set: |item, text| {
                    item.$($field).+ = PathBuf::from(text);
                    Ok(())
                },
            },
        }
    };
}

macro_rules! address {
    ($example:literal, $syntax:expr, $doc:literal) => {
        Key {
            name: "address",
            doc: $doc,
            need: Need::Required($example),
            access: Access::Text {
                syntax: $syntax,
                get: |item| Some(item.address.to_string()),
                set: |item, text| {
                    item.address = parse_address(text)?;
                    Ok(())
                },
            },
        }
    };
}

macro_rules! timeout {
    ($name:literal, $field:ident, $doc:literal) => {
        integer!($name, timeouts.$field, 1..=TIMEOUT_MS_MAX, "milliseconds", $doc)
    };
}

/// Keys at the top of the file.
pub(super) static ROOT: &[Key<Settings>] = &[
    integer!(
        "workers",
        workers,
        0..=1024,
        "workers",
        "Number of workers. 0 means one for each core that the process may use."
    ),
    text!(
        "user",
        user,
        Need::Default,
        Syntax::User,
        "User that the workers run as when the supervisor is root. Empty keeps the supervisor's user."
    ),
    path!("admin_socket", admin_socket, Syntax::Socket, "Unix socket of the admin API."),
    choice!(
        "redirect",
        redirect,
        RedirectMode,
        "How the bytes of a body get from one socket to the other: copy reads and writes them, splice lets the kernel move \
         them, auto chooses per body. A listener or cluster may say otherwise."
    ),
    choice!(
        "steering",
        steering,
        SteeringPolicy,
        "How a new connection finds its worker: cpu, the worker of the CPU that handles the connection request; rx-queue, \
         the worker of the network queue that it came in by; hash, one chosen by the flow's hash; off, the kernel's choice."
    ),
    integer!(
        "splice_size_min",
        splice_size_min,
        0..=TIB,
        "bytes",
        "In mode auto, the smallest rest of a body that is worth a splice."
    ),
    text!(
        "via",
        via,
        Need::Default,
        Syntax::Via,
        "Name of this proxy in Via fields (RFC 9110 section 7.6.3). Empty leaves Via alone."
    ),
];

/// Keys of `[log]`.
pub(super) static LOG: &[Key<Settings>] = &[
    text!(
        "level",
        log.level,
        Need::Default,
        Syntax::LogFilter,
        "What the supervisor's own log holds, a level or a filter per module."
    ),
    choice!("access", log.access, AccessLogFormat, "Format of the access log, one line per request."),
    path!("access_file", log.access_file, Syntax::File, "File of the access log. - is the standard output."),
];

/// Keys of `[limits]`.
pub(super) static LIMITS: &[Key<Settings>] = &[
    integer!(
        "connections",
        limits.connections,
        1..=DESCRIPTORS_MAX,
        "connections",
        "Client connections of one worker."
    ),
    integer!(
        "buffers",
        limits.buffers,
        0..=4 * DESCRIPTORS_MAX,
        "buffers",
        "Buffers of one worker. 0 means as many as its connections can ever need."
    ),
    integer!(
        "buffer_size",
        limits.buffer_size,
        4096..=1024 * 1024,
        "bytes",
        "Size of one buffer. A head must fit into it."
    ),
    integer!(
        "head_size_max",
        limits.head_size_max,
        512..=1024 * 1024,
        "bytes",
        "Longest head: request or status line and fields, with the empty line. At most buffer_size."
    ),
    integer!(
        "header_count_max",
        limits.header_count_max,
        1..=1000,
        "fields",
        "Most fields in a head or trailer section."
    ),
    integer!(
        "target_size_max",
        limits.target_size_max,
        16..=1024 * 1024,
        "bytes",
        "Longest request target. Less than head_size_max."
    ),
    integer!(
        "request_body_size_max",
        limits.request_body_size_max,
        0..=1024 * 1024 * TIB,
        "bytes",
        "Largest request body. 0 means no limit."
    ),
    integer!(
        "pipes",
        limits.pipes,
        0..=DESCRIPTORS_MAX / 2,
        "pipes",
        "Pipes of one worker, for splice. 0 means that nothing is spliced."
    ),
    integer!(
        "pipe_size",
        limits.pipe_size,
        4096..=64 * 1024 * 1024,
        "bytes",
        "Size of one pipe. The kernel rounds it up to a power of two pages."
    ),
    integer!(
        "backlog",
        limits.backlog,
        1..=65535,
        "connections",
        "Length of the accept queue of each listening socket."
    ),
    integer!(
        "backend_idle",
        limits.backend_idle,
        0..=DESCRIPTORS_MAX,
        "connections",
        "Idle connections that one worker keeps to one backend."
    ),
    integer!(
        "requests_per_connection",
        limits.requests_per_connection,
        0..=u32::MAX as u64,
        "requests",
        "Requests on one client connection before it is closed. 0 means no limit."
    ),
];

/// Keys of `[timeouts]`.
pub(super) static TIMEOUTS: &[Key<Settings>] = &[
    timeout!(
        "head_ms",
        head_ms,
        "From the first byte of a request (or from accept) to the end of its head; then 408."
    ),
    timeout!("body_idle_ms", body_idle_ms, "Without a byte of a body moving in either direction."),
    timeout!("connect_ms", connect_ms, "For a connection to a backend to be established; then 504."),
    timeout!(
        "response_ms",
        response_ms,
        "From the end of the request to the first byte of the response's head; then 504."
    ),
    timeout!("keep_alive_ms", keep_alive_ms, "A client connection that waits for its next request."),
    timeout!("backend_keep_alive_ms", backend_keep_alive_ms, "An idle connection to a backend in the pool."),
    timeout!("tunnel_idle_ms", tunnel_idle_ms, "Without a byte in either direction of a tunnel."),
    timeout!("linger_ms", linger_ms, "For a closing connection's peer to take the last bytes and close."),
    timeout!("drain_ms", drain_ms, "From the request to stop until the remaining connections are cut."),
];

/// The tables of settings, and their keys.
pub(super) static SETTINGS_TABLES: &[(&str, &[Key<Settings>])] =
    &[("log", LOG), ("limits", LIMITS), ("timeouts", TIMEOUTS)];

/// Keys of `[[listener]]`.
pub(super) static LISTENER: &[Key<Listener>] = &[
    text!("name", name, Need::Required("web"), Syntax::Name, "Unique among listeners."),
    address!("0.0.0.0:8080", Syntax::ListenAddress, "Address to listen on. Unique among listeners."),
    optional_text!(
        "default_cluster",
        default_cluster,
        "app",
        Syntax::Name,
        "Cluster of the requests that no route matches. Without it they are refused."
    ),
    redirect_override!("Overrides the process's redirect mode."),
    choice!(
        "x_forwarded",
        x_forwarded,
        ForwardedFields,
        "X-Forwarded-For, -Proto, -Host and -Port: append keeps what the client sent and adds this hop, replace removes what \
         the client sent, off passes it unchanged."
    ),
    choice!("forwarded", forwarded, ForwardedFields, "The same for Forwarded (RFC 7239)."),
    choice!(
        "request_id",
        request_id,
        RequestId,
        "X-Request-Id: keep makes one where the client sent none, replace always makes one, off passes it unchanged."
    ),
    choice!(
        "at_limit",
        at_limit,
        AtLimit,
        "Connections beyond limits.connections: refuse answers them with 503, wait leaves them in the accept queue."
    ),
];

/// Keys of `[[cluster]]`.
pub(super) static CLUSTER: &[Key<Cluster>] = &[
    text!("name", name, Need::Required("app"), Syntax::Name, "Unique among clusters."),
    choice!(
        "balance",
        balance,
        Balance,
        "How a backend is chosen: round-robin takes one after the other, least-loaded the one with the fewest requests of \
         this worker under way."
    ),
    redirect_override!("Overrides the redirect mode of the process and of the listener."),
    boolean!(
        "chunked_requests",
        chunked_requests,
        "Whether request bodies of unknown length may be sent to these backends; otherwise 411."
    ),
];

/// Keys of `[[cluster.backend]]`.
pub(super) static BACKEND: &[Key<Backend>] =
    &[address!("127.0.0.1:9000", Syntax::BackendAddress, "Address of the backend. Unique in its cluster.")];

/// Keys of `[[route]]`.
pub(super) static ROUTE: &[Key<Route>] = &[
    optional_text!(
        "listener",
        listener,
        "web",
        Syntax::Name,
        "Only for requests that came in by this listener. Without it: by any."
    ),
    Key {
        name: "host",
        doc: "Only for this host, or with *. in front for every name below it. Without it: for every host.",
        need: Need::Optional("*.example.com"),
        access: Access::Text {
            syntax: Syntax::Host,
            get: |route| route.host.clone(),
            set: |route, text| {
                // RFC 3986 3.2.2: hosts compare without regard to case.
                route.host = Some(text.to_ascii_lowercase());
                Ok(())
            },
        },
    },
    Key {
        name: "path",
        doc: "Only for this very path; the query does not count. Excludes path_prefix.",
        need: Need::Optional("/favicon.ico"),
        access: Access::Text {
            syntax: Syntax::UrlPath,
            get: |route| match &route.path {
                PathMatch::Exact(path) => Some(path.clone()),
                PathMatch::Prefix(_) => None,
            },
            set: |route, text| {
                route.path = PathMatch::Exact(text.to_owned());
                Ok(())
            },
        },
    },
    Key {
        name: "path_prefix",
        doc: "Only for paths that begin so, at a segment's border: /a takes /a and /a/b, not /ab. Without path and \
              path_prefix: for every path.",
        need: Need::Optional("/api"),
        access: Access::Text {
            syntax: Syntax::UrlPath,
            get: |route| match &route.path {
                PathMatch::Prefix(path) => Some(path.clone()),
                PathMatch::Exact(_) => None,
            },
            set: |route, text| {
                route.path = PathMatch::Prefix(text.to_owned());
                Ok(())
            },
        },
    },
    text!("cluster", cluster, Need::Required("app"), Syntax::Name, "Cluster that serves the requests."),
    boolean!(
        "allow_connect",
        allow_connect,
        "Whether CONNECT is allowed, and opens a tunnel to the cluster."
    ),
];

/// An item with every default, before a file says more. Its required keys hold what no file can give.
pub(super) trait Blank {
    fn blank() -> Self;
}

const UNSET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Blank for Listener {
    fn blank() -> Self {
        Self::new("", UNSET)
    }
}

impl Blank for Cluster {
    fn blank() -> Self {
        Self::new("")
    }
}

impl Blank for Backend {
    fn blank() -> Self {
        Self { address: UNSET }
    }
}

impl Blank for Route {
    fn blank() -> Self {
        Self::new("")
    }
}
