//! The report as one page that needs nothing else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::svg::escape;
use super::text::{header, interval, row, short};
use super::{Cell, Figures, Kind, Measure, Report, plots};
use crate::statistics::{Interval, Ratio, Verdict};

const STYLE: &str = "\
body{font:14px/1.45 system-ui,'DejaVu Sans',sans-serif;color:#222;max-width:1360px;margin:24px auto;padding:0 20px}
h1{font-size:24px}h2{font-size:19px;margin-top:34px;border-bottom:1px solid #bbb}h3{font-size:15px;margin:22px 0 6px}
table{border-collapse:collapse;margin:6px 0 14px;font-size:12.5px}
th,td{padding:2px 9px;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{border-bottom:1px solid #777}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(560px,1fr));gap:14px}
.maps{display:flex;flex-wrap:wrap;gap:14px}.maps svg{width:300px}
svg{width:100%;height:auto;font-family:inherit;break-inside:avoid}ul{margin:6px 0}
.key{background:#f3f6f9;border:1px solid #ccd6df;padding:8px 16px;break-inside:avoid}.bad{color:#a00}
@media print{body{margin:0;max-width:none;font-size:11px}.plots{grid-template-columns:1fr 1fr}table{font-size:9.5px}h2{break-after:avoid}}";

/// The page.
pub fn html(report: &Report) -> String {
    let title = escape(&report.title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    let machine = &report.machine;
    paragraph(
        &mut page,
        &format!(
            "{}. {}, {} cores, {} MiB, Linux {}; source {}. Made by: {}",
            machine.date,
            machine.processor,
            machine.cores,
            machine.memory_mib,
            machine.kernel,
            machine.source,
            report.command
        ),
    );
    conclusions(&mut page, report);
    costs(&mut page, report);
    latencies(&mut page, report);
    tunnels(&mut page, report);
    steering(&mut page, report);
    tables(&mut page, report);
    method(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

fn paragraph(page: &mut String, text: &str) {
    let _ = writeln!(page, "<p>{}</p>", escape(text));
}

fn list<'a>(page: &mut String, class: &str, lines: impl IntoIterator<Item = &'a str>) {
    let mut lines = lines.into_iter().peekable();
    if lines.peek().is_none() {
        return;
    }
    let _ = writeln!(page, "<ul class=\"{class}\">");
    for line in lines {
        let _ = writeln!(page, "<li>{}</li>", escape(line));
    }
    page.push_str("</ul>\n");
}

fn table(page: &mut String, header: &[String], rows: impl IntoIterator<Item = Vec<String>>) {
    let cells = |fields: &[String], tag: &str| -> String {
        fields.iter().map(|field| format!("<{tag}>{}</{tag}>", escape(field))).collect()
    };
    let _ = writeln!(page, "<table><thead><tr>{}</tr></thead><tbody>", cells(header, "th"));
    for row in rows {
        let _ = writeln!(page, "<tr>{}</tr>", cells(&row, "td"));
    }
    page.push_str("</tbody></table>\n");
}

fn figure(page: &mut String, svgs: impl IntoIterator<Item = String>) {
    let drawn: Vec<String> = svgs.into_iter().filter(|svg| !svg.is_empty()).collect();
    if !drawn.is_empty() {
        let _ = writeln!(page, "<div class=\"plots\">\n{}</div>", drawn.concat());
    }
}

fn conclusions(page: &mut String, report: &Report) {
    if !report.failures.is_empty() {
        page.push_str("<h2>What went wrong</h2>\n");
        list(page, "bad", report.failures.iter().map(String::as_str));
    }
    if !report.thresholds.is_empty() {
        page.push_str("<h2>Recommended for auto</h2>\n<div class=\"key\">\n");
        let sentences: Vec<String> = report.thresholds.iter().map(super::Threshold::sentence).collect();
        list(page, "", sentences.iter().map(String::as_str));
        page.push_str("</div>\n");
    }
    if !report.refused.is_empty() {
        page.push_str("<h2>Not measured</h2>\n");
        let lines: Vec<String> = report.refused.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        list(page, "", lines.iter().map(String::as_str));
    }
}

fn has(report: &Report, kind: Kind) -> bool {
    report.cells.iter().any(|cell| cell.workload.kind == kind)
}

fn costs(page: &mut String, report: &Report) {
    let kinds: Vec<Kind> =
        [Kind::Download, Kind::Upload].into_iter().filter(|&kind| has(report, kind)).collect();
    let compared = report.cells.iter().any(|cell| cell.series.iter().any(|series| series.figures.is_some()));
    if kinds.is_empty() || !compared {
        return;
    }
    page.push_str("<h2>What a GiB costs, by size and mode</h2>\n");
    for kind in kinds {
        let titled = |what: &str| format!("{}: {what} CPU for each GiB", kind.name());
        figure(
            page,
            [
                plots::cost(report, kind, &titled("proxy"), |figures| figures.proxy_s_per_gib),
                plots::cost(report, kind, &titled("machine"), |figures| figures.machine_s_per_gib),
                plots::crossover(report, kind, Measure::ProxyCpu),
                plots::crossover(report, kind, Measure::MachineCpu),
            ],
        );
        against_best(page, report, kind);
    }
}

/// `auto` in proportion to the best fixed mode.
fn against_best(page: &mut String, report: &Report, kind: Kind) {
    let fields = |cell: &Cell| -> Option<Vec<String>> {
        let mut fields = vec![cell.workload.name()];
        for measure in [Measure::ProxyCpu, Measure::MachineCpu, Measure::P50, Measure::P99] {
            let best = cell.best_fixed(measure)?;
            fields.push(format!("{best}: {}", ratio(cell.comparison("auto", best, measure)?)));
        }
        Some(fields)
    };
    let rows: Vec<_> =
        report.cells.iter().filter(|cell| cell.workload.kind == kind).filter_map(fields).collect();
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h3>auto in proportion to the best fixed mode, {}</h3>", kind.name());
    let header = ["", "proxy CPU", "machine CPU", "p50", "p99"].map(str::to_owned);
    table(page, &header, rows);
}

fn ratio(ratio: &Ratio) -> String {
    let mark = match ratio.verdict {
        Verdict::Less | Verdict::More => "",
        Verdict::WithinNoise => " ~",
        Verdict::TooFewRounds => " ?",
        Verdict::Disturbed => " !",
    };
    format!("{} [{}, {}]{mark}", short(ratio.median), short(ratio.low), short(ratio.high))
}

fn latencies(page: &mut String, report: &Report) {
    page.push_str("<h2>Latency against load</h2>\n");
    paragraph(
        page,
        "Open loop: latency is counted from the time at which a request was to be sent. A cross is a step that broke a \
         bound. Solid lines: 99th percentile; dashed lines: median.",
    );
    figure(page, report.cells.iter().map(|cell| plots::latency(cell, &report.method.bounds)));
}

fn tunnels(page: &mut String, report: &Report) {
    for cell in report.cells.iter().filter(|cell| cell.workload.kind == Kind::Tunnel) {
        let added = |of: fn(&Figures) -> Interval, figures: &Figures| -> Option<String> {
            let floor = cell.of("direct")?.figures.as_ref()?;
            Some(short(of(figures).median - of(floor).median))
        };
        let rows: Vec<Vec<String>> = cell
            .series
            .iter()
            .filter_map(|series| {
                let figures = series.figures.as_ref()?;
                let none = || "-".to_owned();
                Some(vec![
                    series.contender.clone(),
                    interval(&figures.p50_us),
                    interval(&figures.p99_us),
                    added(|figures| figures.p50_us, figures).unwrap_or_else(none),
                    added(|figures| figures.p99_us, figures).unwrap_or_else(none),
                ])
            })
            .collect();
        if !rows.is_empty() {
            let _ = writeln!(page, "<h2>{}: what a proxy adds</h2>", escape(&cell.workload.name()));
            let header = ["", "p50 µs", "p99 µs", "p50 added to direct, µs", "p99 added to direct, µs"];
            table(page, &header.map(str::to_owned), rows);
        }
    }
}

fn steering(page: &mut String, report: &Report) {
    if report.steering.is_empty() {
        return;
    }
    page.push_str("<h2>Steering</h2>\n");
    paragraph(
        page,
        "New connections by the CPU that received them (rows) and the worker that they were steered to (columns).",
    );
    let maps: String = report.steering.iter().map(plots::steering).collect();
    let _ = writeln!(page, "<div class=\"maps\">\n{maps}</div>");
    let header = [
        "policy",
        "closed loop, connections/s",
        "p50 µs",
        "p99 µs",
        "machine µs/connection",
        "proxy µs/connection",
    ];
    let rows = report.steering.iter().map(|run| {
        let none = || "-".to_owned();
        let of = |value: fn(&Figures) -> Option<Interval>| {
            run.figures.as_ref().and_then(value).map_or_else(none, |found| interval(&found))
        };
        vec![
            run.reason
                .as_ref()
                .map_or_else(|| run.policy.clone(), |why| format!("{} (by the kernel: {why})", run.policy)),
            run.closed_per_s.map_or_else(none, short),
            of(|figures| Some(figures.p50_us)),
            of(|figures| Some(figures.p99_us)),
            of(|figures| Some(figures.machine_us)),
            of(|figures| figures.proxy_us),
        ]
    });
    table(page, &header.map(str::to_owned), rows);
}

fn tables(page: &mut String, report: &Report) {
    page.push_str("<h2>All figures</h2>\n");
    for cell in &report.cells {
        let rate = cell
            .compared_per_s
            .map_or_else(String::new, |rate| format!(", compared at {} per second", short(rate)));
        let _ = writeln!(page, "<h3>{}{rate}</h3>", escape(&cell.workload.name()));
        table(page, &header(cell), cell.series.iter().map(|series| row(cell, series)));
        let moved: Vec<String> = cell
            .series
            .iter()
            .filter_map(|series| Some(format!("{} moved by: {}", series.contender, series.moved_by()?)))
            .collect();
        list(page, "", moved.iter().map(String::as_str));
        let broke: Vec<String> = cell
            .series
            .iter()
            .filter_map(|series| {
                let knee = series.climb.knee;
                let broke = knee.broke_per_s?;
                let steps = series.climb.steps.iter().filter(|step| step.asked_per_s == Some(broke));
                let reasons: BTreeSet<&str> =
                    steps.flat_map(|step| step.error_reasons.keys()).map(String::as_str).collect();
                let reasons: String = reasons.iter().map(|reason| format!("; {reason}")).collect();
                Some(format!(
                    "{} broke at {} per second: {}{reasons}",
                    series.contender,
                    short(broke),
                    knee.how?
                ))
            })
            .collect();
        list(page, "", broke.iter().map(String::as_str));
    }
}

fn method(page: &mut String, report: &Report) {
    let method = &report.method;
    page.push_str("<h2>How it was measured</h2>\n");
    list(page, "", report.arrangement.iter().map(String::as_str));
    let bounds = &method.bounds;
    let rules = [
        format!(
            "A step has a span of {} s after {} s of load. It breaks when more than {} % of the operations fail or take more than {} s, \
             when less than {} % are completed within the span, or when the 99th percentile exceeds {} ms. A step that \
             breaks is repeated once before it counts.",
            short(method.span_s),
            short(method.warm_up_s),
            short(bounds.failed_share_max * 100.0),
            short(method.timeout_s),
            short(bounds.achieved_share_min * 100.0),
            short(bounds.p99_ns_max as f64 / 1e6)
        ),
        format!(
            "Contenders are compared in {} rounds, one after the other in each round, at the same rate: {} % of the lowest knee among them. \
             Figures are medians with the interval that holds the true median with at least 95 % (sign test), if there \
             are six rounds.",
            method.rounds,
            short(method.load_share * 100.0)
        ),
        "Ratios are medians over rounds measured side by side. ~: the interval holds 1, so the difference is within the noise. \
         ?: fewer than six rounds. !: others used the machine in all rounds, and the figure is not worth much. \
         \"5 of 7\": rounds in which others used the machine were left out."
            .to_owned(),
        "Latencies are in microseconds. lag: how late the load generator itself was with 1 of 100 operations, for want of its \
         core; that is part of the latencies. moved by: what the proxy counted in the rounds."
            .to_owned(),
        "proxy CPU: time of the workers' processes. machine CPU: time in which any core was not idle, so load generator, backend \
         and kernel threads are in it."
            .to_owned(),
    ];
    list(page, "", rules.iter().map(String::as_str));
    list(page, "", report.notes.iter().map(String::as_str));
    page.push_str("<h3>Contenders</h3>\n");
    let rows = report.contenders.iter().map(|(name, what)| vec![name.clone(), what.clone()]);
    table(page, &["name".to_owned(), "what it is".to_owned()], rows);
}
