//! What one request does, or one tunnel: drawn from its seed, which stands in its target, so both ends know.

use underpass_tests::random::Random;

use crate::wire::Pace;

/// A seed with this bit draws a plan in which nothing goes wrong.
pub(crate) const CALM: u64 = 1 << 62;

/// A seed with this bit draws a large body that one of the sides breaks off.
pub(crate) const WILD: u64 = 1 << 61;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    /// In chunks of up to so many bytes.
    Chunked(usize),
    Close,
}

impl Framing {
    pub(crate) fn chunk_max(self) -> Option<usize> {
        match self {
            Self::Chunked(most) => Some(most),
            Self::Length | Self::Close => None,
        }
    }
}

/// Where the backend fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It closes instead of answering.
    NoAnswer,
    /// It closes somewhere in its answer, which has a known end.
    Short,
    /// It resets the connection somewhere in its answer.
    Reset,
}

/// One request and its response.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) method: &'static str,
    /// The client speaks HTTP/1.0.
    pub(crate) old: bool,
    pub(crate) up: Option<Framing>,
    pub(crate) up_size: u64,
    pub(crate) down: Framing,
    pub(crate) down_size: u64,
    pub(crate) fault: Fault,
    /// How far into its answer the backend gets, in thousandths.
    pub(crate) fault_at: u64,
    /// The backend closes after its answer without having said so.
    pub(crate) leaves: bool,
    /// The backend answers before it has read the body.
    pub(crate) early: bool,
    /// How the backend reads.
    pub(crate) pace: Pace,
}

fn size(random: &mut Random, wild: bool) -> u64 {
    let most = match random.below(100) {
        _ if wild => return 100_000 + random.below(3_000_000) as u64,
        0..20 => 1000,
        20..55 => 64 * 1024,
        55..97 => 700_000,
        _ => 5_000_000,
    };
    random.below(most) as u64
}

fn chunk_max(random: &mut Random, size: u64) -> usize {
    let most = [50, 3000, 60_000, 400_000][random.below(4)];
    // Few enough that a test is about the bytes and not about the chunk lines.
    most.max(usize::try_from(size / 500).unwrap_or(0))
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let method = ["GET", "GET", "PUT", "POST"][random.below(4)];
        let calm = seed & CALM != 0;
        let old = random.percent(6);
        let wild = seed & WILD != 0;
        let (up_size, down_size) = (size(&mut random, wild), size(&mut random, wild));
        let has_body = matches!(method, "PUT" | "POST");
        let up = match random.below(2) {
            _ if !has_body => None,
            1 if !old => Some(Framing::Chunked(chunk_max(&mut random, up_size))),
            _ => Some(Framing::Length),
        };
        let down = match random.below(100) {
            0..50 => Framing::Length,
            50..92 => Framing::Chunked(chunk_max(&mut random, down_size)),
            _ => Framing::Close,
        };
        let fault = match random.below(if wild { 8 } else { 60 }) {
            _ if calm => Fault::None,
            0 => Fault::NoAnswer,
            1 if down != Framing::Close => Fault::Short,
            2 => Fault::Reset,
            _ => Fault::None,
        };
        let early = has_body && up_size < 500_000 && random.percent(5) && !calm;
        Self {
            seed,
            method,
            old,
            up,
            up_size: if has_body { up_size } else { 0 },
            down,
            down_size,
            fault,
            fault_at: random.below(1000) as u64,
            leaves: random.percent(4) && !calm,
            early,
            pace: Pace::new(&mut random),
        }
    }

    /// The plan that a target names.
    pub(crate) fn of(target: &str) -> Self {
        Self::new(target.trim_start_matches('/').parse().expect("a seed in the target"))
    }

    /// Whether nothing can be relied on to follow on the connection to the client.
    pub(crate) fn is_last(&self) -> bool {
        self.old || self.down == Framing::Close || self.early
    }

    pub(crate) fn request_head(&self) -> String {
        let version = if self.old { "1.0" } else { "1.1" };
        let framing = match self.up {
            None => String::new(),
            Some(Framing::Chunked(_)) => "Transfer-Encoding: chunked\r\n".into(),
            Some(_) => format!("Content-Length: {}\r\n", self.up_size),
        };
        format!("{} /{} HTTP/{version}\r\nHost: a\r\n{framing}\r\n", self.method, self.seed)
    }

    pub(crate) fn response_head(&self) -> String {
        let framing = match self.down {
            Framing::Length => format!("Content-Length: {}\r\n", self.down_size),
            Framing::Chunked(_) => "Transfer-Encoding: chunked\r\n".into(),
            Framing::Close => String::new(),
        };
        format!("HTTP/1.1 200 OK\r\n{framing}\r\n")
    }

    /// Seed of the response's content.
    pub(crate) fn down_seed(&self) -> u64 {
        !self.seed
    }
}

/// Who breaks a tunnel off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    Nobody,
    Client,
    Backend,
}

/// A tunnel: both sides send at the same time, and each ends its direction when it has sent all.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) seed: u64,
    /// By CONNECT, and the upgrade inside of it.
    pub(crate) connect: bool,
    pub(crate) up_size: u64,
    pub(crate) down_size: u64,
    pub(crate) client_pace: Pace,
    pub(crate) backend_pace: Pace,
    pub(crate) breaker: Breaker,
    /// How far into its stream the breaker gets, in thousandths.
    pub(crate) break_at: u64,
}

impl Tunnel {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(!seed);
        let breaker = match random.below(10) {
            _ if seed & CALM != 0 => Breaker::Nobody,
            0 => Breaker::Client,
            1 => Breaker::Backend,
            2..6 if seed & WILD != 0 => Breaker::Client,
            _ if seed & WILD != 0 => Breaker::Backend,
            _ => Breaker::Nobody,
        };
        // In a tunnel slow readers on both sides are what is of interest.
        let mut pace = || if random.percent(30) { Pace::Slow } else { Pace::new(&mut random) };
        let (client_pace, backend_pace) = (pace(), pace());
        Self {
            seed,
            connect: random.percent(30),
            up_size: size(&mut random, seed & WILD != 0),
            down_size: size(&mut random, seed & WILD != 0),
            client_pace,
            backend_pace,
            breaker,
            break_at: random.below(1000) as u64,
        }
    }
}
