//! An edited head: ranges of the buffer that the head came in, and of a small scratch area.

use std::io::IoSlice;

use super::Span;

/// A part of an edited head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the buffer that the head came in.
    Source(Span),
    /// Bytes of the scratch area.
    Scratch(Span),
}

/// An edited head. Made once for each worker and reused, so that editing allocates nothing.
#[derive(Debug)]
pub struct Edit {
    pieces: Vec<Piece>,
    scratch: Vec<u8>,
}

impl Edit {
    /// Room for a head of `head_size_max` bytes and `header_count_max` fields.
    pub fn with_capacity(head_size_max: u32, header_count_max: u16) -> Self {
        // Each field can split a run of kept lines once; the host is written at most four times, and what routes change is
        // bounded by the size of a head (`Rewriting`).
        let pieces = 2 * usize::from(header_count_max) + 16;
        Self {
            pieces: Vec::with_capacity(pieces),
            scratch: Vec::with_capacity(6 * head_size_max as usize + 4096),
        }
    }

    /// The pieces in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The bytes of one piece.
    #[inline]
    pub fn bytes<'a>(&'a self, piece: Piece, source: &'a [u8]) -> &'a [u8] {
        match piece {
            Piece::Source(span) => span.of(source),
            Piece::Scratch(span) => span.of(&self.scratch),
        }
    }

    /// Length of the edited head in bytes.
    pub fn size(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Source(span) | Piece::Scratch(span) => span.len(),
            })
            .sum()
    }

    /// Fills `slices` with the pieces and returns how many there are; `None` if they do not fit.
    #[inline]
    pub fn slices<'a>(&'a self, source: &'a [u8], slices: &mut [IoSlice<'a>]) -> Option<usize> {
        if self.pieces.len() > slices.len() {
            return None;
        }
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(self.bytes(*piece, source));
        }
        Some(self.pieces.len())
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.scratch.clear();
    }

    pub(super) fn keep(&mut self, start: u32, end: u32) {
        if start < end {
            self.push(Piece::Source(Span { start, end }));
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "the scratch area holds less than 4 GiB by construction"
    )]
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.scratch.len() as u32;
        debug_assert!(
            bytes.len() <= self.scratch.capacity() - self.scratch.len(),
            "more bytes than an edit can need"
        );
        self.scratch.extend_from_slice(bytes);
        let end = self.scratch.len() as u32;
        match self.pieces.last_mut() {
            Some(Piece::Scratch(span)) if span.end == start => span.end = end,
            _ => self.push(Piece::Scratch(Span { start, end })),
        }
    }

    fn push(&mut self, piece: Piece) {
        debug_assert!(self.pieces.len() < self.pieces.capacity(), "more pieces than a head can need");
        self.pieces.push(piece);
    }

    pub(super) fn write_number(&mut self, mut number: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            #[allow(clippy::cast_possible_truncation, reason = "a digit")]
            let digit = (number % 10) as u8;
            digits[at] = b'0' + digit;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.write(&digits[at..]);
    }
}
