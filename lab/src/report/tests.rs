//! A report of made-up figures: everything in it appears, and nothing in it can be mistaken for markup.

use super::*;
use crate::latency::Percentiles;
use crate::ramp::{Knee, tests::step};
use crate::statistics::Verdict;

/// A contender that costs so many nanoseconds for each operation of the workload.
fn series(name: &str, size: usize, cost_ns: u64) -> Series {
    let measured = |per_s: f64| {
        let mut step = step(per_s, 1.0, cost_ns * 20);
        step.body_bytes = step.completed_in_span * size as u64;
        step.processes[0].run_ns = step.completed_in_span * cost_ns;
        step.machine.busy_ns = step.completed_in_span * cost_ns * 3;
        step
    };
    let rounds = (0..6)
        .map(|round| Round {
            round,
            workers: usize::from(name != "direct"),
            disturbed: false,
            step: measured(100.0),
        })
        .collect();
    let knee =
        Knee { held_per_s: Some(200.0), broke_per_s: Some(400.0), how: Some(crate::ramp::Break::Slow(7)) };
    Series {
        contender: name.into(),
        closed_per_s: Some(500.0),
        climb: Climb { steps: vec![measured(100.0), measured(200.0), measured(400.0)], knee },
        rounds,
        moved: [("bytes_copied".to_owned(), 25), ("bytes_spliced".to_owned(), 75)].into(),
        figures: None,
    }
}

fn cell(kind: Kind, size: usize, costs: &[(&str, u64)]) -> Cell {
    Cell {
        workload: Workload { kind, size, connections: 16 },
        compared_per_s: Some(100.0),
        series: costs.iter().map(|&(name, cost)| series(name, size, cost)).collect(),
        comparisons: Vec::new(),
    }
}

fn report() -> Report {
    let small = [("copy", 10_000), ("splice", 12_000), ("auto", 10_000), ("a<b", 20_000), ("direct", 1)];
    let large = [("copy", 90_000), ("splice", 40_000), ("auto", 41_000), ("a<b", 50_000), ("direct", 1)];
    let mut report = Report {
        title: "Lab & <script>".into(),
        command: "lab --quick".into(),
        machine: Machine::describe(Some("here".into())),
        arrangement: vec!["proxy on core 1".into()],
        method: Method {
            bounds: Bounds::default(),
            span_s: 1.0,
            warm_up_s: 0.1,
            timeout_s: 1.0,
            rounds: 6,
            load_share: 0.5,
        },
        contenders: small.iter().map(|(name, _)| ((*name).to_owned(), "one".to_owned())).collect(),
        refused: [("sockmap".to_owned(), "the kernel is <old>".to_owned())].into(),
        cells: vec![
            cell(Kind::Download, 1 << 10, &small),
            cell(Kind::Download, 1 << 20, &large),
            cell(Kind::Tunnel, 1 << 10, &small),
        ],
        steering: vec![SteeringRun {
            policy: "cpu".into(),
            reason: None,
            matrix: vec![SteeringRow { cpu: 0, workers: vec![90, 10] }],
            closed_per_s: Some(1.0),
            rounds: series("copy", 0, 10).rounds,
            figures: None,
        }],
        thresholds: Vec::new(),
        notes: vec!["one note".into()],
        failures: Vec::new(),
    };
    report.conclude();
    report
}

#[test]
fn costs_and_thresholds_follow_from_the_rounds() {
    let report = report();
    let figures = report.cells[0].of("copy").and_then(|series| series.figures).unwrap();
    assert!((figures.proxy_us.unwrap().median - 10.0).abs() < 1e-9, "{figures:?}");
    assert!((figures.machine_us.median - 30.0).abs() < 1e-9);
    // 10 us for each KiB are 10.48576 s for each GiB.
    assert!((figures.proxy_s_per_gib.unwrap().median - 10.48576).abs() < 1e-9);
    assert_eq!(report.cells[0].of("direct").and_then(|series| series.figures).unwrap().proxy_us, None);

    let ratio = report.cells[1].comparison("splice", "copy", Measure::ProxyCpu).unwrap();
    assert_eq!((ratio.verdict, ratio.rounds), (Verdict::Less, 6));
    let threshold = report.thresholds.iter().find(|threshold| threshold.mode == "splice").unwrap();
    assert_eq!((threshold.from_size, threshold.sizes.len()), (Some(1 << 20), 2));
    assert!(
        threshold.sentence().contains("splice beats copy from 1 MiB on (0.44 "),
        "{}",
        threshold.sentence()
    );
    assert_eq!(report.cells[1].best_fixed(Measure::ProxyCpu), Some("splice"));
    assert!(!report.thresholds.iter().any(|threshold| threshold.mode == "sockmap"));
}

