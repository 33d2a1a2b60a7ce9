//! Addresses, hosts and paths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ROUTE_PATH_SIZE_MAX, check_size};
use crate::config::table::Fault;

/// The longest target of a check, in bytes.
const CHECK_TARGET_SIZE_MAX: usize = 1024;

/// Reads an address and port, and tells precisely what else it is.
pub(in crate::config) fn parse_address(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| address_fault(text))
}

fn address_fault(text: &str) -> Fault {
    if text.parse::<Ipv4Addr>().is_ok() {
        return Fault::new("has no port", format!("write {text}:PORT"));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Fault::new("an IPv6 address without brackets and port", format!("write [{text}]:PORT"));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Fault::new("not an IP address and port", "write it as 127.0.0.1:8080 or [::1]:8080");
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Fault::new("the port is not a number", "use a port between 1 and 65535");
    }
    if port.parse::<u16>().is_err() {
        return Fault::new("port above 65535", "use a port between 1 and 65535");
    }
    if host.is_empty() {
        return Fault::new(
            "has no IP address",
            format!("write 0.0.0.0:{port} for every address, or 127.0.0.1:{port}"),
        );
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        return Fault::new("an IPv6 address without brackets", format!("write [{host}]:{port}"));
    }
    Fault::new(format!("{host:?} is not an IP address, and names are not looked up"), "use the IP address")
}

pub(super) fn check_listen_address(text: &str) -> Result<(), Fault> {
    match parse_address(text)?.ip().to_canonical() {
        ip if is_group(ip) => Err(Fault::new(
            "a multicast or broadcast address cannot accept connections",
            "use one of this host",
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_backend_address(text: &str) -> Result<(), Fault> {
    let address = parse_address(text)?;
    let ip = address.ip().to_canonical();
    if address.port() == 0 {
        return Err(Fault::new("port 0 cannot be connected to", "use a port between 1 and 65535"));
    }
    if ip.is_unspecified() {
        let remedy = "use the backend's own address; 127.0.0.1 or [::1] for this host";
        return Err(Fault::new("stands for every address of this host, not for one to connect to", remedy));
    }
    if is_group(ip) {
        return Err(Fault::new(
            "a multicast or broadcast address cannot be connected to",
            "use the backend's own",
        ));
    }
    Ok(())
}

fn is_group(ip: IpAddr) -> bool {
    ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A host name (RFC 1123, and underscores, which are common in practice), a wildcard, or an IP address.
pub(super) fn check_host(text: &str) -> Result<(), Fault> {
    check_size(text, 253)?;
    if text == "*" {
        return Err(Fault::new("not a host name", "leave host out to take every host"));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(Fault::new("not an IPv6 address in brackets", "write it as [2001:db8::1]")),
        };
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Fault::new("an IPv6 address without brackets", format!("write [{text}]")));
    }
    if text.contains("//") {
        return Err(Fault::new("a URL, not a host name", "leave away the scheme and the path"));
    }
    if let Some((host, _)) = text.rsplit_once(':') {
        return Err(Fault::new("has a port", format!("write {host:?}: a route takes every port")));
    }
    if let Some(host) = text.strip_suffix('.') {
        return Err(Fault::new("ends with a dot", format!("write {host:?}")));
    }
    text.strip_prefix("*.").unwrap_or(text).split('.').try_for_each(check_label)
}

/// RFC 6066 section 3: a server name is never the literal of an address.
pub(super) fn check_server_name(text: &str) -> Result<(), Fault> {
    if text.starts_with('[') || text.parse::<IpAddr>().is_ok() {
        let remedy = "leave the route out: such connections go to default_cluster";
        return Err(Fault::new("TLS clients send no server name for an IP address", remedy));
    }
    check_host(text)
}

fn check_label(label: &str) -> Result<(), Fault> {
    if label.is_empty() {
        return Err(Fault::new("has an empty label", "remove the extra dot"));
    }
    if label.len() > 63 {
        return Err(Fault::new("has a label longer than 63 bytes", "use a host name that DNS allows"));
    }
    if label.contains('*') {
        let remedy = "write *. at the start and nowhere else, as *.example.com";
        return Err(Fault::new("a wildcard takes whole labels at the start only", remedy));
    }
    if !label.is_ascii() {
        return Err(Fault::new("not ASCII", "write international names in their xn-- form"));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(Fault::new(format!("the label {label:?} begins or ends with '-'"), "remove it"));
    }
    match label.chars().find(|&c| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')) {
        Some(c) => Err(Fault::new(format!("{c:?} is not allowed in a host name"), "remove it")),
        None => Ok(()),
    }
}

/// RFC 3986 3.3: a path is segments of `pchar`, here with a slash before each.
pub(super) fn check_url_path(text: &str) -> Result<(), Fault> {
    check_size(text, ROUTE_PATH_SIZE_MAX)?;
    if !text.starts_with('/') {
        return Err(Fault::new("does not begin with /", format!("write {:?}", format!("/{text}"))));
    }
    if let Some((path, _)) = text.split_once(['?', '#']) {
        return Err(Fault::new("holds more than a path", format!("write {path:?}: queries are not matched")));
    }
    if text.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(Fault::new("has a segment of dots", "write the path that it stands for"));
    }
    let pchar = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%".contains(c);
    if let Some(c) = text.chars().find(|&c| !pchar(c)) {
        let mut utf8 = [0; 4];
        let encoded: String = c.encode_utf8(&mut utf8).bytes().map(|byte| format!("%{byte:02X}")).collect();
        return Err(Fault::new(format!("{c:?} is not allowed in a path"), format!("write {encoded}")));
    }
    let hex = |escape: &str| escape.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    match text.split('%').skip(1).all(hex) {
        true => Ok(()),
        false => Err(Fault::new("has a % without two hexadecimal digits", "write %25 for the character %")),
    }
}

/// RFC 9112 section 3.2.1: the origin form of a request target.
pub(super) fn check_target(text: &str) -> Result<(), Fault> {
    check_size(text, CHECK_TARGET_SIZE_MAX)?;
    if !text.starts_with('/') {
        return Err(Fault::new("does not begin with /", format!("write {:?}", format!("/{text}"))));
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(c) => Err(Fault::new(
            format!("{c:?} is not allowed in a request target"),
            "write it as % and two hexadecimal digits",
        )),
        None => Ok(()),
    }
}
