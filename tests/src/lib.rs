//! What the end-to-end tests share: a running proxy, its peers, bodies, network namespaces.
//!
//! Helpers panic where a test has to fail, at the line of the test that called them.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod backend;
pub mod body;
pub mod message;
pub mod peer;
pub mod ports;
pub mod proxy;
pub mod vtc;
pub mod wait;

mod skip;

pub use backend::Backend;
pub use message::Message;
pub use peer::Peer;
pub use proxy::Proxy;
pub use skip::{is_root, skip};
pub use wait::{PATIENCE, until};
