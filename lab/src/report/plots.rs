//! Which plots a report has.

use super::svg::{Axis, Bar, Line, Marker, Point, Scale, Style, heat_map, line_plot, ratio_plot};
use super::text::{bytes_name, short};
use super::{Cell, Figures, Kind, Measure, Report, SteeringRun};
use crate::load::Step;
use crate::ramp::Bounds;
use crate::statistics::{Interval, Verdict};

/// Colours that can be told apart by those who see few of them (Okabe and Ito), the same for a name in every plot.
pub(super) fn style(name: &str) -> Style {
    let (color, marker) = match name {
        "copy" => ("#d55e00", Marker::Square),
        "splice" => ("#0072b2", Marker::Circle),
        "sockmap" => ("#009e73", Marker::Triangle),
        "auto" | "underpass" => ("#000000", Marker::Diamond),
        "haproxy" | "haproxy-http" => ("#cc79a7", Marker::Down),
        "haproxy-tcp" => ("#e69f00", Marker::Down),
        "direct" => ("#999999", Marker::Circle),
        _ => ("#56b4e9", Marker::Square),
    };
    Style { color, marker }
}

/// Latency against load.
pub(super) fn latency(cell: &Cell, bounds: &Bounds) -> String {
    let mut lines = Vec::new();
    for series in &cell.series {
        for (percentile, of, dashed) in [
            ("p99", (|step| step.latency.p99_ns) as fn(&Step) -> u64, false),
            ("p50", |step| step.latency.p50_ns, true),
        ] {
            let mut points: Vec<Point> = series
                .climb
                .steps
                .iter()
                .filter_map(|step| {
                    let y = of(step) as f64 / 1e3;
                    let broken = bounds.broken_by(step).is_some();
                    Some(Point { x: step.asked_per_s?, y, low: y, high: y, broken })
                })
                .collect();
            points.sort_by(|one, other| one.x.total_cmp(&other.x));
            if !points.is_empty() {
                let name = format!("{} {percentile}", series.contender);
                lines.push(Line { name, style: style(&series.contender), dashed, points });
            }
        }
    }
    let unit = match cell.workload.kind {
        Kind::Tunnel => "messages",
        Kind::Connections => "connections",
        _ => "requests",
    };
    let x_axis = Axis {
        label: format!("load: {unit} per second asked for"),
        scale: Scale::Linear,
        ticks: None,
        format: thousands,
    };
    let y_axis = Axis {
        label: "latency from the scheduled time".into(),
        scale: Scale::Log,
        ticks: None,
        format: microseconds,
    };
    line_plot(&format!("{}: latency against load", cell.workload.name()), &x_axis, &y_axis, &lines)
}

/// What a GiB costs, against the size of bodies.
pub(super) fn cost(report: &Report, kind: Kind, title: &str, of: fn(&Figures) -> Option<Interval>) -> String {
    let cells: Vec<&Cell> = report.cells.iter().filter(|cell| cell.workload.kind == kind).collect();
    let mut lines = Vec::new();
    for name in report.contenders.keys() {
        let mut points: Vec<Point> = cells
            .iter()
            .filter_map(|cell| {
                let Interval { median, low, high, .. } = of(cell.of(name)?.figures.as_ref()?)?;
                Some(Point { x: cell.workload.size as f64, y: median, low, high, broken: false })
            })
            .collect();
        points.sort_by(|one, other| one.x.total_cmp(&other.x));
        if !points.is_empty() {
            lines.push(Line { name: name.clone(), style: style(name), dashed: false, points });
        }
    }
    let mut sizes: Vec<f64> = cells.iter().map(|cell| cell.workload.size as f64).collect();
    sizes.sort_by(f64::total_cmp);
    if sizes.len() < 2 {
        // One size makes no line.
        return String::new();
    }
    let x_axis =
        Axis { label: "size of each body".into(), scale: Scale::Log, ticks: Some(sizes), format: bytes_name };
    let y_axis = Axis { label: "CPU seconds per GiB".into(), scale: Scale::Log, ticks: None, format: short };
    line_plot(title, &x_axis, &y_axis, &lines)
}

/// Each mode's cost in proportion to the best fixed mode, by size.
pub(super) fn crossover(report: &Report, kind: Kind, measure: Measure) -> String {
    let mut cells: Vec<&Cell> = report.cells.iter().filter(|cell| cell.workload.kind == kind).collect();
    cells.sort_by_key(|cell| cell.workload.size);
    let groups: Vec<(String, Vec<Bar>)> = cells
        .iter()
        .filter_map(|cell| {
            let best = cell.best_fixed(measure)?;
            let bars =
                cell.series.iter().filter(|series| series.contender != best && series.contender != "direct");
            let bars = bars.filter_map(|series| {
                let ratio = cell.comparison(&series.contender, best, measure)?;
                Some(Bar {
                    name: series.contender.clone(),
                    style: style(&series.contender),
                    median: ratio.median,
                    low: ratio.low,
                    high: ratio.high,
                    sure: matches!(ratio.verdict, Verdict::Less | Verdict::More),
                })
            });
            let size = bytes_name(cell.workload.size as f64);
            Some((format!("{size}: best {best}"), bars.collect::<Vec<_>>()))
        })
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let title = format!("{}: {} in proportion to the best fixed mode", kind.name(), measure.name());
    ratio_plot(&title, "below 1: costs less; hollow: within the noise", &groups)
}

/// The steering matrix of one policy.
pub(super) fn steering(run: &SteeringRun) -> String {
    let rows: Vec<(String, Vec<u64>)> =
        run.matrix.iter().map(|row| (format!("CPU {}", row.cpu), row.workers.clone())).collect();
    let columns = run.matrix.iter().map(|row| row.workers.len()).max().unwrap_or(0);
    let workers = (1..columns).map(|number| format!("worker {}", number - 1));
    let columns: Vec<String> = workers.chain(["kernel's hash".to_owned()]).collect();
    heat_map(&format!("policy {}", run.policy), &rows, &columns)
}

fn thousands(value: f64) -> String {
    if value >= 10_000.0 { format!("{}k", short(value / 1e3)) } else { short(value) }
}

fn microseconds(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", short(us / 1e6)),
        us if us >= 1e3 => format!("{} ms", short(us / 1e3)),
        us => format!("{} µs", short(us)),
    }
}
