//! A worker alone: its event loop, pools, limits and timers, driven by scripted peers over real sockets.

mod harness;
mod heads;
