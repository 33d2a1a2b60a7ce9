//! Each policy keeps to the weights, within what it promises.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

fn choose(balancer: &mut Balancer, world: &World) -> Choice {
    balancer.choose(&Wanted::default(), world)
}

#[test]
fn turns_are_smooth() {
    let mut balancer = balancer(&cluster(Balance::RoundRobin), &[5, 1, 1]);
    balancer.start = 0;
    let chosen: Vec<_> = (0..7).map(|_| choose(&mut balancer, &World::default())).collect();
    // As nginx documents it.
    let expected = [0, 0, 1, 0, 2, 0, 0].map(Choice::Backend);
    assert_eq!(chosen, expected);
}

#[test]
fn the_least_loaded_for_its_weight_is_chosen_and_equals_in_turn() {
    let world = World::default();
    *world.active.borrow_mut() = BTreeMap::from([(0, 2), (1, 1), (2, 1)]);
    let mut alike = balancer(&cluster(Balance::LeastLoaded), &[1, 1, 1]);
    alike.start = 0;
    assert_eq!(choose(&mut alike, &world), Choice::Backend(1));
    assert_eq!(choose(&mut alike, &world), Choice::Backend(2));
    let mut heavy = balancer(&cluster(Balance::LeastLoaded), &[3, 1, 1]);
    assert_eq!(choose(&mut heavy, &world), Choice::Backend(0));
}

#[test]
fn an_idle_cluster_is_used_by_weight() {
    for balance in [Balance::LeastLoaded, Balance::RoundRobin] {
        let counts = count(&mut balancer(&cluster(balance), &[1, 3]), &World::default(), 400, 0);
        assert_eq!(counts, BTreeMap::from([(0, 100), (1, 300)]), "{balance}");
    }
}

#[test]
fn of_two_the_less_loaded_is_chosen() {
    let world = World::default();
    *world.active.borrow_mut() = BTreeMap::from([(0, 9), (1, 0)]);
    let mut balancer = balancer(&cluster(Balance::PowerOfTwo), &[1, 1]);
    assert!((0..100).all(|_| choose(&mut balancer, &world) == Choice::Backend(1)));
}

#[test]
fn the_most_loaded_of_many_is_never_chosen_by_power_of_two() {
    let world = World::default();
    *world.active.borrow_mut() = BTreeMap::from([(7, 1)]);
    let counts = count(&mut balancer(&cluster(Balance::PowerOfTwo), &[1; 20]), &world, 5000, 0);
    assert!(counts.len() == 19 && !counts.contains_key(&7), "{counts:?}");
}

#[test]
fn the_faster_is_preferred_until_it_is_busy() {
    let latency_us = BTreeMap::from([(0, 1000.0), (1, 10_000.0)]);
    let world = World { latency_us, ..World::default() };
    let mut balancer = balancer(&cluster(Balance::PeakEwma), &[1, 1]);
    assert!((0..50).all(|_| choose(&mut balancer, &world) == Choice::Backend(0)));
    world.active.borrow_mut().insert(0, 20);
    assert!((0..50).all(|_| choose(&mut balancer, &world) == Choice::Backend(1)));
}

#[test]
fn a_backend_without_an_answer_yet_gets_one_request_only() {
    let world = World { latency_us: BTreeMap::from([(0, 1000.0)]), ..World::default() };
    let mut balancer = balancer(&cluster(Balance::PeakEwma), &[1, 1]);
    assert_eq!(choose(&mut balancer, &world), Choice::Backend(1));
    world.active.borrow_mut().insert(1, 1);
    world.active.borrow_mut().insert(0, 5);
    assert!((0..50).all(|_| choose(&mut balancer, &world) == Choice::Backend(0)));
}

#[test]
fn a_share_grows_with_time_after_a_backend_was_added() {
    for balance in Balance::ALL {
        let cluster = Cluster { slow_start_ms: 10_000, ..cluster(*balance) };
        let mut balancer = balancer(&cluster, &[1, 1]);
        let world = World::default();
        // From the start: whole shares at once.
        let first = count(&mut balancer, &world, 1000, 0);
        assert!(first.values().all(|count| (350..=650).contains(count)), "{balance}: {first:?}");
        balancer.add(2, &backend(2), 1002, 50_000);
        let parts: Vec<u64> = [50_000, 55_000, 60_000]
            .map(|now| count(&mut balancer, &world, 3000, now).remove(&2).unwrap_or(0))
            .into();
        assert!(parts[0] <= 60, "{balance}: {parts:?}");
        assert!((400..=800).contains(&parts[1]), "{balance}: {parts:?}");
        assert!((800..=1200).contains(&parts[2]), "{balance}: {parts:?}");
    }
}

#[test]
fn a_cluster_whose_backends_all_begin_serves_all_the_same() {
    let cluster = Cluster { slow_start_ms: 10_000, ..cluster(Balance::RoundRobin) };
    let mut balancer = balancer(&cluster, &[1]);
    count(&mut balancer, &World::default(), 1, 0);
    assert!(balancer.set_up(0, false, 10));
    assert_eq!(balancer.choose(&Wanted::default(), &World::default()), Choice::Missing);
    assert!(balancer.set_up(0, true, 20) && !balancer.set_up(0, true, 20));
    assert_eq!(count(&mut balancer, &World::default(), 10, 20).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn round_robin_is_exact(weights in prop::collection::vec(1..=256_u16, 1..20), rounds in 1..4_u64) {
        let mut balancer = balancer(&cluster(Balance::RoundRobin), &weights);
        let all: u64 = weights.iter().copied().map(u64::from).sum();
        let counts = count(&mut balancer, &World::default(), all * rounds, 0);
        for (id, weight) in (0..).zip(&weights) {
            prop_assert_eq!(counts[&id], u64::from(*weight) * rounds);
        }
    }

    #[test]
    fn lots_keep_to_the_weights(weights in prop::collection::vec(1..=256_u16, 2..12)) {
        for balance in [Balance::Random, Balance::PowerOfTwo, Balance::PeakEwma] {
            // All alike, so that only the lot decides.
            let latency_us = (0..12).map(|id| (id, 500.0)).collect();
            let world = World { latency_us, ..World::default() };
            let counts = count(&mut balancer(&cluster(balance), &weights), &world, 20_000, 0);
            let all: f64 = weights.iter().copied().map(f64::from).sum();
            for (id, weight) in (0..).zip(&weights) {
                let expected = 20_000.0 * f64::from(*weight) / all;
                let counted = counts.get(&id).copied().unwrap_or(0) as f64;
                // Five standard deviations.
                let bound = 5.0 * expected.sqrt() + 5.0;
                prop_assert!((counted - expected).abs() < bound, "{balance}: {counted}, not {expected}");
            }
        }
    }

    #[test]
    fn hashing_keeps_to_the_weights(weights in prop::collection::vec(1..=16_u16, 2..12)) {
        let counts = count(&mut balancer(&cluster(Balance::Maglev), &weights), &World::default(), 50_000, 0);
        let all: f64 = weights.iter().copied().map(f64::from).sum();
        for (id, weight) in (0..).zip(&weights) {
            let expected = 50_000.0 * f64::from(*weight) / all;
            let counted = counts.get(&id).copied().unwrap_or(0) as f64;
            // The table is right to an entry of 1021 or more; the rest is chance.
            let bound = 50_000.0 / 1021.0 + 5.0 * expected.sqrt();
            prop_assert!((counted - expected).abs() < bound, "{counted}, not {expected}");
        }
    }
}
