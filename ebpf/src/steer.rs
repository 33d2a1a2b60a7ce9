//! Chooses the worker of a new connection.
//!
//! The kernel runs this for each segment that meets a listener's SO_REUSEPORT group: connection requests, and the last
//! step of a handshake where SYN cookies are in use. In this order:
//! 1. the worker that the connection belongs to by the policy, if it can take it;
//! 2. else the better of two others that can, drawn by the flow's hash;
//! 3. else whichever the kernel's own hash picks.
//!
//! Only shared memory is read, a few words per connection; there is no loop over all workers.
#![allow(clippy::multiple_unsafe_ops_per_block)] // a field behind a raw pointer: naming the place and reading it are one

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_probe_read_kernel,
};
use aya_ebpf::macros::{map, sk_reuseport};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ReusePortSockArray};
use aya_ebpf::programs::SkReuseportContext;
use aya_ebpf::{EbpfContext, Global};
use aya_log_ebpf::warn;
use underpass_ebpf::{
    Config, NO_WORKER, OUTCOMES, Outcome, Outcomes, POLICY_HASH, POLICY_OFF, POLICY_RX_QUEUE, QueueKey,
    STATE_RUNNING, Slot, Watch,
};

/// `BPF_F_MMAPABLE`: userspace publishes by plain stores.
const MMAPABLE: u32 = 1024;
/// How many workers are looked at for the two others.
const DRAWS: u32 = 8;
/// A worker that stays stalled is logged once in so long.
const REPORT_INTERVAL_NS: u64 = 10_000_000_000;

// The loader sets the real number of entries of each map that is sized by workers, CPUs, queues or listeners.

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// What each worker publishes.
#[map]
static SLOTS: Array<Slot> = Array::with_max_entries(1, MMAPABLE);
/// What is remembered of each worker.
#[map]
static WATCH: Array<Watch> = Array::with_max_entries(1, 0);
/// Worker of each CPU, plus one.
#[map]
static CPUS: Array<u32> = Array::with_max_entries(1, 0);
/// Worker of each RX queue, plus one.
#[map]
static QUEUES: HashMap<QueueKey, u32> = HashMap::with_max_entries(1, 0);
/// Cookie of a listening socket, whichever of its group, to the group's first index in `SOCKETS`.
#[map]
static LISTENERS: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);
/// Listening sockets, one per worker for each group.
#[map]
static SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(1, 0);
/// Connections by RX CPU, chosen worker and outcome.
#[map]
static MATRIX: PerCpuArray<Outcomes> = PerCpuArray::with_max_entries(1, 0);

/// A word for [`opaque`].
#[map]
static SCRATCH: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Number of workers.
#[unsafe(no_mangle)]
static WORKERS: Global<u32> = Global::new(0);
/// Whether kernel memory may be read, and the offsets below are known. Otherwise the verifier drops that code.
#[unsafe(no_mangle)]
static KERNEL_READS: Global<u32> = Global::new(0);
/// Offset of `sk_reuseport_kern.skb`, and so on: from the type information of the running kernel.
#[unsafe(no_mangle)]
static REUSEPORT_SKB: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REUSEPORT_SELECTED: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_QUEUE_MAPPING: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SKB_INTERFACE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_BACKLOG: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_BACKLOG_MAX: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_COOKIE: Global<u32> = Global::new(0);

/// The program. A failure of any step leaves the choice to the kernel; connections are never dropped.
#[sk_reuseport]
pub(crate) fn steer(ctx: SkReuseportContext) -> u32 {
    // SAFETY: no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some((worker, outcome)) = choose(&ctx, now)
        && is_connection_request(&ctx)
    {
        if worker < WORKERS.load() {
            watch(&ctx, worker, now);
        }
        count(worker, outcome);
    }
    SK_PASS
}

