//! End to end over real sockets: semantics, bodies, failures, limits.

mod bodies;
mod borders;
mod chaos;
mod descriptors;
mod failures;
mod health;
mod lifecycle;
mod limits;
mod logs;
mod proxy_protocol;
mod refusals;
mod responses;
mod routes;
mod scripts;
mod semantics;
mod sni;
mod tcp;
mod tunnels;
mod turns;
