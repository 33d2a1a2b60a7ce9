//! What is compared: one running underpass in each of its modes, HAProxy, and the way past both.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use underpass_command::state::RedirectMode;

use super::network::{BACKEND, PROXY};

const UNDERPASS_PORT: u16 = 8080;
const STEERED_PORT: u16 = 8081;
const HAPROXY_HTTP_PORT: u16 = 8082;
const HAPROXY_TCP_PORT: u16 = 8083;
const BACKEND_PORT: u16 = 9000;

/// Where the backend listens.
pub(super) fn backend_address() -> SocketAddr {
    SocketAddr::new(BACKEND, BACKEND_PORT)
}

/// Where the underpass with several workers listens.
pub(super) fn steered_address() -> SocketAddr {
    SocketAddr::new(PROXY, STEERED_PORT)
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// No proxy: packets are routed.
    Direct,
    /// The running underpass, switched to this mode.
    Mode(RedirectMode),
    /// HAProxy with splice, reading HTTP.
    HaproxyHttp,
    /// HAProxy with splice, passing bytes on.
    HaproxyTcp,
}

impl Contender {
    /// All of them, the modes in their own order.
    pub(super) fn all() -> Vec<Self> {
        let modes = RedirectMode::ALL.iter().copied().map(Self::Mode);
        [Self::Direct].into_iter().chain(modes).chain([Self::HaproxyHttp, Self::HaproxyTcp]).collect()
    }

    /// Its name in tables and plots.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mode(mode) => mode.name(),
            Self::HaproxyHttp => "haproxy-http",
            Self::HaproxyTcp => "haproxy-tcp",
        }
    }

    /// Whether it is HAProxy.
    pub(super) fn is_haproxy(self) -> bool {
        matches!(self, Self::HaproxyHttp | Self::HaproxyTcp)
    }

    /// What the client connects to.
    pub(super) fn address(self) -> SocketAddr {
        let port = match self {
            Self::Direct => return backend_address(),
            Self::Mode(_) => UNDERPASS_PORT,
            Self::HaproxyHttp => HAPROXY_HTTP_PORT,
            Self::HaproxyTcp => HAPROXY_TCP_PORT,
        };
        SocketAddr::new(PROXY, port)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = Self::all();
        let names = || all.iter().map(|contender| contender.name()).collect::<Vec<_>>().join(", ");
        let found = all.iter().copied().find(|contender| contender.name() == text);
        found.ok_or_else(|| format!("unknown contender \"{text}\"; use some of: {}", names()))
    }
}

/// HAProxy with one thread, both ways spliced, connections to the backend shared and kept where it knows HTTP.
pub(super) fn haproxy_configuration() -> String {
    // Pipes of 1 MiB halve the cost of large bodies; `splice-auto` waits for signs of streaming.
    let [http, tcp] = [Contender::HaproxyHttp, Contender::HaproxyTcp].map(Contender::address);
    let backend = backend_address();
    format!(
        "\
global
    nbthread 1
    maxconn 4096
    tune.pipesize 1048576

defaults
    option splice-request
    option splice-response
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 60s
    timeout http-keep-alive 60s

frontend web
    mode http
    option http-keep-alive
    bind {http}
    default_backend app

backend app
    mode http
    option http-keep-alive
    http-reuse always
    server one {backend}

frontend bytes
    mode tcp
    bind {tcp}
    default_backend raw

backend raw
    mode tcp
    server one {backend}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_known_by_their_names() {
        for contender in Contender::all() {
            assert_eq!(contender.name().parse(), Ok(contender));
        }
        let error = "spliced".parse::<Contender>().expect_err("no contender");
        assert!(error.contains("use some of: direct, copy, splice,"), "{error}");
    }

    #[test]
    fn each_server_has_an_address_of_its_own() {
        let mut addresses = vec![steered_address(), backend_address()];
        addresses.extend([Contender::HaproxyHttp, Contender::HaproxyTcp].map(Contender::address));
        addresses.push(Contender::Mode(RedirectMode::Copy).address());
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 5);
    }
}
