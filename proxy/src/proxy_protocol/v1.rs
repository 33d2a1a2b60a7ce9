//! Version 1, a line of text: section 2.1.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Addresses, Fault, Received};

pub(super) const SIGNATURE: &[u8] = b"PROXY ";

/// Longest line with its end, `UNKNOWN` with two addresses.
pub(super) const SIZE_MAX: usize = 107;

pub(super) fn parse(input: &[u8]) -> Result<Option<Received>, Fault> {
    let window = &input[..input.len().min(SIZE_MAX)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        // "if no CRLF is found in the first 107 bytes, the receiver should declare the line invalid".
        return if window.len() == SIZE_MAX { Err(Fault::Malformed) } else { Ok(None) };
    };
    let line = window[..end].strip_prefix(SIGNATURE).ok_or(Fault::Malformed)?;
    let size = end + 2;
    // "the receiver must ignore anything presented before the CRLF is found".
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(Some(Received { size, addresses: None }));
    }
    let text = std::str::from_utf8(line).map_err(|_| Fault::Malformed)?;
    let addresses = addresses(text).ok_or(Fault::Malformed)?;
    Ok(Some(Received { size, addresses: Some(addresses) }))
}

/// Family, source, destination and their ports, each behind exactly one space.
fn addresses(text: &str) -> Option<Addresses> {
    let mut words = text.split(' ');
    let family = words.next()?;
    let (source, destination) = (words.next()?, words.next()?);
    let (source_port, destination_port) = (port(words.next()?)?, port(words.next()?)?);
    if words.next().is_some() {
        return None;
    }
    let (source, destination): (IpAddr, IpAddr) = match family {
        // The standard library takes no leading zeros here, which others would read as octal.
        "TCP4" => (address::<Ipv4Addr>(source)?.into(), address::<Ipv4Addr>(destination)?.into()),
        "TCP6" => (address::<Ipv6Addr>(source)?.into(), address::<Ipv6Addr>(destination)?.into()),
        _ => return None,
    };
    Some(Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

fn address<A: FromStr>(text: &str) -> Option<A> {
    text.parse().ok()
}

/// "a decimal number in the range [0..65535] inclusive. Heading zeroes are not permitted".
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// Writes the header of addresses of one family; returns its size.
pub(super) fn write(addresses: &Addresses, out: &mut [u8; SIZE_MAX]) -> usize {
    let Addresses { source, destination } = addresses;
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let mut rest = &mut out[..];
    // Two addresses of at most 45 bytes (INET6_ADDRSTRLEN less its NUL) fit, as the specification has counted.
    let _ = write!(
        rest,
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    );
    SIZE_MAX - rest.len()
}
