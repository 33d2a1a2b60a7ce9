//! The fields an intermediary must know by name.

/// Declares the known fields by their lower-case names.
macro_rules! known {
    ($($(#[$meta:meta])* $variant:ident = $name:literal,)+) => {
        /// A field that the proxy looks at; all others pass untouched.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Known {
            $($(#[$meta])* $variant,)+
            /// Any other field.
            Other,
        }

        impl Known {
            /// Recognizes a field's name, whatever its case.
            #[inline]
            pub fn of(name: &[u8]) -> Self {
                // The length tells nearly all names apart, so at most a few comparisons are made.
                $(if name.len() == $name.len() && name.eq_ignore_ascii_case($name) { return Self::$variant; })+
                Self::Other
            }
        }
    };
}

known! {
    /// RFC 9110 section 7.2.
    Host = b"host",
    /// RFC 9110 section 8.6.
    ContentLength = b"content-length",
    /// RFC 9112 section 6.1.
    TransferEncoding = b"transfer-encoding",
    /// RFC 9110 section 7.6.1.
    Connection = b"connection",
    /// Hop-by-hop, RFC 9110 section 7.6.1.
    KeepAlive = b"keep-alive",
    /// Hop-by-hop, RFC 9110 section 7.6.1.
    ProxyConnection = b"proxy-connection",
    /// Hop-by-hop, RFC 9110 section 10.1.4.
    Te = b"te",
    /// RFC 9110 section 7.8.
    Upgrade = b"upgrade",
    /// RFC 9110 section 10.1.1.
    Expect = b"expect",
    /// RFC 9110 section 7.6.2.
    MaxForwards = b"max-forwards",
    /// RFC 9110 section 7.6.3.
    Via = b"via",
    /// RFC 7239.
    Forwarded = b"forwarded",
    /// The client's address, by convention.
    XForwardedFor = b"x-forwarded-for",
    /// The scheme the client used, by convention.
    XForwardedProto = b"x-forwarded-proto",
    /// The host the client asked for, by convention.
    XForwardedHost = b"x-forwarded-host",
    /// The port the client connected to, by convention.
    XForwardedPort = b"x-forwarded-port",
    /// RFC 9110 section 11.6.2.
    Authorization = b"authorization",
    /// Names a request across systems, by convention.
    XRequestId = b"x-request-id",
    /// W3C Trace Context, section 3.2.
    TraceParent = b"traceparent",
    /// W3C Trace Context, section 3.3.
    TraceState = b"tracestate",
}