/// Returns the chosen worker, or the number of workers where it is left to the kernel, and the [`Outcome`] to count.
#[inline(always)]
fn choose(ctx: &SkReuseportContext, now: u64) -> Option<(u32, u32)> {
    let config = CONFIG.get(0)?;
    let kernel = WORKERS.load();
    if config.policy == POLICY_OFF {
        return Some((kernel, Outcome::Off as u32));
    }
    // SAFETY: the pointer to the group's socket comes from the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sk().sock.cast()) };
    // SAFETY: a plain value, copied at once; it only changes when the listener does.
    let first = *unsafe { LISTENERS.get(cookie) }?;

    let own = own_worker(ctx, config.policy, kernel);
    let mut reason = Outcome::Unmapped;
    if own < kernel {
        reason = check(own, config, now);
        if reason as u32 == Outcome::Own as u32 {
            reason = select(ctx, first, own);
            if reason as u32 == Outcome::Own as u32 {
                return Some((own, Outcome::Own as u32));
            }
        } else if reason as u32 == Outcome::Stalled as u32 && report_due(own, now) {
            warn!(ctx, "worker {} is stalled: its connections go to others", own);
        }
    }
    let reason = opaque(reason as u32)?;
    let (better, other) = two_others(ctx, own, config, now);
    if better < kernel && select(ctx, first, better) as u32 == Outcome::Own as u32 {
        return Some((better, reason));
    }
    if other < kernel && select(ctx, first, other) as u32 == Outcome::Own as u32 {
        return Some((other, reason));
    }
    Some((kernel, reason))
}

/// The worker that the connection belongs to; the number of workers or more where there is none.
#[inline(always)]
fn own_worker(ctx: &SkReuseportContext, policy: u32, workers: u32) -> u32 {
    if policy == POLICY_HASH {
        return scale(ctx.hash(), workers);
    }
    if policy == POLICY_RX_QUEUE
        && let Some(key) = rx_queue(ctx)
    {
        // SAFETY: a plain value, copied at once.
        if let Some(entry) = unsafe { QUEUES.get(key) } {
            return entry.wrapping_sub(1);
        }
    }
    // SAFETY: no argument.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    CPUS.get(cpu).copied().unwrap_or(NO_WORKER).wrapping_sub(1)
}

/// [`Outcome::Own`] where the worker can take a connection, else why it cannot.
#[inline(always)]
fn check(worker: u32, config: &Config, now: u64) -> Outcome {
    let Some(slot) = SLOTS.get_ptr(worker) else { return Outcome::Down };
    // SAFETY: `slot` points to a whole `Slot`. Volatile, because the worker stores to it meanwhile; each field is one
    // aligned word, so that a read sees one store or the other.
    let (state, generation, busy_since_ns, active, limit) = unsafe {
        (
            addr_of!((*slot).state).read_volatile(),
            addr_of!((*slot).generation).read_volatile(),
            addr_of!((*slot).busy_since_ns).read_volatile(),
            addr_of!((*slot).active).read_volatile(),
            addr_of!((*slot).limit).read_volatile(),
        )
    };
    if state != STATE_RUNNING {
        return Outcome::Down;
    }
    if generation != config.generation {
        return Outcome::Generation;
    }
    // A turn may have begun after `now` was read.
    if busy_since_ns != 0 && now.saturating_sub(busy_since_ns) > config.stall_ns {
        return Outcome::Stalled;
    }
    // Before a look at what waits: a worker at its limit may leave connections waiting on purpose.
    if limit != 0 && active >= limit {
        return Outcome::Overloaded;
    }
    if waiting_ns(worker, config, now) > config.stall_ns {
        return Outcome::Stalled;
    }
    Outcome::Own
}

/// How long connections have been waiting for the worker without it accepting any; 0 where none waits.
///
/// An idle worker sleeps, so its silence says nothing. What tells is a connection in the accept queue of the socket
/// that was chosen last while nothing waited. The queue itself is looked at: counting what was steered would mistake
/// each handshake that a client never finished for a connection that the worker leaves waiting.
#[inline(always)]
fn waiting_ns(worker: u32, config: &Config, now: u64) -> u64 {
    let Some(watch) = WATCH.get_ptr_mut(worker) else { return 0 };
    // SAFETY: points to a whole `Watch`. CPUs that steer to one worker at the same time may mix their records; then the
    // socket and its cookie do not match, or the time is that of a connection only microseconds apart.
    let Watch { since_ns, accepted, socket, cookie, probed_ns, .. } = unsafe { *watch };
    if since_ns == 0 || accepted != accepted_by(worker) {
        return 0;
    }
    if KERNEL_READS.load() != 0 {
        if accept_queue_length(socket, cookie) == 0 {
            return 0;
        }
    } else if now.saturating_sub(since_ns.max(probed_ns)) > config.probe_ns {
        // The connection may have been given up by its client. One more now and then tells: if the worker lives, it
        // accepts it, and its count moves.
        // SAFETY: as above.
        unsafe { addr_of_mut!((*watch).probed_ns).write_volatile(now) };
        return 0;
    }
    now.saturating_sub(since_ns)
}

