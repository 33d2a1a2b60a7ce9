//! A network interface, its queues, and the interrupts that belong to them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cpus::Cpus;
use super::irq::{Irq, Role, classify};
use super::read_line;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its driver; `None` for one without a device.
    pub driver: Option<String>,
    /// Whether kernel threads do the work of its interrupts; then what counts is where they run.
    pub threaded: bool,
    /// Its queues for what it receives, by number.
    pub rx: Vec<RxQueue>,
    /// Its queues for what it sends, by number.
    pub tx: Vec<TxQueue>,
}

/// A queue of received packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RxQueue {
    /// Its number.
    pub number: u32,
    /// Its interrupt, where it is known.
    pub irq: Option<Irq>,
    /// CPUs that its packets are distributed to in software (RPS); empty where that is off.
    pub rps: Cpus,
}

/// A queue of packets to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxQueue {
    /// Its number.
    pub number: u32,
    /// Its interrupt, where it has one of its own.
    pub irq: Option<Irq>,
    /// CPUs that send by this queue (XPS); `None` where that cannot be set.
    pub xps: Option<Cpus>,
}

impl RxQueue {
    /// The CPUs that handle its connections' packets: the program `steer` runs on one of them.
    pub fn cpus(&self) -> &Cpus {
        const NONE: &Cpus = &Cpus::none();
        match &self.irq {
            _ if !self.rps.is_empty() => &self.rps,
            Some(irq) => &irq.effective,
            None => NONE,
        }
    }
}

/// Names of all interfaces.
pub(super) fn names(root: &Path) -> io::Result<Vec<String>> {
    let folder = root.join("sys/class/net");
    let entries = fs::read_dir(&folder)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Beside the interfaces there may be files, such as bonding_masters.
        if entry.path().join("queues").is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

impl Interface {
    pub(super) fn read(root: &Path, name: &str, irqs: &[Irq]) -> io::Result<Self> {
        let folder = root.join("sys/class/net").join(name);
        let device = fs::canonicalize(folder.join("device")).ok();
        let own = own_irqs(name, device.as_deref(), irqs);
        let (rx_numbers, tx_numbers) = queue_numbers(&folder.join("queues"))?;
        let irq_of = |number: u32, roles: &[Role]| {
            let mut found =
                roles.iter().filter_map(|role| own.iter().find(|(_, use_)| *use_ == (*role, number)));
            found.next().map(|(irq, _)| (*irq).clone())
        };
        let rx = rx_numbers.into_iter().map(|number| {
            let rps = read_line(&folder.join(format!("queues/rx-{number}/rps_cpus")));
            let rps = rps.and_then(|mask| Cpus::from_mask(&mask)).unwrap_or_default();
            RxQueue { number, irq: irq_of(number, &[Role::Rx, Role::Both]), rps }
        });
        let tx = tx_numbers.into_iter().map(|number| {
            let xps = read_line(&folder.join(format!("queues/tx-{number}/xps_cpus")));
            let xps = xps.and_then(|mask| Cpus::from_mask(&mask));
            TxQueue { number, irq: irq_of(number, &[Role::Tx]), xps }
        });
        let driver =
            device.as_deref().and_then(|device| file_name(&fs::canonicalize(device.join("driver")).ok()?));
        Ok(Self {
            name: name.to_owned(),
            index: read_line(&folder.join("ifindex")).and_then(|index| index.parse().ok()).unwrap_or(0),
            driver,
            threaded: read_line(&folder.join("threaded")).is_some_and(|threaded| threaded == "1"),
            rx: rx.collect(),
            tx: tx.collect(),
        })
    }
}

/// The interrupts that belong to an interface, with what they are for.
///
/// The kernel lists them with the device, or with the device that this one is a function of (virtio over PCI). Where it
/// does not, the names tell.
fn own_irqs<'a>(name: &str, device: Option<&Path>, irqs: &'a [Irq]) -> Vec<(&'a Irq, (Role, u32))> {
    let listed = device.map(listed_irqs).unwrap_or_default();
    let device = device.and_then(file_name);
    let is_own = |irq: &&Irq| {
        if listed.is_empty() {
            has_word(&irq.name, name) || device.as_deref().is_some_and(|device| has_word(&irq.name, device))
        } else {
            listed.contains(&irq.number)
        }
    };
    let own: Vec<&Irq> = irqs.iter().filter(is_own).collect();
    // A card with just one interrupt gives it no number.
    if let [only] = own[..]
        && classify(&only.name, name).is_none()
    {
        return vec![(only, (Role::Both, 0))];
    }
    own.into_iter().filter_map(|irq| Some((irq, classify(&irq.name, name)?))).collect()
}

/// Whether a word is in a text, with neither letter nor digit beside it: eth1 is not in eth10.
fn has_word(text: &str, word: &str) -> bool {
    let beside = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let mut found = text.match_indices(word);
    found.any(|(at, _)| {
        !beside(text[..at].chars().next_back()) && !beside(text[at + word.len()..].chars().next())
    })
}

fn listed_irqs(device: &Path) -> BTreeSet<u32> {
    let folders = [Some(device), device.parent()].into_iter().flatten().map(|folder| folder.join("msi_irqs"));
    let Some(entries) = folders.filter_map(|folder| fs::read_dir(folder).ok()).next() else {
        return BTreeSet::new();
    };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn queue_numbers(folder: &Path) -> io::Result<(Vec<u32>, Vec<u32>)> {
    let (mut rx, mut tx) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(number) = name.strip_prefix("rx-").and_then(|number| number.parse().ok()) {
            rx.push(number);
        } else if let Some(number) = name.strip_prefix("tx-").and_then(|number| number.parse().ok()) {
            tx.push(number);
        }
    }
    rx.sort_unstable();
    tx.sort_unstable();
    Ok((rx, tx))
}

fn file_name(path: impl Into<PathBuf>) -> Option<String> {
    Some(path.into().file_name()?.to_string_lossy().into_owned())
}
