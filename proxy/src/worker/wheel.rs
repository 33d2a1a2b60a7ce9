//! Deadlines of many connections: a timing wheel (Varghese and Lauck, 1987) without a clock of its own.
//!
//! Moving a deadline to a later time, the common case, only stores a number; the entry is looked at when its old
//! slot comes round, and goes to a later one then. No allocation, no system call.
#![deny(clippy::disallowed_methods)]

/// Width of a slot in milliseconds: deadlines are kept to this, never early.
const SLOT_MS: u64 = 64;
/// Number of slots; deadlines further away are looked at once a round.
const SLOTS: usize = 1024;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline_ms: u64,
    slot: u32,
    next: u32,
    previous: u32,
}

/// Deadlines for entries numbered from 0.
#[derive(Debug)]
pub(super) struct Wheel {
    entries: Vec<Entry>,
    heads: Vec<u32>,
    occupied: [u64; SLOTS / 64],
    /// The slot number (time / SLOT_MS) up to which all slots were looked at.
    turned: u64,
}

impl Wheel {
    /// A wheel for `count` entries, none of which has a deadline.
    pub(super) fn new(count: usize, now_ms: u64) -> Self {
        let entry = Entry { deadline_ms: 0, slot: NONE, next: NONE, previous: NONE };
        Self {
            entries: vec![entry; count],
            heads: vec![NONE; SLOTS],
            occupied: [0; SLOTS / 64],
            turned: now_ms / SLOT_MS,
        }
    }

    /// Gives an entry a deadline, in place of the one it had.
    #[inline]
    pub(super) fn set(&mut self, entry: usize, deadline_ms: u64) {
        let earlier = deadline_ms < self.entries[entry].deadline_ms;
        self.entries[entry].deadline_ms = deadline_ms;
        if self.entries[entry].slot == NONE {
            self.link(entry);
        } else if earlier {
            self.unlink(entry);
            self.link(entry);
        }
    }

    /// Takes an entry's deadline away.
    pub(super) fn clear(&mut self, entry: usize) {
        if self.entries[entry].slot != NONE {
            self.unlink(entry);
        }
    }

    /// Moves the wheel to `now_ms` and puts the entries whose deadline has passed into `expired`; they have none then.
    pub(super) fn expire(&mut self, now_ms: u64, expired: &mut Vec<usize>) {
        let target = now_ms / SLOT_MS;
        // After a long sleep each slot is looked at once.
        let first = self.turned.max(target.saturating_sub(SLOTS as u64));
        self.turned = target;
        for time in first..target {
            let slot = Self::slot_of(time);
            let mut at = std::mem::replace(&mut self.heads[slot], NONE);
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            while at != NONE {
                let index = at as usize;
                at = self.entries[index].next;
                self.entries[index].slot = NONE;
                if self.entries[index].deadline_ms <= now_ms {
                    expired.push(index);
                } else {
                    self.link(index);
                }
            }
        }
    }

    /// How long from `now_ms` until an entry must be looked at; `None` when no entry has a deadline.
    pub(super) fn wait_ms(&self, now_ms: u64) -> Option<u64> {
        let start = Self::slot_of(self.turned);
        let mut distance = 0;
        while distance < SLOTS {
            let slot = (start + distance) % SLOTS;
            let word = self.occupied[slot / 64] >> (slot % 64);
            if word != 0 {
                distance += word.trailing_zeros() as usize;
                let due = (self.turned + distance as u64 + 1) * SLOT_MS;
                return Some(due.saturating_sub(now_ms));
            }
            distance += 64 - slot % 64;
        }
        None
    }

    #[allow(clippy::cast_possible_truncation, reason = "below SLOTS")]
    fn slot_of(time: u64) -> usize {
        (time % SLOTS as u64) as usize
    }

    #[allow(clippy::cast_possible_truncation, reason = "entries are numbered by u32, slots are below SLOTS")]
    fn link(&mut self, entry: usize) {
        // Never into a slot that is being turned past, never more than a round ahead.
        let time = (self.entries[entry].deadline_ms / SLOT_MS).max(self.turned);
        let slot = Self::slot_of(time.min(self.turned + SLOTS as u64 - 1));
        let next = std::mem::replace(&mut self.heads[slot], entry as u32);
        if next != NONE {
            self.entries[next as usize].previous = entry as u32;
        }
        let linked = &mut self.entries[entry];
        (linked.slot, linked.next, linked.previous) = (slot as u32, next, NONE);
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    fn unlink(&mut self, entry: usize) {
        let Entry { slot, next, previous, .. } = self.entries[entry];
        if previous == NONE {
            self.heads[slot as usize] = next;
            if next == NONE {
                self.occupied[slot as usize / 64] &= !(1 << (slot % 64));
            }
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        self.entries[entry].slot = NONE;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sleeps_until_the_first_deadline() {
        let mut wheel = Wheel::new(4, 1000);
        assert_eq!(wheel.wait_ms(1000), None);
        wheel.set(0, 5000);
        wheel.set(1, 3000);
        let wait = wheel.wait_ms(1000).expect("two deadlines");
        assert!((2000..=2000 + SLOT_MS).contains(&wait), "{wait}");
        wheel.clear(1);
        wheel.clear(0);
        assert_eq!(wheel.wait_ms(1000), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn expires_each_deadline_once_never_early_and_at_most_a_slot_late(
            steps in prop::collection::vec((0usize..8, 0u64..200_000, 0u64..30_000, any::<bool>()), 1..60)
        ) {
            let mut now = 12_345;
            let mut wheel = Wheel::new(8, now);
            let mut model: BTreeMap<usize, u64> = BTreeMap::new();
            for (entry, ahead, pass, clear) in steps {
                if clear {
                    wheel.clear(entry);
                    model.remove(&entry);
                } else {
                    wheel.set(entry, now + ahead);
                    model.insert(entry, now + ahead);
                }
                now += pass;
                let mut expired = Vec::new();
                wheel.expire(now, &mut expired);
                for entry in expired {
                    let deadline = model.remove(&entry);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                }
                for deadline in model.values() {
                    prop_assert!(now < deadline + 2 * SLOT_MS, "{deadline} missed at {now}");
                }
                prop_assert_eq!(wheel.wait_ms(now).is_none(), model.is_empty());
            }
        }
    }
}
