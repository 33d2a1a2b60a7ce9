//! Documents of the admin API as text for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use underpass_command::api::{Counters, RedirectStatus, Status, SteeringStatus};
use underpass_command::state::RedirectMode;

/// What `underpass status` prints.
pub(super) fn status(status: &Status) -> String {
    let mut out = String::new();
    let draining = if status.draining { ", draining" } else { "" };
    let uptime = duration(status.uptime_ms / 1000);
    line(&mut out, &format!("underpass {}, process {}, up {uptime}{draining}", status.version, status.pid));
    for listener in &status.listeners {
        line(&mut out, &format!("listener  {}  {}  {}", listener.name, listener.address, listener.protocol));
    }
    for cluster in &status.clusters {
        let backends: Vec<String> = cluster.backends.iter().map(ToString::to_string).collect();
        line(&mut out, &format!("cluster   {}  {}", cluster.name, backends.join(", ")));
    }
    out.push_str(&steering_line(&status.steering));
    out.push_str(&redirect(&status.redirect));
    let sockmap = match &status.sockmap.reason {
        _ if status.sockmap.available => "sockmap   available, its self-test has passed".to_owned(),
        Some(reason) => format!("sockmap   off: {reason}"),
        None => "sockmap   off".to_owned(),
    };
    line(&mut out, &sockmap);
    out.push('\n');
    out.push_str(&table(&worker_rows(status)));
    for worker in &status.workers {
        if let Some(draining) = &worker.draining {
            let pid = draining.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
            let (index, open, left) = (worker.index, draining.connections, draining.cut_in_ms);
            line(&mut out, &format!("worker {index} drains: process {pid}: {open} open, cut in {left} ms"));
        }
    }
    let fallbacks = status.total.values.iter().filter(|(_, count)| **count > 0);
    let fallbacks =
        fallbacks.filter_map(|(name, count)| Some((name.strip_prefix("fallback_")?.to_owned(), *count)));
    out.push_str(&refusals("fallbacks", &fallbacks.collect()));
    out.push_str(&refusals("requests refused or failed", &status.total.refused_requests));
    out.push_str(&refusals("responses refused", &status.total.refused_responses));
    for probe in status.probes.iter().filter(|probe| !probe.available) {
        line(&mut out, &format!("not available: {}: {}", probe.name, probe.detail));
    }
    if status.access_log_lost_bytes > 0 {
        line(&mut out, &format!("access log: {} lost", bytes(status.access_log_lost_bytes)));
    }
    out
}

fn worker_rows(status: &Status) -> Vec<Vec<String>> {
    let header = [
        "worker", "cpu", "state", "process", "restarts", "open", "accepted", "requests", "tunnels", "4xx",
        "5xx", "copied", "spliced", "sockmap", "p50 us", "p99 us",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for worker in &status.workers {
        let mut row = vec![
            worker.index.to_string(),
            worker.cpu.map_or_else(|| "any".into(), |cpu| cpu.to_string()),
            worker.state.to_string(),
            worker.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            worker.restarts.to_string(),
        ];
        row.extend(counter_cells(&worker.counters));
        rows.push(row);
    }
    let restarts: u64 = status.workers.iter().map(|worker| worker.restarts).sum();
    let mut total =
        vec!["total".to_owned(), String::new(), String::new(), String::new(), restarts.to_string()];
    total.extend(counter_cells(&status.total));
    rows.push(total);
    rows
}

fn counter_cells(counters: &Counters) -> Vec<String> {
    let optional = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    vec![
        counters.value("connections_active").to_string(),
        counters.value("connections_accepted").to_string(),
        counters.value("requests").to_string(),
        counters.value("tunnels").to_string(),
        counters.value("responses_4xx").to_string(),
        counters.value("responses_5xx").to_string(),
        bytes(counters.value("bytes_copied")),
        bytes(counters.value("bytes_spliced")),
        bytes(counters.value("bytes_sockmap")),
        optional(counters.latency.p50_us),
        optional(counters.latency.p99_us),
    ]
}

fn refusals(title: &str, reasons: &BTreeMap<String, u64>) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let list: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("{title}: {}\n", list.join(", "))
}

/// What `underpass redirect get` prints.
pub(super) fn redirect(status: &RedirectStatus) -> String {
    let mut out = format!("redirect  {}\n", status.process);
    let scopes = [("listener", &status.listeners), ("cluster", &status.clusters)];
    for (kind, modes) in scopes {
        for (name, mode) in modes {
            let mode = mode.map_or("inherited", RedirectMode::name);
            line(&mut out, &format!("          {kind} {name}: {mode}"));
        }
    }
    out
}

