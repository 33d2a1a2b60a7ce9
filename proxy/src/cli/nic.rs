//! `underpass nic`.

use std::path::Path;

use underpass_command::Client;
use underpass_loader::nic::{self, Report};

use super::{Failure, print};
use crate::control::{allowed_cpus, cpu_table};

/// The root of this machine's files.
const ROOT: &str = "/";

/// Prints how the queues of interfaces are spread over the workers; with `apply`, aligns them first.
pub(super) fn nic(client: &Client, interface: Option<&str>, apply: bool) -> Result<(), Failure> {
    let (workers, source) = workers(client);
    print(&format!("{source}\n"))?;
    let report = read(&workers, interface)?;
    print(&report.to_string())?;
    if !apply {
        return Ok(());
    }
    let changes: Vec<_> = report.findings().into_iter().flat_map(|finding| finding.changes).collect();
    let mut failed = 0;
    for change in &changes {
        match nic::apply(Path::new(ROOT), change) {
            Ok(()) => print(&format!("done: {change}\n"))?,
            Err(error) => {
                failed += 1;
                eprintln!("underpass: {error}");
            }
        }
    }
    if failed > 0 {
        let count = changes.len();
        return Err(Failure::runtime(format!(
            "{failed} of {count} changes failed; run as root, and stop irqbalance"
        )));
    }
    if !changes.is_empty() {
        print(&format!("\nnow:\n{}", read(&workers, interface)?))?;
    }
    Ok(())
}

fn read(workers: &[(u32, u16)], interface: Option<&str>) -> Result<Report, Failure> {
    nic::read(Path::new(ROOT), workers, interface).map_err(Failure::runtime)
}

/// The CPU of each worker of the running proxy, or as a proxy would have them; and which of both.
fn workers(client: &Client) -> (Vec<(u32, u16)>, String) {
    match client.status() {
        Ok(status) => {
            let cpus: Vec<Option<u16>> = status.workers.iter().map(|worker| worker.cpu).collect();
            let source = format!("workers of the proxy with process id {}: {}", status.pid, cpus.len());
            (cpu_table(&cpus), source)
        }
        Err(_) => {
            let cpus: Vec<Option<u16>> = allowed_cpus().into_iter().map(Some).collect();
            let socket = client.socket().display();
            let source =
                format!("no proxy answers at {socket}; as for one with a worker per CPU: {}", cpus.len());
            (cpu_table(&cpus), source)
        }
    }
}
