//! What goes before a body: an edited head, and what the proxy says of its own.

use std::io::{self, IoSlice};

use super::{Broken, Flow, Tools, send_cleared};
use crate::forward::{Buffer, BufferPool, Endpoint};
use crate::http1::{Edit, Reason};
use crate::metrics::Block;

/// Slices of one `writev`; the kernel copies up to eight without allocating (UIO_FASTIOV).
const SLICES_MAX: usize = 16;

impl Flow {
    /// Sends bytes of the proxy's own; false when the sink does not take all now.
    ///
    /// # Errors
    /// When the sink is gone.
    pub fn flush_own(&mut self, sink: &mut Endpoint, tools: &mut Tools<'_>) -> io::Result<bool> {
        let Some(mut pending) = self.pending.take() else { return Ok(true) };
        let sent = send_cleared(&mut pending, sink, tools.buffers, false);
        if sent.is_ok() && pending.is_empty() {
            tools.buffers.release(pending);
            return Ok(true);
        }
        self.pending = Some(pending);
        sent.map(|_| false)
    }

    /// Sends an edited head together with what the source's buffer holds of the body, in one call where possible.
    ///
    /// The head lies at the start of the buffer, `head_size` bytes long before it was edited; `unscanned` points to it.
    /// What the sink does not take at once is kept and sent by [`Self::pump`].
    pub fn send_head(
        &mut self,
        edit: &Edit,
        head_size: usize,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        buffers: &mut BufferPool,
        metrics: &Block,
    ) -> Result<(), Broken> {
        let Some(buffer) = source.buffer.as_mut() else { return Ok(()) };
        let head_start = buffer.unscanned;
        buffer.unscanned += head_size;
        (buffer.start, buffer.cleared) = (buffer.unscanned, buffer.unscanned);
        self.clear_buffered(buffer, buffers)?;
        let whole = edit.size();
        if whole > buffers.edited_size_max() {
            return Err(Broken::Refused(Reason::HeadTooLarge));
        }
        let body = buffer.cleared - buffer.start;
        let mut sent = 0;
        if self.is_flushed() && sink.writable {
            let source_bytes = buffers.bytes(buffer, head_start..buffer.end);
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            if let Some(mut count) = edit.slices(source_bytes, &mut slices[..SLICES_MAX - 1]) {
                if body > 0 {
                    slices[count] = IoSlice::new(buffers.bytes(buffer, buffer.start..buffer.cleared));
                    count += 1;
                }
                sent = sink.send(&slices[..count]).map_err(Broken::Sink)?;
                if sent < whole + body {
                    sink.writable = false;
                }
            }
        }
        if sent < whole {
            self.keep_head(edit, head_start, sent, buffer, buffers);
        } else {
            self.count_copied((sent - whole) as u64, metrics);
            buffer.sent(sent - whole);
        }
        Ok(())
    }

    /// Copies the part of an edited head that was not sent.
    fn keep_head(&mut self, edit: &Edit, start: usize, sent: usize, buffer: &Buffer, pool: &mut BufferPool) {
        let mut kept = self.pending.take().unwrap_or_else(|| pool.take());
        let mut skip = sent;
        for piece in edit.pieces() {
            // Through a small stop-over, because both buffers lie in the pool's memory.
            let mut chunk = [0u8; 512];
            let mut at = 0;
            loop {
                let bytes = edit.bytes(*piece, pool.bytes(buffer, start..buffer.end));
                let rest = &bytes[at.min(bytes.len())..];
                if rest.is_empty() {
                    break;
                }
                let n = rest.len().min(chunk.len());
                chunk[..n].copy_from_slice(&rest[..n]);
                at += n;
                let skipped = skip.min(n);
                skip -= skipped;
                let add = &chunk[skipped..n];
                pool.bytes_mut(&kept)[kept.end..kept.end + add.len()].copy_from_slice(add);
                kept.end += add.len();
            }
        }
        (kept.cleared, kept.unscanned) = (kept.end, kept.end);
        self.pending = Some(kept);
    }

    /// Puts bytes of the proxy's own before anything else that goes to the sink. They must fit into a buffer.
    pub fn push_own(&mut self, bytes: &[u8], pool: &mut BufferPool) {
        let mut kept = self.pending.take().unwrap_or_else(|| pool.take());
        pool.bytes_mut(&kept)[kept.end..kept.end + bytes.len()].copy_from_slice(bytes);
        kept.end += bytes.len();
        (kept.cleared, kept.unscanned) = (kept.end, kept.end);
        self.pending = Some(kept);
    }
}
