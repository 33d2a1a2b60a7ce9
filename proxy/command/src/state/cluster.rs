//! Groups of backends.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::names::named;
use super::{AnswerFor, RedirectMode};

/// A group of backends that serve the same application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: String,
    /// How a backend is chosen.
    #[serde(default)]
    pub balance: Balance,
    /// Overrides the redirect mode of the process and of the listener.
    #[serde(default)]
    pub redirect: Option<RedirectMode>,
    /// Whether a request body of unknown length may be sent to these backends; otherwise 411.
    #[serde(default = "yes")]
    pub chunked_requests: bool,
    /// Whether a PROXY protocol header begins each connection to these backends. Such a connection carries one client's
    /// address, so it is not used for another.
    #[serde(default)]
    pub send_proxy: SendProxy,
    /// Answers in place of the proxy's own for requests to this cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerFor>,
    /// The backends.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// One server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Its address.
    pub address: SocketAddr,
}

impl Backend {
    /// A backend with every default.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }
}

impl Cluster {
    /// A cluster with every default, without backends.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            balance: Balance::default(),
            redirect: None,
            chunked_requests: yes(),
            send_proxy: SendProxy::default(),
            answers: Vec::new(),
            backends: Vec::new(),
        }
    }
}

fn yes() -> bool {
    true
}

named! {
    /// Whether connections to backends begin with a PROXY protocol header.
    #[derive(Default)]
    SendProxy {
        /// They do not.
        #[default]
        Off = "off",
        /// Version 1, a line of text.
        V1 = "v1",
        /// Version 2, binary.
        V2 = "v2",
    }
}

named! {
    /// How a backend is chosen among those of a cluster.
    #[derive(Default)]
    Balance {
        /// One after the other.
        #[default]
        RoundRobin = "round-robin",
        /// The one with the fewest requests and tunnels of this worker under way.
        LeastLoaded = "least-loaded",
    }
}
