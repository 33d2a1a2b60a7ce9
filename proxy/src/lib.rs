//! An eBPF-steered HTTP and TCP reverse proxy for Linux, as a library.
//!
//! - To run a whole proxy of one's own: [`control::run`], with the example there.
//! - To run a single worker, with a supervisor of one's own at the other end of the channel: [`worker::serve`] and the messages of
//!   [`ipc`].
//! - To use the parts without a socket: [`http1`] parses and edits heads, [`forward::Ledger`] says where a body ends,
//!   [`proxy_protocol`] and [`tls_hello`] read what may come before the first byte that is passed on, [`route::Table`] finds the cluster of a request, [`balance::Balancer`] a backend.
//!
//! ARCHITECTURE.md in the repository is the map of the code.

pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
mod demo;
pub mod forward;
mod heap;
pub mod http1;
pub mod ipc;
mod log_format;
pub mod metrics;
pub mod proxy_protocol;
pub mod route;
pub mod tls_hello;
pub mod worker;
