//! Backends come and go while requests are balanced.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

#[test]
fn a_change_takes_effect_with_the_next_choice() {
    let world = World::default();
    let mut balancer = balancer(&cluster(Balance::RoundRobin), &[1, 1]);
    balancer.change(0, &weighted(0, 3), 0);
    assert_eq!(count(&mut balancer, &world, 400, 0), BTreeMap::from([(0, 300), (1, 100)]));
    balancer.change(0, &weighted(0, 0), 0);
    assert_eq!(count(&mut balancer, &world, 10, 0), BTreeMap::from([(1, 10)]));
    balancer.remove(1);
    assert_eq!(balancer.choose(&Wanted::default(), &world), Choice::Missing);
    balancer.configure(&cluster(Balance::LeastLoaded));
    balancer.add(5, &backend(5), 5, 0);
    assert_eq!(balancer.choose(&Wanted::default(), &world), Choice::Backend(5));
    assert!(balancer.is_available(5, 0) && !balancer.is_available(0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32, u16),
    Change(u32, u16),
    Remove(u32),
    Up(u32, bool),
    Policy(Balance),
    Choose(Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0..8_u32;
    prop_oneof![
        (id.clone(), 0..4_u16).prop_map(|(id, weight)| Step::Add(id, weight)),
        (id.clone(), 0..4_u16).prop_map(|(id, weight)| Step::Change(id, weight)),
        id.clone().prop_map(Step::Remove),
        (id, any::<bool>()).prop_map(|(id, up)| Step::Up(id, up)),
        prop::sample::select(Balance::ALL).prop_map(Step::Policy),
        prop::option::of(any::<u64>()).prop_map(Step::Choose),
        prop::option::of(any::<u64>()).prop_map(Step::Choose),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        rng_seed: RngSeed::Fixed(4),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_changes_only_members_are_chosen(steps in prop::collection::vec(step(), 1..200)) {
        let world = World::default();
        let mut balancer = Balancer::new(&cluster(Balance::Maglev), 1);
        // Weight and whether it is up, by id.
        let mut model: BTreeMap<u32, (u16, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(id, weight) if !model.contains_key(&id) => {
                    balancer.add(id, &weighted(id, weight), 0, 0);
                    model.insert(id, (weight, true));
                }
                Step::Change(id, weight) => {
                    balancer.change(id, &weighted(id, weight), 0);
                    if let Some(known) = model.get_mut(&id) {
                        known.0 = weight;
                    }
                }
                Step::Remove(id) => {
                    balancer.remove(id);
                    model.remove(&id);
                }
                Step::Up(id, up) => {
                    let news = balancer.set_up(id, up, 0);
                    prop_assert_eq!(news, model.get(&id).is_some_and(|known| known.1 != up));
                    if let Some(known) = model.get_mut(&id) {
                        known.1 = up;
                    }
                }
                Step::Policy(balance) => balancer.configure(&cluster(balance)),
                Step::Choose(hash) => {
                    let able = |id: &u32| model.get(id).is_some_and(|known| known.0 > 0 && known.1);
                    match balancer.choose(&Wanted { hash, ..Wanted::default() }, &world) {
                        Choice::Backend(id) => prop_assert!(able(&id), "{id}: {model:?}"),
                        choice => {
                            prop_assert_eq!(choice, Choice::Missing);
                            prop_assert!(!model.keys().any(able), "{model:?}");
                        }
                    }
                }
                Step::Add(..) => {}
            }
        }
    }
}
