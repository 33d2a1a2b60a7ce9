//! Draws the screen: a head with what all workers do together, one table, and the keys.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget};
use underpass_command::api::Top;

use super::model::{App, Sort, Totals, Value, View};

/// Lines above and below the table's own head.
pub(super) const FRAME_HEIGHT: u16 = 6;
const KEYS: &str = "q quit  1-4/tab view  s/S sort by  r reverse  p pause  up/down scroll";
const MATRIX_COLUMN: u16 = 9;

impl Widget for &App {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let [head, rates, tabs, _, table, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(area);
        self.head().render(head, buffer);
        totals(&self.totals).render(rates, buffer);
        self.tabs().render(tabs, buffer);
        match (&self.newest, self.view) {
            (Some(top), View::Steering) => matrix(top, self.first, table, buffer),
            (Some(_), _) => self.table(table, buffer),
            (None, _) => Paragraph::new("waiting for the first answer").render(table, buffer),
        }
        Line::from(KEYS).style(Style::new().add_modifier(Modifier::DIM)).render(keys, buffer);
    }
}

impl App {
    fn head(&self) -> Line<'_> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let alarm = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        let mut spans = vec![Span::styled("underpass", bold)];
        if let Some(top) = &self.newest {
            let seconds = Duration::from_secs(top.uptime_ms / 1000);
            spans.push(
                format!(
                    " {}  up {}  revision {}",
                    top.version,
                    humantime::format_duration(seconds),
                    top.revision
                )
                .into(),
            );
            if top.draining {
                spans.push(Span::styled("  draining", alarm));
            }
        }
        if self.paused {
            spans.push(Span::styled("  paused", alarm));
        }
        if let Some(problem) = &self.problem {
            spans.push(Span::styled(format!("  {problem}"), alarm));
        }
        Line::from(spans)
    }

    fn tabs(&self) -> Line<'_> {
        let top = self.newest.as_ref();
        let shown_of = |shown: usize, all: u64| match shown as u64 == all {
            true => format!(" ({all})"),
            false => format!(" ({shown} of {all})"),
        };
        let spans = View::ALL.into_iter().enumerate().flat_map(|(index, view)| {
            let count = match (view, top) {
                (View::Workers, Some(top)) => format!(" ({})", top.workers.len()),
                (View::Clusters, Some(top)) => shown_of(top.clusters.len(), top.clusters_total),
                (View::Backends, Some(top)) => shown_of(top.backends.len(), top.backends_total),
                _ => String::new(),
            };
            let style = match view == self.view {
                true => Style::new().add_modifier(Modifier::REVERSED),
                false => Style::new(),
            };
            let text = format!(" {} {}{count} ", index + 1, name(view));
            [Span::styled(text, style), Span::raw(" ")]
        });
        Line::from_iter(spans)
    }

    fn table(&self, area: Rect, buffer: &mut Buffer) {
        let Sort { column: sorted, descending } = self.sort();
        let columns = self.view.columns();
        let shown: Vec<usize> =
            (0..columns.len()).filter(|&index| columns[index].from <= area.width).collect();
        let header = shown.iter().map(|&index| {
            let mark = match (index == sorted, descending) {
                (false, _) => "",
                (true, true) => "▼",
                (true, false) => "▲",
            };
            let text = format!("{}{mark}", columns[index].title);
            Cell::from(Line::from(text).alignment(alignment(self.view, index)))
        });
        let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
        let rows = self.rows();
        let lines = rows.iter().skip(self.first).map(|row| {
            Row::new(shown.iter().filter_map(|&index| {
                let value = row.get(index)?;
                Some(Cell::from(line(value).alignment(alignment(self.view, index))))
            }))
        });
        // The first column takes what is left.
        let widths = shown.iter().map(|&index| match index {
            0 => Constraint::Min(columns[index].width),
            _ => Constraint::Length(columns[index].width),
        });
        Widget::render(Table::new(lines, widths).header(header).column_spacing(1), area, buffer);
    }
}

fn name(view: View) -> &'static str {
    match view {
        View::Workers => "workers",
        View::Clusters => "clusters",
        View::Backends => "backends",
        View::Steering => "steering",
    }
}

/// Names stand left, numbers right.
fn alignment(view: View, column: usize) -> Alignment {
    let names: &[usize] = match view {
        View::Workers => &[0, 2],
        View::Clusters => &[0],
        View::Backends | View::Steering => &[0, 1, 2],
    };
    if names.contains(&column) { Alignment::Left } else { Alignment::Right }
}

