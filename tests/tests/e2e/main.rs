//! End to end over real sockets: semantics, bodies, failures, limits.

mod refusals;
mod responses;
mod scripts;
mod semantics;
mod tunnels;
