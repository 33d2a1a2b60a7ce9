//! `http://host:port/target`, and nothing else.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, Result};

/// The longest URL that is taken.
const SIZE_MAX: usize = 8 * 1024;

/// A URL of scheme `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Host and port as they stand in `Host` (RFC 9110 section 7.2).
    pub authority: String,
    /// Path and query: the request target in origin form (RFC 9112 section 3.2.1).
    pub target: String,
    host: String,
    port: u16,
}

impl Url {
    /// The first address that the host's name has.
    ///
    /// # Errors
    /// The name cannot be resolved.
    pub fn resolve(&self) -> Result<SocketAddr> {
        let mut addresses = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .with_context(|| format!("host \"{}\": cannot be resolved", self.host))?;
        addresses.next().with_context(|| format!("host \"{}\": has no address", self.host))
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| Err(format!("URL \"{text}\": {why}; write http://HOST[:PORT]/PATH"));
        if text.len() > SIZE_MAX {
            return refuse("too long");
        }
        if text.starts_with("https://") {
            return refuse("TLS is not spoken here, measure behind what terminates it");
        }
        let Some(rest) = text.strip_prefix("http://") else { return refuse("scheme is not http") };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if target.bytes().chain(authority.bytes()).any(|byte| !byte.is_ascii_graphic()) {
            return refuse("has spaces, control characters or other than ASCII: percent-encode them");
        }
        if authority.contains('@') {
            return refuse("user names are not sent");
        }
        // What is behind # never goes to a server (RFC 9110 section 7.1).
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        // Colons within the brackets of an IPv6 address are none of a port (RFC 3986 section 3.2.2).
        let port_from = authority.rfind(']').unwrap_or(0);
        let (host, port) = match authority[port_from..].find(':') {
            Some(at) => authority.split_at(port_from + at),
            None => (authority, ""),
        };
        let port = match port.strip_prefix(':') {
            None | Some("") => 80,
            Some(port) => match port.parse() {
                Ok(port @ 1..) => port,
                _ => return refuse("the port is no number from 1 to 65535"),
            },
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return refuse("has no host");
        }
        Ok(Self { authority: authority.to_owned(), target, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, authority, target, address) in [
            ("http://127.0.0.1:8080/a?b#c", "127.0.0.1:8080", "/a?b", "127.0.0.1:8080"),
            ("http://127.0.0.1", "127.0.0.1", "/", "127.0.0.1:80"),
            ("http://127.0.0.1?x", "127.0.0.1", "/?x", "127.0.0.1:80"),
            ("http://[::1]:81/", "[::1]:81", "/", "[::1]:81"),
            ("http://[::1]/y", "[::1]", "/y", "[::1]:80"),
        ] {
            let url: Url = text.parse().expect(text);
            assert_eq!((url.authority.as_str(), url.target.as_str()), (authority, target));
            assert_eq!(url.resolve().expect("an address").to_string(), address);
        }
    }

    #[test]
    fn other_urls_are_refused_with_the_reason() {
        for (text, reason) in [
            ("https://a/", "TLS"),
            ("a/b", "scheme"),
            ("http:///x", "no host"),
            ("http://a:0/", "port"),
            ("http://a:70000/", "port"),
            ("http://a/b c", "spaces"),
            ("http://u@a/", "user names"),
        ] {
            let error = text.parse::<Url>().expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
