//! What a proxy is configured to do: settings, listeners, clusters, routes and answers.
//!
//! These types are the contract between the configuration file, the admin API and the workers. They hold no
//! behaviour of the data path. Units stand last in a name (`_ms`, `_size` in bytes).

mod answer;
mod balance;
mod cluster;
mod listener;
mod names;
mod route;
mod settings;

pub use answer::*;
pub use balance::*;
pub use cluster::*;
pub use listener::*;
pub use names::UnknownName;
pub use route::*;
pub use settings::*;

use names::named;
use serde::{Deserialize, Serialize};

/// Everything a worker needs to forward traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Process-wide settings.
    pub settings: Settings,
    /// Where connections come in.
    pub listeners: Vec<Listener>,
    /// Groups of backends that serve the same application.
    pub clusters: Vec<Cluster>,
    /// Which requests go where.
    pub routes: Vec<Route>,
    /// Answers of the proxy itself, by name.
    #[serde(default)]
    pub answers: Vec<Answer>,
}

named! {
    /// How the bytes of a body get from one socket to the other.
    #[derive(Default)]
    RedirectMode {
        /// Read into a buffer of the worker and written from it.
        Copy = "copy",
        /// Moved by the kernel through a pipe; userspace never sees them.
        Splice = "splice",
        /// Redirected by BPF from socket to socket; the worker sleeps meanwhile.
        Sockmap = "sockmap",
        /// Chosen per body.
        #[default]
        Auto = "auto",
    }
}

named! {
    /// How a new connection finds its worker.
    #[derive(Default)]
    SteeringPolicy {
        /// The worker pinned to the CPU that handles the connection request.
        #[default]
        Cpu = "cpu",
        /// The worker that belongs to the RX queue the connection request came in by.
        RxQueue = "rx-queue",
        /// A worker chosen by the flow's hash.
        Hash = "hash",
        /// The kernel's own choice in the SO_REUSEPORT group.
        Off = "off",
    }
}
