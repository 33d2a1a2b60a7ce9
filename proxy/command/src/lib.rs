//! The typed state of an underpass proxy, and the client that commands a running one.
#![forbid(unsafe_code)]

pub mod state;
