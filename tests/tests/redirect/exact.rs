//! Keep-alive requests of every kind, pipelined or one after the other, on many connections at once, both sides breaking off
//! now and then: every byte that arrives is the right one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use underpass_command::state::RedirectMode;
use underpass_tests::proxy::Setup;

use crate::client::{self, Outcomes, Tolerance};
use crate::rig::{Rig, each_mode, seed, tight};
use crate::scaled;

const CLIENTS: u64 = 24;
/// A full run asks for 10,000 (`UNDERPASS_REDIRECT_COUNT=1000`).
const REQUESTS: u64 = 1000;

/// Clients that ask until so many requests have been made.
pub(crate) fn load(addresses: &[SocketAddr], seed: u64, requests: u64, outcomes: &Outcomes) {
    let made = AtomicU64::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let made = &made;
            scope.spawn(move || {
                for round in 0.. {
                    let left = requests.saturating_sub(made.load(Relaxed));
                    if left == 0 {
                        return;
                    }
                    let number = client << 20 | round;
                    let address = addresses[usize::try_from(client + round).unwrap_or(0) % addresses.len()];
                    let asked = client::requests(address, seed | number, left, Tolerance::None, outcomes);
                    made.fetch_add(asked, Relaxed);
                }
            });
        }
    });
}

fn run(mode: RedirectMode, what: &str, change: fn(Setup) -> Setup) {
    let seed = seed(what, mode);
    let requests = scaled(REQUESTS);
    let rig = Rig::new(mode, change);
    let outcomes = Outcomes::default();
    load(&rig.addresses(), seed, requests, &outcomes);
    eprintln!("{mode}: {outcomes:?}; {}", rig.moved());
    let answered = outcomes.answered.load(Relaxed);
    assert!(answered > requests / 2, "too few were answered: {outcomes:?}");
    assert!(outcomes.cut.load(Relaxed) > 0 && outcomes.refused.load(Relaxed) > 0, "too little went wrong");
    rig.finish();
}

#[test]
fn every_byte_of_many_requests_arrives() {
    let _alone = crate::alone();
    each_mode(|mode| {
        run(mode, "exact, with room", |setup| setup);
        run(mode, "exact, tight", tight);
    });
}
