//! Who may be chosen, whatever the policy.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use underpass_command::state::WhenAllDown;

use super::*;

#[test]
fn backups_serve_only_where_no_other_does() {
    for balance in Balance::ALL {
        let mut balancer = Balancer::new(&cluster(*balance), 1);
        let world = World::default();
        balancer.add(0, &backend(0), 0, 0);
        balancer.add(1, &Backend { backup: true, ..backend(1) }, 1, 0);
        assert_eq!(count(&mut balancer, &world, 50, 0), BTreeMap::from([(0, 50)]), "{balance}");
        balancer.set_up(0, false, 0);
        assert_eq!(count(&mut balancer, &world, 50, 0), BTreeMap::from([(1, 50)]), "{balance}");
        balancer.set_up(0, true, 0);
        assert_eq!(count(&mut balancer, &world, 50, 0), BTreeMap::from([(0, 50)]), "{balance}");
        // A request that found no other working may try one.
        let wanted = Wanted { tried: &[0], ..Wanted::default() };
        assert_eq!(balancer.choose(&wanted, &world), Choice::Backend(1));
    }
}

#[test]
fn the_only_backend_is_tried_again() {
    for balance in Balance::ALL {
        let mut balancer = balancer(&cluster(*balance), &[1]);
        let wanted = Wanted { tried: &[0], hash: Some(5), ..Wanted::default() };
        assert_eq!(balancer.choose(&wanted, &World::default()), Choice::Backend(0));
    }
}

#[test]
fn when_all_are_down_the_cluster_decides() {
    for balance in Balance::ALL {
        let mut answers = balancer(&cluster(*balance), &[1, 1]);
        let mut tries =
            balancer(&Cluster { when_all_down: WhenAllDown::UseAll, ..cluster(*balance) }, &[1, 1]);
        let drained = Backend { drain: true, ..backend(1) };
        for balancer in [&mut answers, &mut tries] {
            balancer.set_up(0, false, 0);
            balancer.change(1, &drained, 1);
        }
        let wanted = Wanted { hash: Some(5), ..Wanted::default() };
        assert_eq!(answers.choose(&wanted, &World::default()), Choice::Missing);
        // What drains stays out.
        assert_eq!(count(&mut tries, &World::default(), 50, 0), BTreeMap::from([(0, 50)]));
    }
}

#[test]
fn a_full_backend_is_passed_over_and_a_full_cluster_is_said() {
    for balance in Balance::ALL {
        let mut balancer = Balancer::new(&cluster(*balance), 1);
        for id in 0..2 {
            balancer.add(id, &Backend { in_flight_max: 3, ..backend(id) }, u64::from(id), 0);
        }
        balancer.add(2, &Backend { backup: true, ..backend(2) }, 2, 0);
        let world = World::default();
        world.active.borrow_mut().insert(0, 3);
        assert_eq!(count(&mut balancer, &world, 50, 0), BTreeMap::from([(1, 50)]), "{balance}");
        world.active.borrow_mut().insert(1, 4);
        // The backup is for those that are down, not for those that are busy.
        let wanted = Wanted { hash: Some(9), ..Wanted::default() };
        assert_eq!(balancer.choose(&wanted, &world), Choice::Full);
    }
}

#[test]
fn an_ejected_backend_comes_back_with_time_and_most_stay_in() {
    let mut balancer = balancer(&cluster(Balance::RoundRobin), &[1, 1, 1, 1]);
    assert!(balancer.may_eject(0, 50, 100));
    balancer.eject(0, 200);
    assert!(!balancer.may_eject(0, 50, 150), "it is out already");
    assert!(balancer.may_eject(1, 50, 150));
    balancer.eject(1, 250);
    assert!(!balancer.may_eject(2, 50, 150), "more than half would be out");
    let ids = |counts: BTreeMap<u32, u64>| counts.into_keys().collect::<Vec<_>>();
    assert_eq!(ids(count(&mut balancer, &World::default(), 40, 199)), [2, 3]);
    assert_eq!(ids(count(&mut balancer, &World::default(), 40, 200)), [0, 2, 3]);
    assert_eq!(ids(count(&mut balancer, &World::default(), 40, 250)), [0, 1, 2, 3]);
    let single = super::balancer(&cluster(Balance::RoundRobin), &[1]);
    assert!(!single.may_eject(0, 50, 0), "the only one stays");
}

