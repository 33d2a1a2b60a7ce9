//! Reads the slots of a block without touching those that nobody has counted in.

use std::marker::PhantomData;

use super::durations::{Durations, FINE};
use super::memory::Block;
use super::slots::{PAGE_WORDS, SLOT_COUNTERS, SLOT_DURATIONS, SlotCounter, WORDS};

/// A block, and which of its pages hold anything.
///
/// To look at a page of the mapping that was never written would give it memory, so who reads many slots asks the kernel
/// first, once for all of them.
#[derive(Debug)]
pub struct View<'a> {
    block: &'a Block,
    /// One bit for each page.
    written: Vec<u64>,
}

impl<'a> View<'a> {
    /// What a block holds now. Counts that come into new pages from now on are not seen.
    pub fn new(block: &'a Block) -> Self {
        let mut written = vec![0; WORDS.div_ceil(PAGE_WORDS).div_ceil(64)];
        block.each_written(|words| {
            for page in words.start / PAGE_WORDS..words.end.div_ceil(PAGE_WORDS) {
                written[page / 64] |= 1 << (page % 64);
            }
        });
        Self { block, written }
    }

    /// Adds what a slot holds to `reading`. False when nothing was ever counted there.
    pub fn read<C: SlotCounter>(&self, number: u32, reading: &mut Reading<C>) -> bool {
        let page = C::AREA.slot(number) / PAGE_WORDS;
        if self.written[page / 64] & 1 << (page % 64) == 0 {
            return false;
        }
        self.block.slot::<C>(number).add_to(reading);
        true
    }

    /// A counter of a slot.
    pub fn get<C: SlotCounter>(&self, number: u32, counter: C) -> u64 {
        let page = C::AREA.slot(number) / PAGE_WORDS;
        match self.written[page / 64] & 1 << (page % 64) {
            0 => 0,
            _ => self.block.slot::<C>(number).get(counter),
        }
    }

    /// Sets the gauges of all slots of a kind to zero: who has died takes nothing back.
    pub fn clear_gauges<C: SlotCounter>(&self) {
        let gauges = C::ALL.iter().filter(|counter| counter.is_gauge());
        for number in 0..C::AREA.slots {
            let page = C::AREA.slot(number) / PAGE_WORDS;
            if self.written[page / 64] & 1 << (page % 64) != 0 {
                let slot = self.block.slot::<C>(number);
                gauges.clone().for_each(|gauge| slot.set(*gauge, 0));
            }
        }
    }
}

/// What a slot held, or the same slot of several workers together.
#[derive(Clone, Debug)]
pub struct Reading<C> {
    pub(super) counters: [u64; SLOT_COUNTERS],
    pub(super) durations: [Durations; SLOT_DURATIONS],
    kind: PhantomData<C>,
}

impl<C: SlotCounter> Default for Reading<C> {
    fn default() -> Self {
        let durations = |n: usize| Durations::new(C::SCALES.get(n).copied().unwrap_or(&FINE));
        Self { counters: [0; SLOT_COUNTERS], durations: [durations(0), durations(1)], kind: PhantomData }
    }
}

