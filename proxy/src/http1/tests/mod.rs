//! Tests of heads, by concern.

mod capacity;
mod changes;
mod edit_request;
mod edit_response;
mod hop_by_hop;
pub(crate) mod invariants;
mod properties;
mod request;
mod request_refused;
mod response;
mod trace_context;

use super::{Fields, Limits, Method, Reason, RequestHead, ResponseHead, parse_request, parse_response};

/// Bounds that tests can reach with small input.
const LIMITS: Limits = Limits { head_size_max: 1024, header_count_max: 16, target_size_max: 256 };

/// Parses all of `bytes` with [`LIMITS`].
fn request(bytes: &[u8]) -> Result<Option<(RequestHead, Fields)>, Reason> {
    let mut fields = Fields::with_capacity(LIMITS.header_count_max);
    Ok(parse_request(bytes, &mut fields, &LIMITS)?.map(|head| (head, fields)))
}

/// Parses all of `bytes`, as the response to a request with `method`.
fn response_to(method: Method, bytes: &[u8]) -> Result<Option<(ResponseHead, Fields)>, Reason> {
    let mut fields = Fields::with_capacity(LIMITS.header_count_max);
    Ok(parse_response(bytes, &mut fields, &LIMITS, method)?.map(|head| (head, fields)))
}

/// A request that must be accepted.
fn accepted(text: &str) -> (RequestHead, Fields) {
    match request(text.as_bytes()) {
        Ok(Some(parsed)) => parsed,
        other => panic!("{text:?} gave {other:?}"),
    }
}

/// A response to GET that must be accepted.
fn accepted_response(text: &str) -> (ResponseHead, Fields) {
    match response_to(Method::Get, text.as_bytes()) {
        Ok(Some(parsed)) => parsed,
        other => panic!("{text:?} gave {other:?}"),
    }
}

/// A valid GET with these field lines, each with its line end.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n")
}
