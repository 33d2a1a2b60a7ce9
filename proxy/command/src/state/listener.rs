//! Where connections come in.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::names::named;
use super::{AnswerFor, RedirectMode};

/// Where connections come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Unique among listeners.
    pub name: String,
    /// Address to listen on.
    pub address: SocketAddr,
    /// What is spoken on its connections.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whether each connection begins with a PROXY protocol header.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Cluster of the requests or TCP connections that no route matches; without it requests get 421 or 404, and
    /// connections are closed.
    #[serde(default)]
    pub default_cluster: Option<String>,
    /// Overrides the process's redirect mode.
    #[serde(default)]
    pub redirect: Option<RedirectMode>,
    /// What happens to `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    #[serde(default = "ForwardedFields::append")]
    pub x_forwarded: ForwardedFields,
    /// What happens to `Forwarded` (RFC 7239).
    #[serde(default)]
    pub forwarded: ForwardedFields,
    /// What happens to `X-Request-Id`.
    #[serde(default)]
    pub request_id: RequestId,
    /// What happens to `traceparent` and `tracestate` (W3C Trace Context).
    #[serde(default)]
    pub trace_context: TraceContext,
    /// What happens to a connection that comes when a worker is at its limit of connections.
    #[serde(default)]
    pub at_limit: AtLimit,
    /// Answers in place of the proxy's own for requests that came in here; those of a request's cluster come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerFor>,
}

impl Listener {
    /// A listener with every default.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            address,
            protocol: Protocol::default(),
            proxy_protocol: ProxyProtocol::default(),
            default_cluster: None,
            redirect: None,
            x_forwarded: ForwardedFields::append(),
            forwarded: ForwardedFields::default(),
            request_id: RequestId::default(),
            trace_context: TraceContext::default(),
            at_limit: AtLimit::default(),
            answers: Vec::new(),
        }
    }
}

impl ForwardedFields {
    fn append() -> Self {
        Self::Append
    }
}

named! {
    /// What is spoken on the connections of a listener.
    #[derive(Default)]
    Protocol {
        /// HTTP/1.1 and HTTP/1.0.
        #[default]
        Http = "http",
        /// Anything over TCP: bytes pass both ways as they are.
        Tcp = "tcp",
    }
}

named! {
    /// Whether connections to a listener begin with a PROXY protocol header, which tells the client's address.
    #[derive(Default)]
    ProxyProtocol {
        /// They do not.
        #[default]
        Off = "off",
        /// Each must, version 1 or 2; one that does not is closed.
        Require = "require",
    }
}

named! {
    /// What happens to fields that tell the backend who the client is.
    #[derive(Default)]
    ForwardedFields {
        /// What the client sent is kept, this hop is added.
        Append = "append",
        /// What the client sent is removed, this hop is written.
        Replace = "replace",
        /// What the client sent passes unchanged.
        #[default]
        Off = "off",
    }
}

named! {
    /// What happens to `X-Request-Id`.
    #[derive(Default)]
    RequestId {
        /// The client's is kept; one is made where there is none.
        #[default]
        Keep = "keep",
        /// One is made for every request.
        Replace = "replace",
        /// What the client sent passes unchanged.
        Off = "off",
    }
}

named! {
    /// What happens to `traceparent` and `tracestate`.
    #[derive(Default)]
    TraceContext {
        /// What the client sent passes unchanged; the access log tells the trace.
        #[default]
        Keep = "keep",
        /// The same, and a trace begins here where the client's is missing or not valid.
        Start = "start",
        /// What the client sent passes unchanged and is not looked at.
        Off = "off",
    }
}

named! {
    /// What happens to connections beyond the limit.
    #[derive(Default)]
    AtLimit {
        /// Accepted, answered 503 with `Retry-After`, and closed.
        #[default]
        Refuse = "refuse",
        /// Left in the listener's accept queue until a connection ends.
        Wait = "wait",
    }
}
