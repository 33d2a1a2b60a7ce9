//! The ABI shared by the BPF programs and userspace.
#![no_std]