/// Gives the connection to the worker's socket; [`Outcome::Own`], or why that cannot take it.
#[inline(always)]
fn select(ctx: &SkReuseportContext, first: u32, worker: u32) -> Outcome {
    if SOCKETS.select_reuseport(ctx, first + worker).is_err() {
        return Outcome::Empty;
    }
    // The kernel drops requests to a socket whose accept queue is full, and the client would ask again a second later.
    if KERNEL_READS.load() != 0 && is_full(selected(ctx)) {
        return Outcome::Overloaded;
    }
    Outcome::Own
}

/// Kernel address of the socket that was selected last; 0 where it is not known.
#[inline(always)]
fn selected(ctx: &SkReuseportContext) -> u64 {
    read_kernel::<u64>(ctx.as_ptr() as u64, REUSEPORT_SELECTED.load()).unwrap_or(0)
}

/// Whether the kernel would drop a connection request to the socket: its `sk_acceptq_is_full`.
#[inline(always)]
fn is_full(socket: u64) -> bool {
    let length = read_kernel::<u32>(socket, SOCK_BACKLOG.load()).unwrap_or(0);
    length > read_kernel::<u32>(socket, SOCK_BACKLOG_MAX.load()).unwrap_or(u32::MAX)
}

/// Remembers the connection that is being steered, unless an earlier one waits.
#[inline(always)]
fn watch(ctx: &SkReuseportContext, worker: u32, now: u64) {
    let Some(watch) = WATCH.get_ptr_mut(worker) else { return };
    let accepted = accepted_by(worker);
    // SAFETY: points to a whole `Watch`.
    let earlier = unsafe { *watch };
    let mut waits = earlier.since_ns != 0 && earlier.accepted == accepted;
    let (mut socket, mut cookie) = (0, 0);
    if KERNEL_READS.load() != 0 {
        waits = waits && accept_queue_length(earlier.socket, earlier.cookie) != 0;
        socket = selected(ctx);
        cookie = read_kernel::<u64>(socket, SOCK_COOKIE.load()).unwrap_or(0);
    }
    if waits {
        return;
    }
    // SAFETY: as above; field by field, so that the others keep their values.
    unsafe {
        addr_of_mut!((*watch).since_ns).write_volatile(now);
        addr_of_mut!((*watch).accepted).write_volatile(accepted);
        addr_of_mut!((*watch).socket).write_volatile(socket);
        addr_of_mut!((*watch).cookie).write_volatile(cookie);
    }
}

/// Connections that have finished their handshake and wait to be accepted; 0 for a socket that is gone.
#[inline(always)]
fn accept_queue_length(socket: u64, cookie: u64) -> u32 {
    // A cookie is never used twice, so memory that was freed meanwhile does not pass for the socket.
    if socket == 0 || cookie == 0 || read_kernel::<u64>(socket, SOCK_COOKIE.load()) != Some(cookie) {
        return 0;
    }
    read_kernel::<u32>(socket, SOCK_BACKLOG.load()).unwrap_or(0)
}

/// Two workers other than `own` that can take a connection, the less loaded first; `u32::MAX` for none.
#[inline(always)]
fn two_others(ctx: &SkReuseportContext, own: u32, config: &Config, now: u64) -> (u32, u32) {
    let workers = WORKERS.load();
    let hash = ctx.hash();
    // The first two draws are independent; should they not do, those after the second follow.
    let mut candidate = scale(hash.wrapping_mul(0x9e37_79b1), workers);
    let mut first = u32::MAX;
    let mut draw = 0;
    while draw < DRAWS {
        if draw == 1 {
            candidate = scale(hash.wrapping_mul(0x85eb_ca6b), workers);
        } else if draw > 1 {
            candidate += 1;
            if candidate >= workers {
                candidate = 0;
            }
        }
        draw += 1;
        if candidate == own || candidate == first || check(candidate, config, now) as u32 != 0 {
            continue;
        }
        if first != u32::MAX {
            return if load_of(candidate) < load_of(first) { (candidate, first) } else { (first, candidate) };
        }
        first = candidate;
    }
    (first, u32::MAX)
}

