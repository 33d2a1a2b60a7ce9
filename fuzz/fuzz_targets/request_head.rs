//! Request heads: any split gives the same answer, httparse agrees, and an edited head is the same request.

#![no_main]

use underpass::http1;

#[allow(dead_code, reason = "response heads have a target of their own")]
#[path = "../../proxy/src/http1/tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| invariants::request(input));
