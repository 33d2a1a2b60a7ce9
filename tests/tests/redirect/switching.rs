//! The mode changes a hundred times under load, and nobody notices.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use underpass_command::state::RedirectMode;
use underpass_tests::{is_root, until};

use crate::client::{self, Outcomes, Tolerance};
use crate::plan::CALM;
use crate::rig::{Rig, is_sockmap, seed};

const CLIENTS: u64 = 12;
const SWITCHES: usize = 100;

#[test]
fn a_hundred_switches_lose_nothing() {
    let _alone = crate::alone();
    let modes: Vec<RedirectMode> =
        RedirectMode::ALL.iter().copied().filter(|mode| !is_sockmap(*mode) || is_root()).collect();
    let rig = Rig::new(RedirectMode::Splice, |setup| setup);
    let seed = seed("switching", RedirectMode::Auto) | CALM;
    let addresses = rig.addresses();
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let outcomes = Outcomes::default();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (addresses, stop, asked, outcomes) = (&addresses, &stop, &asked, &outcomes);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Relaxed) {
                        return;
                    }
                    let seed = seed | client << 20 | round;
                    let address = addresses[usize::try_from(client + round).unwrap_or(0) % addresses.len()];
                    if client % 4 == 0 {
                        client::tunnel(address, seed, Tolerance::None, outcomes);
                    } else {
                        asked.fetch_add(
                            client::requests(address, seed, u64::MAX, Tolerance::None, outcomes),
                            Relaxed,
                        );
                    }
                }
            });
        }
        for switch in 1..=SWITCHES {
            let before = outcomes.answered.load(Relaxed);
            rig.proxy.set_redirect(modes[switch % modes.len()]);
            // Some bodies begin in each mode.
            until("bodies arrive", || (outcomes.answered.load(Relaxed) > before + 2).then_some(()));
        }
        stop.store(true, Relaxed);
    });
    eprintln!("{outcomes:?}; {}", rig.moved());
    assert_eq!(outcomes.answered.load(Relaxed), asked.load(Relaxed), "{outcomes:?}");
    assert_eq!(outcomes.broken_tunnels.load(Relaxed), 0, "{outcomes:?}");
    assert!(outcomes.tunnels.load(Relaxed) > 0);
    rig.finish();
}
