//! What the end-to-end tests share: a running proxy, its peers, bodies, network namespaces.
//!
//! Helpers panic where a test has to fail, at the line of the test that called them.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod backend;
pub mod body;
pub mod certificate;
pub mod curl;
pub mod haproxy;
pub mod message;
pub mod nginx;
pub mod peer;
pub mod ports;
pub mod proxy;
pub mod random;
pub mod vtc;
pub mod wait;
pub mod worker;

mod skip;

pub use backend::Backend;
pub use message::Message;
pub use peer::Peer;
pub use proxy::Proxy;
pub use skip::{is_root, skip};
pub use wait::{PATIENCE, until};

/// A request that any listener with a default cluster serves.
pub const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A small response.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
