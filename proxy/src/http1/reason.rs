//! Why a message was refused, and with which status.

/// Declares the reasons: name in logs and metrics, status, and the sentence for people.
macro_rules! reasons {
    ($($variant:ident = $status:literal $name:literal $text:literal,)+) => {
        /// Why a request was answered by the proxy itself, a response by a backend was not forwarded, or a connection was
        /// closed.
        ///
        /// For a request the status goes to the client. A backend that breaks the same rule gives 502.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $text] $variant,)+ }

        impl Reason {
            /// Every reason; the index in this list is its number in metrics.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name in logs and metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The status sent to the client when a request is refused for it.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// A sentence for people.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    // The start line: RFC 9112 sections 2.2, 2.3 and 3.
    MethodInvalid = 400 "method_invalid" "The method is not a token.",
    TargetInvalid = 400 "target_invalid" "The request target is not valid.",
    TargetTooLong = 414 "target_too_long" "The request target is too long.",
    StartLineMalformed = 400 "start_line_malformed" "The start line is malformed.",
    VersionMalformed = 400 "version_malformed" "The HTTP version is malformed.",
    VersionUnsupported = 505 "version_unsupported" "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
    Http2Preface = 505 "http2_preface" "HTTP/2 is not spoken on this listener.",
    StatusMalformed = 400 "status_malformed" "The status code is malformed.",
    // Lines: RFC 9112 sections 2.2 and 5.
    BareCr = 400 "bare_cr" "A carriage return stands without a line feed.",
    BareLf = 400 "bare_lf" "A line feed stands without a carriage return.",
    ObsFold = 400 "obs_fold" "A field line is folded.",
    SpaceBeforeColon = 400 "space_before_colon" "White space stands before a colon.",
    FieldNameEmpty = 400 "field_name_empty" "A field has no name.",
    FieldNameInvalid = 400 "field_name_invalid" "A field's name is not a token.",
    FieldValueInvalid = 400 "field_value_invalid" "A field's value holds a control character.",
    HeadTooLarge = 431 "head_too_large" "The head is too large.",
    TooManyFields = 431 "too_many_fields" "There are too many fields.",
    // Host: RFC 9112 section 3.2.
    HostMissing = 400 "host_missing" "The Host field is missing.",
    HostRepeated = 400 "host_repeated" "There is more than one Host field.",
    HostInvalid = 400 "host_invalid" "The Host field or the target's authority is not valid.",
    // Framing: RFC 9112 sections 6 and 7.
    ContentLengthMalformed = 400 "content_length_malformed" "Content-Length is not a number.",
    ContentLengthDiffers = 400 "content_length_differs" "Content-Length values differ.",
    LengthAndEncoding = 400 "length_and_encoding" "Both Content-Length and Transfer-Encoding are given.",
    TransferEncodingMalformed = 400 "transfer_encoding_malformed" "Transfer-Encoding is malformed, or chunked is not last.",
    TransferEncodingUnknown = 501 "transfer_encoding_unknown" "Transfer-Encoding names an unknown coding.",
    TransferEncodingOldVersion = 400 "transfer_encoding_old_version" "Transfer-Encoding in an HTTP/1.0 message.",
    ChunkSizeMalformed = 400 "chunk_size_malformed" "A chunk size is not a hexadecimal number.",
    ChunkSizeOverflow = 400 "chunk_size_overflow" "A chunk size is too large.",
    ChunkExtensionMalformed = 400 "chunk_extension_malformed" "A chunk extension is malformed or too long.",
    ChunkEndMissing = 400 "chunk_end_missing" "Chunk data is not followed by a line end.",
    TrailerForbidden = 400 "trailer_forbidden" "The trailer section holds a field that belongs into the head.",
    BodyTooLarge = 413 "body_too_large" "The body is too large.",
    LengthRequired = 411 "length_required" "This resource needs a Content-Length.",
    BodyTruncated = 400 "body_truncated" "The connection closed before the end of the body.",
    HeadTruncated = 400 "head_truncated" "The connection closed before the end of the head.",
    // What is asked for.
    ExpectationUnknown = 417 "expectation_unknown" "The expectation cannot be met.",
    MaxForwardsMalformed = 400 "max_forwards_malformed" "Max-Forwards is not one number.",
    ConnectWithBody = 400 "connect_with_body" "A CONNECT request has a body.",
    TraceRefused = 405 "trace_refused" "A TRACE request that ends here is not sent back.",
    ConnectRefused = 501 "connect_refused" "CONNECT is not allowed here.",
    Misdirected = 421 "misdirected" "This host is not served here.",
    RouteMissing = 404 "route_missing" "Nothing is served under this path.",
    MethodNotAllowed = 405 "method_not_allowed" "This is not served with this method.",
    RouteRefused = 403 "route_refused" "This is not served.",
    AuthRequired = 401 "auth_required" "A name and a password are needed here.",
    RewriteInvalid = 400 "rewrite_invalid" "What the request is rewritten to is not valid.",
    // Backends.
    BackendMissing = 503 "backend_missing" "No backend can serve this.",
    QueueFull = 503 "queue_full" "Too many wait for a backend already.",
    QueueTimeout = 503 "queue_timeout" "No backend had room in time.",
    ConnectFailed = 502 "connect_failed" "The backend cannot be reached.",
    ConnectTimeout = 504 "connect_timeout" "The backend did not accept the connection in time.",
    ResponseTimeout = 504 "response_timeout" "The backend did not answer in time.",
    BackendClosed = 502 "backend_closed" "The backend closed the connection without an answer.",
    UpgradeUnexpected = 502 "upgrade_unexpected" "The backend switched protocols without being asked.",
    // What must come first on a connection, or no connection goes on. Nothing is answered, so no status is sent.
    ProxyHeaderMissing = 400 "proxy_header_missing" "The connection does not begin with a PROXY protocol header.",
    ProxyHeaderMalformed = 400 "proxy_header_malformed" "The PROXY protocol header is malformed.",
    ProxyHeaderTooLong = 400 "proxy_header_too_long" "The PROXY protocol header does not fit into a buffer.",
    ProxyHeaderTruncated = 400 "proxy_header_truncated" "The connection closed before the end of the PROXY protocol header.",
    ProxyHeaderTimeout = 408 "proxy_header_timeout" "The PROXY protocol header did not come in time.",
    TlsMissing = 400 "tls_missing" "The connection does not begin with a TLS ClientHello.",
    HelloMalformed = 400 "tls_hello_malformed" "The TLS ClientHello is malformed.",
    HelloTooLong = 400 "tls_hello_too_long" "The TLS ClientHello does not fit into a buffer.",
    HelloTruncated = 400 "tls_hello_truncated" "The connection closed before the end of the TLS ClientHello.",
    HelloTimeout = 408 "tls_hello_timeout" "The TLS ClientHello did not come in time.",
    ServerNameMissing = 421 "tls_server_name_missing" "The TLS ClientHello has no server name.",
    ServerNameUnknown = 421 "tls_server_name_unknown" "The server name of the TLS ClientHello is not served here.",
    // Bounds and deadlines of our own.
    HeadTimeout = 408 "head_timeout" "The request did not come in time.",
    BodyTimeout = 408 "body_timeout" "The body did not come in time.",
    LimitReached = 503 "limit_reached" "The limit of connections is reached.",
    BuffersExhausted = 503 "buffers_exhausted" "No buffer is left.",
}

impl Reason {
    /// Its number in metrics.
    pub fn number(self) -> usize {
        self as usize
    }

    /// Whether it tells of a backend rather than of the request.
    pub fn is_of_backend(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed | Self::ConnectTimeout | Self::ResponseTimeout | Self::BackendClosed
        )
    }

    /// The status for the client when a *backend's* response was refused for it: 502, or the gateway's own status.
    pub fn gateway_status(self) -> u16 {
        match self.status() {
            status @ (502..=504) => status,
            _ => 502,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_the_metrics_block_and_names_are_unique() {
        assert!(Reason::ALL.len() <= crate::metrics::REASONS);
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.number(), number);
        }
    }
}
