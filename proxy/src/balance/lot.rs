//! Choosing by lot: weighted, and the better of two.

use std::cmp::Ordering;

use super::View;
use super::draw::SplitMix64;
use super::member::{Member, WHOLE};
use super::turn::Load;

/// Draws before all members are looked at. Where most are eligible and weights are alike, that hardly ever happens.
const DRAWS: usize = 8;

/// One by lot, each by its share.
#[inline]
pub(super) fn draw(
    members: &[Member],
    lot: &mut SplitMix64,
    weight_max: u32,
    eligible: &impl Fn(&Member) -> bool,
    share: &impl Fn(&Member) -> u32,
) -> Option<usize> {
    let count = u32::try_from(members.len()).ok().filter(|count| *count > 0)?;
    // A member drawn is taken with the probability that its share is of the largest, so each is taken by its share.
    let share_max = (weight_max * WHOLE).max(1);
    for _ in 0..DRAWS {
        let place = lot.below(count) as usize;
        let member = &members[place];
        if eligible(member) && lot.below(share_max) < share(member) {
            return Some(place);
        }
    }
    let shares = || members.iter().enumerate().filter(|(_, member)| eligible(member));
    let all: u32 = shares().map(|(_, member)| share(member)).sum();
    if all == 0 {
        return None;
    }
    let mut left = lot.below(all);
    for (place, member) in shares() {
        match left.checked_sub(share(member)) {
            Some(rest) => left = rest,
            None => return Some(place),
        }
    }
    None
}

/// Two different members by lot, or the only one twice.
fn draw_two(
    members: &[Member],
    lot: &mut SplitMix64,
    weight_max: u32,
    eligible: &impl Fn(&Member) -> bool,
    share: &impl Fn(&Member) -> u32,
) -> Option<(usize, usize)> {
    let first = draw(members, lot, weight_max, eligible, share)?;
    let id = members[first].id;
    let another = |member: &Member| member.id != id && eligible(member);
    let second = draw(members, lot, weight_max, &another, share);
    Some((first, second.unwrap_or(first)))
}

/// Of two drawn, the one with less under way for its share; the first, if they are equal. So an idle cluster is used by the
/// shares alone.
pub(super) fn less_loaded_of_two(
    members: &[Member],
    lot: &mut SplitMix64,
    weight_max: u32,
    view: &impl View,
    eligible: impl Fn(&Member) -> bool,
    share: impl Fn(&Member) -> u32,
) -> Option<usize> {
    let (first, second) = draw_two(members, lot, weight_max, &eligible, &share)?;
    let load = |place: usize| Load { active: view.active(members[place].id), share: share(&members[place]) };
    Some(if load(second).compare(load(first)) == Ordering::Less { second } else { first })
}

/// Of two drawn, the one that is expected to answer sooner; the first, if they are equal.
///
/// What is under way at a member delays the next by as many answers, more so the smaller its share. One that has not
/// answered yet and has nothing under way is tried at once, and then left alone until its first answer.
pub(super) fn sooner_of_two(
    members: &[Member],
    lot: &mut SplitMix64,
    weight_max: u32,
    view: &impl View,
    eligible: impl Fn(&Member) -> bool,
    share: impl Fn(&Member) -> u32,
) -> Option<usize> {
    let (first, second) = draw_two(members, lot, weight_max, &eligible, &share)?;
    let cost = |place: usize| {
        let member = &members[place];
        let waiting =
            f64::from(view.active(member.id)) * f64::from(weight_max * WHOLE) / f64::from(share(member));
        match view.latency_us(member.id) {
            known if known > 0.0 => known * (1.0 + waiting),
            _ if waiting == 0.0 => 0.0,
            _ => f64::MAX / 2.0 * (1.0 - 1.0 / (1.0 + waiting)),
        }
    };
    Some(if cost(second) < cost(first) { second } else { first })
}
