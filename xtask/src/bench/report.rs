//! The figures as Markdown tables that read well on a terminal, and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::contender::Contender;
use super::figures::{Cost, Figures, Results, Run};
use super::size_name;
use underpass_lab::statistics::{Ratio, Spread, Verdict};

/// What others are compared with, where it was measured.
const BASES: &[Contender] =
    &[Contender::Floor, Contender::FloorSplice, Contender::Haproxy, Contender::HaproxySplice];

/// What is compared, each with its name in JSON.
const COSTS: &[(&str, &str, Cost)] = &[
    ("proxy CPU", "proxy_us_per_response", Run::proxy_us),
    ("machine", "machine_us_per_response", Run::machine_us),
];

/// Tables, with what one must know to read them.
pub(super) fn text(results: &Results) -> String {
    let mut text = heading(results);
    for size in results.sizes() {
        let _ = write!(text, "\n### {}\n\n", title(size));
        text += &table(&figures_table(results, size));
        for (name, _, cost) in COSTS {
            let compared = ratio_table(results, size, name, *cost);
            if compared.len() > 1 {
                text.push('\n');
                text += &table(&compared);
            }
        }
    }
    text.push('\n');
    for note in notes(results) {
        let _ = writeln!(text, "- {note}");
    }
    text
}

/// Everything, with the single runs.
pub(super) fn json(results: &Results) -> Value {
    let mut figures = Vec::new();
    for size in results.sizes() {
        for &contender in results.contenders.keys() {
            let Some(of_contender) = results.figures(size, contender) else { continue };
            figures.push(json!({
                "size": size,
                "contender": contender.to_string(),
                "figures": of_contender,
                "syscalls": results.syscalls.get(&(size, contender)),
                "ratios": ratios_json(results, size, contender),
            }));
        }
    }
    let runs = results.runs.iter().map(|run| {
        json!({
            "round": run.round,
            "contender": run.contender.to_string(),
            "disturbed": results.is_disturbed(run),
            "report": run.report,
        })
    });
    let contenders =
        results.contenders.iter().map(|(contender, description)| (contender.to_string(), json!(description)));
    json!({
        "machine": results.machine,
        "cores": results.cores,
        "connections": results.connections,
        "seconds": results.span.as_secs_f64(),
        "contenders": contenders.collect::<serde_json::Map<_, _>>(),
        "results": figures,
        "runs": runs.collect::<Vec<_>>(),
        "notes": notes(results),
        "failures": results.failures,
    })
}

fn ratios_json(results: &Results, size: usize, contender: Contender) -> Vec<Value> {
    let mut ratios = Vec::new();
    for &base in BASES.iter().filter(|&&base| base != contender) {
        for (_, name, cost) in COSTS {
            if let Some(ratio) = results.ratio(size, contender, base, *cost) {
                ratios.push(json!({ "to": base.to_string(), "of": name, "ratio": ratio }));
            }
        }
    }
    ratios
}

fn heading(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "## Benchmark of {}\n\n\
         {}, {} cores, {} MiB, Linux {}; source {}. {} connections, kept alive, spans of {} s; proxy on core {}, load \
         generator and backend on core {}.\n\n",
        machine.date,
        machine.processor,
        machine.cores,
        machine.memory_mib,
        machine.kernel,
        machine.source,
        results.connections,
        results.span.as_secs_f64(),
        results.cores.proxy,
        results.cores.load,
    );
    for (contender, description) in &results.contenders {
        let _ = writeln!(text, "- {contender}: {}", description.version);
    }
    text
}

fn title(size: usize) -> String {
    if size == 0 { "Responses without a body".into() } else { format!("Bodies of {}", size_name(size)) }
}

