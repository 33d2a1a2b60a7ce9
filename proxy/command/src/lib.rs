//! The typed state of an underpass proxy, and the client that commands a running one.
//!
//! ```no_run
//! use underpass_command::{Client, api::RedirectChange, state::RedirectMode};
//!
//! # fn main() -> Result<(), underpass_command::ClientError> {
//! let client = Client::new("/run/underpass/admin.sock");
//! let status = client.status()?;
//! println!("underpass {} with {} workers", status.version, status.workers.len());
//! client.set_redirect(&RedirectChange { mode: Some(RedirectMode::Splice), ..RedirectChange::default() })?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod api;
mod client;
mod events;
mod http;
pub mod live;
pub mod state;

pub use client::{Client, ClientError, SYSTEM_SOCKET, default_socket};
pub use events::Events;
