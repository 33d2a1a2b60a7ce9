//! PROXY protocol headers: any split gives the same answer, and what was read is written as it was meant.

#![no_main]

use underpass::proxy_protocol;

#[path = "../../proxy/src/proxy_protocol/tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::header(input));
