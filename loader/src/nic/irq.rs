//! Interrupts: their names, the CPUs they go to, and the queues they belong to.

use std::fs;
use std::io;
use std::path::Path;

use super::cpus::Cpus;
use super::read_line;

/// An interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Irq {
    /// Its number.
    pub number: u32,
    /// What its driver calls it: `eth0-TxRx-0`, `virtio0-input.0`, `mlx5_comp0@pci:0000:3b:00.0`.
    pub name: String,
    /// CPUs that it may go to.
    pub affinity: Cpus,
    /// CPUs that it goes to when it comes next; a part of `affinity`.
    pub effective: Cpus,
}

/// What an interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Rx,
    Tx,
    Both,
}

/// Reads all interrupts of devices.
pub(super) fn read_all(root: &Path) -> io::Result<Vec<Irq>> {
    let path = root.join("proc/interrupts");
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(parse(&text).map(|(number, name)| read_one(root, number, name)).collect())
}

fn read_one(root: &Path, number: u32, name: &str) -> Irq {
    let folder = root.join(format!("proc/irq/{number}"));
    let cpus = |file: &str| read_line(&folder.join(file)).and_then(|text| Cpus::from_list(&text));
    let affinity = cpus("smp_affinity_list").unwrap_or_default();
    // Many controllers can move an interrupt only when it comes: until then the kernel tells where it came to before it
    // was moved. Then, and where the kernel does not say, it may be any of the allowed.
    let effective = cpus("effective_affinity_list")
        .filter(|effective| !effective.is_empty() && (affinity.is_empty() || effective.is_within(&affinity)));
    Irq { number, name: name.to_owned(), effective: effective.unwrap_or_else(|| affinity.clone()), affinity }
}

/// Numbers and names in /proc/interrupts. Lines: number, a count for each CPU, controller, line, name.
fn parse(text: &str) -> impl Iterator<Item = (u32, &str)> {
    text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let number = number.trim().parse().ok()?;
        // Drivers of network cards use names without a space. Of those that share a line the last is taken.
        Some((number, rest.split_whitespace().last()?))
    })
}

/// Which queue of an interface an interrupt serves, by its name.
///
/// There is no other source: drivers name their interrupts as they like, but nearly all put the direction and the
/// number of the queue into it.
pub(super) fn classify(name: &str, interface: &str) -> Option<(Role, u32)> {
    // mlx5_comp0@pci:0000:3b:00.0
    let name = name.split('@').next().unwrap_or(name);
    // The interface's own name says nothing about the queue, even if it is "rx1".
    let kind = name.replace(interface, "").to_ascii_lowercase();
    const CONTROL: [&str; 12] = [
        "async", "cmd", "config", "control", "ctrl", "event", "fdir", "health", "lsc", "mgmnt", "misc",
        "pages",
    ];
    if CONTROL.iter().any(|word| kind.contains(word)) {
        return None;
    }
    let digits = kind.bytes().rev().take_while(u8::is_ascii_digit).count();
    // Without a number it serves none of several queues: that is the card's own, for the state of the link.
    let number = kind[kind.len() - digits..].parse().ok()?;
    // "virtio2-input.0", "eth0-rx-1", "eth0-TxRx-0", "i40e-eth0-TxRx-3", "eth0-Tx-Rx-2", "eth0-fp-1"
    let role =
        match (kind.contains("rx") || kind.contains("input"), kind.contains("tx") || kind.contains("output"))
        {
            (true, false) => Role::Rx,
            (false, true) => Role::Tx,
            _ => Role::Both,
        };
    Some((role, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_of_devices_by_number_and_name() {
        let text = "           CPU0       CPU1       \n 24:          1          0  IO-APIC   5-edge      ACPI:Ged\n \
                    38:    0   12879 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n130: 7 8 ITS-MSI 524288 Edge \
                    eth0-TxRx-0\n 16: 1 2 IO-APIC 16-fasteoi ehci_hcd:usb1, eth1\nNMI:  0  0  Non-maskable interrupts\n\
                    ERR:          0\n";
        let found: Vec<_> = parse(text).collect();
        assert_eq!(found, [(24, "ACPI:Ged"), (38, "virtio2-input.0"), (130, "eth0-TxRx-0"), (16, "eth1")]);
    }

    #[test]
    fn names_that_drivers_give() {
        for (name, interface, expected) in [
            ("virtio2-input.0", "eth0", Some((Role::Rx, 0))),
            ("virtio2-output.3", "eth0", Some((Role::Tx, 3))),
            ("virtio2-config", "eth0", None),
            ("eth0-TxRx-11", "eth0", Some((Role::Both, 11))),
            ("enp1s0f0-rx-2", "enp1s0f0", Some((Role::Rx, 2))),
            ("enp1s0f0-tx-2", "enp1s0f0", Some((Role::Tx, 2))),
            ("i40e-enp1s0f0-TxRx-5", "enp1s0f0", Some((Role::Both, 5))),
            ("i40e-0000:01:00.0:misc", "enp1s0f0", None),
            ("ice-eth0-TxRx-1", "eth0", Some((Role::Both, 1))),
            ("mlx5_comp7@pci:0000:3b:00.0", "eth0", Some((Role::Both, 7))),
            ("mlx5_async0@pci:0000:3b:00.0", "eth0", None),
            ("eth0-Tx-Rx-2", "eth0", Some((Role::Both, 2))),
            ("ena-mgmnt@pci:0000:00:05.0", "eth0", None),
            ("eth0", "eth0", None),
            ("rx1-TxRx-4", "rx1", Some((Role::Both, 4))),
            ("eth0:lsc", "eth0", None),
        ] {
            assert_eq!(classify(name, interface), expected, "{name}");
        }
    }
}
