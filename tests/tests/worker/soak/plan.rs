//! What one request does, drawn from its seed; the seed stands in its target, so both ends know.

use underpass_tests::Message;
use underpass_tests::body::Content;
pub(crate) use underpass_tests::random::Random;

fn body_size(random: &mut Random) -> usize {
    match random.below(10) {
        0..5 => random.below(3000),
        5..9 => random.below(40_000),
        _ => random.below(120_000),
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
    Close,
}

/// Where the backend fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It closes instead of answering.
    NoAnswer,
    /// It resets the connection somewhere in its answer.
    Reset,
    /// It closes somewhere in its answer, which has a known end.
    Short,
}

/// One request and its response.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) method: &'static str,
    pub(crate) old: bool,
    pub(crate) up: Option<Framing>,
    pub(crate) up_size: usize,
    pub(crate) down: Framing,
    pub(crate) down_size: usize,
    pub(crate) interim: usize,
    pub(crate) fault: Fault,
    /// The backend closes after its answer without having said so.
    pub(crate) leaves: bool,
    /// The response has no body by its status.
    pub(crate) bare: bool,
    /// The backend answers before it has read the body, and reads none of it.
    pub(crate) early: bool,
    /// The client asks whether to send the body, and the backend says yes.
    pub(crate) expects: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let method = ["GET", "PUT", "HEAD", "POST"][random.below(4)];
        let old = random.percent(10);
        let up = match random.below(2) {
            _ if !matches!(method, "PUT" | "POST") => None,
            0 => Some(Framing::Length),
            _ if old => Some(Framing::Length),
            _ => Some(Framing::Chunked),
        };
        let down = match random.below(10) {
            0..5 => Framing::Length,
            5..9 => Framing::Chunked,
            _ => Framing::Close,
        };
        let fault = match random.below(40) {
            0 => Fault::NoAnswer,
            1 => Fault::Reset,
            2 if down != Framing::Close => Fault::Short,
            _ => Fault::None,
        };
        Self {
            seed,
            method,
            old,
            up,
            up_size: body_size(&mut random),
            down,
            down_size: body_size(&mut random),
            interim: random.below(10).saturating_sub(6),
            fault,
            leaves: random.percent(5),
            bare: random.percent(10),
            early: up.is_some() && random.percent(10),
            expects: up.is_some() && !old && random.percent(10),
        }
    }

    /// The plan that a request names in its target.
    pub(crate) fn of(request: &Message) -> Self {
        let seed = request.target().trim_start_matches('/').parse().expect("a seed in the target");
        Self::new(seed)
    }

    /// Whether nothing can be relied on to follow on the connection to the client.
    pub(crate) fn is_last(&self) -> bool {
        self.old || self.down == Framing::Close
    }

    /// Whether the response has no body.
    pub(crate) fn is_empty(&self) -> bool {
        self.bare || self.method == "HEAD"
    }

    pub(crate) fn up_body(&self) -> Vec<u8> {
        if self.up.is_none() {
            return Vec::new();
        }
        Content::new(self.seed, self.up_size as u64).to_vec()
    }

    pub(crate) fn down_body(&self) -> Vec<u8> {
        Content::new(!self.seed, self.down_size as u64).to_vec()
    }

    /// The request's bytes.
    pub(crate) fn request(&self, random: &mut Random) -> Vec<u8> {
        let version = if self.old { "1.0" } else { "1.1" };
        let mut head = format!("{} /{} HTTP/{version}\r\nHost: a\r\n", self.method, self.seed);
        if self.expects {
            head.push_str("Expect: 100-continue\r\n");
        }
        if random.percent(20) {
            head.push_str(&format!("X-Long: {}\r\n", "l".repeat(random.below(3500))));
        }
        with_body(head, self.up, &self.up_body(), random)
    }

    /// The response's bytes.
    pub(crate) fn response(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(self.interim);
        if self.bare {
            let status = ["204 No Content", "304 Not Modified"][random.below(2)];
            bytes.extend_from_slice(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes());
            return bytes;
        }
        let body = self.down_body();
        let whole = with_body("HTTP/1.1 200 OK\r\n".into(), Some(self.down), &body, random);
        let head = head_size(&whole);
        bytes.extend_from_slice(if self.method == "HEAD" { &whole[..head] } else { &whole });
        bytes
    }
}

/// Where the head ends.
fn head_size(bytes: &[u8]) -> usize {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4
}

fn with_body(mut head: String, framing: Option<Framing>, body: &[u8], random: &mut Random) -> Vec<u8> {
    match framing {
        None | Some(Framing::Close) => head.push_str("\r\n"),
        Some(Framing::Length) => head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len())),
        Some(Framing::Chunked) => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
    }
    let mut bytes = head.into_bytes();
    if framing != Some(Framing::Chunked) {
        if framing.is_some() {
            bytes.extend_from_slice(body);
        }
        return bytes;
    }
    for chunk in random.cut(body) {
        let extension = if random.percent(10) { ";a=\"b\"" } else { "" };
        bytes.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(if random.percent(30) { b"0\r\nX-Trailer: t\r\n\r\n" } else { b"0\r\n\r\n" });
    bytes
}
