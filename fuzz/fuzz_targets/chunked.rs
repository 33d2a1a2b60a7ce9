//! Chunked bodies: any split gives the same answer, nothing beyond the body is taken, and httparse agrees.

#![no_main]

use underpass::{forward, http1};

#[allow(dead_code, reason = "unit tests use more of it")]
#[path = "../../proxy/src/forward/ledger/tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The sizes of reads come from the input too; any will do, if they are the same for the same input.
    let reads: Vec<u8> = input.iter().rev().take(8).map(|byte| byte % 16).collect();
    invariants::chunked(input, &reads);
});
