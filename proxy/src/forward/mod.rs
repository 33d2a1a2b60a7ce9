//! How bodies get from one socket to the other, and the ledger that says how much of them is left.
//!
//! [`Flow`] is one direction: it copies through a [`Buffer`], splices through a [`Pipe`], or lets the kernel redirect
//! (`redirect.rs`), and enters every byte into its [`Ledger`].

mod buffer;
mod endpoint;
mod flow;
mod kind;
mod ledger;
mod pipe;
mod redirect;
pub mod self_test;
#[cfg(test)]
mod testing;

pub use buffer::{Buffer, BufferPool, EDIT_ROOM};
pub use endpoint::{Endpoint, Received};
pub use flow::{Broken, Flow, Moved, Progress, Tools};
pub use kind::{Kind, Policy};
pub use ledger::{Ledger, Part, TrailerLimits};
pub use pipe::{Pipe, PipePool};
pub use redirect::Redirector;
