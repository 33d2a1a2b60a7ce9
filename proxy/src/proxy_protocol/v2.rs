//! Version 2, binary: section 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Addresses, Fault, Received, WRITTEN_SIZE_MAX};

pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length of the rest.
const FIXED_SIZE: usize = 16;
/// Two IPv4 addresses and two ports.
const IPV4_SIZE: usize = 12;
/// Two IPv6 addresses and two ports.
const IPV6_SIZE: usize = 36;
/// Two paths of Unix sockets.
const UNIX_SIZE: usize = 216;

const VERSION: u8 = 0x20;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

pub(super) fn parse(input: &[u8], size_max: usize) -> Result<Option<Received>, Fault> {
    // What is wrong with a byte is wrong as soon as it is there, however many follow.
    if let Some(byte) = input.get(12)
        && !matches!(byte.checked_sub(VERSION), Some(LOCAL | PROXY))
    {
        return Err(Fault::Malformed);
    }
    if let Some(byte) = input.get(13)
        && (byte >> 4 > 3 || byte & 15 > 2)
    {
        // "Other values are reserved and must not be emitted. Receivers must drop connections presenting unexpected values".
        return Err(Fault::Malformed);
    }
    let Some(fixed) = input.first_chunk::<FIXED_SIZE>() else { return Ok(None) };
    let size = FIXED_SIZE + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let local = fixed[12] == VERSION | LOCAL;
    let address_size = match fixed[13] >> 4 {
        // "When a sender uses LOCAL … the receiver must accept this connection as valid and … discard the protocol block
        // including the family which is ignored".
        _ if local => 0,
        1 => IPV4_SIZE,
        2 => IPV6_SIZE,
        3 => UNIX_SIZE,
        _ => 0,
    };
    if size - FIXED_SIZE < address_size {
        return Err(Fault::Malformed);
    }
    if size > size_max {
        return Err(Fault::TooLong);
    }
    let Some(rest) = input.get(FIXED_SIZE..size) else { return Ok(None) };
    let addresses = match fixed[13] {
        _ if local => None,
        TCP_OVER_IPV4 => rest.first_chunk::<IPV4_SIZE>().map(ipv4),
        TCP_OVER_IPV6 => rest.first_chunk::<IPV6_SIZE>().map(ipv6),
        // Datagrams, Unix sockets and what is unspecified tell nothing that the connection's client could be known by.
        _ => None,
    };
    // TLVs may follow the addresses; none is of use here.
    Ok(Some(Received { size, addresses }))
}

fn ipv4(bytes: &[u8; IPV4_SIZE]) -> Addresses {
    let [a, b, c, d, e, f, g, h, ports @ ..] = *bytes;
    pair(Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into(), ports)
}

fn ipv6(bytes: &[u8; IPV6_SIZE]) -> Addresses {
    let (mut source, mut destination, mut ports) = ([0; 16], [0; 16], [0; 4]);
    source.copy_from_slice(&bytes[..16]);
    destination.copy_from_slice(&bytes[16..32]);
    ports.copy_from_slice(&bytes[32..]);
    pair(Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into(), ports)
}

fn pair(source: IpAddr, destination: IpAddr, ports: [u8; 4]) -> Addresses {
    let [a, b, c, d] = ports;
    Addresses {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    }
}

/// Writes the header of addresses of one family; returns its size.
pub(super) fn write(addresses: &Addresses, out: &mut [u8; WRITTEN_SIZE_MAX]) -> usize {
    let Addresses { source, destination } = addresses;
    let mut size = 0;
    let mut put = |bytes: &[u8]| {
        out[size..size + bytes.len()].copy_from_slice(bytes);
        size += bytes.len();
    };
    put(SIGNATURE);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            put(&[VERSION | PROXY, TCP_OVER_IPV4, 0, 12]);
            put(&source.octets());
            put(&destination.octets());
        }
        (source, destination) => {
            put(&[VERSION | PROXY, TCP_OVER_IPV6, 0, 36]);
            put(&octets6(source));
            put(&octets6(destination));
        }
    }
    put(&source.port().to_be_bytes());
    put(&destination.port().to_be_bytes());
    size
}

fn octets6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
