//! The data plane: one process, one thread, one event loop, pinned to one core.

mod wheel;

/// The argument that makes the executable a worker instead of a command. The supervisor re-executes itself so.
pub const WORKER_ARGUMENT: &str = "--underpass-worker";

/// Descriptor number on which a worker finds its end of the control channel.
pub const CONTROL_FD: i32 = 3;
