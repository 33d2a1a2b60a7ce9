//! Passes the bytes of a body from one socket to another inside the kernel.
//!
//! The stream parser of a source's socket asks `redirect_parse` how long the next message is: as long as the flow's
//! account allows. `redirect_verdict` sends it on. Where the account is used up the parser stops with an error, and
//! whatever it has not let through stays in the source's receive queue for userspace: a pipelined request, or what
//! exceeds the credit.
#![allow(clippy::multiple_unsafe_ops_per_block)] // a field behind a raw pointer: naming the place and reading it are one

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_probe_read_kernel};
use aya_ebpf::macros::{map, stream_parser, stream_verdict};
use aya_ebpf::maps::{Array, HashMap, RingBuf, SockHash};
use aya_ebpf::programs::SkBuffContext;
use aya_ebpf::{EbpfContext, Global};
use aya_log_ebpf::warn;
use underpass_ebpf::{FlowAccount, MESSAGE_SIZE_MAX};

/// `BPF_F_MMAPABLE`: the worker grants by plain stores.
const MMAPABLE: u32 = 1024;
/// The parser stops. The stream parser leaves this error pending on the source's socket (`sk_err`), where the next send
/// to that socket takes it up. `EAGAIN` is what a send may always give: the kernel's own sends, of the opposite direction
/// of a tunnel, try again then, while any other error would make them throw their bytes away.
const STOP: u32 = -11i32 as u32;

// The loader sets the real number of entries.

/// Sources by their cookie. The two programs are attached to this map.
#[map]
static SOURCES: SockHash<u64> = SockHash::with_max_entries(1, 0);
/// Targets by the cookie of their source.
#[map]
static TARGETS: SockHash<u64> = SockHash::with_max_entries(1, 0);
/// Slot of each source's account.
#[map]
static FLOWS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
/// The accounts.
#[map]
static LEDGER: Array<FlowAccount> = Array::with_max_entries(1, MMAPABLE);
/// Slots of flows that their worker has to look at.
#[map]
static WAKES: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Offset in `sk_buff` of where the stream parser keeps the begin of the message: from the type information of the
/// running kernel.
#[unsafe(no_mangle)]
static SKB_MESSAGE_OFFSET: Global<u32> = Global::new(0);

/// How many of the next bytes are to be passed on.
#[stream_parser]
pub(crate) fn redirect_parse(ctx: SkBuffContext) -> u32 {
    // SAFETY: the context of this very program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: a plain value, copied at once; it only changes while the source is in no map.
    let Some(&slot) = (unsafe { FLOWS.get(cookie) }) else { return STOP };
    let Some(account) = LEDGER.get_ptr_mut(slot) else { return STOP };
    // SAFETY: `account` points to a whole `FlowAccount`. Volatile, because the worker stores to two of its fields meanwhile;
    // each is one aligned word. The parser of one socket runs under that socket's lock, so there is one writer of the others.
    let (stopped, used, limit, wake_at) = unsafe {
        (
            addr_of!((*account).stopped).read_volatile(),
            addr_of!((*account).used).read_volatile(),
            addr_of!((*account).limit).read_volatile(),
            addr_of!((*account).wake_at).read_volatile(),
        )
    };
    // A stop is final. When part of a buffer was let through before it, `tcp_read_sock` offers the rest once more, to a stream
    // parser that does not look whether it has been stopped. If the worker raised the limit between the two, bytes would pass
    // that it does not wait for: it would take their target out of the map, and they would be lost.
    if stopped != 0 {
        return STOP;
    }
    // `len` counts the whole buffer, also what lies before this message.
    let available = ctx.len().saturating_sub(message_offset(&ctx));
    let left = limit.saturating_sub(used);
    if available == 0 {
        // No kernel does that. One whose structures lie elsewhere than its type information says might seem to.
        warn!(&ctx, "sockmap: a message without a byte, in a buffer of {}: the flow is stopped", ctx.len());
    }
    if left == 0 || available == 0 {
        // SAFETY: as above.
        unsafe { addr_of_mut!((*account).stopped).write_volatile(1) };
        wake(slot);
        return STOP;
    }
    let most = if available < MESSAGE_SIZE_MAX { available } else { MESSAGE_SIZE_MAX };
    let length = if left < u64::from(most) { left as u32 } else { most };
    let after = used + u64::from(length);
    // SAFETY: as above.
    unsafe { addr_of_mut!((*account).used).write_volatile(after) };
    if used < wake_at && after >= wake_at {
        wake(slot);
    }
    length
}

/// Where in the buffer the message begins.
#[inline(always)]
fn message_offset(ctx: &SkBuffContext) -> u32 {
    let place = (ctx.as_ptr() as u64 + u64::from(SKB_MESSAGE_OFFSET.load())) as *const u32;
    // SAFETY: the helper checks the address, whatever it is.
    unsafe { bpf_probe_read_kernel(place) }.unwrap_or(u32::MAX)
}

/// Wakes the worker. A ring that is full holds an event that wakes it as well; its size has room for all flows.
#[inline(always)]
fn wake(slot: u32) {
    if let Some(mut entry) = WAKES.reserve::<u32>(0) {
        entry.write(slot);
        entry.submit(0);
    }
}

/// Passes a message on to the target that belongs to its source.
#[stream_verdict]
pub(crate) fn redirect_verdict(ctx: SkBuffContext) -> u32 {
    // SAFETY: the context of this very program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // No target any more: the verdict is to drop, and nobody is left to miss the bytes.
    TARGETS.redirect_skb(&ctx, cookie, 0) as u32
}
