//! How bodies get from one socket to the other, and the ledger that says how much of them is left.
//!
//! [`Flow`] is one direction: it copies through a [`Buffer`] or splices through a [`Pipe`], and enters every byte into its
//! [`Ledger`].

mod buffer;
mod endpoint;
mod flow;
mod ledger;
mod pipe;

pub use buffer::{Buffer, BufferPool, EDIT_ROOM};
pub use endpoint::{Endpoint, Received};
pub use flow::{Broken, Flow, Progress, Tools};
pub use ledger::{Ledger, Part, TrailerLimits};
pub use pipe::{Pipe, PipePool};
