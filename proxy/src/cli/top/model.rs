//! What the screen shows: rates between the last two looks, sorted as the user wants.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use underpass_command::api::{Distribution, Top, TopBackend, TopCluster, TopWorker, Traffic};

/// One of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum View {
    /// One line for each worker
    #[default]
    Workers,
    /// One line for each cluster, the busiest ones
    Clusters,
    /// One line for each backend, the busiest ones
    Backends,
    /// Connections by CPU and worker
    Steering,
}

impl View {
    pub(super) const ALL: [Self; 4] = [Self::Workers, Self::Clusters, Self::Backends, Self::Steering];

    /// The columns of its table; those of the matrix depend on the workers.
    pub(super) fn columns(self) -> &'static [Column] {
        match self {
            Self::Workers => &WORKER_COLUMNS,
            Self::Clusters => &CLUSTER_COLUMNS,
            Self::Backends => &BACKEND_COLUMNS,
            Self::Steering => &[],
        }
    }

    /// The column that it is sorted by at first.
    fn sort(self) -> Sort {
        match self {
            Self::Workers | Self::Steering => Sort { column: 0, descending: false },
            Self::Clusters => Sort { column: 1, descending: true },
            Self::Backends => Sort { column: 4, descending: true },
        }
    }
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: u16,
    /// Shown on screens of at least this width.
    pub(super) from: u16,
}

const fn column(title: &'static str, width: u16) -> Column {
    Column { title, width, from: 0 }
}

const fn wide(title: &'static str, width: u16, from: u16) -> Column {
    Column { title, width, from }
}

static WORKER_COLUMNS: [Column; 12] = [
    column("worker", 6),
    column("cpu", 3),
    column("state", 8),
    column("conns", 6),
    column("active", 6),
    column("req/s", 7),
    column("5xx/s", 6),
    column("in/s", 6),
    column("out/s", 6),
    column("p50", 6),
    column("p99", 6),
    wide("fallb/s", 7, 100),
];
static CLUSTER_COLUMNS: [Column; 12] = [
    column("cluster", 14),
    column("req/s", 7),
    column("4xx/s", 6),
    column("5xx/s", 6),
    column("fail/s", 6),
    column("in/s", 6),
    column("out/s", 6),
    column("queue", 5),
    column("p50", 6),
    column("p99", 6),
    wide("first p99", 9, 100),
    wide("retry/s", 7, 100),
];
static BACKEND_COLUMNS: [Column; 11] = [
    column("backend", 21),
    column("cluster", 12),
    column("state", 5),
    column("active", 6),
    column("req/s", 7),
    column("5xx/s", 6),
    column("fail/s", 6),
    wide("in/s", 6, 100),
    wide("out/s", 6, 100),
    wide("p50", 6, 100),
    column("p99", 6),
];

/// What stands in a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    /// Something that is not as it should be.
    Alarm(String),
    Count(u64),
    PerSecond(f64),
    BytesPerSecond(f64),
    /// Microseconds; none where nothing was measured.
    Time(Option<u64>),
}

impl Value {
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Text(a) | Self::Alarm(a), Self::Text(b) | Self::Alarm(b)) => a.cmp(b),
            (Self::Count(a), Self::Count(b)) => a.cmp(b),
            (Self::PerSecond(a), Self::PerSecond(b)) | (Self::BytesPerSecond(a), Self::BytesPerSecond(b)) => {
                a.total_cmp(b)
            }
            (Self::Time(a), Self::Time(b)) => a.cmp(b),
            // A column holds values of one kind.
            _ => Ordering::Equal,
        }
    }
}

/// By which column a table is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    pub(super) column: usize,
    pub(super) descending: bool,
}

/// What all workers did together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) requests: f64,
    pub(super) responses: [f64; 5],
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
    pub(super) connections: u64,
    pub(super) active: u64,
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

/// The state of the screen.
#[derive(Debug)]
pub(super) struct App {
    pub(super) view: View,
    pub(super) paused: bool,
    pub(super) ended: bool,
    /// Why there is no newer document.
    pub(super) problem: Option<String>,
    pub(super) newest: Option<Top>,
    pub(super) totals: Totals,
    /// First line shown of the table.
    pub(super) first: usize,
    tables: [Vec<Vec<Value>>; 3],
    sorts: [Sort; 4],
}

impl App {
    pub(super) fn new(view: View) -> Self {
        Self {
            view,
            paused: false,
            ended: false,
            problem: None,
            newest: None,
            totals: Totals::default(),
            first: 0,
            tables: Default::default(),
            sorts: View::ALL.map(View::sort),
        }
    }

