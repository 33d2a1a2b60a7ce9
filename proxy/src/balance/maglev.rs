//! Consistent hashing by a table: "Maglev: A Fast and Reliable Software Network Load Balancer" (Eisenbud et al., 2016),
//! section 3.4, with weights.
//!
//! The table is made anew, a bounded piece with each lookup, while the old one still serves: neither a change nor a lookup
//! ever waits for a whole table, but for the first of a cluster. What a table leads to is looked at before it is taken, so one
//! that is out of date is no worse than a backend that is down.

use super::hash::mix;
use super::member::Member;

/// Table sizes: primes, each about four times the one before.
const SIZES: [u32; 5] = [1021, 4093, 16_381, 65_521, 131_071];
/// Entries for each member, at least; so shares are right to about a hundredth.
const ENTRIES_PER_MEMBER: usize = 100;
/// Entries looked at with each lookup, while a table is being made.
const STEPS: usize = 512;
/// Entries tried before all members are looked at.
const PROBES: u64 = 16;
const EMPTY: u16 = u16::MAX;

/// The table of a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Maglev {
    /// Places of members.
    table: Vec<u16>,
    /// Members have come or gone since the table was begun.
    stale: bool,
    making: Option<Making>,
}

impl Maglev {
    /// A table that is still to be made.
    pub(super) fn new() -> Self {
        Self { stale: true, ..Self::default() }
    }

    /// Members have come or gone, or changed their weight.
    pub(super) fn outdate(&mut self) {
        self.stale = true;
    }

    /// Goes on with the table that is being made, if there is one to make.
    #[inline]
    pub(super) fn advance(&mut self, members: &[Member]) {
        if self.stale || self.making.is_some() {
            self.make(members);
        }
    }

    fn make(&mut self, members: &[Member]) {
        // One that has been begun is finished even if it is out of date by then, else constant changes would keep the
        // first of them from ever taking effect.
        let making = self.making.get_or_insert_with(|| {
            self.stale = false;
            Making::begin(members)
        });
        let steps = if self.table.is_empty() { usize::MAX } else { STEPS };
        if making.go_on(steps) {
            self.table = std::mem::take(&mut making.table);
            self.making = None;
        }
    }

    /// The place of the member for a hash, by the table as it is.
    pub(super) fn find(
        &self,
        hash: u64,
        members: &[Member],
        eligible: impl Fn(&Member, u64) -> bool,
    ) -> Option<usize> {
        for probe in 0..if self.table.is_empty() { 0 } else { PROBES } {
            let hash = if probe == 0 { hash } else { mix(hash ^ probe) };
            #[allow(clippy::cast_possible_truncation, reason = "below the length of the table")]
            let place = self.table[(hash % self.table.len() as u64) as usize];
            if members.get(usize::from(place)).is_some_and(|member| eligible(member, hash)) {
                return Some(usize::from(place));
            }
        }
        None
    }
}

/// A table that is being made.
#[derive(Clone, Debug)]
struct Making {
    table: Vec<u16>,
    filled: usize,
    candidates: Vec<Candidate>,
    weight_max: u32,
    /// Whose turn it is.
    turn: usize,
}

/// A member, and the order in which it would take entries.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    identity: u64,
    place: u16,
    weight: u32,
    /// What its weight has earned it.
    credit: u32,
    at: u32,
    skip: u32,
}

impl Making {
    fn begin(members: &[Member]) -> Self {
        let listed = members.iter().enumerate().filter(|(_, member)| member.weight > 0 && !member.backup);
        let mut candidates: Vec<Candidate> = listed
            .filter_map(|(place, member)| {
                Some(Candidate {
                    identity: member.identity,
                    place: u16::try_from(place).ok().filter(|place| *place != EMPTY)?,
                    weight: u32::from(member.weight),
                    credit: 0,
                    at: 0,
                    skip: 0,
                })
            })
            .collect();
        // The same in all workers, in whatever order they learned of the members.
        candidates.sort_unstable_by_key(|candidate| candidate.identity);
        let wanted = candidates.len() * ENTRIES_PER_MEMBER;
        let size = SIZES.into_iter().find(|size| *size as usize >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
        for candidate in &mut candidates {
            let parts = (mix(candidate.identity), mix(!candidate.identity));
            #[allow(clippy::cast_possible_truncation, reason = "below size")]
            let (at, skip) = ((parts.0 % u64::from(size)) as u32, (parts.1 % u64::from(size - 1) + 1) as u32);
            (candidate.at, candidate.skip) = (at, skip);
        }
        let size = if candidates.is_empty() { 0 } else { size as usize };
        let weight_max = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(0);
        Self { table: vec![EMPTY; size], filled: 0, candidates, weight_max, turn: 0 }
    }

    /// Looks at so many entries; true when the table is full.
    fn go_on(&mut self, mut steps: usize) -> bool {
        #[allow(clippy::cast_possible_truncation, reason = "one of SIZES")]
        let size = self.table.len() as u32;
        while self.filled < self.table.len() {
            if steps == 0 {
                return false;
            }
            steps -= 1;
            let candidate = &mut self.candidates[self.turn];
            if candidate.credit < self.weight_max {
                candidate.credit += candidate.weight;
            }
            if candidate.credit < self.weight_max {
                self.turn = (self.turn + 1) % self.candidates.len();
                continue;
            }
            // Its permutation is every entry once: the size is a prime. One entry is looked at in each step.
            let entry = &mut self.table[candidate.at as usize];
            candidate.at = (candidate.at + candidate.skip) % size;
            if *entry == EMPTY {
                *entry = candidate.place;
                candidate.credit -= self.weight_max;
                self.filled += 1;
                self.turn = (self.turn + 1) % self.candidates.len();
            }
        }
        true
    }
}
