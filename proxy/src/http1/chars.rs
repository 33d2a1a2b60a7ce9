//! Character classes as tables: one load per byte.

/// A set of bytes.
pub(super) struct Class([bool; 256]);

impl Class {
    const fn none() -> Self {
        Self([false; 256])
    }

    const fn with_range(mut self, first: u8, last: u8) -> Self {
        let mut byte = first as usize;
        while byte <= last as usize {
            self.0[byte] = true;
            byte += 1;
        }
        self
    }

    const fn with(mut self, bytes: &[u8]) -> Self {
        let mut index = 0;
        while index < bytes.len() {
            self.0[bytes[index] as usize] = true;
            index += 1;
        }
        self
    }

    const fn without(mut self, bytes: &[u8]) -> Self {
        let mut index = 0;
        while index < bytes.len() {
            self.0[bytes[index] as usize] = false;
            index += 1;
        }
        self
    }

    /// Whether the set holds `byte`.
    #[inline(always)]
    pub(super) const fn has(&self, byte: u8) -> bool {
        self.0[byte as usize]
    }
}

const fn alphanumeric() -> Class {
    Class::none().with_range(b'a', b'z').with_range(b'A', b'Z').with_range(b'0', b'9')
}

/// `tchar`, RFC 9110 section 5.6.2.
pub(super) static TOKEN: Class = alphanumeric().with(b"!#$%&'*+-.^_`|~");

/// What a request target may hold: every visible ASCII character but `#`, which begins a fragment that no client may
/// send (RFC 9112 section 3.2). Wider than RFC 3986, because browsers send `|`, `{`, `"` in queries.
pub(super) static TARGET: Class = Class::none().with_range(0x21, 0x7e).without(b"#");

/// `field-content` with the white space in it: VCHAR, obs-text, SP, HTAB (RFC 9110 section 5.5).
pub(super) static FIELD_VALUE: Class =
    Class::none().with_range(0x20, 0x7e).with_range(0x80, 0xff).with(b"\t");

/// `reg-name` and IPv4address, RFC 3986 section 3.2.2; percent-encoding is checked apart.
pub(super) static HOST: Class = alphanumeric().with(b"-._~!$&'()*+,;=%");

/// The address in an IPvFuture literal, RFC 3986 section 3.2.2.
pub(super) static IP_FUTURE: Class = alphanumeric().with(b":.-_~!$&'()*+,;=");

/// `tchar`, for other modules of the crate.
pub(crate) fn is_token(byte: u8) -> bool {
    TOKEN.has(byte)
}

/// Field content, for other modules of the crate.
pub(crate) fn is_field_value(byte: u8) -> bool {
    FIELD_VALUE.has(byte)
}
