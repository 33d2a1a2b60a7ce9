//! Lists as tables for people.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use underpass_command::api::{BackendEntry, Page, Predecessor, Sessions, WorkerStatus};
use underpass_command::state::{Action, Answer, Backend, Cluster, Listener, RedirectMode, Route};

use super::super::text::table;

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A table and, where there is more than it shows, a line that says so.
fn paged<T>(page: &Page<T>, titles: Vec<String>, row_of: impl Fn(&T) -> Vec<String>) -> String {
    if page.items.is_empty() {
        return "none\n".into();
    }
    let mut rows = vec![titles];
    rows.extend(page.items.iter().map(row_of));
    let mut out = table(&rows);
    if page.next.is_some() {
        out.push_str("and more: see --limit\n");
    }
    out
}

pub(super) fn clusters(page: &Page<Cluster>) -> String {
    paged(page, row(["cluster", "balance", "redirect", "backends", "draining"]), |cluster| {
        let draining = cluster.backends.iter().filter(|backend| backend.drain).count();
        vec![
            cluster.name.clone(),
            cluster.balance.to_string(),
            inherited(cluster.redirect),
            cluster.backends.len().to_string(),
            draining.to_string(),
        ]
    })
}

pub(super) fn cluster(cluster: &Cluster) -> String {
    let mut out =
        format!("cluster {}, {}, redirect {}\n", cluster.name, cluster.balance, inherited(cluster.redirect));
    let mut rows = vec![row(["backend", "weight", "state"])];
    rows.extend(cluster.backends.iter().map(backend_cells));
    out.push_str(&table(&rows));
    out
}

pub(super) fn backends(page: &Page<BackendEntry>) -> String {
    backends_at(page, SystemTime::now())
}

fn backends_at(page: &Page<BackendEntry>, now: SystemTime) -> String {
    let titles = ["cluster", "backend", "weight", "state", "health", "for", "under way", "last check"];
    paged(page, row(titles), |entry| {
        let mut cells = vec![entry.cluster.clone()];
        cells.extend(backend_cells(&entry.backend));
        let health = &entry.health;
        cells.push(health.state.name().to_owned());
        cells.push(health.since_ms.map_or_else(|| "-".into(), |since_ms| time_since(since_ms, now)));
        cells.push(entry.active.to_string());
        cells.push(health.reason.clone().unwrap_or_else(|| "-".into()));
        cells
    })
}

/// How long ago a time was, in whole seconds.
fn time_since(unix_ms: u64, now: SystemTime) -> String {
    let elapsed = now.duration_since(UNIX_EPOCH + Duration::from_millis(unix_ms)).unwrap_or_default();
    humantime::format_duration(Duration::from_secs(elapsed.as_secs())).to_string()
}

fn backend_cells(backend: &Backend) -> Vec<String> {
    let state = match (backend.drain, backend.backup) {
        (true, _) => "draining",
        (false, true) => "backup",
        (false, false) => "in use",
    };
    vec![backend.address.to_string(), backend.weight.to_string(), state.to_owned()]
}

pub(super) fn listeners(page: &Page<Listener>) -> String {
    paged(page, row(["listener", "address", "protocol", "default cluster", "redirect"]), |listener| {
        vec![
            listener.name.clone(),
            listener.address.to_string(),
            listener.protocol.to_string(),
            listener.default_cluster.clone().unwrap_or_else(|| "-".into()),
            inherited(listener.redirect),
        ]
    })
}

pub(super) fn routes(page: &Page<Route>) -> String {
    paged(page, row(["route", "leads to"]), |route| vec![route.key().to_string(), target(route)])
}

fn target(route: &Route) -> String {
    match route.action() {
        Some(Action::Forward(cluster)) => format!("cluster {cluster}"),
        Some(Action::Respond(respond)) => match &respond.answer {
            Some(answer) => format!("answer {answer}"),
            None => format!("status {}", respond.status),
        },
        Some(Action::RedirectTo(redirect)) => format!("redirect {}", redirect.status),
        None => "nothing".into(),
    }
}

