//! The line of those who wait for a backend: first come, first served.

use std::collections::VecDeque;

/// Sessions that wait, by key, each with a ticket of its own. One that leaves before its turn says so, and its place in the
/// line is passed over later: leaving costs nothing to those that wait.
#[derive(Clone, Debug, Default)]
pub struct Line {
    places: VecDeque<Place>,
    waiting: usize,
    tickets: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: usize,
    ticket: u64,
}

impl Line {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Goes to the end of the line; returns the ticket, unless `most` wait already.
    pub fn join(&mut self, key: usize, most: usize) -> Option<u64> {
        if self.waiting >= most {
            return None;
        }
        self.tickets += 1;
        self.waiting += 1;
        self.places.push_back(Place { key, ticket: self.tickets });
        Some(self.tickets)
    }

    /// One that waited has gone. `holds` tells whether a key still waits with a ticket.
    pub fn leave(&mut self, holds: impl Fn(usize, u64) -> bool) {
        debug_assert!(self.waiting > 0, "somebody left who did not wait");
        self.waiting -= 1;
        // Each place that was left is removed once, so this costs a constant for each that joined.
        if self.places.len() > 2 * self.waiting + 16 {
            self.places.retain(|place| holds(place.key, place.ticket));
        }
    }

    /// The first of the line. `holds` tells whether a key still waits with a ticket.
    pub fn first(&mut self, holds: impl Fn(usize, u64) -> bool) -> Option<usize> {
        while let Some(place) = self.places.front() {
            if holds(place.key, place.ticket) {
                return Some(place.key);
            }
            self.places.pop_front();
        }
        debug_assert_eq!(self.waiting, 0, "somebody waits without a place");
        None
    }

    /// Whoever [`Self::first`] has named waits no more.
    pub fn take_first(&mut self) {
        self.waiting -= usize::from(self.places.pop_front().is_some());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn first_come_first_served_whoever_leaves(
            steps in prop::collection::vec((0..3_u8, 0..40_usize), 1..400),
        ) {
            let mut line = Line::default();
            // Ticket by key, and the keys in their order.
            let mut held: BTreeMap<usize, u64> = BTreeMap::new();
            let mut order: Vec<usize> = Vec::new();
            for (step, key) in steps {
                match step {
                    0 if !held.contains_key(&key) => match line.join(key, 20) {
                        Some(ticket) => {
                            held.insert(key, ticket);
                            order.push(key);
                        }
                        None => prop_assert_eq!(order.len(), 20),
                    },
                    1 if held.remove(&key).is_some() => {
                        order.retain(|other| *other != key);
                        line.leave(|key, ticket| held.get(&key) == Some(&ticket));
                    }
                    2 => {
                        let next = line.first(|key, ticket| held.get(&key) == Some(&ticket));
                        prop_assert_eq!(next, order.first().copied());
                        if let Some(key) = next {
                            line.take_first();
                            order.remove(0);
                            held.remove(&key);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(line.len(), order.len());
                prop_assert!(line.places.len() <= 2 * order.len() + 17, "places that were left pile up");
            }
        }
    }
}
