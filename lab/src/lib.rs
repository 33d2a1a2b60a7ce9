//! Measures a proxy under load that rises, step by step, until it breaks.
//!
//! The load is an open loop: when each operation begins is fixed in advance ([`schedule`]), and its latency is counted from
//! then, however late it could be sent. A server that stalls so shows in the percentiles with every operation that came due
//! meanwhile, and not with the one that happened to be under way. [`load`] makes one step of load, [`ramp`] climbs
//! until a bound is exceeded and finds the knee, [`statistics`] compares what was measured side by side, and [`report`]
//! writes it down as JSON and as a page with plots.
//!
//! `cargo xtask lab` uses it on a network of its own, `underpass lab` on a deployed host ([`deployed`]).
#![forbid(unsafe_code)]

pub mod accounting;
pub mod body;
mod connection;
pub mod deployed;
pub mod exchange;
pub mod latency;
pub mod load;
pub mod machine;
pub mod ramp;
pub mod report;
mod response;
pub mod schedule;
pub mod statistics;
pub mod url;
