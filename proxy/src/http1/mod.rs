//! HTTP/1.1 (RFC 9112) without sockets and without a clock: heads, framing, and the edits an intermediary makes.
//!
//! Parsers are strict: what could be understood in two ways is refused, never repaired, because a proxy and a backend
//! that disagree about where a message ends let one client's bytes become another's request.
#![deny(clippy::disallowed_methods)]

mod authority;
mod changes;
pub(crate) mod chars;
mod cookie;
mod edit;
mod fields;
mod framing;
mod known;
mod pieces;
mod reason;
mod request;
mod response;
mod trace_context;

pub use authority::{Authority, parse_authority};
pub use changes::{Changes, FieldChange, Texts, is_field_value, is_origin_form};
pub use cookie::{cookie_value, field_value};
pub use edit::{RequestEdit, ResponseEdit, authority_asked_for, edit_request, edit_response};
pub use fields::{Field, Fields, Limits, Span};
pub use framing::Framing;
pub use known::Known;
pub use pieces::{Edit, Piece};
pub use reason::Reason;
pub use request::{Method, RequestHead, Target, Version, parse_request};
pub use response::{ResponseHead, parse_response};
pub use trace_context::TraceParent;

#[cfg(test)]
mod tests;
