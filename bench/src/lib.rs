//! What measures underpass: the load generator, the backend, and the floor.
//!
//! `cargo xtask bench` starts these as separate processes, beside the proxies that it compares, and reads the
//! [`report::LoadReport`] that the load generator prints. Everything here runs on one thread and is cheap, because
//! load generator and backend share a core and must not be slower than the proxy between them.
#![forbid(unsafe_code)]

pub mod backend;
pub mod floor;
pub mod launch;
pub mod load;
pub mod report;
mod response;
