//! The fields of the access log: each name, unit and sentence stands here and nowhere else.

/// Declares the fields.
macro_rules! fields {
    ($($variant:ident = $name:literal, $number:literal, $doc:literal;)+) => {
        /// Something that is known of a request or a TCP connection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Field {
            $(#[doc = $doc] $variant,)+
        }

        /// Every field, its name, and what it is.
        pub(crate) const FIELDS: &[(Field, &str, &str)] = &[$((Field::$variant, $name, $doc),)+];

        impl Field {
            /// Whether it is a whole number.
            pub(super) fn is_number(self) -> bool {
                match self { $(Self::$variant => $number,)+ }
            }
        }
    };
}

fields! {
    TimeLocal = "time_local", false, "when it ended, in the machine's time zone, as 23/Nov/2026:13:45:06 +0100";
    TimeIso = "time_iso", false, "when it ended, in UTC (RFC 3339), to the millisecond";
    TimeMs = "time_ms", true, "when it ended, in milliseconds since 1970 (UTC)";
    Worker = "worker", true, "number of the worker";
    Listener = "listener", false, "listener that it came in by";
    Client = "client", false, "IP address of the client, from the PROXY protocol where that is taken";
    ClientPort = "client_port", true, "port of the client";
    User = "user", false, "user name that the client gave by basic authentication, right or wrong";
    Request = "request", false, "$method $target $version";
    Method = "method", false, "method; TCP for a TCP connection";
    Target = "target", false, "target as it was sent; the listener for a TCP connection";
    Path = "path", false, "path of the target, without query";
    Query = "query", false, "query of the target, without question mark";
    Host = "host", false, "host asked for, without port; the server name for a TCP connection";
    Version = "version", false, "HTTP/1.1 or HTTP/1.0";
    Id = "id", false, "X-Request-Id, the client's or one made here";
    TraceId = "trace_id", false, "trace of traceparent (W3C Trace Context), if it is valid";
    Requests = "requests", true, "which request of its connection it was, from 1";
    Route = "route", false, "route that it took, as ctl names it";
    Cluster = "cluster", false, "cluster that it was led to";
    Backend = "backend", false, "address of the backend tried last";
    Attempts = "attempts", true, "how often a backend was tried";
    Retries = "retries", true, "how often a backend was tried again";
    Status = "status", true, "status of the response";
    Reason = "reason", false, "why the proxy answered itself, if it did";
    End = "end", false, "done, or why it ended before that";
    Bytes = "bytes", true, "bytes of the body sent to the client";
    BytesIn = "bytes_in", true, "bytes of the body sent to the backend";
    BytesCopied = "bytes_copied", true, "bytes of both bodies that were copied";
    BytesSpliced = "bytes_spliced", true, "bytes of both bodies that were spliced";
    BytesRedirected = "bytes_redirected", true, "bytes of both bodies that sockmap redirected";
    Redirect = "redirect", false, "redirect mode that was set for it";
    QueueUs = "queue_us", true, "microseconds that it waited for a backend with room";
    ConnectUs = "connect_us", true, "microseconds that it waited for connections to backends; none on a pooled one";
    FirstByteUs = "first_byte_us", true, "microseconds from its first byte to the first of the response";
    DurationUs = "duration_us", true, "microseconds from its first byte to the last of the response";
}

impl Field {
    /// Whether it can be missing: texts, and what a request does not always come to.
    pub(super) fn may_be_missing(self) -> bool {
        !self.is_number()
            || matches!(self, Self::Status | Self::QueueUs | Self::ConnectUs | Self::FirstByteUs)
    }

    /// The field of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        FIELDS.iter().find(|(_, known, _)| *known == name).map(|(field, ..)| *field)
    }
}

/// What nginx calls them, where that is another name: who brings a format along is told.
pub(super) const IN_NGINX: &[(&str, &str)] = &[
    ("remote_addr", "client"),
    ("remote_port", "client_port"),
    ("remote_user", "user"),
    ("request_method", "method"),
    ("request_uri", "target"),
    ("uri", "path"),
    ("args", "query"),
    ("query_string", "query"),
    ("server_protocol", "version"),
    ("request_id", "id"),
    ("time_iso8601", "time_iso"),
    ("msec", "time_ms"),
    ("body_bytes_sent", "bytes"),
    ("bytes_sent", "bytes"),
    ("request_length", "bytes_in"),
    ("request_time", "duration_us"),
    ("upstream_addr", "backend"),
    ("upstream_connect_time", "connect_us"),
    ("upstream_header_time", "first_byte_us"),
    ("upstream_response_time", "duration_us"),
    ("connection_requests", "requests"),
];
