//! The listening sockets: one per worker and listener, made and held by the supervisor.
//!
//! A worker that dies leaves its socket open here, so connections wait in the accept queue for its successor.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use underpass_command::state::{Limits, Listener};

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("listener \"{name}\": address {address}: {}", explain(source))]
pub struct SocketError {
    name: String,
    address: SocketAddr,
    source: io::Error,
}

/// The sockets of one listener, a SO_REUSEPORT group in the order of the workers.
#[derive(Clone, Debug)]
pub(super) struct ListenerSockets {
    /// The listener's name.
    pub(super) name: String,
    /// Where it listens, with the port that the kernel chose where 0 was asked for.
    pub(super) address: SocketAddr,
    /// One socket per worker; none once it has been let go of.
    pub(super) sockets: Vec<Option<Arc<OwnedFd>>>,
}

/// Opens all listeners with one socket for each of `workers` workers.
///
/// Every connection that one of them accepts takes over its bound on unsent bytes. Nothing listens before everything is bound: where one address cannot be had, no connection to another is taken
/// in and then lost.
pub(super) fn open(
    listeners: &[Listener],
    workers: usize,
    limits: &Limits,
) -> Result<Vec<ListenerSockets>, SocketError> {
    let bound: Result<Vec<(&Listener, Vec<Socket>)>, SocketError> = listeners
        .iter()
        .map(|listener| {
            let group = bind_group(listener.address, workers, limits.unsent_max);
            group.map(|group| (listener, group)).map_err(|source| error(listener, source))
        })
        .collect();
    bound?.into_iter().map(|(listener, group)| listen(listener, group, limits.backlog)).collect()
}

fn error(listener: &Listener, source: io::Error) -> SocketError {
    SocketError { name: listener.name.clone(), address: listener.address, source }
}

fn listen(listener: &Listener, group: Vec<Socket>, backlog: u32) -> Result<ListenerSockets, SocketError> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let mut address = listener.address;
    let mut sockets = Vec::with_capacity(group.len());
    for socket in group {
        socket.listen(backlog).map_err(|source| error(listener, source))?;
        let local = socket.local_addr().map_err(|source| error(listener, source))?;
        address = local.as_socket().unwrap_or(address);
        sockets.push(Some(Arc::new(OwnedFd::from(socket))));
    }
    Ok(ListenerSockets { name: listener.name.clone(), address, sockets })
}

/// Binds `workers` sockets to one address, none of them listening yet.
fn bind_group(mut address: SocketAddr, workers: usize, unsent_max: u32) -> io::Result<Vec<Socket>> {
    // With SO_REUSEPORT the kernel lets a second proxy of the same user join the group and take half of the
    // connections. One bind without it fails instead.
    if address.port() != 0 {
        drop(bind(address, false)?);
    }
    let mut group = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = bind(address, true)?;
        // tcp(7) does not say so, but a connection is a copy of its listener: no call for each one.
        socket.set_tcp_notsent_lowat(unsent_max)?;
        // Port 0: the others join the first one's port.
        if let Some(bound) = socket.local_addr()?.as_socket() {
            address.set_port(bound.port());
        }
        group.push(socket);
    }
    Ok(group)
}

fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of a predecessor in TIME_WAIT must not hinder a restart.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // [::] and 0.0.0.0 are two listeners, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn explain(error: &io::Error) -> String {
    let text = match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied; run as root or give CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrInUse => {
            "in use by another program; `ss -ltnp` shows which: stop it, or choose another address"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has it; `ip address` shows those there are, 0.0.0.0 takes every one"
        }
        _ if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            "this kernel has IPv6 turned off; use an IPv4 address"
        }
        _ => return format!("{error}"),
    };
    text.to_owned()
}

/// The address that a client on this machine can connect to: a wildcard becomes the loopback address.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        reachable.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    reachable
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn any_port() -> SocketAddr {
        "127.0.0.1:0".parse().expect("an address")
    }

    #[test]
    fn every_worker_has_a_socket_on_the_same_port() {
        let opened = open(&[Listener::new("web", any_port())], 3, &Limits::default()).expect("loopback");
        assert_eq!(opened[0].sockets.len(), 3);
        assert_ne!(opened[0].address.port(), 0);
        for socket in opened[0].sockets.iter().flatten() {
            let socket = Socket::from(socket.try_clone().expect("dup"));
            assert_eq!(socket.local_addr().expect("bound").as_socket(), Some(opened[0].address));
            assert!(socket.is_listener().expect("getsockopt"));
            assert_eq!(socket.tcp_notsent_lowat().expect("getsockopt"), Limits::default().unsent_max);
        }
        TcpStream::connect(opened[0].address).expect("the kernel accepts");
    }

    #[test]
    fn an_address_in_use_is_refused_even_if_it_is_shared() {
        let plain = TcpListener::bind(any_port()).expect("loopback");
        let shared = open(&[Listener::new("first", any_port())], 2, &Limits::default()).expect("loopback");
        for taken in [plain.local_addr().expect("bound"), shared[0].address] {
            let error =
                open(&[Listener::new("web", taken)], 2, &Limits::default()).expect_err("in use").to_string();
            assert!(error.starts_with(&format!("listener \"web\": address {taken}: in use")), "{error}");
        }
    }

    #[test]
    fn nothing_listens_when_one_address_cannot_be_had() {
        let taken = TcpListener::bind(any_port()).expect("loopback");
        let free = TcpListener::bind(any_port()).expect("loopback").local_addr().expect("bound");
        let both = [Listener::new("free", free), Listener::new("taken", taken.local_addr().expect("bound"))];
        open(&both, 1, &Limits::default()).expect_err("in use");
        assert!(TcpStream::connect(free).is_err());
    }

    #[test]
    fn a_foreign_address_says_so() {
        // TEST-NET-1, RFC 5737: no interface has it.
        let address = "192.0.2.1:0".parse().expect("an address");
        let error =
            open(&[Listener::new("web", address)], 1, &Limits::default()).expect_err("not ours").to_string();
        assert!(error.contains("no interface"), "{error}");
    }

    #[test]
    fn a_wildcard_is_reached_over_loopback() {
        let reached = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(reached("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(reached("[::]:80"), "[::1]:80");
        assert_eq!(reached("192.0.2.1:80"), "192.0.2.1:80");
    }
}
