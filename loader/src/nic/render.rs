//! The report as text for a terminal.

use std::fmt;

use super::Report;
use super::interface::{Interface, RxQueue, TxQueue};
use super::irq::Irq;

/// A table for each interface, what is misaligned, and the commands that align it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.interfaces.is_empty() {
            writeln!(f, "no interface has queues with interrupts")?;
        }
        for interface in &self.interfaces {
            self.write_interface(f, interface)?;
        }
        let findings = self.findings();
        if findings.is_empty() {
            return writeln!(f, "nothing to align");
        }
        writeln!(f, "misaligned:")?;
        for finding in &findings {
            writeln!(f, "  {}: {}", finding.subject, finding.problem)?;
        }
        let mut commands = findings.iter().flat_map(|finding| &finding.changes).peekable();
        if commands.peek().is_some() {
            writeln!(f, "to align:")?;
        }
        commands.try_for_each(|command| writeln!(f, "  {command}"))
    }
}

impl Report {
    fn write_interface(&self, f: &mut fmt::Formatter<'_>, interface: &Interface) -> fmt::Result {
        let Interface { name, index, driver, threaded, rx, tx } = interface;
        let driver = driver.as_deref().unwrap_or("no device");
        let threaded = if *threaded { ", threaded" } else { "" };
        writeln!(
            f,
            "{name} (index {index}, {driver}{threaded}): RX queues {}, TX queues {}",
            rx.len(),
            tx.len()
        )?;
        let columns = ["queue", "interrupt", "CPU", "allowed", "RPS/XPS", "worker"];
        write_row(f, columns.map(String::from))?;
        for queue in rx {
            let RxQueue { number, irq, rps } = queue;
            let workers: Vec<String> = self.workers_of(queue).iter().map(ToString::to_string).collect();
            let workers = if workers.is_empty() { "none".into() } else { workers.join(",") };
            let [irq, effective, allowed] = irq_columns(irq.as_ref());
            let rps = if rps.is_empty() { "off".into() } else { rps.to_string() };
            write_row(f, [format!("rx {number}"), irq, effective, allowed, rps, workers])?;
        }
        for TxQueue { number, irq, xps } in tx {
            let [irq, effective, allowed] = irq_columns(irq.as_ref());
            let xps = xps.as_ref().map_or_else(|| "-".into(), ToString::to_string);
            write_row(f, [format!("tx {number}"), irq, effective, allowed, xps, String::new()])?;
        }
        Ok(())
    }
}

fn irq_columns(irq: Option<&Irq>) -> [String; 3] {
    match irq {
        Some(irq) => [irq.number.to_string(), irq.effective.to_string(), irq.affinity.to_string()],
        None => ["-", "-", "-"].map(String::from),
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, columns: [String; 6]) -> fmt::Result {
    let [queue, irq, cpu, allowed, software, worker] = columns;
    let row = format!("  {queue:<7} {irq:<10} {cpu:<7} {allowed:<10} {software:<10} {worker}");
    writeln!(f, "{}", row.trim_end())
}
