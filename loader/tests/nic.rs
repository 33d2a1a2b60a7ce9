//! Reading and aligning the queues of network interfaces: folders laid out as the kernel's on machines with various cards,
//! and the machine at hand.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use underpass_loader::QueueWorker;
use underpass_loader::nic::{self, Report, apply};

/// A folder in the place of `/`.
struct Machine {
    root: TempDir,
    interrupts: String,
}

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("folder");
        fs::create_dir_all(root.path().join("sys/class/net")).expect("folder");
        fs::create_dir_all(root.path().join("proc/1")).expect("folder");
        fs::write(root.path().join("proc/1/comm"), "systemd\n").expect("file");
        Self { root, interrupts: "            CPU0       CPU1       CPU2       CPU3\n".into() }
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        fs::write(path, format!("{text}\n")).expect("file");
    }

    /// `affinity` are the allowed CPUs and the one in effect.
    fn irq(&mut self, number: u32, name: &str, affinity: (&str, &str)) {
        self.interrupts +=
            &format!("{number:>4}:  0  1  2  3  PCI-MSIX-0000:00:03.0  {number}-edge      {name}\n");
        self.file("proc/interrupts", self.interrupts.trim_end());
        self.file(&format!("proc/irq/{number}/smp_affinity_list"), affinity.0);
        self.file(&format!("proc/irq/{number}/effective_affinity_list"), affinity.1);
    }

    /// An interface whose device lies in `device`, below sys/devices; the files of the queues, with RPS and XPS.
    fn interface(&self, name: &str, index: u32, device: &str, rps: &[&str], xps: &[&str]) {
        let folder = format!("sys/class/net/{name}");
        self.file(&format!("{folder}/ifindex"), &index.to_string());
        for (number, mask) in rps.iter().enumerate() {
            self.file(&format!("{folder}/queues/rx-{number}/rps_cpus"), mask);
        }
        for (number, mask) in xps.iter().enumerate() {
            self.file(&format!("{folder}/queues/tx-{number}/xps_cpus"), mask);
        }
        if !device.is_empty() {
            let device = format!("sys/devices/{device}");
            fs::create_dir_all(self.root.path().join(&device)).expect("folder");
            symlink(self.root.path().join(device), self.root.path().join(folder).join("device"))
                .expect("link");
        }
    }

    fn msi_irqs(&self, device: &str, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.file(&format!("sys/devices/{device}/msi_irqs/{number}"), "msix");
        }
    }

    fn read(&self, workers: &[(u32, u16)]) -> Report {
        nic::read(self.root.path(), workers, None).expect("readable")
    }

    fn apply_all(&self, report: &Report) {
        for change in report.findings().iter().flat_map(|finding| &finding.changes) {
            apply(self.root.path(), change).expect("change");
        }
        // The kernel moves an interrupt where it is allowed to be.
        for entry in fs::read_dir(self.root.path().join("proc/irq")).expect("folder") {
            let folder = entry.expect("entry").path();
            let allowed = fs::read(folder.join("smp_affinity_list")).expect("file");
            if !allowed.contains(&b'-') {
                fs::write(folder.join("effective_affinity_list"), allowed).expect("file");
            }
        }
    }
}

const FOUR: [(u32, u16); 4] = [(0, 0), (1, 1), (2, 2), (3, 3)];

fn commands(report: &Report) -> Vec<String> {
    report.findings().iter().flat_map(|finding| &finding.changes).map(ToString::to_string).collect()
}

/// virtio-net: an interrupt for each direction of each queue, listed with the PCI device above the virtio device.
fn virtio() -> Machine {
    let mut machine = Machine::new();
    let device = "pci0000:00/0000:00:03.0";
    machine.irq(37, "virtio2-config", ("0-3", "0"));
    for queue in 0..4 {
        machine.irq(38 + 2 * queue, &format!("virtio2-input.{queue}"), ("0-3", "0"));
        machine.irq(39 + 2 * queue, &format!("virtio2-output.{queue}"), ("0-3", "3"));
    }
    machine.irq(60, "virtio1-req.0", ("0-3", "1"));
    machine.msi_irqs(device, 37..46);
    machine.interface("eth0", 2, &format!("{device}/virtio2"), &["0", "0", "0", "0"], &["0", "f", "4", "8"]);
    machine.interface("lo", 1, "", &["0"], &[]);
    machine
}

