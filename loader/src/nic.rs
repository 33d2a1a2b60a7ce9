//! How the queues of network interfaces are spread over CPUs and workers, and what to change.
//!
//! With the policies `cpu` and `rx-queue`, a connection goes to the worker of the CPU that its queue interrupts. That
//! pays only if each queue interrupts one CPU, which has a worker; if each worker has its share of queues; and if what
//! is sent leaves by the queue of the same CPU.
//!
//! Everything is read below a root folder and nothing else is looked at, so that other machines can be tried as folders.

mod apply;
mod cpus;
mod interface;
mod irq;
mod plan;
mod render;

use std::fs;
use std::io;
use std::path::Path;

pub use self::apply::apply;
pub use self::cpus::Cpus;
pub use self::interface::{Interface, RxQueue, TxQueue};
pub use self::irq::Irq;
pub use self::plan::{Change, Finding};
use crate::steering::QueueWorker;

/// The interfaces of a machine, and how they are spread over workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Interfaces that have queues with interrupts, or the one that was asked for.
    pub interfaces: Vec<Interface>,
    /// CPU and number of each worker, by CPU.
    pub workers: Vec<(u32, u16)>,
    /// Whether the daemon irqbalance runs, which moves interrupts at its own discretion.
    pub irqbalance: bool,
}

/// Reads what there is to know below `root`, which is `/` for this machine.
///
/// `workers` says which CPU each worker is pinned to. `only` names one interface; otherwise it is those with interrupts.
///
/// # Errors
/// `NotFound` for an interface that does not exist, with the names of those that do; otherwise what reading gave.
pub fn read(root: &Path, workers: &[(u32, u16)], only: Option<&str>) -> io::Result<Report> {
    let mut workers = workers.to_vec();
    workers.sort_unstable();
    let irqs = irq::read_all(root)?;
    let names = interface::names(root)?;
    if let Some(only) = only
        && !names.iter().any(|name| name == only)
    {
        let text = format!("no interface \"{only}\"; there are: {}", names.join(", "));
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let wanted = names.iter().filter(|name| only.is_none_or(|only| only == name.as_str()));
    let mut interfaces =
        wanted.map(|name| Interface::read(root, name, &irqs)).collect::<io::Result<Vec<_>>>()?;
    if only.is_none() {
        interfaces.retain(|interface| interface.rx.iter().any(|queue| queue.irq.is_some()));
    }
    Ok(Report { interfaces, workers, irqbalance: runs(root, "irqbalance") })
}

impl Report {
    /// What is not as it should be, with the changes that would put it right.
    pub fn findings(&self) -> Vec<Finding> {
        plan::findings(self)
    }

    /// The workers that an RX queue feeds under the policy `cpu`, as things are.
    pub fn workers_of(&self, queue: &RxQueue) -> Vec<u16> {
        let fed = |cpu: &u32| queue.cpus().contains(*cpu);
        self.workers.iter().filter(|(cpu, _)| fed(cpu)).map(|(_, worker)| *worker).collect()
    }

    /// A table for the policy `rx-queue`: to each queue the worker on the CPU that it interrupts, where that is one;
    /// to the others one after the other.
    pub fn queue_workers(&self) -> Vec<QueueWorker> {
        let mut table = Vec::new();
        for interface in &self.interfaces {
            let targets = plan::targets(&interface.rx, &self.workers);
            for (queue, (_, worker)) in interface.rx.iter().zip(targets) {
                table.push(QueueWorker { interface: interface.index, queue: queue.number, worker });
            }
        }
        table
    }
}

/// Whether a program of this name runs.
fn runs(root: &Path, name: &str) -> bool {
    let Ok(entries) = fs::read_dir(root.join("proc")) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let numeric = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        numeric && fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

/// Reads a file of one line; `None` where it is not there or cannot be read, as many in /sys in some states.
fn read_line(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
