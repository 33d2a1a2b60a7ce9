//! The text as Prometheus would read it.

use std::collections::{BTreeMap, BTreeSet};

use underpass_command::api::SteeringRow;

use super::*;
use crate::metrics::{Block, Counter};

/// Two workers, two clusters of one backend each, and something counted everywhere.
fn scrape() -> Scrape {
    let blocks = [Block::create().expect("memfd"), Block::create().expect("memfd")];
    for block in &blocks {
        for counter in Counter::ALL {
            block.add(*counter, 3);
        }
        block.refused(Peer::Client, 1);
        block.refused(Peer::Backend, 2);
        ListenerCounter::ALL.iter().for_each(|counter| block.listener(0).add(*counter, 2));
        block.listener(0).duration(ListenerDuration::Total as usize, 900);
        ClusterCounter::ALL.iter().for_each(|counter| block.cluster(1).add(*counter, 4));
        block.cluster(1).duration(ClusterDuration::Total as usize, 1500);
        block.cluster(1).duration(ClusterDuration::FirstByte as usize, 70_000_000);
        BackendCounter::ALL.iter().for_each(|counter| block.backend(7).add(*counter, 5));
        block.backend(7).duration(BackendDuration::Connect as usize, 150);
    }
    let worker = WorkerItem {
        cpu: Some(1),
        pid: Some(std::process::id()),
        state: WorkerState::Running,
        restarts: 1,
        draining: Some(std::process::id()),
    };
    let backend = |number, cluster: usize, up, drain| BackendItem {
        number,
        cluster,
        address: format!("127.0.0.1:900{number}"),
        up,
        drain,
    };
    let steering = SteeringStatus {
        active: true,
        matrix: vec![SteeringRow { cpu: 3, workers: vec![5, 6], kernel: 1 }],
        outcomes: BTreeMap::from([("home".to_owned(), 11)]),
        ..SteeringStatus::default()
    };
    Scrape {
        settings: Metrics::default(),
        limits: Limits::default(),
        blocks: Arc::new(blocks.map(BlockPair::from).into()),
        workers: vec![
            worker.clone(),
            WorkerItem { pid: None, draining: None, state: WorkerState::Waiting, ..worker },
        ],
        listeners: vec![Item { number: 0, name: "web".into() }],
        clusters: vec![Item { number: 0, name: "idle".into() }, Item { number: 1, name: "app".into() }],
        backends: vec![backend(2, 0, None, true), backend(7, 1, Some(false), false)],
        rankings: Rankings::default(),
        started: Instant::now(),
        routes: 3,
        revision: 9,
        draining: false,
        steering,
        sockmap: true,
        access_log_lost_bytes: 12,
    }
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
}

#[test]
fn workers_add_up_and_each_thing_is_told_apart() {
    let text = scrape().render(Format::Prometheus);
    for line in [
        "underpass_worker_requests_total{worker=\"1\"} 3",
        "underpass_worker_responses_total{worker=\"0\",class=\"5xx\"} 3",
        "underpass_worker_forwarded_bytes_total{worker=\"0\",flow=\"tcp\",mode=\"sockmap\"} 3",
        "underpass_worker_pool_limit{worker=\"0\",pool=\"buffers\"} 40000",
        "underpass_worker_up{worker=\"0\"} 1",
        "underpass_worker_up{worker=\"1\"} 0",
        "underpass_worker_draining{worker=\"0\"} 1",
        "underpass_steering_connections_total{cpu=\"3\",worker=\"1\"} 6",
        "underpass_steering_connections_total{cpu=\"3\",worker=\"kernel\"} 1",
        "underpass_steering_outcomes_total{outcome=\"home\"} 11",
        "underpass_listener_requests_total{listener=\"web\"} 4",
        "underpass_listener_request_duration_seconds_bucket{listener=\"web\",le=\"0.001\"} 2",
        "underpass_cluster_requests_total{cluster=\"app\"} 8",
        "underpass_cluster_requests_total{cluster=\"idle\"} 0",
        "underpass_cluster_responses_total{cluster=\"app\",class=\"2xx\"} 8",
        "underpass_cluster_request_duration_seconds_bucket{cluster=\"app\",le=\"0.001\"} 0",
        "underpass_cluster_request_duration_seconds_bucket{cluster=\"app\",le=\"0.0025\"} 2",
        "underpass_cluster_request_duration_seconds_sum{cluster=\"app\"} 0.003",
        "underpass_cluster_first_byte_seconds_bucket{cluster=\"app\",le=\"60\"} 0",
        "underpass_cluster_first_byte_seconds_bucket{cluster=\"app\",le=\"+Inf\"} 2",
        "underpass_backend_connects_total{cluster=\"app\",backend=\"127.0.0.1:9007\"} 10",
        "underpass_backend_connect_seconds_count{cluster=\"app\",backend=\"127.0.0.1:9007\"} 2",
        "underpass_backend_up{cluster=\"app\",backend=\"127.0.0.1:9007\"} 0",
        "underpass_backend_draining{cluster=\"idle\",backend=\"127.0.0.1:9002\"} 1",
        "underpass_configuration_revision 9",
        "underpass_configured{kind=\"route\"} 3",
        "underpass_metrics_series_left_out 0",
    ] {
        has(&text, line);
    }
    assert!(!text.contains("underpass_backend_up{cluster=\"idle\""), "nobody has checked it");
    for process in ["serving", "draining"] {
        let of_process = format!("{{worker=\"0\",process=\"{process}\"}} ");
        assert!(text.contains(&format!("underpass_worker_resident_memory_bytes{of_process}")), "{text}");
        assert!(text.contains(&format!("underpass_worker_cpu_seconds_total{of_process}")), "{text}");
    }
}

