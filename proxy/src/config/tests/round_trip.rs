//! Any valid state written as a file and read again is the same.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use underpass_command::state::{
    AccessLogEscape, AccessLogFormat, AtLimit, Backend, Balance, Check, Cluster, ForwardedFields, HashKey,
    Limits, Listener, Log, Metrics, PathMatch, Protocol, ProxyProtocol, RedirectMode, RequestId, RetryOn,
    Route, SameSite, SendProxy, Settings, State, StatusRanges, SteeringPolicy, Timeouts, TraceContext,
    WhenAllDown,
};

use crate::config::{Problem, Severity, parse, to_toml, validate};

fn limits() -> impl Strategy<Value = Limits> {
    let sizes = (4096..=1_048_576_u32).prop_flat_map(|buffer_size| {
        (Just(buffer_size), 512..=buffer_size)
            .prop_flat_map(|(buffer, head)| (Just(buffer), Just(head), 16..head))
    });
    let counts = (1..=1_048_576_u32, 0..=4_194_304_u32, 1..=500_u16, 0..=524_288_u32, 1..=65_535_u32);
    let redirect = (65_536..=67_108_864_u32).prop_flat_map(|unsent_max| {
        let receive = prop_oneof![Just(0), 1..=67_108_864_u32];
        (0..=1_048_576_u32, 65_536..=u64::from(unsent_max), Just(unsent_max), receive)
    });
    (sizes, counts, 0..=(1_u64 << 60), 4096..=67_108_864_u32, 0..=1_048_576_u32, any::<u32>(), redirect)
        .prop_map(|(sizes, counts, body, pipe_size, backend_idle, requests, redirect)| {
            let (buffer_size, head_size_max, target_size_max) = sizes;
            Limits {
                connections: counts.0,
                buffers: counts.1,
                buffer_size,
                head_size_max,
                header_count_max: counts.2,
                target_size_max,
                request_body_size_max: body,
                pipes: counts.3,
                pipe_size,
                backlog: counts.4,
                backend_idle,
                requests_per_connection: requests,
                redirect_flows: redirect.0,
                redirect_credit: redirect.1,
                unsent_max: redirect.2,
                backend_receive_size: redirect.3,
            }
        })
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    vec(1..=2_592_000_000_u64, 10).prop_map(|ms| Timeouts {
        head_ms: ms[0],
        body_idle_ms: ms[1],
        connect_ms: ms[2],
        response_ms: ms[3],
        keep_alive_ms: ms[4],
        backend_keep_alive_ms: ms[5],
        tunnel_idle_ms: ms[6],
        linger_ms: ms[7],
        drain_ms: ms[8],
        tcp_idle_ms: ms[9],
    })
}

fn log() -> impl Strategy<Value = Log> {
    let level =
        select(vec!["info", "off", "WARN", "underpass=debug,warn", "a[span{field=\"x\\\\d\"}]=trace"]);
    // Whatever a file may be called: quotes, backslashes, brackets, more than ASCII.
    let file = "[^\\p{Cc}]{0,40}[^\\p{Cc}/]";
    // Good in both ways of escaping.
    let template = select(vec!["\"$host\"", "{\"a\\\\\":$status}", "[\"é $$ ${http_user_agent}\"]"]);
    let access = (select(AccessLogFormat::ALL), template, select(AccessLogEscape::ALL));
    (level, access, file, option::of(file)).prop_map(|(level, (access, template, escape), file, audit)| Log {
        level: level.into(),
        access,
        access_template: Some(template.into()),
        access_escape: escape,
        access_file: PathBuf::from(file),
        audit_file: audit.map(PathBuf::from),
    })
}

fn metrics() -> impl Strategy<Value = Metrics> {
    (option::of((ip(), any::<u16>())), any::<bool>(), 100..=10_000_000_u32).prop_map(
        |(address, backends, series_max)| Metrics {
            address: address.map(SocketAddr::from),
            backends,
            series_max,
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let via = "[a-zA-Z0-9.!#$%&'*+^_`|~-]{1,20}(:[0-9]{1,4})?|";
    let names = ("[a-z_][a-z0-9_-]{0,20}|", "/[^\\p{Cc}/]{1,20}", via, "[^\\p{Cc}]{0,20}");
    let modes = (select(RedirectMode::ALL), select(SteeringPolicy::ALL));
    let sizes = (0..=(1_u64 << 40), 0..=(1_u64 << 40));
    let saved_state = option::of("[^\\p{Cc}]{0,40}[^\\p{Cc}/]");
    let process = (0..=1024_u16, vec(0..u32::MAX, 0..4), saved_state);
    (process, names, modes, sizes, (log(), metrics()), limits(), timeouts()).prop_map(
        |(
            (workers, admin_uids, saved_state),
            (user, socket, via, secret),
            (redirect, steering),
            sizes,
            (log, metrics),
            limits,
            timeouts,
        )| {
            Settings {
                workers,
                user,
                admin_socket: socket.into(),
                admin_uids,
                saved_state: saved_state.map(PathBuf::from),
                redirect,
                steering,
                splice_size_min: sizes.0,
                sockmap_size_min: sizes.1,
                sockmap_size_max: sizes.0,
                via,
                sticky_secret: secret,
                log,
                metrics,
                limits,
                timeouts,
            }
        },
    )
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._-]{1,12}"
}

/// Addresses of one host.
fn ip() -> impl Strategy<Value = IpAddr> {
    let v4 = (1..=223_u8, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d]));
    let v6 = (0x2000..=0x3fff_u16, any::<[u16; 7]>())
        .prop_map(|(a, [b, c, d, e, f, g, h])| IpAddr::from([a, b, c, d, e, f, g, h]));
    prop_oneof![v4, v6]
}

