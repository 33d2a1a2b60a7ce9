//! Does `underpass nic` see the card as it is, and can it align it? What it says is compared with the kernel's files.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::steering::connect;
use super::{Scene, ensure_equal};
use crate::vm::guest::{CPUS, Guest};

/// Connections that make interrupts come; the first of a queue after a move may still come to the old CPU.
const CONNECTIONS: usize = 100;

/// The interrupts of the card's queues, by the names that the driver gives.
struct Interrupts {
    rx: Vec<u32>,
    tx: Vec<u32>,
}

impl Interrupts {
    fn read(guest: &mut Guest) -> Result<Self> {
        let text = guest.query("cat /proc/interrupts")?;
        let mut found = BTreeMap::new();
        for line in text.lines() {
            let number = line.split(':').next().and_then(|number| number.trim().parse::<u32>().ok());
            let name = line.split_whitespace().next_back().and_then(|name| name.split_once('-'));
            if let (Some(number), Some((_, queue))) = (number, name) {
                found.insert(queue.to_owned(), number);
            }
        }
        let all = |kind: &str| -> Result<Vec<u32>> {
            let one = |queue: u32| found.get(&format!("{kind}.{queue}")).copied();
            let numbers: Option<Vec<u32>> = (0..CPUS).map(one).collect();
            numbers.with_context(|| {
                format!("/proc/interrupts has not all of {kind}.0 to {kind}.{}:\n{text}", CPUS - 1)
            })
        };
        Ok(Self { rx: all("input")?, tx: all("output")? })
    }

    /// How often each RX queue has interrupted each CPU: by queue, then by CPU.
    fn counts(&self, guest: &mut Guest) -> Result<Vec<Vec<u64>>> {
        let text = guest.query("cat /proc/interrupts")?;
        let row = |number: &u32| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{number}:")));
            let counts =
                line.map(|line| line.split_whitespace().take(CPUS as usize).map(str::parse).collect());
            counts.and_then(Result::ok).with_context(|| format!("/proc/interrupts has no counts of {number}"))
        };
        self.rx.iter().map(row).collect()
    }
}

/// Lets queue n interrupt the n-th of these CPUs.
pub(super) fn move_rx_interrupts(guest: &mut Guest, cpus: &[u32]) -> Result<()> {
    let interrupts = Interrupts::read(guest)?;
    for (number, cpu) in interrupts.rx.iter().zip(cpus) {
        guest.run(&format!("echo {cpu} > /proc/irq/{number}/smp_affinity_list"))?;
    }
    Ok(())
}

/// Everything is put where it should not be; `nic` must see four queues with an interrupt each, and all that is wrong.
pub(super) fn misaligned(scene: &mut Scene<'_>) -> Result<String> {
    let guest = &mut scene.guest;
    let interrupts = Interrupts::read(guest)?;
    move_rx_interrupts(guest, &[0; CPUS as usize])?;
    for (number, queue) in interrupts.tx.iter().zip(0..) {
        guest.run(&format!("echo 3 > /proc/irq/{number}/smp_affinity_list"))?;
        let queues = "/sys/class/net/eth0/queues";
        guest.run(&format!("echo f > {queues}/rx-{queue}/rps_cpus"))?;
        guest.run(&format!("echo {:x} > {queues}/tx-{queue}/xps_cpus", 1 << ((queue + 1) % CPUS)))?;
    }
    let text = guest.run("underpass nic")?;
    ensure!(text.contains("eth0 (index "), "eth0 is not shown:\n{text}");
    ensure!(text.contains("virtio_net): RX queues 4, TX queues 4"), "not four queues each:\n{text}");
    for (kind, numbers) in [("rx", &interrupts.rx), ("tx", &interrupts.tx)] {
        for (queue, number) in numbers.iter().enumerate() {
            let row = row(&text, kind, queue)?;
            ensure_equal("interrupt", row.interrupt.as_str(), number.to_string())
                .with_context(|| format!("{kind} {queue} in:\n{text}"))?;
        }
    }
    let findings = text.split_once("misaligned:").context("nothing is called misaligned")?.1;
    for queue in 0..CPUS {
        let rps = format!("eth0 rx {queue}: packets are moved to CPUs 0-3 in software (RPS)");
        ensure!(findings.contains(&rps), "not seen: {rps}\n{text}");
        let xps = format!("eth0 tx {queue}: CPUs that send by it (XPS): {}", (queue + 1) % CPUS);
        ensure!(findings.contains(&xps), "not seen: {xps}\n{text}");
    }
    for queue in 1..CPUS {
        let moved = format!("eth0 rx {queue}: interrupt {} is at CPU 0,", interrupts.rx[queue as usize]);
        ensure!(findings.contains(&moved), "not seen: {moved}\n{text}");
    }
    Ok("4 RX queues, each with its own interrupt; everything that was misplaced is seen".into())
}

