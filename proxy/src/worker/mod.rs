//! The data plane: one process, one thread, one event loop, pinned to one core.
//!
//! `event_loop` waits and drives; a session goes through the phases of `session::Phase`: `preface` reads what may come
//! first (PROXY protocol, ClientHello), `tcp` brings a TCP connection to a backend, `request` brings a head to
//! a backend, `response` brings the answer back, `reply` answers where no backend does, `tunnel` passes bytes after an
//! upgrade. `connection` keeps the connections to backends, `control` obeys the supervisor.

mod actions;
mod balancing;
mod connection;
mod control;
mod core;
mod drain;
mod event_loop;
mod log;
mod measure;
mod own;
mod preface;
mod privileges;
mod random;
mod reply;
mod request;
mod response;
mod session;
mod sessions;
mod start;
mod steering;
mod tables;
mod tcp;
mod trace;
mod tunnel;
mod wheel;

pub(crate) use self::core::buffer_count;
pub use drain::Ended;
pub use event_loop::Worker;
pub use start::{Confinement, run_from_environment, serve};

/// The argument that makes the executable a worker instead of a command. The supervisor re-executes itself so.
pub const WORKER_ARGUMENT: &str = "--underpass-worker";

/// Descriptor number on which a worker finds its end of the control channel.
pub const CONTROL_FD: i32 = 3;