/// How full a worker is, in 2^-16 of its limit; without a limit, its number of sessions.
#[inline(always)]
fn load_of(worker: u32) -> u64 {
    let Some(slot) = SLOTS.get_ptr(worker) else { return u64::MAX };
    // SAFETY: points to a whole `Slot`; volatile as in `check`.
    let (active, limit) =
        unsafe { (addr_of!((*slot).active).read_volatile(), addr_of!((*slot).limit).read_volatile()) };
    if limit == 0 { u64::from(active) } else { (u64::from(active) << 16) / u64::from(limit) }
}

#[inline(always)]
fn accepted_by(worker: u32) -> u64 {
    // SAFETY: points to a whole `Slot`; volatile as in `check`.
    SLOTS.get_ptr(worker).map_or(0, |slot| unsafe { addr_of!((*slot).accepted).read_volatile() })
}

/// The RX queue that the segment came in by, where the device has recorded it.
#[inline(always)]
fn rx_queue(ctx: &SkReuseportContext) -> Option<QueueKey> {
    if KERNEL_READS.load() == 0 {
        return None;
    }
    let skb = read_kernel::<u64>(ctx.as_ptr() as u64, REUSEPORT_SKB.load())?;
    // Stored plus one; 0 means that none was recorded.
    let mapping = read_kernel::<u16>(skb, SKB_QUEUE_MAPPING.load())?;
    let interface = read_kernel::<u32>(skb, SKB_INTERFACE.load())?;
    if mapping == 0 {
        return None;
    }
    Some(QueueKey { interface, queue: u32::from(mapping) - 1 })
}

/// Whether the segment asks for a new connection: SYN without ACK.
///
/// Others reach the program too, stray ones as well as those that complete a handshake with a SYN cookie; they are
/// steered, but neither counted nor watched, or anybody could make a worker look stalled.
#[inline(always)]
fn is_connection_request(ctx: &SkReuseportContext) -> bool {
    const TCP_FLAGS: usize = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + TCP_FLAGS + 1 > end {
        return false;
    }
    // SAFETY: inside the segment, as was just checked, and as the verifier checks again.
    let flags = unsafe { *((data + TCP_FLAGS) as *const u8) };
    flags & (SYN | ACK) == SYN
}

#[inline(always)]
fn count(worker: u32, outcome: u32) {
    if let Some(outcomes) = MATRIX.get_ptr_mut(worker) {
        // The mask is for the verifier: there are that many outcomes.
        let index = outcome as usize & (OUTCOMES - 1);
        // SAFETY: points to this CPU's `Outcomes`, the index is within; the program is not preempted by itself.
        unsafe { *outcomes.cast::<u64>().add(index) += 1 };
    }
}

/// Hands back a value about which the verifier knows nothing, so that it follows what comes after once, and not once for
/// each value.
#[inline(always)]
fn opaque(value: u32) -> Option<u32> {
    let word = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: points to this CPU's word.
    unsafe { word.write_volatile(value) };
    // SAFETY: as above.
    Some(unsafe { word.read_volatile() })
}

/// Whether the worker was not reported for a while; if so, it counts as reported now.
#[inline(always)]
fn report_due(worker: u32, now: u64) -> bool {
    let Some(watch) = WATCH.get_ptr_mut(worker) else { return false };
    // SAFETY: points to a whole `Watch`.
    let reported = unsafe { addr_of_mut!((*watch).reported_ns) };
    // SAFETY: as above.
    let last = unsafe { reported.read_volatile() };
    if last != 0 && now.saturating_sub(last) < REPORT_INTERVAL_NS {
        return false;
    }
    // SAFETY: as above.
    unsafe { reported.write_volatile(now) };
    true
}

/// Spreads a hash evenly over `count` values.
#[inline(always)]
fn scale(hash: u32, count: u32) -> u32 {
    ((u64::from(hash) * u64::from(count)) >> 32) as u32
}

/// Reads a value of kernel memory; `None` where there is none.
#[inline(always)]
fn read_kernel<T: Copy>(address: u64, offset: u32) -> Option<T> {
    let source = (address + u64::from(offset)) as *const T;
    // SAFETY: `T` is an integer, so any bytes will do; the kernel catches faults of the source.
    unsafe { bpf_probe_read_kernel(source) }.ok()
}
