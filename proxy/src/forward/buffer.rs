//! Buffers of a fixed size from a pool of a fixed number.
//!
//! The pool hands out the buffer that came back last, so that the few buffers in use stay in the cache, and memory that
//! was never needed is never touched.

use std::ops::Range;

/// Room behind each buffer's nominal size, for what editing adds to a head: [`Buffer`]s that hold an edited head may use
/// it. Host (255 bytes, three times), addresses, request id and Via stay well below.
pub const EDIT_ROOM: usize = 2048;

/// A buffer taken from a [`BufferPool`]. Holds no memory itself; give it back with [`BufferPool::release`].
///
/// From the left: bytes that are cleared to be sent (`start..cleared`), a hole where framing was taken out
/// (`cleared..unscanned`), and bytes nobody has looked at (`unscanned..end`).
#[derive(Debug)]
#[must_use = "a buffer that is dropped is lost to its pool"]
pub struct Buffer {
    index: u32,
    /// First byte that has not been sent.
    pub start: usize,
    /// One past the last byte cleared to be sent.
    pub cleared: usize,
    /// First byte that nobody has looked at.
    pub unscanned: usize,
    /// One past the last byte received.
    pub end: usize,
    /// The bytes from the start on are still wanted, sent or not: the request may have to be sent again.
    pub held: bool,
}

impl Buffer {
    /// Whether it holds neither bytes to send nor bytes to look at.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.start == self.cleared && self.unscanned == self.end
    }

    /// Whether bytes wait to be looked at.
    #[inline]
    pub fn has_unscanned(&self) -> bool {
        self.unscanned < self.end
    }

    /// Enters that the first `n` cleared bytes were sent.
    #[inline]
    pub fn sent(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.cleared);
        if self.start == self.cleared {
            self.start = self.unscanned;
            self.cleared = self.unscanned;
        }
    }

    /// Forgets everything.
    #[inline]
    pub fn reset(&mut self) {
        (self.start, self.cleared, self.unscanned, self.end) = (0, 0, 0, 0);
        self.held = false;
    }
}

/// All buffers of a worker.
#[derive(Debug)]
pub struct BufferPool {
    memory: Vec<u8>,
    size: usize,
    free: Vec<u32>,
    count: usize,
    /// Buffers promised to requests under way, taken or not.
    reserved: usize,
}

impl BufferPool {
    /// `count` buffers of `size` bytes. The memory is zeroed by the kernel when first touched.
    pub fn new(count: u32, size: usize) -> Self {
        let stride = size + EDIT_ROOM;
        Self {
            memory: vec![0; count as usize * stride],
            size,
            free: (0..count).rev().collect(),
            count: count as usize,
            reserved: 0,
        }
    }

    /// Nominal size of a buffer.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Longest edited head that a buffer holds.
    #[inline]
    pub fn edited_size_max(&self) -> usize {
        self.size + EDIT_ROOM
    }

    /// Buffers promised now.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// Buffers taken now.
    pub fn used(&self) -> usize {
        self.count - self.free.len()
    }

    /// Promises `n` buffers to a request, so that it cannot fail for want of one half-way; false when there are not so
    /// many.
    #[inline]
    pub fn reserve(&mut self, n: usize) -> bool {
        let granted = self.can_reserve(n);
        if granted {
            self.reserved += n;
        }
        granted
    }

    /// Whether so many could be promised now.
    #[inline]
    pub fn can_reserve(&self, n: usize) -> bool {
        self.reserved + n <= self.count
    }

    /// Takes back a promise.
    #[inline]
    pub fn unreserve(&mut self, n: usize) {
        debug_assert!(self.reserved >= n);
        self.reserved -= n;
    }

    /// Takes an empty buffer.
    ///
    /// # Panics
    /// When more are taken than were reserved: the accounting is broken.
    #[inline]
    pub fn take(&mut self) -> Buffer {
        let index = self.free.pop().expect("a buffer was reserved before it is taken");
        Buffer { index, start: 0, cleared: 0, unscanned: 0, end: 0, held: false }
    }

    /// Gives a buffer back.
    #[inline]
    pub fn release(&mut self, buffer: Buffer) {
        debug_assert!(!self.free.contains(&buffer.index));
        self.free.push(buffer.index);
    }

    /// A range of a buffer's bytes.
    #[inline]
    pub fn bytes(&self, buffer: &Buffer, range: Range<usize>) -> &[u8] {
        let base = self.base(buffer);
        &self.memory[base..base + self.size + EDIT_ROOM][range]
    }

    /// All of a buffer's bytes, to be read into or moved.
    #[inline]
    pub fn bytes_mut(&mut self, buffer: &Buffer) -> &mut [u8] {
        let base = self.base(buffer);
        &mut self.memory[base..base + self.size + EDIT_ROOM]
    }

    /// The room for more received bytes. Editing room is not offered to the network.
    #[inline]
    pub fn room_mut(&mut self, buffer: &Buffer) -> &mut [u8] {
        let (base, size) = (self.base(buffer), self.size);
        &mut self.memory[base + buffer.end..base + size]
    }

    /// Moves the bytes nobody has looked at to the front, so that more can be received behind them. Everything before them
    /// must have been sent.
    pub fn compact(&mut self, buffer: &mut Buffer) {
        debug_assert_eq!(buffer.start, buffer.cleared);
        let (from, to) = (buffer.unscanned, buffer.end);
        self.bytes_mut(buffer).copy_within(from..to, 0);
        buffer.reset();
        buffer.end = to - from;
    }

    #[inline]
    fn base(&self, buffer: &Buffer) -> usize {
        buffer.index as usize * (self.size + EDIT_ROOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_released_is_taken_first_and_nothing_is_lost() {
        let mut pool = BufferPool::new(3, 4096);
        assert!(pool.reserve(3));
        assert!(!pool.reserve(1));
        let (a, b) = (pool.take(), pool.take());
        let index = a.index;
        pool.release(a);
        let again = pool.take();
        assert_eq!(again.index, index);
        assert_eq!(pool.used(), 2);
        pool.release(again);
        pool.release(b);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn buffers_do_not_overlap() {
        let mut pool = BufferPool::new(2, 4096);
        let (mut a, b) = (pool.take(), pool.take());
        pool.bytes_mut(&a).fill(1);
        pool.bytes_mut(&b).fill(2);
        assert!(pool.bytes(&a, 0..4096 + EDIT_ROOM).iter().all(|&byte| byte == 1));
        a.end = 4000;
        assert_eq!(pool.room_mut(&a).len(), 96);
        pool.release(a);
        pool.release(b);
    }
}
