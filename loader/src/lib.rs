//! Probes the kernel, loads and attaches the BPF programs, and hands out typed handles.
#![deny(unsafe_code)]

mod slot;

pub use slot::{SLOT_SIZE, SlotSnapshot, WorkerSlot, WorkerState, monotonic_ns};
