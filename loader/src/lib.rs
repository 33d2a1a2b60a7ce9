//! Probes the kernel, loads and attaches the BPF programs, and hands out typed handles.
//!
//! - [`probe()`] says what the running kernel and this process's privileges allow, and why not.
//! - [`Steering`] is the supervisor's side: it loads the program `steer`, and binds listeners and workers to it.
//! - [`WorkerSlot`] is a worker's side: all it needs is one descriptor, and no privilege.
//! - [`RedirectPrograms`] are the programs that pass bytes from socket to socket, with the maps of one worker;
//!   [`RedirectMaps`] is that worker's side of them, which needs no privilege either.
//! - [`nic`] reads how the queues of network interfaces are spread over CPUs, and what to change.
#![deny(unsafe_code)]

mod btf;
mod error;
mod log;
mod mapping;
pub mod nic;

mod pod;
mod probe;
mod redirect;
mod slot;
mod steering;
mod sys;

pub use error::LoadError;
pub use log::{LogLine, ProgramLog};
pub use probe::{Capability, Report, probe};
pub use redirect::{Account, REDIRECT_DESCRIPTORS, RedirectMaps, RedirectPrograms};
pub use slot::{SlotSnapshot, WorkerSlot, WorkerState, monotonic_ns};
pub use steering::{Cell, Matrix, Options, Policy, QueueWorker, Steering};
pub use sys::{Sent, has_unread, socket_cookie, tcp_handed_at_least, tcp_handed_exactly, tcp_sent};
pub use underpass_ebpf::{Outcome, SLOT_SIZE};
