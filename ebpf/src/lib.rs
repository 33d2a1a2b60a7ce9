//! The ABI shared by the BPF programs and userspace.
//!
//! Everything here is plain data with a fixed layout: the programs are compiled for another target than the proxy,
//! so a size or an offset that differs between the two would silently corrupt the state they share.
#![no_std]
#![forbid(unsafe_code)]

use core::mem::{align_of, offset_of, size_of};

/// What one worker publishes about itself, in the memory-mapped array `SLOTS` at the worker's index.
///
/// Only the worker writes its slot while it runs, and only the supervisor while it does not. Two cache lines long,
/// because processors fetch them in pairs: a worker's stores never slow its neighbours down.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Generation of the process; steering takes only workers of [`Config::generation`].
    pub generation: u32,
    /// One of the `STATE_` values.
    pub state: u32,
    /// `CLOCK_MONOTONIC` at the begin of the loop's turn that is under way; 0 while the worker sleeps.
    pub busy_since_ns: u64,
    /// Connections accepted so far; only ever grows while the worker runs.
    pub accepted: u64,
    /// Sessions that are open now.
    pub active: u32,
    /// Open sessions at which the worker counts as overloaded; 0 means no limit.
    pub limit: u32,
}

/// Size of [`Slot`] in bytes.
pub const SLOT_SIZE: usize = 128;

/// No process, or one that is not ready: gets no connections. Zero, so that an untouched slot means this.
pub const STATE_DOWN: u32 = 0;
/// Accepts connections.
pub const STATE_RUNNING: u32 = 1;
/// Finishes what it has: gets no connections.
pub const STATE_DRAINING: u32 = 2;

/// What userspace tells the program `steer`, in the array `CONFIG` at index 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// One of the `POLICY_` values.
    pub policy: u32,
    /// Workers of other generations get no connections.
    pub generation: u32,
    /// A worker that is in one turn of its loop for longer, or has left a connection unaccepted for longer, is stalled.
    pub stall_ns: u64,
    /// How often a stalled worker is tried again where the program cannot look into accept queues.
    pub probe_ns: u64,
}

/// The kernel's own choice. Zero, so that an untouched configuration means this.
pub const POLICY_OFF: u32 = 0;
/// The worker of the CPU that handles the connection request.
pub const POLICY_CPU: u32 = 1;
/// The worker of the RX queue that the connection request came in by; the CPU's where no queue is known.
pub const POLICY_RX_QUEUE: u32 = 2;
/// A worker by the flow's hash.
pub const POLICY_HASH: u32 = 3;

/// Key of the hash map `QUEUES`, whose values are workers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueKey {
    /// Index of the interface.
    pub interface: u32,
    /// Number of the RX queue, from 0.
    pub queue: u32,
}

/// What the program remembers of the connection that has been waiting longest for a worker, in the array `WATCH` at
/// the worker's index.
///
/// Not memory-mapped and never passed to workers: it holds a kernel address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// `CLOCK_MONOTONIC` when the connection was steered.
    pub since_ns: u64,
    /// [`Slot::accepted`] at that time: once it has moved, the worker lives.
    pub accepted: u64,
    /// Kernel address of the listening socket that it was steered to; 0 where it is not known.
    pub socket: u64,
    /// That socket's cookie, which tells whether it is still there.
    pub cookie: u64,
    /// When a connection was last tried on the stalled worker, where accept queues cannot be looked into.
    pub probed_ns: u64,
    /// When the worker was last reported as stalled.
    pub reported_ns: u64,
}

/// How a connection found its worker: index into [`Outcomes`].
///
/// The first is the worker's own connection. The others say why the connection did not go to the worker that it
/// belongs to; they are counted for the worker that took it, or for none ([`Outcomes`] past the last worker) where
/// the kernel chose.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It belongs to this worker.
    Own = 0,
    /// It belongs to no worker: its CPU or queue has none.
    Unmapped = 1,
    /// Its worker is not running.
    Down = 2,
    /// Its worker is of another generation.
    Generation = 3,
    /// Its worker is at its limit of sessions, or its accept queue is full.
    Overloaded = 4,
    /// Its worker does not get on.
    Stalled = 5,
    /// Its worker has no socket on this listener.
    Empty = 6,
    /// The policy is `off`.
    Off = 7,
}

impl Outcome {
    /// Every outcome, in the order of their indices.
    pub const ALL: [Self; OUTCOMES] = [
        Self::Own,
        Self::Unmapped,
        Self::Down,
        Self::Generation,
        Self::Overloaded,
        Self::Stalled,
        Self::Empty,
        Self::Off,
    ];
}

/// Number of outcomes.
pub const OUTCOMES: usize = 8;

/// Connections by outcome, in the per-CPU array `MATRIX`: at a worker's index those it was chosen for, past the last
/// worker those left to the kernel.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Indexed by [`Outcome`].
    pub counts: [u64; OUTCOMES],
}

/// The account of one flow that the kernel redirects, in the memory-mapped array `LEDGER` at the flow's slot.
///
/// `used` and `stopped` are written by the parser alone while the flow's source is in the map, `limit` and `wake_at` by
/// the worker alone. `used` and `limit` only grow meanwhile, so granting and spending cannot race. One cache line each.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowAccount {
    /// Bytes that the parser has let through.
    pub used: u64,
    /// Not 0: the parser has met a byte beyond the limit, and the stream parser stands still.
    pub stopped: u64,
    /// Bytes that may be let through.
    pub limit: u64,
    /// The worker is woken when `used` gets there.
    pub wake_at: u64,
}

/// Size of [`FlowAccount`] in bytes.
pub const FLOW_ACCOUNT_SIZE: usize = 64;

/// Most bytes that the parser makes one message of. A message above the socket's receive buffer would be refused by the
/// stream parser (`EMSGSIZE`), and data that has been waiting can be one segment of more than that.
pub const MESSAGE_SIZE_MAX: u32 = 64 * 1024;

/// In the tables `CPUS` and `QUEUES`, a worker is stored as its index plus one; zero, the value of an untouched entry,
/// means none.
pub const NO_WORKER: u32 = 0;

// The programs see these layouts through another compiler target.
const _: () = assert!(size_of::<Slot>() == SLOT_SIZE && align_of::<Slot>() == SLOT_SIZE);
const _: () = assert!(offset_of!(Slot, busy_since_ns) == 8 && offset_of!(Slot, accepted) == 16);
const _: () = assert!(offset_of!(Slot, active) == 24 && offset_of!(Slot, limit) == 28);
const _: () = assert!(size_of::<Config>() == 24 && offset_of!(Config, stall_ns) == 8);
const _: () = assert!(size_of::<QueueKey>() == 8);
const _: () = assert!(size_of::<Watch>() == 48 && offset_of!(Watch, reported_ns) == 40);
const _: () =
    assert!(size_of::<FlowAccount>() == FLOW_ACCOUNT_SIZE && offset_of!(FlowAccount, wake_at) == 24);
const _: () = assert!(offset_of!(FlowAccount, stopped) == 8 && offset_of!(FlowAccount, limit) == 16);
const _: () = assert!(size_of::<Outcomes>() == 64 && Outcome::ALL.len() == OUTCOMES);
