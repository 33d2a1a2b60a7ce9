//! The counters of one worker, whose processes take turns.
//!
//! A block has one writer. While one process of a worker finishes what it has and its successor serves already, there are two,
//! so a worker has two blocks: each process gets the one that its predecessor does not have. Whoever reads sees the sum, which
//! never goes down.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use super::memory::{Block, BlockError};
use super::{Counter, Histogram, Peer, View};

/// Processes that one worker may have at a time.
pub const TURNS: usize = 2;

/// The blocks of one worker. The second is made when it is first needed.
#[derive(Debug)]
pub struct BlockPair {
    first: Block,
    second: OnceLock<Block>,
}

impl From<Block> for BlockPair {
    fn from(first: Block) -> Self {
        Self { first, second: OnceLock::new() }
    }
}

impl BlockPair {
    /// Makes the first block.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn create() -> Result<Self, BlockError> {
        Block::create().map(Self::from)
    }

    /// The block of a turn, to pass it on to a process.
    ///
    /// # Errors
    /// When it is needed for the first time, and there is no memory for it.
    pub fn of_turn(&self, turn: usize) -> Result<&Block, BlockError> {
        if turn.is_multiple_of(TURNS) {
            return Ok(&self.first);
        }
        match self.second.get() {
            Some(block) => Ok(block),
            None => {
                let block = Block::create()?;
                // Were two to come at once, both would get the one that stays.
                Ok(self.second.get_or_init(|| block))
            }
        }
    }

    /// The descriptor of a turn's block.
    ///
    /// # Errors
    /// As [`Self::of_turn`].
    pub fn fd(&self, turn: usize) -> Result<BorrowedFd<'_>, BlockError> {
        self.of_turn(turn).map(Block::fd)
    }

    /// The blocks that there are.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        std::iter::once(&self.first).chain(self.second.get())
    }

    /// Reads a counter or gauge.
    pub fn get(&self, counter: Counter) -> u64 {
        self.blocks().fold(0, |sum, block| sum.wrapping_add(block.get(counter)))
    }

    /// How many messages of `peer` were refused for reason number `reason`.
    pub fn refusals(&self, peer: Peer, reason: usize) -> u64 {
        self.blocks().map(|block| block.refusals(peer, reason)).sum()
    }

    /// The latencies counted so far.
    pub fn latencies(&self) -> Histogram {
        let mut sum = Histogram::default();
        self.blocks().for_each(|block| sum.add(&block.latencies()));
        sum
    }
}

/// Views of all blocks of all workers.
pub fn views(pairs: &[BlockPair]) -> Vec<View<'_>> {
    pairs.iter().flat_map(BlockPair::blocks).map(View::new).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{ClusterCounter, Reading};
    use super::*;

    #[test]
    fn both_turns_add_up() {
        let pair = BlockPair::create().expect("memfd");
        for turn in 0..3 {
            let block = pair.of_turn(turn).expect("memfd");
            block.add(Counter::Requests, 2);
            block.refused(Peer::Client, 1);
            block.latency(100);
            block.cluster(4).add(ClusterCounter::Requests, 5);
        }
        assert_eq!(pair.blocks().count(), TURNS);
        assert_eq!((pair.get(Counter::Requests), pair.refusals(Peer::Client, 1)), (6, 3));
        assert_eq!(pair.latencies().total(), 3);
        let pairs = [pair];
        let sum = Reading::<ClusterCounter>::of(&views(&pairs), 4);
        assert_eq!(sum.get(ClusterCounter::Requests), 15);
    }

    #[test]
    fn a_worker_that_never_had_two_processes_has_one_block() {
        let pair = BlockPair::create().expect("memfd");
        pair.of_turn(0).expect("there from the start").add(Counter::Requests, 1);
        assert_eq!((pair.get(Counter::Requests), pair.blocks().count()), (1, 1));
    }
}
