//! What is not aligned, and the changes that would align it.

use std::fmt;
use std::path::PathBuf;

use super::Report;
use super::cpus::Cpus;
use super::interface::{Interface, RxQueue};
use super::irq::Irq;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: `eth0 rx 0`.
    pub subject: String,
    /// What is the matter, and why it matters.
    pub problem: String,
    /// What would put it right; empty where only the administrator can tell.
    pub changes: Vec<Change>,
}

/// A change to the running system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a value to a file of the kernel.
    Write {
        /// The file, below the root folder.
        path: PathBuf,
        /// The value.
        value: String,
    },
    /// Runs a command.
    Run(Vec<String>),
}

/// As a command for a shell.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, value } => write!(f, "echo {value} > /{}", path.display()),
            Self::Run(command) => f.write_str(&command.join(" ")),
        }
    }
}

pub(super) fn findings(report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    // First, because it would undo the rest.
    if report.irqbalance {
        findings.push(Finding {
            subject: "irqbalance".into(),
            problem: "is running, and moves interrupts to other CPUs again and again".into(),
            changes: vec![run(&["systemctl", "disable", "--now", "irqbalance"])],
        });
    }
    for interface in &report.interfaces {
        check_interface(interface, &report.workers, &mut findings);
    }
    findings
}

/// The CPU and worker that each queue should feed: where it feeds one already and that has not more than its share, it
/// stays; the others go to those that have the fewest.
pub(super) fn targets(queues: &[RxQueue], workers: &[(u32, u16)]) -> Vec<(u32, u16)> {
    if workers.is_empty() {
        return Vec::new();
    }
    let share = queues.len().div_ceil(workers.len());
    let mut queues_of = vec![0usize; workers.len()];
    let mut chosen: Vec<Option<usize>> = Vec::with_capacity(queues.len());
    for queue in queues {
        let current = queue.irq.as_ref().and_then(|irq| irq.effective.single());
        let stays = workers.iter().position(|(cpu, _)| Some(*cpu) == current);
        let stays = stays.filter(|worker| queues_of[*worker] < share);
        if let Some(worker) = stays {
            queues_of[worker] += 1;
        }
        chosen.push(stays);
    }
    for worker in chosen.iter_mut().filter(|worker| worker.is_none()) {
        let fewest = (0..workers.len()).min_by_key(|worker| queues_of[*worker]).unwrap_or(0);
        queues_of[fewest] += 1;
        *worker = Some(fewest);
    }
    chosen.into_iter().flatten().map(|worker| workers[worker]).collect()
}

fn check_interface(interface: &Interface, workers: &[(u32, u16)], findings: &mut Vec<Finding>) {
    let name = &interface.name;
    if interface.rx.iter().all(|queue| queue.irq.is_none()) {
        // Loopback, bridges, pairs of virtual devices: nothing here could be aligned.
        return;
    }
    if interface.threaded {
        findings.push(Finding {
            subject: name.clone(),
            problem: format!(
                "is threaded: the kernel's threads napi/{name}-* handle its packets, wherever they run"
            ),
            changes: vec![write(format!("sys/class/net/{name}/threaded"), "0".into())],
        });
    }
    if interface.rx.len() < workers.len() {
        findings.push(too_few_queues(interface, workers.len()));
    }
    // One queue for several workers is spread in software, if at all: that is not to be switched off.
    let spread_in_software = interface.rx.len() == 1 && workers.len() > 1;
    for (queue, (cpu, worker)) in interface.rx.iter().zip(targets(&interface.rx, workers)) {
        let subject = format!("{name} rx {}", queue.number);
        match &queue.irq {
            Some(irq) if spread_in_software && !irq.effective.is_empty() => {}
            Some(irq) => findings.extend(misplaced(subject.clone(), irq, cpu, worker)),
            None => findings.push(Finding {
                subject: subject.clone(),
                problem: "its interrupt is not known; look for it in /proc/interrupts".into(),
                changes: Vec::new(),
            }),
        }
        if !queue.rps.is_empty() && !spread_in_software {
            findings.push(Finding {
                subject,
                problem: format!(
                    "packets are moved to CPUs {} in software (RPS), away from the interrupt's",
                    queue.rps
                ),
                changes: vec![write(
                    format!("sys/class/net/{name}/queues/rx-{}/rps_cpus", queue.number),
                    "0".into(),
                )],
            });
        }
    }
    check_sending(interface, workers, findings);
}

/// Queues for sending: by the CPU of the receiving queue of the same number.
fn check_sending(interface: &Interface, workers: &[(u32, u16)], findings: &mut Vec<Finding>) {
    let name = &interface.name;
    if interface.rx.len() == 1 && workers.len() > 1 {
        return;
    }
    for (queue, (cpu, worker)) in interface.tx.iter().zip(targets(&interface.rx, workers)) {
        let subject = format!("{name} tx {}", queue.number);
        if let Some(irq) = &queue.irq {
            findings.extend(misplaced(subject.clone(), irq, cpu, worker));
        }
        if let Some(xps) = &queue.xps
            && *xps != Cpus::one(cpu)
        {
            let path = format!("sys/class/net/{name}/queues/tx-{}/xps_cpus", queue.number);
            findings.push(Finding {
                subject,
                problem: format!(
                    "CPUs that send by it (XPS): {xps}, instead of CPU {cpu} of worker {worker}"
                ),
                changes: vec![write(path, Cpus::one(cpu).to_mask())],
            });
        }
    }
}

fn too_few_queues(interface: &Interface, workers: usize) -> Finding {
    let Interface { name, rx, .. } = interface;
    let fed = rx.len();
    let queues = if fed == 1 { "one RX queue".into() } else { format!("{fed} RX queues") };
    Finding {
        subject: name.clone(),
        problem: format!(
            "has {queues} for {workers} workers: with the policies cpu and rx-queue the others get no connections from \
             it. More queues, if the device has them: ethtool -L {name} combined {workers}; otherwise use the policy hash"
        ),
        changes: Vec::new(),
    }
}

fn misplaced(subject: String, irq: &Irq, cpu: u32, worker: u16) -> Option<Finding> {
    let Irq { number, affinity, effective, .. } = irq;
    if *affinity == Cpus::one(cpu) {
        return None;
    }
    let problem = if *effective == Cpus::one(cpu) {
        format!(
            "interrupt {number} is at CPU {cpu} of worker {worker}, but may move: it is allowed on CPUs {affinity}"
        )
    } else {
        format!(
            "interrupt {number} is at CPU {effective}, allowed on {affinity}, instead of CPU {cpu} of worker {worker}"
        )
    };
    let change = write(format!("proc/irq/{number}/smp_affinity_list"), cpu.to_string());
    Some(Finding { subject, problem, changes: vec![change] })
}

fn write(path: String, value: String) -> Change {
    Change::Write { path: path.into(), value }
}

fn run(command: &[&str]) -> Change {
    Change::Run(command.iter().map(|&word| word.to_owned()).collect())
}