impl<C: SlotCounter> Reading<C> {
    /// What slot `number` of all blocks together holds.
    pub fn of(views: &[View<'_>], number: u32) -> Self {
        let mut sum = Self::default();
        for view in views {
            view.read(number, &mut sum);
        }
        sum
    }

    /// A counter or gauge.
    pub fn get(&self, counter: C) -> u64 {
        self.counters[counter.index()]
    }

    /// The histogram at a place.
    pub fn durations(&self, place: usize) -> &Durations {
        &self.durations[place]
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::{
        BACKENDS_MAX, BackendCounter, BackendDuration, CLUSTERS_MAX, ClusterCounter, ClusterDuration,
        LISTENERS_MAX, ListenerCounter,
    };
    use super::*;

    fn cluster(block: &Block, number: u32) -> Reading<ClusterCounter> {
        Reading::of(&[View::new(block)], number)
    }

    #[test]
    fn slots_of_all_kinds_keep_apart_up_to_the_last() {
        let block = Block::create().expect("memfd");
        for number in [0, 1, LISTENERS_MAX - 1] {
            block.listener(number).add(ListenerCounter::Connections, u64::from(number) + 1);
        }
        for number in [0, 1, CLUSTERS_MAX - 1] {
            block.cluster(number).add(ClusterCounter::OwnAnswers, u64::from(number) + 2);
            block.cluster(number).duration(ClusterDuration::FirstByte as usize, u64::MAX / 2);
        }
        for number in [0, 1, BACKENDS_MAX - 1] {
            block.backend(number).add(BackendCounter::Ejections, u64::from(number) + 3);
            block.backend(number).duration(BackendDuration::Response as usize, 70);
        }
        let views = [View::new(&block)];
        for number in [0, 1, LISTENERS_MAX - 1] {
            let reading = Reading::<ListenerCounter>::of(&views, number);
            assert_eq!(reading.get(ListenerCounter::Connections), u64::from(number) + 1);
        }
        for number in [0, 1, CLUSTERS_MAX - 1] {
            let reading = Reading::<ClusterCounter>::of(&views, number);
            assert_eq!(reading.get(ClusterCounter::OwnAnswers), u64::from(number) + 2);
            assert_eq!(reading.durations(0).total(), 0);
            assert_eq!(reading.durations(1).sum_us(), u64::MAX / 2);
        }
        for number in [0, 1, BACKENDS_MAX - 1] {
            let reading = Reading::<BackendCounter>::of(&views, number);
            assert_eq!(reading.get(BackendCounter::Ejections), u64::from(number) + 3);
            assert_eq!(reading.durations(1).quantile_us(0.5), Some(100));
        }
    }

    #[test]
    fn reading_everything_takes_no_memory() {
        let block = Block::create().expect("memfd");
        block.cluster(7).add(ClusterCounter::Requests, 1);
        let before = block.memory_bytes();
        let views = [View::new(&block)];
        let requests: u64 = (0..CLUSTERS_MAX)
            .map(|n| Reading::<ClusterCounter>::of(&views, n).get(ClusterCounter::Requests))
            .sum();
        views[0].clear_gauges::<BackendCounter>();
        (0..BACKENDS_MAX).for_each(|n| {
            Reading::<BackendCounter>::of(&views, n);
        });
        assert_eq!(requests, 1);
        assert!(before > 0);
        assert_eq!(block.memory_bytes(), before);
    }

    #[test]
    fn a_slot_that_is_given_back_reads_zero_and_its_neighbours_stay() {
        let block = Block::create().expect("memfd");
        let before = block.memory_bytes();
        let slots_of_a_page = 0..8;
        for number in slots_of_a_page.clone() {
            block.backend(number).add(BackendCounter::Requests, 5);
            block.backend(number).duration(0, 70);
        }
        let mut in_use: Vec<u32> = slots_of_a_page.collect();
        while let Some(number) = in_use.pop() {
            block.clear::<BackendCounter>(number, |other| in_use.contains(&other)).expect("punched");
            let views = [View::new(&block)];
            let requests =
                |number| Reading::<BackendCounter>::of(&views, number).get(BackendCounter::Requests);
            assert_eq!(requests(number), 0);
            assert!(in_use.iter().all(|number| requests(*number) == 5));
        }
        // The page has gone with its last slot.
        assert_eq!(block.memory_bytes(), before);
    }

    #[test]
    fn gauges_end_with_who_set_them_and_counters_do_not() {
        let block = Block::create().expect("memfd");
        block.cluster(3).add(ClusterCounter::Requests, 2);
        block.cluster(3).set(ClusterCounter::QueueActive, 9);
        View::new(&block).clear_gauges::<ClusterCounter>();
        let reading = cluster(&block, 3);
        assert_eq!((reading.get(ClusterCounter::Requests), reading.get(ClusterCounter::QueueActive)), (2, 0));
    }

    #[test]
    fn several_workers_add_up() {
        let blocks = [Block::create().expect("memfd"), Block::create().expect("memfd")];
        for (block, micros) in blocks.iter().zip([100, 9000]) {
            block.cluster(0).add(ClusterCounter::Retries, 4);
            block.cluster(0).duration(0, micros);
        }
        let views: Vec<View<'_>> = blocks.iter().map(View::new).collect();
        let sum = Reading::<ClusterCounter>::of(&views, 0);
        assert_eq!(views[1].get(0, ClusterCounter::Retries) + views[1].get(1, ClusterCounter::Retries), 4);
        assert_eq!((sum.get(ClusterCounter::Retries), sum.durations(0).sum_us()), (8, 9100));
        assert_eq!(sum.durations(0).quantile_us(1.0), Some(10_000));
    }
}