pub(super) fn answers(page: &Page<Answer>) -> String {
    paged(page, row(["answer", "status", "body"]), |answer| {
        let line = answer.body.lines().next().unwrap_or_default();
        let status = if answer.status == 0 { "-".into() } else { answer.status.to_string() };
        vec![answer.name.clone(), status, line.chars().take(60).collect()]
    })
}

pub(super) fn workers(workers: &[WorkerStatus]) -> String {
    let mut rows =
        vec![row(["worker", "cpu", "state", "process", "restarts", "open", "requests", "draining"])];
    rows.extend(workers.iter().map(|worker| {
        vec![
            worker.index.to_string(),
            worker.cpu.map_or_else(|| "any".into(), |cpu| cpu.to_string()),
            worker.state.to_string(),
            worker.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            worker.restarts.to_string(),
            worker.counters.value("connections_active").to_string(),
            worker.counters.value("requests").to_string(),
            worker.draining.as_ref().map_or_else(|| "-".into(), predecessor),
        ]
    }));
    table(&rows)
}

/// The process that a worker had before, for people.
fn predecessor(draining: &Predecessor) -> String {
    let pid = draining.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
    format!("process {pid}: {} open, {} ms left", draining.connections, draining.cut_in_ms)
}

pub(super) fn sessions(found: &Sessions) -> String {
    let mut rows =
        vec![row(["worker", "client", "listener", "waits for", "for ms", "requests", "cluster", "backend"])];
    rows.extend(found.sessions.iter().map(|session| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        vec![
            session.worker.to_string(),
            session.client.to_string(),
            session.listener.clone(),
            session.phase.clone(),
            or_none(session.active_ms.map(|ms| ms.to_string())),
            session.requests.to_string(),
            or_none(session.cluster.clone()),
            or_none(session.backend.map(|backend| backend.to_string())),
        ]
    }));
    let mut out = table(&rows);
    let _ = writeln!(out, "{} of {} connections", found.sessions.len(), found.total);
    for worker in &found.missing {
        let _ = writeln!(out, "worker {worker} did not answer in time");
    }
    out
}

fn inherited(mode: Option<RedirectMode>) -> String {
    mode.map_or_else(|| "inherited".into(), |mode| mode.to_string())
}

#[cfg(test)]
mod tests {
    use underpass_command::api::{BackendHealth, HealthState};

    use super::*;

    #[test]
    fn a_page_that_is_not_the_last_says_so() {
        let mut page = Page { revision: 1, items: vec![Cluster::new("app")], next: None };
        let whole = clusters(&page);
        assert_eq!(
            whole,
            "cluster      balance   redirect  backends  draining\n    app  round-robin  inherited         0         0\n"
        );
        page.next = Some("app".into());
        assert_eq!(clusters(&page), whole + "and more: see --limit\n");
        page.items.clear();
        assert_eq!(clusters(&page), "none\n");
    }

    #[test]
    fn a_backend_says_how_it_is() {
        let backend = |port| Backend::new(([127, 0, 0, 1], port).into());
        let mut down = BackendEntry { active: 3, ..BackendEntry::new("app", &backend(81)) };
        down.health = BackendHealth {
            state: HealthState::Down,
            reason: Some("Connection refused".into()),
            since_ms: Some(5_000),
        };
        let drained = BackendEntry::new("app", &Backend { drain: true, ..backend(82) });
        let page = Page { revision: 1, items: vec![down, drained], next: None };
        let shown = backends_at(&page, UNIX_EPOCH + Duration::from_millis(95_900));
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            lines[0],
            ["cluster", "backend", "weight", "state", "health", "for", "under way", "last check"]
        );
        assert_eq!(
            lines[1],
            ["app", "127.0.0.1:81", "1", "in use", "down", "1m 30s", "3", "Connection refused"]
        );
        assert_eq!(lines[2], ["app", "127.0.0.1:82", "1", "draining", "unknown", "-", "0", "-"]);
    }

    #[test]
    fn a_route_says_what_it_does() {
        let page = Page { revision: 1, items: vec![Route::new("app"), Route::respond(404)], next: None };
        let shown = routes(&page);
        assert!(shown.contains("*/...  cluster app") && shown.contains("status 404"), "{shown}");
    }
}
