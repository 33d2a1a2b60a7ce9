//! An eBPF-steered HTTP and TCP reverse proxy, as a library.

pub mod ipc;
pub mod metrics;
pub mod worker;