#[test]
fn a_proxy_that_sleeps_costs_nothing_and_is_no_base() {
    let mut report = report();
    for round in &mut report.cells[0].series[0].rounds {
        round.step.processes[0].run_ns = 0;
    }
    report.conclude();
    let figures = report.cells[0].series[0].figures.unwrap();
    assert_eq!(figures.proxy_us.map(|interval| interval.median), Some(0.0));
    let ratio = |of, base| report.cells[0].comparison(of, base, Measure::ProxyCpu);
    assert_eq!(ratio("copy", "splice").map(|ratio| ratio.median), Some(0.0));
    assert_eq!(ratio("splice", "copy"), None);
    assert!(!html(&report).contains("NaN"));
}

#[test]
fn disturbed_rounds_are_left_out_while_there_are_others() {
    let mut report = report();
    let rounds = &mut report.cells[0].series[0].rounds;
    rounds[0].disturbed = true;
    rounds[0].step.processes[0].run_ns *= 100;
    report.conclude();
    let figures = report.cells[0].series[0].figures.unwrap();
    assert_eq!((figures.rounds, figures.rounds_disturbed), (5, 1));
    assert!((figures.proxy_us.unwrap().high - 10.0).abs() < 1e-9);
    for round in &mut report.cells[0].series[0].rounds {
        round.disturbed = true;
    }
    report.conclude();
    let ratio = report.cells[0].comparison("copy", "splice", Measure::ProxyCpu).unwrap();
    assert_eq!(ratio.verdict, Verdict::Disturbed);
}

#[test]
fn the_page_has_every_series_and_escapes() {
    let page = html(&report());
    for name in ["copy", "splice", "auto", "direct", "a&lt;b"] {
        for percentile in ["p99", "p50"] {
            assert!(page.contains(&format!(">{name} {percentile}<")), "{name} {percentile}");
        }
        assert!(page.contains(&format!("<td>{name}</td>")), "{name}");
    }
    for found in [
        "Lab &amp; &lt;script&gt;",
        "the kernel is &lt;old&gt;",
        "90 (90 %)",
        "splice beats copy from 1 MiB on",
        "broke at 400 per second",
        "splice moved by: copied 25 %, spliced 75 %",
        "what a proxy adds",
        "one note",
    ] {
        assert!(page.contains(found), "{found}");
    }
    // Self-contained: nothing is fetched, and nothing runs. The one address is the name of SVG's namespace.
    assert_eq!(page.replace("http://www.w3.org/2000/svg", "").matches("http").count(), 0);
    for absent in ["<script", "a<b", "NaN", "src=", "href="] {
        assert!(!page.contains(absent), "{absent}");
    }
}

#[test]
fn the_text_has_every_workload_and_contender() {
    let text = text(&report());
    for found in [
        "download of 1 KiB",
        "1 KiB messages, 16 tunnels",
        "a<b",
        "recommended for auto",
        "not measured: sockmap",
    ] {
        assert!(text.contains(found), "{found}: {text}");
    }
}

#[test]
fn the_json_reads_back() -> Result<()> {
    let report = report();
    let folder = tempfile::tempdir()?;
    let [json, page] = report.write(folder.path())?;
    let read: Report = serde_json::from_slice(&fs::read(json)?)?;
    // Numbers lose their last bit in serde_json's reading; what is written with them does not change.
    assert!(html(&read) == html(&report) && read.thresholds.len() == report.thresholds.len());
    assert!(fs::read_to_string(page)? == html(&report));
    Ok(())
}

#[test]
fn a_series_without_anything_is_no_trouble() {
    let mut report = report();
    report.cells[0].series.push(Series {
        contender: "empty".into(),
        closed_per_s: None,
        climb: Climb::default(),
        rounds: vec![Round {
            round: 0,
            workers: 1,
            disturbed: false,
            step: Step { latency: Percentiles::default(), ..step(0.0, 0.0, 0) },
        }],
        moved: BTreeMap::new(),
        figures: None,
    });
    report.conclude();
    let page = html(&report);
    assert!(page.contains("<td>empty</td>") && !page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn only_ways_and_fallbacks_that_grew_are_told() {
    let counters = |values: &[(&str, u64)]| Counters {
        values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
        ..Counters::default()
    };
    let mut series = Series { moved: BTreeMap::new(), ..series("sockmap", 1, 1) };
    assert_eq!(series.moved_by(), None);
    let before =
        counters(&[("bytes_copied", 10), ("fallback_no_pipe", 1), ("requests", 5), ("bytes_spliced", 3)]);
    let after =
        counters(&[("bytes_copied", 10), ("fallback_no_pipe", 3), ("requests", 9), ("bytes_sockmap", 8)]);
    series.add_moved(&before, &after);
    series.add_moved(&after, &after);
    assert_eq!(series.moved_by().as_deref(), Some("sockmap 100 %, fallback_no_pipe 2 times"));
}