#[test]
fn virtio_queues_are_spread_over_the_workers() {
    let machine = virtio();
    let report = machine.read(&FOUR);
    assert_eq!(report.interfaces.len(), 1, "without interrupts there is nothing to align on lo");
    let interface = &report.interfaces[0];
    let irqs: Vec<u32> =
        interface.rx.iter().map(|queue| queue.irq.as_ref().expect("interrupt").number).collect();
    assert_eq!(irqs, [38, 40, 42, 44]);
    assert_eq!(report.workers_of(&interface.rx[3]), [0], "all at CPU 0 at first");
    let commands = commands(&report);
    for command in [
        "echo 0 > /proc/irq/38/smp_affinity_list",
        "echo 1 > /proc/irq/40/smp_affinity_list",
        "echo 3 > /proc/irq/44/smp_affinity_list",
        "echo 1 > /proc/irq/41/smp_affinity_list",
        "echo 1 > /sys/class/net/eth0/queues/tx-0/xps_cpus",
        "echo 2 > /sys/class/net/eth0/queues/tx-1/xps_cpus",
    ] {
        assert!(commands.iter().any(|found| found == command), "{command} not in {commands:#?}");
    }
    assert!(
        !commands.iter().any(|command| command.contains("tx-2") || command.contains("/60/")),
        "{commands:#?}"
    );

    machine.apply_all(&report);
    let aligned = machine.read(&FOUR);
    assert_eq!(aligned.findings(), []);
    for (queue, worker) in aligned.interfaces[0].rx.iter().zip(0..) {
        assert_eq!(aligned.workers_of(queue), [worker]);
    }
    let table: Vec<(u32, u32, u16)> =
        aligned.queue_workers().iter().map(|entry| (entry.interface, entry.queue, entry.worker)).collect();
    assert_eq!(table, [(2, 0, 0), (2, 1, 1), (2, 2, 2), (2, 3, 3)]);
}

/// As on x86: /proc/irq/N/effective_affinity_list tells the old CPU until the interrupt has come once more.
#[test]
fn an_interrupt_that_has_yet_to_move_counts_as_moved() {
    let mut machine = Machine::new();
    for (queue, effective) in (0..).zip(["1", "3", "0", "2"]) {
        machine.irq(25 + queue, &format!("virtio0-input.{queue}"), ("0", effective));
    }
    let device = "pci0000:00/0000:00:02.0";
    machine.msi_irqs(device, 25..29);
    machine.interface("eth0", 2, &format!("{device}/virtio0"), &["0"; 4], &["1", "2", "4", "8"]);
    let report = machine.read(&FOUR);
    for queue in &report.interfaces[0].rx {
        assert_eq!(report.workers_of(queue), [0], "{report}");
    }
    let problem = &report.findings()[0].problem;
    assert!(problem.contains("interrupt 26 is at CPU 0, allowed on 0, instead of CPU 1"), "{report}");
    assert_eq!(
        commands(&report),
        [
            "echo 1 > /proc/irq/26/smp_affinity_list",
            "echo 2 > /proc/irq/27/smp_affinity_list",
            "echo 3 > /proc/irq/28/smp_affinity_list",
        ]
    );
    for change in report.findings().iter().flat_map(|finding| &finding.changes) {
        apply(machine.root.path(), change).expect("change");
    }
    // None has come since.
    let moved = machine.read(&FOUR);
    assert_eq!(moved.findings(), []);
    for (queue, worker) in moved.interfaces[0].rx.iter().zip(0..) {
        assert_eq!(moved.workers_of(queue), [worker], "{moved}");
    }
}

#[test]
fn a_mellanox_card_is_known_by_the_interrupts_of_its_device() {
    let mut machine = Machine::new();
    let device = "pci0000:3a/0000:3b:00.0";
    // The names do not tell which port they belong to; the list of the device does.
    for (first, pci) in [(100, "0000:3b:00.0"), (200, "0000:3b:00.1")] {
        machine.irq(first, &format!("mlx5_async0@pci:{pci}"), ("0-3", "0"));
        for queue in 0..2u32 {
            let cpu = ((queue + 1) % 2).to_string();
            machine.irq(first + 1 + queue, &format!("mlx5_comp{queue}@pci:{pci}"), (&cpu, &cpu));
        }
    }
    machine.msi_irqs(device, 100..103);
    machine.interface("ens1f0np0", 5, device, &["0", "0"], &["2", "1"]);
    let report = machine.read(&FOUR[..2]);
    let queues = &report.interfaces[0].rx;
    let irqs: Vec<u32> = queues.iter().map(|queue| queue.irq.as_ref().expect("interrupt").number).collect();
    assert_eq!(irqs, [101, 102]);
    assert_eq!(report.findings(), [], "each worker has its queue, though of another number: that is aligned");
    let entry = |queue, worker| QueueWorker { interface: 5, queue, worker };
    assert_eq!(report.queue_workers(), [entry(0, 1), entry(1, 0)]);
}