/// What `underpass steering get` prints.
pub(super) fn steering(status: &SteeringStatus) -> String {
    let mut out = steering_line(status);
    for (outcome, count) in &status.outcomes {
        line(&mut out, &format!("          {outcome}: {count}"));
    }
    let workers = status.matrix.iter().map(|row| row.workers.len()).max().unwrap_or(0);
    if workers == 0 {
        return out;
    }
    let mut rows = vec![vec!["RX CPU".to_owned()]];
    rows[0].extend((0..workers).map(|worker| format!("worker {worker}")));
    rows[0].push("kernel's hash".into());
    for row in &status.matrix {
        let mut cells = vec![row.cpu.to_string()];
        cells.extend(row.workers.iter().map(ToString::to_string));
        cells.push(row.kernel.to_string());
        rows.push(cells);
    }
    out.push('\n');
    out.push_str(&table(&rows));
    out
}

fn steering_line(status: &SteeringStatus) -> String {
    match (&status.reason, status.active) {
        (_, true) => match &status.reduced {
            None => format!("steering  {}, by BPF\n", status.policy),
            Some(reduced) => format!("steering  {}, by BPF; reduced: {reduced}\n", status.policy),
        },
        (Some(reason), false) => {
            format!("steering  {}, but BPF is off: {reason}; the kernel's hash chooses\n", status.policy)
        }
        (None, false) => format!("steering  {}; the kernel's hash chooses\n", status.policy),
    }
}

/// Right-aligned columns; the first row are the titles.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        line(&mut out, cells.join("  ").trim_end());
    }
    out
}

/// A number of bytes with a unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // What would be printed as 1024.0 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Seconds as days, hours, minutes and seconds.
fn duration(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    if days > 0 {
        // Writing to a string does not fail.
        let _ = write!(text, "{days} d ");
    }
    let _ = write!(text, "{hours:02}:{minutes:02}:{seconds:02}");
    text
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use underpass_command::api::{SockmapStatus, SteeringRow, WorkerStatus};

    use super::*;

    #[test]
    fn numbers_of_bytes_have_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1_048_575), "1.0 MiB");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(duration(59), "00:00:59");
        assert_eq!(duration(90_061), "1 d 01:01:01");
    }

    #[test]
    fn a_status_shows_why_sockmap_is_off_and_what_that_cost() {
        let sockmap = SockmapStatus { available: false, reason: Some("kernel 6.1 is too old".into()) };
        let mut total = Counters::default();
        for (name, count) in [("fallback_sockmap_off", 16), ("fallback_no_pipe", 0), ("bytes_sockmap", 2048)]
        {
            total.values.insert(name.into(), count);
        }
        let mut shown = Status { sockmap, total, ..Status::default() };
        let text = status(&shown);
        for expected in ["sockmap   off: kernel 6.1 is too old\n", "fallbacks: sockmap_off 16\n", "2.0 KiB"] {
            assert!(text.contains(expected), "{expected} not in:\n{text}");
        }
        shown.sockmap.available = true;
        let text = status(&shown);
        assert!(text.contains("sockmap   available"), "{text}");
    }

    #[test]
    fn a_status_shows_workers_and_why_steering_is_off() {
        let steering = SteeringStatus { reason: Some("no CAP_BPF".into()), ..SteeringStatus::default() };
        let workers = vec![WorkerStatus { index: 0, pid: Some(77), ..WorkerStatus::default() }];
        let text = status(&Status { steering, workers, ..Status::default() });
        assert!(text.contains("BPF is off: no CAP_BPF"), "{text}");
        assert!(text.contains("77"), "{text}");
        assert!(!text.contains("fallbacks"), "{text}");
        let widths: Vec<usize> =
            text.lines().skip_while(|line| !line.starts_with("worker")).map(str::len).collect();
        assert_eq!(widths.len(), 3, "{text}");
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn a_matrix_has_a_column_for_each_worker() {
        let matrix = vec![SteeringRow { cpu: 1, workers: vec![0, 12], kernel: 3 }];
        let text = steering(&SteeringStatus { active: true, matrix, ..SteeringStatus::default() });
        assert!(
            text.contains(
                "RX CPU  worker 0  worker 1  kernel's hash\n     1         0        12              3\n"
            ),
            "{text}"
        );
    }
}
