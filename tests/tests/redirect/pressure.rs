//! Sockets with hardly any memory: each message is cut into pieces that do not fit, and every wait comes about.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use underpass_command::state::RedirectMode;
use underpass_tests::{is_root, skip};

use crate::client::Outcomes;
use crate::network::Network;
use crate::rig::{Rig, each_mode, seed};
use crate::{exact, scaled, tunnels};

const REQUESTS: u64 = 200;
const TUNNELS: u64 = 2;
/// Least, default and largest buffer of a socket in bytes.
const BUFFERS: &str = "4096 8192 16384";

fn squeeze(mode: RedirectMode, network: &Network) {
    network.enter();
    let seed = seed("pressure", mode);
    let rig = Rig::new(mode, |setup| setup.run_by(&network.prefix()));
    let outcomes = Outcomes::default();
    exact::load(&rig.addresses(), seed, scaled(REQUESTS), &outcomes);
    tunnels::load(&rig.addresses(), seed, scaled(TUNNELS), &outcomes);
    eprintln!("{mode}: {outcomes:?}; {}", rig.moved());
    assert!(outcomes.answered.load(Relaxed) > 0 && outcomes.tunnels.load(Relaxed) > 0, "{outcomes:?}");
    rig.finish();
}

#[test]
fn every_byte_arrives_though_sockets_have_hardly_any_memory() {
    let _alone = crate::alone();
    if !is_root() {
        return skip("needs root, to make a network namespace");
    }
    let network = Network::new(BUFFERS).expect("a network namespace");
    each_mode(|mode| {
        thread::scope(|scope| {
            scope.spawn(|| squeeze(mode, &network)).join().expect("the test in its namespace");
        });
    });
}