/// A row of the table that `nic` prints.
struct Row {
    interrupt: String,
    cpu: String,
    worker: Option<String>,
}

fn row(text: &str, kind: &str, queue: usize) -> Result<Row> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut rows = words.filter(|words| words.len() > 4 && words[0] == kind && words[1] == queue.to_string());
    // "rx", number, interrupt, CPU, allowed, RPS/XPS, worker
    let words = rows.next().with_context(|| format!("no row {kind} {queue} in:\n{text}"))?;
    Ok(Row {
        interrupt: words[2].to_owned(),
        cpu: words[3].to_owned(),
        worker: words.get(6).map(|&worker| worker.to_owned()),
    })
}

/// `nic --apply` puts queue n to CPU n in every respect, says so, and finds nothing more to do.
pub(super) fn aligns(scene: &mut Scene<'_>) -> Result<String> {
    let guest = &mut scene.guest;
    let interrupts = Interrupts::read(guest)?;
    let applied = guest.run("underpass nic --apply")?;
    for queue in 0..CPUS {
        for number in [interrupts.rx[queue as usize], interrupts.tx[queue as usize]] {
            let allowed = guest.run(&format!("cat /proc/irq/{number}/smp_affinity_list"))?;
            ensure_equal(&format!("CPU of interrupt {number}"), allowed.trim(), queue.to_string())?;
        }
        let mask = |guest: &mut Guest, file: &str| -> Result<u32> {
            let text = guest.run(&format!("cat /sys/class/net/eth0/queues/{file}"))?;
            Ok(u32::from_str_radix(text.trim(), 16)?)
        };
        ensure_equal("RPS", mask(guest, &format!("rx-{queue}/rps_cpus"))?, 0)?;
        ensure_equal("XPS", mask(guest, &format!("tx-{queue}/xps_cpus"))?, 1 << queue)?;
    }
    for text in [applied.split_once("\nnow:\n").context("no second table")?.1, &guest.run("underpass nic")?] {
        ensure!(text.contains("nothing to align"), "still misaligned:\n{text}");
        for queue in 0..CPUS as usize {
            let row = row(text, "rx", queue)?;
            ensure_equal("CPU", row.cpu, queue.to_string())
                .with_context(|| format!("rx {queue} in:\n{text}"))?;
            let worker = row.worker.unwrap_or_default();
            ensure_equal("worker", worker, queue.to_string())
                .with_context(|| format!("rx {queue} in:\n{text}"))?;
        }
    }
    let done = applied.lines().filter(|line| line.starts_with("done: ")).count();
    Ok(format!("{done} changes; queue n interrupts CPU n, RPS is off, XPS alike; nothing more to align"))
}

/// With traffic, each queue interrupts its own CPU and no other.
pub(super) fn interrupts(scene: &mut Scene<'_>) -> Result<String> {
    let interrupts = Interrupts::read(&mut scene.guest)?;
    connect(scene, CONNECTIONS)?;
    let before = interrupts.counts(&mut scene.guest)?;
    connect(scene, CONNECTIONS)?;
    let after = interrupts.counts(&mut scene.guest)?;
    let mut own = Vec::new();
    for (queue, (before, after)) in before.iter().zip(&after).enumerate() {
        let came: Vec<u64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
        let elsewhere: u64 = came.iter().sum::<u64>() - came[queue];
        ensure!(
            came[queue] > 0 && elsewhere == 0,
            "queue {queue} has interrupted CPUs 0 to 3 so often: {came:?}"
        );
        own.push(came[queue].to_string());
    }
    Ok(format!("queue n has interrupted CPU n only: {} times", own.join(", ")))
}