fn listener() -> impl Strategy<Value = Listener> {
    let modes = (
        select(ForwardedFields::ALL),
        select(ForwardedFields::ALL),
        select(RequestId::ALL),
        select(AtLimit::ALL),
        select(Protocol::ALL),
        select(ProxyProtocol::ALL),
        select(TraceContext::ALL),
    );
    // Below the ports of the backends, so that no listener is a backend.
    let address = (ip(), 0..10_000_u16).prop_map(|(ip, port)| SocketAddr::new(ip, port));
    (name(), address, option::of(select(RedirectMode::ALL)), modes).prop_map(
        |(name, address, redirect, modes)| {
            let any = Listener {
                redirect,
                at_limit: modes.3,
                proxy_protocol: modes.5,
                ..Listener::new(name, address)
            };
            match modes.4 {
                Protocol::Http => {
                    let (x_forwarded, forwarded, request_id) = (modes.0, modes.1, modes.2);
                    Listener { x_forwarded, forwarded, request_id, trace_context: modes.6, ..any }
                }
                protocol @ Protocol::Tcp => Listener { protocol, ..any },
            }
        },
    )
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let choices = (
        select(Balance::ALL),
        option::of(select(RedirectMode::ALL)),
        select(SendProxy::ALL),
        select(SameSite::ALL),
    );
    let cluster = (name(), choices, any::<bool>(), vec(backend(), 0..4));
    (cluster, balancing(), retries(), checks(), ejection()).prop_map(
        |((name, choices, chunked_requests, backends), balancing, retries, checks, ejection)| Cluster {
            name,
            balance: choices.0,
            redirect: choices.1,
            send_proxy: choices.2,
            chunked_requests,
            backends,
            answers: Vec::new(),
            hash: balancing.0,
            when_all_down: balancing.1,
            slow_start_ms: balancing.2,
            sticky_cookie: balancing.3,
            sticky_same_site: choices.3,
            queue_length: balancing.4,
            queue_timeout_ms: balancing.5,
            retry_on: retries.0,
            retry_attempts: retries.1,
            retry_budget_percent: retries.2,
            retry_floor: retries.3,
            check: checks.0,
            check_path: checks.1,
            check_host: checks.2,
            check_status: checks.3,
            check_interval_ms: checks.4,
            check_timeout_ms: checks.5,
            check_rise: checks.6.0,
            check_fall: checks.6.1,
            eject_failures: ejection.0,
            eject_ms: ejection.1,
            eject_ms_max: ejection.2,
            eject_percent_max: ejection.3,
        },
    )
}

fn backend() -> impl Strategy<Value = Backend> {
    let flags = (any::<bool>(), any::<bool>());
    let numbers = (0..=256_u16, 0..=1_000_000_u32);
    (ip(), 10_000..=u16::MAX, option::of(name()), flags, numbers).prop_map(
        |(ip, port, name, (backup, drain), (weight, in_flight_max))| Backend {
            address: SocketAddr::new(ip, port),
            name,
            weight,
            backup,
            drain,
            in_flight_max,
        },
    )
}

type Balancing = (HashKey, WhenAllDown, u64, Option<String>, u32, u64);

fn balancing() -> impl Strategy<Value = Balancing> {
    let token = "[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,20}";
    let hash =
        prop_oneof![Just(HashKey::Ip), token.prop_map(HashKey::Header), token.prop_map(HashKey::Cookie)];
    (hash, select(WhenAllDown::ALL), 0..=3_600_000_u64, option::of(token), 0..=65_536_u32, 1..=600_000_u64)
}

