//! Tunnels, by Upgrade and by CONNECT, with both directions busy at the same time, slow readers on either side or on both,
//! and ends in order or by a reset.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use underpass_command::state::RedirectMode;
use underpass_tests::proxy::Setup;

use crate::client::{self, Outcomes, Tolerance};
use crate::rig::{Rig, each_mode, seed, tight};
use crate::scaled;

const CLIENTS: u64 = 24;
const TUNNELS: u64 = 10;

/// Each client has one tunnel after the other.
pub(crate) fn load(addresses: &[SocketAddr], seed: u64, tunnels: u64, outcomes: &Outcomes) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for round in 0..tunnels {
                    let address = addresses[usize::try_from(client + round).unwrap_or(0) % addresses.len()];
                    client::tunnel(address, seed | client << 20 | round, Tolerance::None, outcomes);
                }
            });
        }
    });
}

fn run(mode: RedirectMode, what: &str, change: fn(Setup) -> Setup) {
    let seed = seed(what, mode);
    let tunnels = scaled(TUNNELS);
    let rig = Rig::new(mode, change);
    let outcomes = Outcomes::default();
    load(&rig.addresses(), seed, tunnels, &outcomes);
    eprintln!("{mode}: {outcomes:?}; {}", rig.moved());
    assert!(outcomes.tunnels.load(Relaxed) > CLIENTS * tunnels / 2, "too few ended well: {outcomes:?}");
    assert!(outcomes.broken_tunnels.load(Relaxed) > 0, "none was broken off: {outcomes:?}");
    rig.finish();
}

#[test]
fn both_directions_of_many_tunnels_arrive() {
    let _alone = crate::alone();
    each_mode(|mode| {
        run(mode, "tunnels, with room", |setup| setup);
        run(mode, "tunnels, tight", tight);
    });
}
