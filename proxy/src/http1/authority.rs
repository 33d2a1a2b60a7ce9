//! `host [":" port]`: the Host field (RFC 9110 section 7.2) and a target's authority (RFC 3986 section 3.2).

use std::net::Ipv6Addr;

use super::Reason;
use super::chars::{HOST, IP_FUTURE};
use crate::route::HOST_SIZE_MAX;

/// A host and, where given, a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The name or address as it was written, brackets included.
    pub host: &'a [u8],
    /// The port as it was written; an empty one counts as none.
    pub port: Option<u16>,
}

/// Parses a host with an optional port.
///
/// # Errors
/// [`Reason::HostInvalid`] for an empty host (RFC 9110 section 4.2.1), user information, or any byte that does not
/// belong there.
pub fn parse_authority(text: &[u8]) -> Result<Authority<'_>, Reason> {
    let host_len = match text {
        [b'[', rest @ ..] => {
            let close = memchr::memchr(b']', rest).ok_or(Reason::HostInvalid)?;
            if !ip_literal_valid(&rest[..close]) {
                return Err(Reason::HostInvalid);
            }
            close + 2
        }
        _ => text.iter().position(|&byte| !HOST.has(byte)).unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(host_len);
    if host.is_empty() || host.len() > HOST_SIZE_MAX || !percent_encoding_valid(host) {
        return Err(Reason::HostInvalid);
    }
    let port = match rest {
        [] | [b':'] => None,
        [b':', digits @ ..] => Some(port(digits)?),
        _ => return Err(Reason::HostInvalid),
    };
    Ok(Authority { host, port })
}

/// Digits of the largest port. More, as leading zeros, would let a short name be a long authority.
const PORT_SIZE_MAX: usize = 5;

fn port(digits: &[u8]) -> Result<u16, Reason> {
    if digits.len() > PORT_SIZE_MAX {
        return Err(Reason::HostInvalid);
    }
    let mut number = 0u16;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(Reason::HostInvalid);
        }
        let next = number.checked_mul(10).and_then(|n| n.checked_add(u16::from(digit - b'0')));
        number = next.ok_or(Reason::HostInvalid)?;
    }
    Ok(number)
}

/// `IPv6address / IPvFuture`, RFC 3986 section 3.2.2.
fn ip_literal_valid(literal: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = literal {
        let Some(dot) = memchr::memchr(b'.', rest) else { return false };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address.iter().all(|&byte| IP_FUTURE.has(byte));
    }
    std::str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

fn percent_encoding_valid(host: &[u8]) -> bool {
    let mut rest = host;
    while let Some(at) = memchr::memchr(b'%', rest) {
        match &rest[at + 1..] {
            [a, b, tail @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest = tail,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let parsed = |text: &'static str| parse_authority(text.as_bytes()).map(|a| (a.host, a.port));
        assert_eq!(parsed("a.example"), Ok((&b"a.example"[..], None)));
        assert_eq!(parsed("a.example:8080"), Ok((&b"a.example"[..], Some(8080))));
        assert_eq!(parsed("a.example:"), Ok((&b"a.example"[..], None)));
        assert_eq!(parsed("a:00080"), Ok((&b"a"[..], Some(80))));
        assert_eq!(parsed("[::1]:80"), Ok((&b"[::1]"[..], Some(80))));
        assert_eq!(parsed("[2001:DB8::192.0.2.1]"), Ok((&b"[2001:DB8::192.0.2.1]"[..], None)));
        assert_eq!(parsed("[v1F.a:b]"), Ok((&b"[v1F.a:b]"[..], None)));
        for bad in [
            "",
            ":80",
            "a b",
            "a/b",
            "u@h",
            "a:b",
            "a:70000",
            "a:000080",
            "a:-1",
            "[::1",
            "[]",
            "[::1]x",
            "a%4",
            "a%zz",
            "a,b:1:2",
            "[a.example]",
            "[127.0.0.1]",
            "[::1%25lo]",
            "[:::1]",
            "[v.a]",
            "[v1]",
            "[v1.]",
            "[vg.a]",
            "[[::1]]",
        ] {
            assert_eq!(parsed(bad), Err(Reason::HostInvalid), "{bad}");
        }
    }
}
