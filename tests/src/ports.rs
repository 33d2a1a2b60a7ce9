//! Ports for servers that must be told theirs, without a race for it.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// A TCP port on 127.0.0.1 that is ours while this value lives.
///
/// The socket is bound but does not listen. Linux lets another socket with SO_REUSEADDR bind the same port and listen, and
/// gives it to nobody who asks for any port.
#[derive(Debug)]
pub struct ReservedPort {
    address: SocketAddr,
    _socket: Socket,
}

impl ReservedPort {
    /// Reserves a port that is free.
    #[track_caller]
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket());
        Self { address: address.expect("the address of a bound socket"), _socket: socket }
    }

    /// The address with the port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Default for ReservedPort {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_reserved_port_refuses_connections_until_a_server_takes_it() {
        let port = ReservedPort::new();
        assert!(TcpStream::connect(port.address()).is_err());
        // The standard library's listener has SO_REUSEADDR, as nginx and varnishtest do.
        let _server = TcpListener::bind(port.address()).unwrap();
        assert!(TcpStream::connect(port.address()).is_ok());
    }
}
