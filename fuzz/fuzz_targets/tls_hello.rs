//! TLS ClientHellos: any split gives the same answer, and so does any way to spread one over records.

#![no_main]

use underpass::tls_hello;

#[path = "../../proxy/src/tls_hello/tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    invariants::hello(input);
    let size = usize::from(input.last().copied().unwrap_or(0));
    invariants::fragments(input, size.max(1));
});