#[test]
fn a_cookie_keeps_a_client_while_its_backend_is_available() {
    for balance in Balance::ALL {
        let mut balancer = balancer(&cluster(*balance), &[1, 1, 1]);
        let world = World::default();
        let wanted = Wanted { sticky: Some(1001), hash: Some(3), ..Wanted::default() };
        assert!((0..20).all(|_| balancer.choose(&wanted, &world) == Choice::Backend(1)), "{balance}");
        assert!(balancer.may_keep(1001, &[], 0) && !balancer.may_keep(1001, &[1], 0));
        balancer.change(1, &Backend { drain: true, ..backend(1) }, 1001);
        assert!(!balancer.may_keep(1001, &[], 0) && !balancer.may_keep(5, &[], 0));
        assert!((0..20).all(|_| balancer.choose(&wanted, &world) != Choice::Backend(1)), "{balance}");
        balancer.change(1, &backend(1), 1001);
        balancer.set_up(1, false, 0);
        assert!((0..20).all(|_| balancer.choose(&wanted, &world) != Choice::Backend(1)), "{balance}");
        balancer.set_up(1, true, 0);
        let tried = Wanted { tried: &[1], ..wanted };
        assert!((0..20).all(|_| balancer.choose(&tried, &world) != Choice::Backend(1)), "{balance}");
        let nobodys = Wanted { sticky: Some(5), ..wanted };
        assert!(matches!(balancer.choose(&nobodys, &world), Choice::Backend(_)), "{balance}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        rng_seed: RngSeed::Fixed(2),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever their state, one that is not available is never chosen while another could be.
    #[test]
    fn only_the_available_are_chosen(
        policy in prop::sample::select(Balance::ALL),
        backends in prop::collection::vec((0..3_u16, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 0..12),
        tried in prop::collection::vec(0..12_u32, 0..3),
        hashes in prop::collection::vec(prop::option::of(any::<u64>()), 1..20),
    ) {
        let mut balancer = Balancer::new(&cluster(policy), 3);
        let world = World::default();
        for (id, (weight, backup, drain, up, busy)) in (0..).zip(&backends) {
            let backend = Backend { weight: *weight, backup: *backup, drain: *drain, in_flight_max: 1, ..backend(id) };
            balancer.add(id, &backend, u64::from(id), 0);
            balancer.set_up(id, *up, 0);
            world.active.borrow_mut().insert(id, u32::from(*busy));
        }
        let usable = |backup: bool, again: bool| -> Vec<u32> {
            (0..)
                .zip(&backends)
                .filter(|(id, b)| b.0 > 0 && b.1 == backup && !b.2 && b.3 && (again || !tried.contains(id)))
                .map(|(id, _)| id)
                .collect()
        };
        let tiers = [usable(false, false), usable(true, false), usable(false, true), usable(true, true)];
        let first = tiers.into_iter().find(|tier| !tier.is_empty());
        let free: Option<Vec<u32>> =
            first.map(|tier| tier.into_iter().filter(|id| world.active(*id) == 0).collect());
        for hash in hashes {
            let chosen = balancer.choose(&Wanted { hash, tried: &tried, ..Wanted::default() }, &world);
            match (&free, chosen) {
                (None, Choice::Missing) => {}
                (Some(free), Choice::Full) => prop_assert!(free.is_empty(), "{free:?} are free"),
                (Some(free), Choice::Backend(id)) => prop_assert!(free.contains(&id), "{id} of {free:?}"),
                (expected, chosen) => prop_assert!(false, "{chosen:?}, expected one of {expected:?}"),
            }
        }
    }
}
