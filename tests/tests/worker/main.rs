//! A worker alone: its event loop, pools, limits and timers, driven by scripted peers over real sockets.

mod balancing;
mod bounds;
mod changes;
mod closing;
mod drain;
mod heads;
mod health;
mod limits;
mod pool;
mod redirect;
mod retries;
mod routes;
mod soak;
mod tcp;
mod tcp_soak;
mod timeouts;
mod tunnels;