fn totals(totals: &Totals) -> Line<'_> {
    let [.., client, server] = totals.responses;
    let part = |name: &str, value: String| [Span::raw(format!("{name} ")), Span::raw(value), Span::raw("  ")];
    let failing = Style::new().fg(Color::Red);
    let mut spans = Vec::new();
    spans.extend(part("req/s", per_second(totals.requests)));
    spans.extend(part("p50", time(totals.p50_us)));
    spans.extend(part("p99", time(totals.p99_us)));
    spans.extend(part("4xx", per_second(client)));
    let style = if server > 0.0 { failing } else { Style::new() };
    spans.extend(part("5xx", per_second(server)).map(|span| span.style(style)));
    spans.extend(part("in", bytes(totals.bytes_in)));
    spans.extend(part("out", bytes(totals.bytes_out)));
    spans.extend(part("conns", totals.connections.to_string()));
    spans.extend(part("active", totals.active.to_string()));
    Line::from(spans)
}

/// Connections since the start, by the CPU that handled the connection request and by worker.
fn matrix(top: &Top, first: usize, area: Rect, buffer: &mut Buffer) {
    let steering = &top.steering;
    let [about, outcomes, table] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(2), Constraint::Min(1)]).areas(area);
    let parts: Vec<String> =
        steering.outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
    Paragraph::new(parts.join("  ")).render(outcomes, buffer);
    let workers = steering.matrix.iter().map(|row| row.workers.len()).max().unwrap_or(0);
    // The first column, the kernel's, and what is left out to the right.
    let room = usize::from(area.width.saturating_sub(2 * (MATRIX_COLUMN + 1)) / (MATRIX_COLUMN + 1));
    let shown = workers.min(room);
    let right = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
    let by = if steering.active { "by BPF" } else { "by the kernel's hash" };
    let why = steering.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let room = if shown < workers { format!("; {shown} of {workers} workers shown") } else { String::new() };
    Line::from(format!("policy {}, {by}{why}{room}", steering.policy)).render(about, buffer);
    let names = (0..shown).map(|worker| right(format!("worker {worker}")));
    let header = [Cell::from("cpu")].into_iter().chain(names).chain([right("kernel".to_owned())]);
    let rows = steering.matrix.iter().skip(first).map(|row| {
        let most = row.workers.iter().max().copied().unwrap_or(0);
        let counts = (0..shown).map(|worker| {
            let count = row.workers.get(worker).copied().unwrap_or(0);
            let style = match count == most && most > 0 {
                true => Style::new().add_modifier(Modifier::BOLD),
                false => Style::new(),
            };
            right(count.to_string()).style(style)
        });
        let cells = [Cell::from(row.cpu.to_string())].into_iter().chain(counts);
        Row::new(cells.chain([right(row.kernel.to_string())]))
    });
    let widths = (0..shown + 2).map(|_| Constraint::Length(MATRIX_COLUMN));
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    Widget::render(Table::new(rows, widths).header(header).column_spacing(1), table, buffer);
}

fn line(value: &Value) -> Line<'_> {
    match value {
        Value::Text(text) => Line::from(text.as_str()),
        Value::Alarm(text) => Line::from(text.as_str()).style(Style::new().fg(Color::Red)),
        Value::Count(count) => Line::from(count.to_string()),
        Value::PerSecond(rate) => Line::from(per_second(*rate)),
        Value::BytesPerSecond(rate) => Line::from(bytes(*rate)),
        Value::Time(micros) => Line::from(time(*micros)),
    }
}

/// Three digits, and what they are to be multiplied by.
fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    // What would be rounded up to four digits is the next unit's.
    while value >= 999.5
        && let Some(next) = units.next()
    {
        value /= step;
        unit = next;
    }
    match value {
        _ if value == 0.0 => format!("0{unit}"),
        _ if value < 9.95 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    }
}

fn per_second(rate: f64) -> String {
    scaled(rate, 1000.0, &["", "k", "M", "G"])
}

fn bytes(rate: f64) -> String {
    scaled(rate, 1024.0, &["B", "K", "M", "G", "T"])
}

fn time(micros: Option<u64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(u64::MAX) => ">100s".to_owned(),
        Some(micros) => scaled(micros as f64, 1000.0, &["us", "ms", "s"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_into_six_characters() {
        for (value, text) in [(0.0, "0"), (0.25, "0.2"), (9.96, "10"), (999.4, "999"), (999.6, "1.0k")] {
            assert_eq!(per_second(value), text);
        }
        assert_eq!(
            (per_second(12_345.0), bytes(1_536.0), bytes(1023.0)),
            ("12k".into(), "1.5K".into(), "1.0K".into())
        );
        assert_eq!(
            (time(Some(850)), time(Some(1250)), time(None)),
            ("850us".into(), "1.2ms".into(), "-".into())
        );
        assert_eq!((time(Some(100_000_000)), time(Some(u64::MAX))), ("100s".into(), ">100s".into()));
        let mut value = 0.001;
        while value < 1e12 {
            let widest = [per_second(value), bytes(value)].map(|text| text.len());
            assert!(widest.iter().all(|width| *width <= 6), "{value}");
            value *= 1.7;
        }
    }
}
