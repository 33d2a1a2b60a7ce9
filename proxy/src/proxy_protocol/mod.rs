//! The PROXY protocol, versions 1 and 2: the header by which a proxy tells the next one who the client is.
//!
//! "The PROXY protocol, Versions 1 & 2" by Willy Tarreau (HAProxy's doc/proxy-protocol.txt) is what section numbers refer to.
//! No sockets, no clock, no allocation.
#![deny(clippy::disallowed_methods)]
#![forbid(unsafe_code)]

mod v1;
mod v2;

use std::net::{IpAddr, SocketAddr};

use underpass_command::state::SendProxy;

/// Longest header that [`Header::new`] makes: version 1 with two long IPv6 addresses (section 2.1).
pub const WRITTEN_SIZE_MAX: usize = v1::SIZE_MAX;

/// A header that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its size in bytes; what follows belongs to the protocol behind it.
    pub size: usize,
    /// The addresses it tells; none where it tells none: those of the connection that it came on count then.
    pub addresses: Option<Addresses>,
}

/// Who is connected to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where the client connected to.
    pub destination: SocketAddr,
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes begin with none.
    Missing,
    /// They begin with one that breaks the rules.
    Malformed,
    /// It is longer than is allowed here.
    TooLong,
}

/// Finds the header at the start of `input`; `None` when more must come. At most `size_max` bytes are waited for, which is at
/// least [`WRITTEN_SIZE_MAX`].
///
/// The answer is the same however the bytes come: what was an answer for the first of them is one for more.
///
/// # Errors
/// Why the connection must be closed (section 2: without a header it must not be served, as who reads it would guess).
pub fn parse(input: &[u8], size_max: usize) -> Result<Option<Received>, Fault> {
    let begins = |signature: &[u8]| {
        let length = input.len().min(signature.len());
        input[..length] == signature[..length]
    };
    if input.is_empty() {
        Ok(None)
    } else if begins(v2::SIGNATURE) {
        v2::parse(input, size_max)
    } else if begins(v1::SIGNATURE) {
        v1::parse(input)
    } else {
        Err(Fault::Missing)
    }
}

/// A header to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; WRITTEN_SIZE_MAX],
    size: usize,
}

impl Header {
    /// The header that tells these addresses; `None` where none is wanted.
    pub fn new(version: SendProxy, addresses: Addresses) -> Option<Self> {
        let mut header = Self { bytes: [0; WRITTEN_SIZE_MAX], size: 0 };
        let addresses = addresses.of_one_family();
        header.size = match version {
            SendProxy::Off => return None,
            SendProxy::V1 => v1::write(&addresses, &mut header.bytes),
            SendProxy::V2 => v2::write(&addresses, &mut header.bytes),
        };
        Some(header)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl Addresses {
    /// Both as IPv4 or both as IPv6, because a header has one family. An IPv4 address in an IPv6 socket is one of IPv4.
    fn of_one_family(self) -> Self {
        let [source, destination] = [self.source.ip().to_canonical(), self.destination.ip().to_canonical()];
        let [source, destination] = match (source, destination) {
            (IpAddr::V4(v4), IpAddr::V6(v6)) => [v4.to_ipv6_mapped().into(), v6.into()],
            (IpAddr::V6(v6), IpAddr::V4(v4)) => [v6.into(), v4.to_ipv6_mapped().into()],
            same => [same.0, same.1],
        };
        Self {
            source: SocketAddr::new(source, self.source.port()),
            destination: SocketAddr::new(destination, self.destination.port()),
        }
    }
}

#[cfg(test)]
mod tests;
