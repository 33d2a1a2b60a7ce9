//! Taking turns: smooth weighted round robin, as nginx has it, and the least loaded.
//!
//! In each turn every member gains its share, and the one that has gained most pays for all. So one of weight 3 is chosen
//! three times as often as one of weight 1, but not three times in a row.

use std::cmp::Ordering;

use super::View;
use super::member::Member;

/// The member whose turn it is.
#[inline]
pub(super) fn next(
    members: &mut [Member],
    start: usize,
    eligible: impl Fn(&Member) -> bool,
    share: impl Fn(&Member) -> u32,
) -> Option<usize> {
    if members.is_empty() {
        return None;
    }
    let start = start % members.len();
    let mut all = 0;
    let mut best: Option<usize> = None;
    for place in (start..members.len()).chain(0..start) {
        let member = &mut members[place];
        if !eligible(member) {
            continue;
        }
        let share = i64::from(share(member));
        member.current += share;
        all += share;
        let gained = member.current;
        if best.is_none_or(|best| members[best].current < gained) {
            best = Some(place);
        }
    }
    members[best?].current -= all;
    best
}

/// The member with the least under way for its share; among equals the one whose turn it is.
pub(super) fn least(
    members: &mut [Member],
    start: usize,
    view: &impl View,
    eligible: impl Fn(&Member) -> bool,
    share: impl Fn(&Member) -> u32,
) -> Option<usize> {
    let mut least: Option<Load> = None;
    for member in members.iter().filter(|member| eligible(member)) {
        let load = Load { active: view.active(member.id), share: share(member) };
        if least.is_none_or(|least| load.compare(least) == Ordering::Less) {
            least = Some(load);
        }
    }
    let least = least?;
    let is_least = |member: &Member| {
        eligible(member)
            && Load { active: view.active(member.id), share: share(member) }.compare(least) == Ordering::Equal
    };
    next(members, start, is_least, &share)
}

/// What is under way at a member, in relation to its share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) active: u32,
    pub(super) share: u32,
}

impl Load {
    #[inline]
    pub(super) fn compare(self, other: Self) -> Ordering {
        let product = |load: u32, share: u32| u64::from(load) * u64::from(share);
        product(self.active, other.share).cmp(&product(other.active, self.share))
    }
}
