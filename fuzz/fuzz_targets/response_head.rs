//! Response heads: any split gives the same answer, httparse agrees, and an edited head is the same response.

#![no_main]

use underpass::http1;

#[allow(dead_code, reason = "request heads have a target of their own")]
#[path = "../../proxy/src/http1/tests/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    for method in [http1::Method::Get, http1::Method::Head, http1::Method::Connect] {
        invariants::response(input, method);
    }
});
