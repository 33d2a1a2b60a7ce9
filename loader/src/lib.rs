//! Probes the kernel, loads and attaches the BPF programs, and hands out typed handles.
