//! The policy `rx-queue`, on a tunnel device with two queues: what is written to the descriptor of a queue is received by
//! that queue, as from a network card.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Command;

use common::*;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use underpass_loader::{Outcome, Policy, QueueWorker};

const DEVICE: &str = "tunnel";
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

#[test]
fn each_queues_connections_go_to_the_worker_in_the_table() {
    let test = "each_queues_connections_go_to_the_worker_in_the_table";
    let options = options(2, Policy::RxQueue);
    let Some(mut steering) = load(test, &options) else { return };
    let mut queues = match tunnel() {
        Ok(queues) => queues,
        Err(error) => return skip(test, &format!("tunnel device: {error}")),
    };
    let sockets = group_at(SocketAddr::from((SERVER, 0)), 2);
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    steering.attach_listener("test", &descriptors).expect("attach");
    let _slots = start_workers(&steering, &options);
    let port = sockets[0].local_addr().expect("address").port();
    // No CPU has a worker: nothing but the queue leads to one. Crossed, so that numbers alike do not pass by chance.
    let interface = if_nametoindex(DEVICE).expect("device");
    let entry = |queue, worker| QueueWorker { interface, queue, worker };
    steering.set_queues(&[entry(0, 1), entry(1, 0)]).expect("table");

    for (queue, worker, ports) in [(0, 1, 1000..1200), (1, 0, 2000..2200)] {
        let before = steering.matrix().expect("matrix");
        for from_port in ports {
            queues[queue].write_all(&connection_request(port, from_port)).expect("segment");
        }
        let since = || steering.matrix().expect("matrix").since(&before);
        until("200 connection requests", || (since().count(|_| true) == 200).then_some(()));
        let own = since().count(|cell| cell.worker == Some(worker) && cell.outcome == Outcome::Own);
        assert_eq!(own, 200, "queue {queue}: {}", since());
    }

    // A queue that is in the table no more goes by its CPU, which has no worker.
    let before = steering.matrix().expect("matrix");
    steering
        .set_queues(&[entry(1, 0), QueueWorker { interface: interface + 1, queue: 0, worker: 1 }])
        .expect("table");
    queues[0].write_all(&connection_request(port, 5000)).expect("segment");
    let since = || steering.matrix().expect("matrix").since(&before);
    until("connection request", || (since().count(|_| true) == 1).then_some(()));
    assert_eq!(since().count(|cell| cell.outcome == Outcome::Unmapped), 1);
}

/// Moves the calling thread into a network of its own, with a tunnel device; returns the device's queues.
fn tunnel() -> io::Result<[File; 2]> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let queues = [open_queue()?, open_queue()?];
    for arguments in [&["address", "add", "192.0.2.1/24", "dev", DEVICE][..], &["link", "set", DEVICE, "up"]]
    {
        let output = Command::new("ip").args(arguments).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
    }
    Ok(queues)
}

fn open_queue() -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed() as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("16 bits");
    // SAFETY: the kernel reads and writes one `ifreq`, and keeps nothing of it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

/// An IPv4 packet with a SYN from the client.
fn connection_request(to_port: u16, from_port: u16) -> [u8; 40] {
    let mut packet = [0u8; 40];
    packet[0] = 0x45; // version 4, 5 words of header
    packet[3] = 40; // length
    packet[8] = 64; // time to live
    packet[9] = 6; // TCP
    packet[12..16].copy_from_slice(&CLIENT.octets());
    packet[16..20].copy_from_slice(&SERVER.octets());
    let header = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    packet[20..22].copy_from_slice(&from_port.to_be_bytes());
    packet[22..24].copy_from_slice(&to_port.to_be_bytes());
    packet[32] = 5 << 4; // length of the header in words
    packet[33] = 0x02; // SYN
    packet[34..36].copy_from_slice(&1024u16.to_be_bytes()); // window
    let mut pseudo = [0u8; 32];
    pseudo[..8].copy_from_slice(&packet[12..20]);
    pseudo[9] = 6;
    pseudo[11] = 20;
    pseudo[12..].copy_from_slice(&packet[20..]);
    let segment = checksum(&pseudo);
    packet[36..38].copy_from_slice(&segment.to_be_bytes());
    packet
}