#[test]
fn backends_can_be_left_out_and_series_are_bounded() {
    let mut scrape = scrape();
    scrape.settings.backends = false;
    assert!(!scrape.render(Format::Prometheus).contains("underpass_backend_"));
    scrape.settings.backends = true;
    let whole = scrape.render(Format::Prometheus);
    let series = |text: &str| {
        text.lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("underpass_metrics_series"))
            .count()
    };
    scrape.settings.series_max = 100;
    let cut = scrape.render(Format::Prometheus);
    assert_eq!(series(&cut), 100);
    has(&cut, &format!("underpass_metrics_series_left_out {}", series(&whole) - 100));
    has(&cut, "underpass_metrics_series_limit 100");
}

/// The name of the family that a sample belongs to, as the text format has it.
fn family_of<'a>(name: &'a str, kinds: &BTreeMap<&str, &str>) -> Option<&'a str> {
    if kinds.contains_key(name) {
        return Some(name);
    }
    let stem = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix))?;
    matches!(kinds.get(stem), Some(&"histogram" | &"summary")).then_some(stem)
}

/// The rules of <https://prometheus.io/docs/practices/naming/> and of the format, so far as a program can tell.
#[test]
fn names_help_and_types_are_as_prometheus_wants_them() {
    let text = scrape().render(Format::Prometheus);
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped: BTreeSet<&str> = BTreeSet::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            assert!(helped.insert(name), "{name} is described twice");
            assert!(help.ends_with('.') && !help.ends_with("..") && help.len() > 10, "{name}: {help}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            assert!(helped.contains(name), "{name} has no HELP before its TYPE");
            assert!(kinds.insert(name, kind).is_none(), "{name} has two types");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            current = name;
            continue;
        }
        assert!(seen.insert(line.rsplit_once(' ').expect("a value").0), "twice: {line}");
        let name = line.split(['{', ' ']).next().expect("a name");
        assert_eq!(family_of(name, &kinds), Some(current), "{line} stands in the family {current}");
        assert!(name.starts_with("underpass_") || name.starts_with("process_"), "{line}");
        let rest =
            name.trim_start_matches(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        assert_eq!(rest, "", "{name} has characters that names should not have");
        let abbreviated = ["_ms", "_us", "_ns", "_kb", "_mb", "_millis", "_percent", "_micros"];
        assert!(!abbreviated.iter().any(|unit| name.contains(&format!("{unit}_")) || name.ends_with(unit)));
    }
    // What OpenMetrics calls a family is the name without `_total`: no two may share it.
    let stems: BTreeSet<&str> = kinds.keys().map(|name| name.trim_end_matches("_total")).collect();
    assert_eq!(stems.len(), kinds.len());
}

#[test]
fn openmetrics_says_the_same_and_ends() {
    let scrape = scrape();
    let text = scrape.render(Format::OpenMetrics);
    assert!(text.ends_with("\n# EOF\n"));
    has(&text, "# TYPE underpass_cluster_requests counter");
    has(&text, "underpass_cluster_requests_total{cluster=\"app\"} 8");
    has(&text, "underpass_cluster_first_byte_seconds_bucket{cluster=\"app\",le=\"60.0\"} 0");
}

#[test]
fn top_has_the_busiest_with_what_was_counted_of_them() {
    let scrape = scrape();
    let top = scrape.top(1);
    assert_eq!((top.clusters_total, top.backends_total, top.revision), (2, 2, 9));
    let [cluster] = &top.clusters[..] else { panic!("{top:?}") };
    assert_eq!((cluster.name.as_str(), cluster.traffic.requests, cluster.retries), ("app", 8, 8));
    assert_eq!((cluster.total.count(), cluster.total.quantile_us(0.5)), (2, Some(1500)));
    let [backend] = &top.backends[..] else { panic!("{top:?}") };
    assert_eq!((backend.cluster.as_str(), backend.address.port(), backend.up), ("app", 9007, Some(false)));
    assert_eq!((backend.traffic.requests, backend.failures), (10, 20));
    assert_eq!((top.workers.len(), top.workers[1].active), (2, 3));
    assert_eq!(scrape.top(9).clusters.len(), 2);
}
