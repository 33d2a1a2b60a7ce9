//! The essence as text for a terminal.

use std::fmt::Write as _;

use super::{Cell, Figures, Kind, Report, Series};
use crate::statistics::Interval;

/// A number of bytes with its unit.
pub fn bytes_name(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 || unit == "GiB" {
            return format!("{} {unit}", short(value));
        }
        value /= 1024.0;
    }
    String::new()
}

/// Three significant digits, without trailing zeros behind the point.
pub(super) fn short(value: f64) -> String {
    let decimals = match value.abs() {
        magnitude if magnitude >= 100.0 => 0,
        magnitude if magnitude >= 10.0 => 1,
        magnitude if magnitude >= 1.0 => 2,
        0.0 => 0,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Median and interval.
pub(super) fn interval(interval: &Interval) -> String {
    format!("{} [{}, {}]", short(interval.median), short(interval.low), short(interval.high))
}

/// Columns that are always there: what was measured at the rate of the comparison.
pub(super) fn row(cell: &Cell, series: &Series) -> Vec<String> {
    let none = || "-".to_owned();
    let knee = series.climb.knee;
    let held = match (knee.held_per_s, knee.broke_per_s) {
        (Some(held), Some(_)) => short(held),
        (Some(held), None) => format!("> {}", short(held)),
        (None, Some(broke)) => format!("< {}", short(broke)),
        (None, None) => none(),
    };
    let figure = |of: &dyn Fn(&Figures) -> Option<Interval>| {
        series.figures.as_ref().and_then(of).map_or_else(none, |found| interval(&found))
    };
    let per_gib = matches!(cell.workload.kind, Kind::Download | Kind::Upload);
    let costs = if per_gib {
        [figure(&|figures| figures.proxy_s_per_gib), figure(&|figures| figures.machine_s_per_gib)]
    } else {
        [figure(&|figures| figures.proxy_us), figure(&|figures| Some(figures.machine_us))]
    };
    let [proxy, machine] = costs;
    let latency = |of: fn(&Figures) -> Interval| {
        series.figures.as_ref().map_or_else(none, |figures| short(of(figures).median))
    };
    let rounds = series.figures.map_or_else(none, |figures| {
        if figures.rounds_disturbed == 0 {
            figures.rounds.to_string()
        } else if figures.rounds == series.rounds.len() {
            format!("{} !", figures.rounds)
        } else {
            format!("{} of {}", figures.rounds, series.rounds.len())
        }
    });
    vec![
        series.contender.clone(),
        series.closed_per_s.map_or_else(none, short),
        held,
        latency(|figures| figures.p50_us),
        latency(|figures| figures.p90_us),
        latency(|figures| figures.p99_us),
        latency(|figures| figures.p999_us),
        latency(|figures| figures.p9999_us),
        latency(|figures| figures.lag_p99_us),
        proxy,
        machine,
        rounds,
    ]
}

/// The columns' names.
pub(super) fn header(cell: &Cell) -> Vec<String> {
    let unit = match cell.workload.kind {
        Kind::Download | Kind::Upload => "s/GiB",
        Kind::Tunnel => "us/message",
        Kind::Connections => "us/connection",
    };
    let mut header: Vec<String> = [
        "contender",
        "closed/s",
        "knee/s",
        "p50 us",
        "p90 us",
        "p99 us",
        "p99.9 us",
        "p99.99 us",
        "lag p99 us",
    ]
    .map(str::to_owned)
    .to_vec();
    header.extend([format!("proxy {unit}"), format!("machine {unit}"), "rounds".into()]);
    header
}

/// The tables, and what is recommended.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for cell in &report.cells {
        let rate =
            cell.compared_per_s.map_or_else(String::new, |rate| format!(", compared at {}/s", short(rate)));
        let _ = writeln!(text, "\n{}{rate}", cell.workload.name());
        let mut rows = vec![header(cell)];
        rows.extend(cell.series.iter().map(|series| row(cell, series)));
        text += &aligned(&rows);
        for series in &cell.series {
            if let Some(moved) = series.moved_by() {
                let _ = writeln!(text, "  {} moved by: {moved}", series.contender);
            }
        }
    }
    if !report.steering.is_empty() {
        text.push_str("\nsteering, many short connections\n");
        let mut rows = vec![
            ["policy", "closed/s", "p50 us", "p99 us", "machine us/connection"].map(str::to_owned).to_vec(),
        ];
        for run in &report.steering {
            let none = || "-".to_owned();
            let figure = |of: fn(&Figures) -> Interval| {
                run.figures.as_ref().map_or_else(none, |found| interval(&of(found)))
            };
            rows.push(vec![
                run.policy.clone(),
                run.closed_per_s.map_or_else(none, short),
                figure(|figures| figures.p50_us),
                figure(|figures| figures.p99_us),
                figure(|figures| figures.machine_us),
            ]);
        }
        text += &aligned(&rows);
    }
    if !report.thresholds.is_empty() {
        text.push_str("\nrecommended for auto\n");
        for threshold in &report.thresholds {
            let _ = writeln!(text, "  {}", threshold.sentence());
        }
    }
    for (name, reason) in &report.refused {
        let _ = writeln!(text, "\nnot measured: {name}: {reason}");
    }
    text
}

/// Rows with columns of equal width.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        for (number, (field, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if number == 0 {
                write!(text, "  {field:<width$}")
            } else {
                write!(text, "  {field:>width$}")
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.0123, "0.012"),
            (1.0, "1"),
            (1.256, "1.26"),
            (12.34, "12.3"),
            (1234.5, "1234"),
            (100.0, "100"),
        ] {
            assert_eq!(short(value), text);
        }
        for (bytes, text) in [(0.0, "0 B"), (1023.0, "1023 B"), (65536.0, "64 KiB"), (10_485_760.0, "10 MiB")]
        {
            assert_eq!(bytes_name(bytes), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bbb".to_owned(), "22".to_owned()]];
        assert_eq!(aligned(&rows), "  a     1\n  bbb  22\n");
    }
}