fn retries() -> impl Strategy<Value = (RetryOn, u8, u16, u32)> {
    (select(RetryOn::ALL), 1..=5_u8, 0..=1000_u16, 0..=1_000_000_u32)
}

type Checks = (Check, String, Option<String>, StatusRanges, u64, u64, (u16, u16));

fn checks() -> impl Strategy<Value = Checks> {
    let host = "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}";
    let status = prop_oneof![Just("200"), Just("200-399"), Just("200,204,300-308")];
    (
        select(Check::ALL),
        "/[a-z0-9?=&./-]{0,20}",
        option::of(host),
        status.prop_map(|text| text.parse().expect("valid")),
        100..=3_600_000_u64,
        10..=600_000_u64,
        (1..=1000_u16, 1..=1000_u16),
    )
}

fn ejection() -> impl Strategy<Value = (u32, u64, u64, u8)> {
    (0..=10_000_u32, 1..=3_600_000_u64, 0..=82_800_000_u64, 1..=100_u8)
        .prop_map(|(failures, ms, more, percent)| (failures, ms, ms + more, percent))
}

/// A route, and which listener and cluster it takes, as indexes.
fn route() -> impl Strategy<Value = (Route, Option<prop::sample::Index>, prop::sample::Index)> {
    let host = option::of("(\\*\\.)?[a-z0-9_]{1,8}(\\.[a-z0-9_]{1,8}){0,3}|\\[::1\\]");
    let path = "/|(/[a-zA-Z0-9_~!$&'()*+,;=:@-]{1,8}(%[0-9A-F]{2})?){1,4}/?";
    let path = (any::<bool>(), path).prop_map(|(exact, path)| match exact {
        true => PathMatch::Exact(path),
        false => PathMatch::Prefix(path),
    });
    let http = (host, path, any::<bool>()).prop_map(|(host, path, allow_connect)| Route {
        host,
        path,
        allow_connect,
        ..Route::new("")
    });
    let name = "(\\*\\.)?[a-z][a-z0-9_]{0,7}(\\.[a-z][a-z0-9_]{0,7}){0,3}";
    let tcp = name.prop_map(|name| Route { sni: Some(name), ..Route::new("") });
    let route = prop_oneof![http, tcp];
    (route, option::of(any::<prop::sample::Index>()), any::<prop::sample::Index>())
}

prop_compose! {
    fn state()(
        settings in settings(),
        mut listeners in vec((listener(), option::of(any::<prop::sample::Index>())), 0..4),
        clusters in vec(cluster(), 1..4),
        routes in vec(route(), 0..6),
    ) -> State {
        for (listener, default_cluster) in &mut listeners {
            let first = (listener.protocol == Protocol::Tcp).then(|| clusters[0].name.clone());
            listener.default_cluster = default_cluster.map(|index| index.get(&clusters).name.clone()).or(first);
        }
        // A route would name both of two that are called the same, whatever they speak.
        let mut names = HashSet::new();
        listeners.retain(|(listener, _)| names.insert(listener.name.clone()));
        let listeners: Vec<_> = listeners.into_iter().map(|(listener, _)| listener).collect();
        let routes = routes.into_iter().filter_map(|(route, listener, cluster)| {
            let protocol = if route.sni.is_some() { Protocol::Tcp } else { Protocol::Http };
            let fit: Vec<_> = listeners.iter().filter(|listener| listener.protocol == protocol).collect();
            // A route by server name needs a listener that sees it.
            (protocol == Protocol::Http || !fit.is_empty()).then(|| Route {
                listener: listener.filter(|_| !fit.is_empty()).map(|index| index.get(&fit).name.clone()),
                cluster: Some(cluster.get(&clusters).name.clone()),
                ..route
            })
        });
        State { settings, routes: routes.collect(), listeners, clusters, answers: Vec::new() }
    }
}

proptest! {
    // The same states in every run.
    #![proptest_config(ProptestConfig {
        cases: 200,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_state_written_and_read_is_the_same(state in state()) {
        let text = to_toml(&state);
        let errors: Vec<Problem> =
            validate(&state).into_iter().filter(|problem| problem.severity == Severity::Error).collect();
        match parse(&text, "state.toml") {
            Ok(read) => {
                prop_assert_eq!(read, state);
                prop_assert_eq!(errors, []);
            }
            // What is drawn is valid by itself, but may be there twice.
            Err(refused) => {
                let reasons = ["already", "the same listener"];
                let expected = |problem: &Problem| reasons.iter().any(|reason| problem.reason.contains(reason));
                prop_assert!(!errors.is_empty() && errors.iter().all(expected), "{refused}\n{text}");
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[\\[\\]a-z=\"'.0-9\n _#{},-]{0,200}") {
        let _ = parse(&text, "any.toml");
    }
}