    /// Takes a newer document, or the reason why there is none.
    pub(super) fn take(&mut self, answer: Result<Top, String>) {
        if self.paused {
            return;
        }
        match answer {
            Ok(top) => {
                self.problem = None;
                self.compute(&top);
                self.newest = Some(top);
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// The lines of the table that is shown, sorted.
    pub(super) fn rows(&self) -> Vec<&[Value]> {
        let Some(table) = self.tables.get(self.view as usize) else { return Vec::new() };
        let Sort { column, descending } = self.sort();
        let mut rows: Vec<&[Value]> = table.iter().map(Vec::as_slice).collect();
        rows.sort_by(|a, b| match (a.get(column), b.get(column), descending) {
            (Some(a), Some(b), false) => a.compare(b),
            (Some(a), Some(b), true) => b.compare(a),
            _ => Ordering::Equal,
        });
        rows
    }

    pub(super) fn sort(&self) -> Sort {
        self.sorts[self.view as usize]
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) {
        let views = View::ALL.len();
        let view = self.view as usize;
        match code {
            KeyCode::Char('q') | KeyCode::Esc => self.ended = true,
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => self.ended = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char(digit @ '1'..='4') => self.show(digit as usize - '1' as usize),
            KeyCode::Tab | KeyCode::Right => self.show((view + 1) % views),
            KeyCode::BackTab | KeyCode::Left => self.show((view + views - 1) % views),
            KeyCode::Char('s') => self.sort_by_next(1),
            KeyCode::Char('S') => self.sort_by_next(self.view.columns().len().saturating_sub(1)),
            KeyCode::Char('r') => self.sorts[view].descending = !self.sorts[view].descending,
            KeyCode::Down | KeyCode::Char('j') => self.scroll(self.first.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.scroll(self.first.saturating_sub(1)),
            KeyCode::PageDown => self.scroll(self.first.saturating_add(10)),
            KeyCode::PageUp => self.scroll(self.first.saturating_sub(10)),
            KeyCode::Home => self.scroll(0),
            _ => {}
        }
    }

    fn show(&mut self, view: usize) {
        self.view = View::ALL[view];
        self.first = 0;
    }

    fn sort_by_next(&mut self, steps: usize) {
        let columns = self.view.columns().len();
        if columns > 0 {
            let column = (self.sort().column + steps) % columns;
            let descending = !self.holds_names(column);
            self.sorts[self.view as usize] = Sort { column, descending };
        }
    }

    /// Whether a column holds names, which people look for in rising order.
    fn holds_names(&self, column: usize) -> bool {
        let row = self.tables.get(self.view as usize).and_then(|table| table.first());
        matches!(row.and_then(|row| row.get(column)), Some(Value::Text(_) | Value::Alarm(_)))
    }

    fn scroll(&mut self, first: usize) {
        let rows = match self.view {
            View::Steering => self.newest.as_ref().map_or(0, |top| top.steering.matrix.len()),
            _ => self.rows().len(),
        };
        self.first = first.min(rows.saturating_sub(1));
    }

    /// Rates since the document before; without one there are none yet.
    fn compute(&mut self, top: &Top) {
        let Some(before) = &self.newest else { return };
        let passed_ms = top.uptime_ms.saturating_sub(before.uptime_ms);
        if passed_ms == 0 {
            return; // another process answers, or the same document came twice
        }
        let since = Since { seconds: passed_ms as f64 / 1000.0 };
        let workers = top
            .workers
            .iter()
            .map(|worker| since.worker(worker, before.workers.iter().find(|old| old.index == worker.index)));
        let clusters = top.clusters.iter().map(|cluster| {
            since.cluster(cluster, before.clusters.iter().find(|old| old.name == cluster.name))
        });
        let backends = top.backends.iter().map(|backend| {
            let same = |old: &&TopBackend| old.address == backend.address && old.cluster == backend.cluster;
            since.backend(backend, before.backends.iter().find(same))
        });
        self.tables = [workers.collect(), clusters.collect(), backends.collect()];
        self.totals = since.totals(top, before);
    }
}

/// Makes rates.
struct Since {
    seconds: f64,
}

impl Since {
    fn rate(&self, now: u64, before: u64) -> f64 {
        now.saturating_sub(before) as f64 / self.seconds
    }

    /// Of something that was not there before nothing is known yet.
    fn traffic(&self, now: &Traffic, before: Option<&Traffic>) -> TrafficRate {
        let before = before.unwrap_or(now);
        let class = |index: usize| self.rate(now.responses[index], before.responses[index]);
        TrafficRate {
            requests: self.rate(now.requests, before.requests),
            responses: [class(0), class(1), class(2), class(3), class(4)],
            bytes_in: self.rate(now.bytes_in, before.bytes_in),
            bytes_out: self.rate(now.bytes_out, before.bytes_out),
        }
    }

    fn worker(&self, now: &TopWorker, before: Option<&TopWorker>) -> Vec<Value> {
        let before = before.unwrap_or(now);
        let traffic = self.traffic(&now.traffic, Some(&before.traffic));
        let total = now.total.since(&before.total);
        let state = now.state.name().to_owned();
        vec![
            Value::Count(now.index.into()),
            Value::Text(now.cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:>3}"))),
            if state == "running" { Value::Text(state) } else { Value::Alarm(state) },
            Value::Count(now.connections),
            Value::Count(now.active),
            Value::PerSecond(traffic.requests),
            Value::PerSecond(traffic.responses[4]),
            Value::BytesPerSecond(traffic.bytes_in),
            Value::BytesPerSecond(traffic.bytes_out),
            Value::Time(total.quantile_us(0.5)),
            Value::Time(total.quantile_us(0.99)),
            Value::PerSecond(self.rate(now.fallbacks, before.fallbacks)),
        ]
    }

    fn cluster(&self, now: &TopCluster, before: Option<&TopCluster>) -> Vec<Value> {
        let before = before.unwrap_or(now);
        let traffic = self.traffic(&now.traffic, Some(&before.traffic));
        let total = now.total.since(&before.total);
        let first_byte = now.first_byte.since(&before.first_byte);
        vec![
            Value::Text(now.name.clone()),
            Value::PerSecond(traffic.requests),
            Value::PerSecond(traffic.responses[3]),
            Value::PerSecond(traffic.responses[4]),
            Value::PerSecond(self.rate(now.failures, before.failures)),
            Value::BytesPerSecond(traffic.bytes_in),
            Value::BytesPerSecond(traffic.bytes_out),
            Value::Count(now.queue),
            Value::Time(total.quantile_us(0.5)),
            Value::Time(total.quantile_us(0.99)),
            Value::Time(first_byte.quantile_us(0.99)),
            Value::PerSecond(self.rate(now.retries, before.retries)),
        ]
    }

    fn backend(&self, now: &TopBackend, before: Option<&TopBackend>) -> Vec<Value> {
        let before = before.unwrap_or(now);
        let traffic = self.traffic(&now.traffic, Some(&before.traffic));
        let response = now.response.since(&before.response);
        let state = match (now.drain, now.up) {
            (true, _) => Value::Alarm("drain".into()),
            (false, Some(false)) => Value::Alarm("down".into()),
            (false, Some(true)) => Value::Text("up".into()),
            (false, None) => Value::Text("-".into()),
        };
        vec![
            Value::Text(now.address.to_string()),
            Value::Text(now.cluster.clone()),
            state,
            Value::Count(now.active),
            Value::PerSecond(traffic.requests),
            Value::PerSecond(traffic.responses[4]),
            Value::PerSecond(self.rate(now.failures, before.failures)),
            Value::BytesPerSecond(traffic.bytes_in),
            Value::BytesPerSecond(traffic.bytes_out),
            Value::Time(response.quantile_us(0.5)),
            Value::Time(response.quantile_us(0.99)),
        ]
    }

    fn totals(&self, top: &Top, before: &Top) -> Totals {
        let mut totals = Totals::default();
        let mut total = Distribution::default();
        for worker in &top.workers {
            let old = before.workers.iter().find(|old| old.index == worker.index).unwrap_or(worker);
            let traffic = self.traffic(&worker.traffic, Some(&old.traffic));
            totals.requests += traffic.requests;
            totals.bytes_in += traffic.bytes_in;
            totals.bytes_out += traffic.bytes_out;
            for (sum, rate) in totals.responses.iter_mut().zip(traffic.responses) {
                *sum += rate;
            }
            totals.connections += worker.connections;
            totals.active += worker.active;
            total.add(&worker.total.since(&old.total));
        }
        totals.p50_us = total.quantile_us(0.5);
        totals.p99_us = total.quantile_us(0.99);
        totals
    }
}

/// [`Traffic`] per second.
struct TrafficRate {
    requests: f64,
    responses: [f64; 5],
    bytes_in: f64,
    bytes_out: f64,
}
