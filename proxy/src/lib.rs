//! An eBPF-steered HTTP and TCP reverse proxy, as a library.

pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
mod demo;
pub mod forward;
pub mod http1;
pub mod ipc;
pub mod metrics;
pub mod route;
pub mod worker;
