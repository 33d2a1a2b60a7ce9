//! The exchanges that a benchmark is made of: which request is sent, and which response is the right one.
//!
//! `GET /size/N/from/K` is answered with the N bytes of the [`Pattern`] that begin at K. The load generator sends
//! another K each time, so a body that belongs to another request, is displaced or is cut does not compare equal.
//! `POST /upload/from/K` carries such a body. `GET /echo` asks for an upgrade to the protocol [`ECHO_PROTOCOL`]: every
//! byte comes back.

use std::io::Write as _;

/// How many different bodies there are of each size: K is below this.
pub const SHIFTS: usize = 4096;

/// Pseudo-random bytes, the same in every process.
pub struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    /// Bytes enough for bodies up to `size_max`.
    pub fn new(size_max: usize) -> Self {
        let mut word = 0x9e37_79b9_7f4a_7c15u64;
        let length = (size_max + SHIFTS).next_multiple_of(8);
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            // xorshift64: a period far longer than any body, so no two places look alike.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        Self { bytes }
    }

    /// The body of `size` bytes that begins at `from`; none if the pattern is shorter.
    pub fn body(&self, from: usize, size: usize) -> Option<&[u8]> {
        self.bytes.get(from..from.checked_add(size)?)
    }
}

/// The bytes of a request, with a K that can be changed in place.
pub struct Request {
    bytes: Vec<u8>,
    from_at: usize,
}

impl Request {
    /// A request for a body of `size` bytes.
    pub fn new(size: usize) -> Self {
        let start = format!("GET /size/{size}/from/");
        let rest = " HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: underpass-bench\r\nAccept: */*\r\n\r\n";
        Self { from_at: start.len(), bytes: format!("{start}0000{rest}").into_bytes() }
    }

    /// Asks for the body that begins at `from`, which is below [`SHIFTS`].
    pub fn set_from(&mut self, from: usize) {
        let mut rest = from % 10_000;
        for digit in self.bytes[self.from_at..self.from_at + 4].iter_mut().rev() {
            *digit = b"0123456789"[rest % 10];
            rest /= 10;
        }
    }

    /// What goes over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Asks for the tunnel in which every byte comes back.
pub const ECHO_TARGET: &str = "/echo";
/// What is spoken in that tunnel (RFC 9110 section 7.8): the name is ours.
pub const ECHO_PROTOCOL: &str = "underpass-echo";
/// The response that opens the tunnel.
pub const ECHO_RESPONSE: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: underpass-echo\r\nConnection: Upgrade\r\n\r\n";

/// Where the body of an upload begins in the pattern.
pub fn parse_upload_target(target: &str) -> Option<usize> {
    decimal(target.strip_prefix("/upload/from/")?).filter(|from| *from < SHIFTS)
}

/// Size and start of the body that a request target asks for; the start is 0 if it names none.
pub fn parse_target(target: &str) -> Option<(usize, usize)> {
    let rest = target.strip_prefix("/size/")?;
    let (size, from) = match rest.split_once("/from/") {
        Some((size, from)) => (size, decimal(from)?),
        None => (rest, 0),
    };
    Some((decimal(size)?, from)).filter(|(_, from)| *from < SHIFTS)
}

/// Writes the head of the response with a body of `size` bytes.
pub fn write_response_head(head: &mut Vec<u8>, size: usize) {
    head.extend_from_slice(
        b"HTTP/1.1 200 OK\r\n\
          Server: underpass-bench\r\n\
          Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
          Content-Type: application/octet-stream\r\n\
          Content-Length: ",
    );
    // Writing into memory cannot fail.
    let _ = write!(head, "{size}\r\n\r\n");
}

/// Digits and nothing else: `usize::from_str` would take a sign.
fn decimal(text: &str) -> Option<usize> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_asks_for_what_was_set() {
        let mut request = Request::new(1024);
        request.set_from(307);
        let line = request.bytes().split(|&byte| byte == b'\r').next().unwrap_or_default();
        assert_eq!(line, b"GET /size/1024/from/0307 HTTP/1.1");
        assert_eq!(parse_target("/size/1024/from/0307"), Some((1024, 307)));
    }

    #[test]
    fn targets_that_are_none_of_ours_are_refused() {
        assert_eq!(parse_target("/size/7"), Some((7, 0)));
        for target in
            ["/", "/size/", "/size/+1", "/size/1/from/", "/size/1/from/4096", "/size/99999999999999999999"]
        {
            assert_eq!(parse_target(target), None, "{target}");
        }
    }

    #[test]
    fn uploads_say_where_their_body_begins() {
        assert_eq!(parse_upload_target("/upload/from/0031"), Some(31));
        for target in ["/upload", "/upload/from/", "/upload/from/4096", "/upload/from/-1", "/size/1/from/1"] {
            assert_eq!(parse_upload_target(target), None, "{target}");
        }
    }

    #[test]
    fn bodies_differ_by_where_they_begin() {
        let pattern = Pattern::new(1024);
        let first = pattern.body(0, 64);
        assert!(first.is_some());
        for from in 1..SHIFTS {
            assert_ne!(pattern.body(from, 64), first, "from {from}");
        }
        assert_eq!(pattern.body(SHIFTS, 2048), None);
    }
}
