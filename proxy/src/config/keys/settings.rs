//! Keys of the process-wide settings.

use std::path::PathBuf;

use underpass_command::state::{AccessLogEscape, AccessLogFormat, RedirectMode, Settings, SteeringPolicy};

use super::store;
use crate::config::TIMEOUT_MS_MAX;
use crate::config::syntax::{Syntax, parse_address, parse_choice, parse_uids};
use crate::config::table::{Access, Key, Need};

/// No worker has more descriptors than this by default (`fs.nr_open`).
const DESCRIPTORS_MAX: u64 = 1024 * 1024;
/// So that an edited head goes out in one `writev`: two pieces for each field, and IOV_MAX is 1024.
const HEADER_COUNT_MAX: u64 = 500;
const TIB: u64 = 1 << 40;

macro_rules! timeout {
    ($name:literal, $field:ident, $doc:literal) => {
        integer!($name, timeouts.$field, 1..=TIMEOUT_MS_MAX, "milliseconds", $doc)
    };
}

/// Keys at the top of the file.
pub(in crate::config) static ROOT: &[Key<Settings>] = &[
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
    path!(
        "admin_socket",
        admin_socket,
        Syntax::Socket,
        "Unix socket of the admin API. Where the supervisor is not root, the default stands for underpass/admin.sock in \
         XDG_RUNTIME_DIR."
    ),
    Key {
        name: "admin_uids",
        doc: "Ids of the users that may call the admin API beside root and the user who started the proxy. The socket's \
              mode is 0666 then instead of 0600; who calls is checked for each connection.",
        need: Need::Optional("1000, 1001"),
        access: Access::Text {
            syntax: Syntax::Uids,
            get: |settings| {
                let uids: Vec<String> = settings.admin_uids.iter().map(ToString::to_string).collect();
                (!uids.is_empty()).then(|| uids.join(", "))
            },
            set: |settings, text| {
                settings.admin_uids = parse_uids(text)?;
                Ok(())
            },
        },
    },
    Key {
        name: "saved_state",
        doc: "File in which every change of the running configuration is kept. When the proxy starts and the file is there, \
              the configuration is taken from it, but for what only a start can settle; `underpass reload` makes it what the \
              configuration file says.",
        need: Need::Optional("/var/lib/underpass/state.json"),
        access: Access::Text {
            syntax: Syntax::File,
            get: |settings| settings.saved_state.as_ref().and_then(|path| path.to_str().map(str::to_owned)),
            set: |settings, text| {
                settings.saved_state = Some(PathBuf::from(text));
                Ok(())
            },
        },
    },
    choice!(
        "redirect",
        redirect,
        RedirectMode,
        "How the bytes of a body get from one socket to the other: copy reads and writes them, splice lets the \
         kernel move them through a pipe, sockmap lets BPF pass them on while the worker sleeps, auto chooses per body. A listener or cluster may say otherwise."
    ),
    choice!(
        "steering",
        steering,
        SteeringPolicy,
        "How a new connection finds its worker: cpu, the worker of the CPU that handles the connection request; \
         rx-queue, the worker of the network queue that it came in by; hash, one chosen by the flow's hash; off, \
         the kernel's choice."
    ),
    integer!(
        "splice_size_min",
        splice_size_min,
        0..=TIB,
        "bytes",
        "In mode auto, the smallest rest of a body that is worth a splice."
    ),
    integer!(
        "sockmap_size_min",
        sockmap_size_min,
        0..=TIB,
        "bytes",
        "In mode auto, the smallest rest of a body that is worth a redirection by sockmap. Tunnels always are; \
         the next bodies to a peer that took longer than a second for a credit are not."
    ),
    integer!(
        "sockmap_size_max",
        sockmap_size_max,
        0..=TIB,
        "bytes",
        "In mode auto, the largest body that is redirected by sockmap. Larger ones are spliced: they would cost the \
         worker less, but take longer, because the kernel waits for the clock's tick when a socket is full. \
         Below sockmap_size_min, no body is."
    ),
    text!(
        "via",
        via,
        Need::Default,
        Syntax::Via,
        "Name of this proxy in Via fields (RFC 9110 section 7.6.3). Empty leaves Via alone."
    ),
    text!(
        "sticky_secret",
        sticky_secret,
        Need::Default,
        Syntax::Secret,
        "Makes what sticky cookies say unreadable. Give the same to all proxies that share their clients. Empty: made from \
         the machine's id, so that cookies outlive a restart."
    ),
];

