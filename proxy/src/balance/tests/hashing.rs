//! Consistent hashing: the same for all workers, and little moves when backends come and go.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::super::siphash;
use super::*;

const KEYS: u64 = 4000;

/// Which backend each of [`KEYS`] hashes leads to, once the table is up to date.
fn map(balancer: &mut Balancer) -> Vec<u32> {
    let choose = |balancer: &mut Balancer, n: u64| {
        let hash = Some(siphash([3, 4], &n.to_le_bytes()));
        match balancer.choose(&Wanted { hash, ..Wanted::default() }, &World::default()) {
            Choice::Backend(id) => id,
            other => panic!("{other:?}"),
        }
    };
    // A table needs a bounded number of choices to be made.
    for n in 0..4000 {
        choose(balancer, n);
    }
    (0..KEYS).map(|n| choose(balancer, n)).collect()
}

fn moved(before: &[u32], after: &[u32]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

#[test]
fn workers_agree_in_whatever_order_they_learn_of_backends() {
    let cluster = cluster(Balance::Maglev);
    let mut one = Balancer::new(&cluster, 1);
    let mut other = Balancer::new(&cluster, 99);
    for id in 0..20 {
        one.add(id, &weighted(id, 1 + (id % 3) as u16), 0, 0);
    }
    for id in (0..20).rev() {
        other.add(id, &weighted(id, 1 + (id % 3) as u16), 0, 0);
    }
    assert_eq!(map(&mut one), map(&mut other));
}

#[test]
fn the_hashes_of_one_that_is_down_move_and_come_back() {
    let mut balancer = balancer(&cluster(Balance::Maglev), &[1; 10]);
    let before = map(&mut balancer);
    balancer.set_up(4, false, 0);
    let without = map(&mut balancer);
    for (before, after) in before.iter().zip(&without) {
        assert!(*after != 4 && (*before == 4 || before == after), "{before} became {after}");
    }
    // Those that moved are spread over the others.
    let heirs: std::collections::BTreeSet<u32> =
        before.iter().zip(&without).filter(|(before, _)| **before == 4).map(|(_, after)| *after).collect();
    assert_eq!(heirs.len(), 9);
    balancer.set_up(4, true, 0);
    assert_eq!(map(&mut balancer), before);
}

#[test]
fn a_header_that_is_missing_is_no_reason_to_choose_the_same_always() {
    let mut balancer = balancer(&cluster(Balance::Maglev), &[1, 1]);
    let chosen: std::collections::BTreeSet<_> = (0..64)
        .map(|_| match balancer.choose(&Wanted::default(), &World::default()) {
            Choice::Backend(id) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(chosen.len(), 2);
}

#[test]
fn the_most_backends_have_a_table_too() {
    let mut balancer = balancer(&cluster(Balance::Maglev), &[1; 1024]);
    let counts = count(&mut balancer, &World::default(), 200_000, 0);
    assert_eq!(counts.len(), 1024);
    let bound = 195.0 + 5.0 * 195.0_f64.sqrt() + 4.0;
    assert!(counts.values().all(|count| (*count as f64) < bound), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20,
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Those of the backend that leaves must move. Of the others few do: the paper measures below 1 % with tables a hundred
    /// times as large as the number of backends.
    #[test]
    fn little_moves_when_a_backend_leaves(count in 3..30_u32, gone in any::<prop::sample::Index>()) {
        let mut balancer = balancer(&cluster(Balance::Maglev), &vec![1; count as usize]);
        let before = map(&mut balancer);
        let gone = (0..count).nth(gone.index(count as usize)).expect("below the count");
        balancer.remove(gone);
        let after = map(&mut balancer);
        prop_assert!(after.iter().all(|id| *id != gone));
        let must = before.iter().filter(|id| **id == gone).count();
        let also = moved(&before, &after) - must;
        prop_assert!(also as u64 <= KEYS * 4 / 100, "{also} of {KEYS} moved without need");
        balancer.add(gone, &backend(gone), 0, 0);
        prop_assert_eq!(map(&mut balancer), before);
    }
}