fn figures_table(results: &Results, size: usize) -> Vec<Vec<String>> {
    let header = [
        "proxy",
        "req/s",
        "MB/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "proxy CPU us/req",
        "core %",
        "machine us/req",
        "syscalls/req",
        "PSS MiB",
        "rounds",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for &contender in results.contenders.keys() {
        if let Some(figures) = results.figures(size, contender) {
            rows.push(figures_row(results, size, contender, &figures));
        }
    }
    rows
}

fn figures_row(results: &Results, size: usize, contender: Contender, figures: &Figures) -> Vec<String> {
    let syscalls = results.syscalls.get(&(size, contender));
    let median = |spread: Spread| number(spread.median);
    vec![
        contender.to_string(),
        median(figures.responses_per_s),
        median(figures.megabytes_per_s),
        median(figures.latency_p50_us),
        median(figures.latency_p99_us),
        median(figures.latency_p999_us),
        with_quartiles(figures.proxy_us_per_response),
        format!("{:.0}", figures.proxy_core_share.median * 100.0),
        with_quartiles(figures.machine_us_per_response),
        syscalls.map_or_else(|| "-".into(), |count| format!("{:.2}", count.per_response)),
        format!("{:.1}", figures.pss_kib.median / 1024.0),
        rounds(figures),
    ]
}

/// `7`, `7 of 9` when disturbed rounds were left out, `0 of 9!` when there were no others.
fn rounds(figures: &Figures) -> String {
    match figures.rounds_disturbed {
        0 => figures.rounds.to_string(),
        disturbed if disturbed == figures.rounds => format!("0 of {}!", figures.rounds),
        disturbed => format!("{} of {}", figures.rounds, figures.rounds + disturbed),
    }
}

fn ratio_table(results: &Results, size: usize, name: &str, cost: Cost) -> Vec<Vec<String>> {
    let contenders: Vec<Contender> = results.contenders.keys().copied().collect();
    let bases: Vec<Contender> = BASES.iter().copied().filter(|base| contenders.contains(base)).collect();
    let mut header = vec![format!("{name}, compared")];
    header.extend(bases.iter().map(|base| format!("/ {base}")));
    let mut rows = vec![header];
    for &contender in &contenders {
        let ratio_to = |&base: &Contender| {
            let ratio = if base == contender { None } else { results.ratio(size, contender, base, cost) };
            ratio.map_or_else(|| "-".into(), ratio_text)
        };
        let ratios: Vec<String> = bases.iter().map(ratio_to).collect();
        if ratios.iter().any(|cell| cell != "-") {
            rows.push([vec![contender.to_string()], ratios].concat());
        }
    }
    rows
}

/// `1.27 [1.25, 1.30]`, with `~` behind it when the difference is within the noise `?` or `!` when that can't be told.
fn ratio_text(ratio: Ratio) -> String {
    let sign = match ratio.verdict {
        Verdict::Less | Verdict::More => "",
        Verdict::WithinNoise => " ~",
        Verdict::TooFewRounds => " ?",
        Verdict::Disturbed => " !",
    };
    format!("{:.2} [{:.2}, {:.2}]{sign}", ratio.median, ratio.low, ratio.high)
}

fn with_quartiles(spread: Spread) -> String {
    format!("{} [{}, {}]", number(spread.median), number(spread.quartile_1), number(spread.quartile_3))
}

/// Three digits or more, never a decimal that says nothing.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn notes(results: &Results) -> Vec<String> {
    let mut notes = vec![
        "Medians over the rounds; [quartiles]. Latency is from the request's first byte to the response's last, in a closed loop."
            .to_owned(),
        "proxy CPU: time of the worker on its core, user and kernel, loopback's interrupts included. core %: how much of \
         its core that is; below 100 the load was the limit, and req/s says nothing about the proxy."
            .to_owned(),
        "machine: busy time of all cores, with load generator, backend and kernel threads.".to_owned(),
        "Ratios are medians over rounds measured side by side, with the interval that holds the true median with at least \
         95 % (sign test). ~: the interval holds 1, so the difference is within the noise. ?: fewer than six rounds, and \
         the interval is all there was."
            .to_owned(),
    ];
    if results.cores.share_physical_core {
        notes
            .push("Both cores are threads of one physical core: proxy and load slow each other down.".into());
    }
    if results.runs.iter().any(|run| results.is_disturbed(run)) {
        notes.push(
            "Rounds in which other processes used the machine are left out (\"7 of 9\"); with \"!\" there were no others, \
             and those figures and ratios are not worth much."
                .into(),
        );
    }
    let mut methods: Vec<&str> = results.syscalls.values().map(|count| count.method).collect();
    methods.dedup();
    notes.extend(
        methods.iter().map(|method| format!("System calls were counted by {method} in runs of their own.")),
    );
    notes.extend(results.notes.iter().cloned());
    notes
}

/// A Markdown table; the first row is its head, the first column stands left and the others right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0).max(3)
        })
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} |")
            } else {
                write!(text, " {cell:>width$} |")
            };
        }
        text.push('\n');
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let _ = if column == 0 {
                    write!(text, "| {:-<width$} |", "")
                } else {
                    write!(text, " {:->width$}: |", "", width = width - 1)
                };
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::figures::Description;
    use super::super::figures::tests::{results, run};
    use super::*;

    fn measured() -> Results {
        let mut runs = Vec::new();
        for round in 0..6 {
            runs.push(run(round, Contender::Floor, 10 + u64::from(round % 2), 0));
            runs.push(run(round, Contender::Haproxy, 20, 0));
            runs.push(run(
                round,
                Contender::HaproxySplice,
                19 + u64::from(round % 3),
                if round == 5 { 500 } else { 0 },
            ));
        }
        let mut results = results(runs);
        for contender in [Contender::Floor, Contender::Haproxy, Contender::HaproxySplice] {
            results.contenders.insert(contender, Description { version: "1".into(), configuration: None });
        }
        results
    }

    #[test]
    fn tables_name_the_noise_and_what_was_left_out() {
        let text = text(&measured());
        let line =
            |start: &str| text.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>().join("\n");
        let (haproxy, splice) = (line("| haproxy  "), line("| haproxy-splice "));
        assert!(haproxy.contains("20.0 [20.0, 20.0]"), "{text}");
        assert!(haproxy.contains("1.91 [1.82, 2.00] "), "{text}");
        assert!(splice.contains("5 of 6"), "{text}");
        assert!(splice.contains("1.00 [0.95, 1.05] ?"), "{text}");
    }

    #[test]
    fn rows_of_a_table_have_one_width() {
        let text = table(&[vec!["a".into(), "bbbb".into()], vec!["cc".into(), "d".into()]]);
        assert_eq!(text, "| a   | bbbb |\n| --- | ---: |\n| cc  |    d |\n");
    }

    #[test]
    fn json_has_figures_ratios_and_single_runs() {
        let value = json(&measured());
        assert_eq!(value["runs"].as_array().map(Vec::len), Some(18));
        assert_eq!(value["results"][1]["contender"], "haproxy");
        assert_eq!(value["results"][1]["figures"]["proxy_us_per_response"]["median"], 20.0);
        assert_eq!(value["results"][1]["ratios"][0]["ratio"]["verdict"], "more");
        assert_eq!(value["results"][2]["figures"]["rounds_disturbed"], 1);
    }
}
