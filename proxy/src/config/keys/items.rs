//! Keys of listeners.

use underpass_command::state::{
    AtLimit, ForwardedFields, Listener, Protocol, ProxyProtocol, RequestId, TraceContext,
};

use super::redirect_modes;
use crate::config::syntax::{Syntax, parse_address, parse_choice};
use crate::config::table::{Access, Key, Need};

/// Keys of `[[listener]]`.
pub(in crate::config) static LISTENER: &[Key<Listener>] = &[
    text!("name", name, Need::Required("web"), Syntax::Name, "Unique among listeners."),
    address!("0.0.0.0:8080", Syntax::ListenAddress, "Address to listen on. Unique among listeners."),
    choice!(
        "protocol",
        protocol,
        Protocol,
        "What is spoken: http, or tcp for anything, which passes both ways as it is. A tcp listener needs default_cluster \
         or routes with sni, and takes none of x_forwarded, forwarded, request_id and trace_context."
    ),
    choice!(
        "proxy_protocol",
        proxy_protocol,
        ProxyProtocol,
        "Whether each connection begins with a PROXY protocol header, version 1 or 2, whose source address is the \
         client's from then on. require closes connections that have none; anybody who can connect can claim any address, \
         so only trusted peers should be able to."
    ),
    optional_text!(
        "default_cluster",
        default_cluster,
        "app",
        Syntax::Name,
        "Cluster of the requests or tcp connections that no route matches. Without it they are refused."
    ),
    redirect_override!("Overrides the process's redirect mode."),
    choice!(
        "x_forwarded",
        x_forwarded,
        ForwardedFields,
        "X-Forwarded-For, -Proto, -Host and -Port: append keeps what the client sent and adds this hop, \
         replace removes what the client sent, off passes it unchanged."
    ),
    choice!("forwarded", forwarded, ForwardedFields, "The same for Forwarded (RFC 7239)."),
    choice!(
        "request_id",
        request_id,
        RequestId,
        "X-Request-Id: keep makes one where the client sent none, replace always makes one, off passes it unchanged."
    ),
    choice!(
        "trace_context",
        trace_context,
        TraceContext,
        "traceparent and tracestate (W3C Trace Context): keep passes what the client sent, start also begins a trace where \
         the client's is missing or not valid, off passes it without a look, so that the access log has no trace ids."
    ),
    choice!(
        "at_limit",
        at_limit,
        AtLimit,
        "Connections beyond limits.connections: refuse answers them with 503, or resets those of a tcp listener; wait \
         leaves them in the accept queue."
    ),
];

/// Keys of `[[listener]]` that mean nothing where `protocol` is `tcp`.
pub(in crate::config) const LISTENER_HTTP_ONLY: [&str; 4] =
    ["x_forwarded", "forwarded", "request_id", "trace_context"];
