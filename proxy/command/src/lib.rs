//! The typed state of an underpass proxy, and the client that commands a running one.
//!
//! ```no_run
//! use underpass_command::Client;
//! use underpass_command::api::{ChangeRequest, RedirectChange};
//! use underpass_command::live::Operation;
//! use underpass_command::state::{Backend, Cluster, RedirectMode, Route};
//!
//! # fn main() -> Result<(), underpass_command::ClientError> {
//! let client = Client::new("/run/underpass/admin.sock");
//! let status = client.status()?;
//! println!("underpass {} with {} workers", status.version, status.workers.len());
//! client.set_redirect(&RedirectChange { mode: Some(RedirectMode::Splice), ..RedirectChange::default() })?;
//!
//! // A change is a list of operations: all of it is done, in every worker, or nothing.
//! let mut cluster = Cluster::new("shop");
//! cluster.backends.push(Backend::new(([127, 0, 0, 1], 9002).into()));
//! let route = Box::new(Route { host: Some("shop.example.com".into()), ..Route::new("shop") });
//! let operations = vec![Operation::AddCluster { cluster }, Operation::AddRoute { route }];
//! let changed = client.change(&ChangeRequest { operations, ..ChangeRequest::default() })?;
//! println!("revision {}", changed.revision);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/blue_green.rs` replaces a backend without losing a request, by the events of the proxy.
#![forbid(unsafe_code)]

pub mod api;
mod client;
mod events;
mod http;
pub mod live;
pub mod state;

pub use client::{Client, ClientError, SYSTEM_SOCKET, default_socket};
pub use events::Events;