/// Keys of `[log]`.
pub(in crate::config) static LOG: &[Key<Settings>] = &[
    text!(
        "level",
        log.level,
        Need::Default,
        Syntax::LogFilter,
        "What the supervisor's own log holds, a level or a filter per module."
    ),
    choice!(
        "access",
        log.access,
        AccessLogFormat,
        "Format of the access log, one line per request: text and json say most of what is known, combined is what Apache and \
         nginx write under this name, template is what access_template says."
    ),
    Key {
        name: "access_template",
        doc: "What a line of the access log says where access is \"template\": text with the fields named above.",
        need: Need::Optional("$client \"$request\" $status $bytes ${duration_us}us"),
        access: Access::Text {
            syntax: Syntax::LogTemplate,
            get: |settings| settings.log.access_template.clone(),
            set: |settings, text| {
                settings.log.access_template = Some(text.to_owned());
                Ok(())
            },
        },
    },
    choice!(
        "access_escape",
        log.access_escape,
        AccessLogEscape,
        "How values are written into access_template, so that no client can end a line, quotes or a word: text writes \
         quotes, backslashes, control characters and what is not ASCII as \\xXX, outside of quotes spaces, too, and - for what \
         is missing; json writes them as JSON does, and null or, in quotes, nothing, and the template must be JSON."
    ),
    path!(
        "access_file",
        log.access_file,
        Syntax::File,
        "File of the access log. \"-\" is the standard output."
    ),
    Key {
        name: "audit_file",
        doc: "File of the audit log, one JSON object for each change that the admin API was asked for: who, what, the \
              new revision or why not. The supervisor's own log has the same under the target audit.",
        need: Need::Optional("/var/log/underpass/audit.log"),
        access: Access::Text {
            syntax: Syntax::File,
            get: |settings| {
                settings.log.audit_file.as_ref().and_then(|path| path.to_str().map(str::to_owned))
            },
            set: |settings, text| {
                settings.log.audit_file = Some(PathBuf::from(text));
                Ok(())
            },
        },
    },
];

/// Keys of `[metrics]`.
pub(in crate::config) static METRICS: &[Key<Settings>] = &[
    Key {
        name: "address",
        doc: "Where GET /metrics is answered for Prometheus, to anybody who can connect: use a loopback or internal address. \
              Without it: nowhere; the admin API has the same at /v1/metrics.",
        need: Need::Optional("127.0.0.1:9464"),
        access: Access::Text {
            syntax: Syntax::ListenAddress,
            get: |settings| settings.metrics.address.map(|address| address.to_string()),
            set: |settings, text| {
                settings.metrics.address = Some(parse_address(text)?);
                Ok(())
            },
        },
    },
    boolean!("backends", metrics.backends, "Whether each backend has metrics of its own."),
    integer!(
        "series_max",
        metrics.series_max,
        100..=10_000_000,
        "series",
        "Series in one answer. Those beyond are left out, those of backends first, and counted in \
         underpass_metrics_series_left_out. A cluster has about 60, a backend about 20."
    ),
];

/// Keys of `[limits]`.
pub(in crate::config) static LIMITS: &[Key<Settings>] = &[
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
        1..=HEADER_COUNT_MAX,
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
        "redirect_flows",
        limits.redirect_flows,
        0..=1024 * 1024,
        "connections",
        "Connections of one worker whose bytes sockmap can redirect at a time. 0 means that sockmap is not used."
    ),
    integer!(
        "redirect_credit",
        limits.redirect_credit,
        64 * 1024..=64 * 1024 * 1024,
        "bytes",
        "Bytes that sockmap may pass on in one direction before the target has drained what it got."
    ),
    integer!(
        "unsent_max",
        limits.unsent_max,
        64 * 1024..=64 * 1024 * 1024,
        "bytes",
        "Bytes that a socket may hold for a peer that does not take them (TCP_NOTSENT_LOWAT); what comes after them waits at \
         its source. At least redirect_credit."
    ),
    integer!(
        "backend_receive_size",
        limits.backend_receive_size,
        0..=64 * 1024 * 1024,
        "bytes",
        "Receive buffer of each connection to a backend (SO_RCVBUF; net.core.rmem_max is its bound). One connection gets about \
         this much in a round trip, and large bodies cost more CPU. 0 means that the kernel lets it grow, up to \
         net.ipv4.tcp_rmem."
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
pub(in crate::config) static TIMEOUTS: &[Key<Settings>] = &[
    timeout!(
        "head_ms",
        head_ms,
        "Longest time from the first byte of a request (or from accept) to the end of its head; then 408. Also from accept \
         to the end of a PROXY protocol header and of the ClientHello that routes with sni need."
    ),
    timeout!(
        "body_idle_ms",
        body_idle_ms,
        "Longest time without a byte of a body moving in either direction."
    ),
    timeout!("connect_ms", connect_ms, "Longest time to establish a connection to a backend; then 504."),
    timeout!(
        "response_ms",
        response_ms,
        "Longest time from the end of the request to the first byte of the response's head; then 504."
    ),
    timeout!(
        "keep_alive_ms",
        keep_alive_ms,
        "Longest time that a client connection waits for its next request."
    ),
    timeout!(
        "backend_keep_alive_ms",
        backend_keep_alive_ms,
        "Longest time that an idle connection to a backend stays in the pool."
    ),
    timeout!(
        "tunnel_idle_ms",
        tunnel_idle_ms,
        "Longest time without a byte in either direction of a tunnel."
    ),
    timeout!(
        "tcp_idle_ms",
        tcp_idle_ms,
        "Longest time without a byte passed on in either direction of a connection to a tcp listener; then both sides \
         are reset."
    ),
    timeout!(
        "linger_ms",
        linger_ms,
        "Longest time that a closing connection's peer may take to read the last bytes and close."
    ),
    timeout!(
        "drain_ms",
        drain_ms,
        "Longest time from the request to stop until the remaining connections are cut."
    ),
];

/// The tables of settings, and their keys.
pub(in crate::config) static TABLES: &[(&str, &[Key<Settings>])] =
    &[("log", LOG), ("metrics", METRICS), ("limits", LIMITS), ("timeouts", TIMEOUTS)];