#[test]
fn an_intel_card_with_rps_and_wide_interrupts() {
    let mut machine = Machine::new();
    machine.irq(50, "enp4s0", ("0-3", "0"));
    for queue in 0..2u32 {
        machine.irq(51 + queue, &format!("enp4s0-TxRx-{queue}"), ("0-3", &queue.to_string()));
    }
    // No list of interrupts: the names tell. A second card's begin alike.
    machine.irq(61, "enp4s01-TxRx-0", ("0-3", "2"));
    machine.interface("enp4s0", 3, "pci0000:00/0000:04:00.0", &["f", "0"], &["1", "2"]);
    let report = machine.read(&FOUR[..2]);
    let problems: Vec<(String, String)> =
        report.findings().into_iter().map(|finding| (finding.subject, finding.problem)).collect();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert_eq!(problems[0].0, "enp4s0 rx 0");
    assert!(problems[0].1.contains("is at CPU 0 of worker 0, but may move"), "{problems:#?}");
    assert!(problems[1].1.contains("CPUs 0-3 in software (RPS)"), "{problems:#?}");
    let rps = "echo 0 > /sys/class/net/enp4s0/queues/rx-0/rps_cpus";
    assert!(commands(&report).iter().any(|command| command == rps));
    machine.apply_all(&report);
    assert_eq!(machine.read(&FOUR[..2]).findings(), []);
}

#[test]
fn more_queues_than_workers_are_shared_evenly() {
    let machine = virtio();
    let workers = [(1, 0), (3, 1)];
    machine.apply_all(&machine.read(&workers));
    let report = machine.read(&workers);
    assert_eq!(report.findings(), []);
    let fed: Vec<u16> = report.interfaces[0].rx.iter().flat_map(|queue| report.workers_of(queue)).collect();
    assert_eq!(fed.iter().filter(|worker| **worker == 0).count(), 2, "{fed:?}");
    assert_eq!(fed.len(), 4);
}

#[test]
fn one_queue_for_several_workers_is_reported_and_left_alone() {
    let mut machine = Machine::new();
    machine.irq(30, "eth0", ("0-3", "1"));
    machine.interface("eth0", 2, "platform/e1000", &["f"], &[]);
    let report = machine.read(&FOUR);
    let findings = report.findings();
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(findings[0].problem.contains("one RX queue for 4 workers"), "{findings:#?}");
    assert!(findings[0].problem.contains("use the policy hash"), "{findings:#?}");
    assert_eq!(commands(&report), [""; 0], "software spreads the queue: that is not to be switched off");
    assert_eq!(report.workers_of(&report.interfaces[0].rx[0]), [0, 1, 2, 3]);
}

#[test]
fn what_would_undo_it_is_reported_first() {
    let machine = virtio();
    machine.file("proc/777/comm", "irqbalance");
    machine.file("sys/class/net/eth0/threaded", "1");
    let report = machine.read(&FOUR);
    let commands = commands(&report);
    assert_eq!(commands[0], "systemctl disable --now irqbalance");
    assert_eq!(commands[1], "echo 0 > /sys/class/net/eth0/threaded");
}

#[test]
fn prints_a_table_and_the_commands() {
    let text = virtio().read(&FOUR).to_string();
    assert!(text.starts_with("eth0 (index 2, no device): RX queues 4, TX queues 4\n"), "{text}");
    let row = |begin: &str| {
        let row = text.lines().find(|line| line.trim_start().starts_with(begin));
        row.unwrap_or_else(|| panic!("no {begin} in {text}")).split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(row("rx 1"), ["rx", "1", "40", "0", "0-3", "off", "0"]);
    assert_eq!(row("tx 1"), ["tx", "1", "41", "3", "0-3", "0-3"]);
    let to_align = text.split_once("to align:\n").expect("commands").1;
    assert!(to_align.contains("  echo 1 > /proc/irq/40/smp_affinity_list\n"), "{text}");
}

#[test]
fn an_interface_that_does_not_exist_is_named_with_those_that_do() {
    let machine = virtio();
    let error = nic::read(machine.root.path(), &FOUR, Some("eth1")).expect_err("missing").to_string();
    assert!(error.contains("no interface \"eth1\"; there are: eth0, lo"), "{error}");
    let lo = nic::read(machine.root.path(), &FOUR, Some("lo")).expect("asked for by name");
    assert_eq!((lo.interfaces.len(), lo.findings()), (1, Vec::new()));
}

#[test]
fn a_change_that_cannot_be_made_is_named() {
    let report = virtio().read(&FOUR);
    let change = report.findings().remove(0).changes.remove(0);
    let empty = tempfile::tempdir().expect("folder");
    let error = apply(empty.path(), &change).expect_err("no such file").to_string();
    assert!(error.starts_with(&change.to_string()), "{error}");
    assert!(!empty.path().join("proc").exists(), "no file is made");
}

#[test]
fn this_machine_can_be_read() {
    let report = nic::read(Path::new("/"), &[(0, 0)], None).expect("readable");
    assert!(!report.to_string().is_empty());
    for interface in &report.interfaces {
        assert!(interface.index > 0, "{interface:?}");
        assert!(
            interface.rx.iter().filter_map(|queue| queue.irq.as_ref()).all(|irq| !irq.affinity.is_empty())
        );
    }
    assert_eq!(
        report.queue_workers().len(),
        report.interfaces.iter().map(|interface| interface.rx.len()).sum()
    );
    let lo = nic::read(Path::new("/"), &[(0, 0)], Some("lo")).expect("readable");
    assert_eq!(lo.interfaces[0].name, "lo");
}
