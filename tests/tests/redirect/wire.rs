//! The ends of a connection: one writes in pieces of any size and may break off, one reads at its own pace and compares
//! every byte with the one that must stand there.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use underpass_tests::Message;
use underpass_tests::body::Content;
use underpass_tests::message::Framing;
use underpass_tests::random::Random;

/// Longest head or line that is read.
const HEAD_SIZE_MAX: usize = 64 * 1024;

/// The writing end.
pub(crate) struct Out<'a> {
    stream: &'a TcpStream,
    random: Random,
    held: Vec<u8>,
    /// How long the next piece is.
    piece: usize,
    sent: u64,
    /// Tells the reader of this side that something moves.
    progress: Arc<AtomicU64>,
    /// Where it breaks off.
    cut_at: u64,
    /// It has broken off.
    pub(crate) is_cut: bool,
}

impl<'a> Out<'a> {
    pub(crate) fn new(stream: &'a TcpStream, seed: u64) -> Self {
        let random = Random::new(seed ^ 0x6f75_7421);
        let mut out = Self {
            stream,
            random,
            held: Vec::new(),
            piece: 0,
            sent: 0,
            progress: Arc::default(),
            cut_at: u64::MAX,
            is_cut: false,
        };
        out.piece = out.next_piece();
        out
    }

    /// What the reader of this side may know.
    pub(crate) fn watched_by(&mut self, line: &mut Line<'_>) {
        self.progress = Arc::clone(&line.others);
    }

    /// Breaks off after so many bytes more.
    pub(crate) fn cut_after(&mut self, count: u64) {
        self.cut_at = self.sent + self.held.len() as u64 + count;
    }

    fn next_piece(&mut self) -> usize {
        let most = match self.random.below(100) {
            0..3 => 8,
            3..20 => 1500,
            20..70 => 20_000,
            _ => 200_000,
        };
        1 + self.random.below(most)
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at((self.piece - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = later;
            if self.held.len() == self.piece {
                self.flush()?;
                self.piece = self.next_piece();
            }
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let left = usize::try_from(self.cut_at - self.sent).unwrap_or(usize::MAX);
        let count = self.held.len().min(left);
        for part in self.held[..count].chunks(16 * 1024) {
            self.stream.write_all(part)?;
            self.progress.fetch_add(1, Relaxed);
        }
        self.sent += count as u64;
        self.is_cut = count < self.held.len();
        self.held.clear();
        if self.is_cut { Err(io::Error::other("broken off")) } else { Ok(()) }
    }

    /// Writes a message's body, in chunks of up to so many bytes where it is chunked.
    pub(crate) fn body(&mut self, chunk_max: Option<usize>, seed: u64, size: u64) -> io::Result<()> {
        let mut content = Content::new(seed, size);
        let mut block = vec![0; 64 * 1024];
        let mut left = usize::try_from(size).unwrap_or(usize::MAX);
        while left > 0 {
            let mut chunk = left;
            if let Some(most) = chunk_max {
                chunk = (1 + self.random.below(most)).min(left);
                let extension = if self.random.percent(5) { ";a=\"b\"" } else { "" };
                self.push(format!("{chunk:x}{extension}\r\n").as_bytes())?;
            }
            left -= chunk;
            while chunk > 0 {
                let count = chunk.min(block.len());
                content.read_exact(&mut block[..count])?;
                self.push(&block[..count])?;
                chunk -= count;
            }
            if chunk_max.is_some() {
                self.push(b"\r\n")?;
            }
        }
        if chunk_max.is_some() {
            let trailer = if self.random.percent(30) { "X-Trailer: t\r\n" } else { "" };
            self.push(format!("0\r\n{trailer}\r\n").as_bytes())?;
        }
        // The next message may share a segment with this one's end.
        if self.random.percent(50) { self.flush() } else { Ok(()) }
    }
}

/// How fast an end reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// What there is.
    Fast,
    /// A little at a time.
    Slow,
    /// What there is, with long pauses.
    Halting,
}

impl Pace {
    pub(crate) fn new(random: &mut Random) -> Self {
        match random.below(10) {
            0 => Self::Slow,
            1 => Self::Halting,
            _ => Self::Fast,
        }
    }
}

/// The reading end.
pub(crate) struct Line<'a> {
    stream: &'a TcpStream,
    random: Random,
    pace: Pace,
    unread: Vec<u8>,
    at: usize,
    /// Bytes that have come.
    received: u64,
    /// After so many it stops reading.
    pub(crate) quit_at: u64,
    /// Grows while this side can write: a reader that waits for an answer to what is still being sent does not hang.
    others: Arc<AtomicU64>,
    /// What is read last is ended by the end of the connection.
    pub(crate) reads_until_end: bool,
    /// What is read, for whoever has to find out why it was not what it should be.
    pub(crate) what: String,
}

impl<'a> Line<'a> {
    pub(crate) fn new(stream: &'a TcpStream, seed: u64, pace: Pace) -> Self {
        let random = Random::new(seed ^ 0x696e_2121);
        Self {
            stream,
            random,
            pace,
            unread: Vec::new(),
            at: 0,
            received: 0,
            quit_at: u64::MAX,
            others: Arc::default(),
            reads_until_end: false,
            what: String::new(),
        }
    }

    /// Bytes that have come so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    fn rest(&self) -> &[u8] {
        &self.unread[self.at..]
    }

    /// Reads once; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.received >= self.quit_at {
            return Err(io::Error::other("does not want to read more"));
        }
        let most = match self.pace {
            Pace::Slow => {
                self.pause(2, 4);
                1 + self.random.below(8000)
            }
            Pace::Halting => {
                self.pause(2, 60);
                256 * 1024
            }
            Pace::Fast => 256 * 1024,
        };
        self.unread.drain(..self.at);
        self.at = 0;
        let old = self.unread.len();
        self.unread.resize(old + most, 0);
        let mut others = self.others.load(Relaxed);
        let outcome = loop {
            match (&mut &*self.stream).read(&mut self.unread[old..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) && others != self.others.load(Relaxed) => {
                    others = self.others.load(Relaxed);
                }
                outcome => break outcome,
            }
        };
        let count = outcome.as_ref().map_or(0, |count| *count);
        self.unread.truncate(old + count);
        self.received += count as u64;
        outcome
    }

    /// Now and then, stands still for a while: that is what is tested, nothing waits for it.
    fn pause(&mut self, percent: usize, longest_ms: usize) {
        if self.random.percent(percent) {
            let time = Duration::from_millis(1 + self.random.below(longest_ms) as u64);
            std::thread::sleep(time);
        }
    }

    /// Reads the head of a next request, however long that takes; none if the connection ends in order before one begins.
    pub(crate) fn next_head(&mut self) -> io::Result<Option<Message>> {
        loop {
            match self.head() {
                Err(error) if is_timeout(&error) && self.rest().is_empty() => {}
                head => return head,
            }
        }
    }

    /// Reads a head; none if the connection ends in order before one begins.
    pub(crate) fn head(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(end) = self.rest().windows(4).position(|four| four == b"\r\n\r\n") {
                let head = Message::from_head(&self.rest()[..end + 4]);
                self.at += end + 4;
                return head.map(Some);
            }
            assert!(self.rest().len() < HEAD_SIZE_MAX, "no end of a head: {:?}", text(self.rest()));
            match self.fill() {
                Ok(0) if self.rest().is_empty() => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                outcome => drop(outcome?),
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.rest().windows(2).position(|two| two == b"\r\n") {
                let line = text(&self.rest()[..end]);
                self.at += end + 2;
                return Ok(line);
            }
            assert!(self.rest().len() < HEAD_SIZE_MAX, "no end of a line: {:?}", text(self.rest()));
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads a body, which must be all of this content; fails where the connection does.
    pub(crate) fn body(&mut self, framing: Framing, seed: u64, size: u64) -> io::Result<()> {
        let mut content = Expected::new(seed, size, &self.what);
        match framing {
            Framing::None => assert_eq!(size, 0, "no body at all of seed {seed:#x}"),
            Framing::Length(length) => {
                assert_eq!(length, size, "Content-Length of seed {seed:#x}");
                self.take(length, &mut content)?;
            }
            Framing::Chunked => loop {
                let line = self.line()?;
                let digits = line.split(';').next().unwrap_or_default();
                let chunk = u64::from_str_radix(digits, 16);
                let chunk = chunk.unwrap_or_else(|_| {
                    panic!("chunk size {line:?} at {} of seed {seed:#x}", content.offset)
                });
                if chunk == 0 {
                    while !self.line()?.is_empty() {}
                    break;
                }
                self.take(chunk, &mut content)?;
                let end = self.line()?;
                assert!(end.is_empty(), "{end:?} behind a chunk, at {} of seed {seed:#x}", content.offset);
            },
            Framing::Close => return self.until_end(seed, size),
        }
        content.expect_end();
        Ok(())
    }

    /// Reads until the end, before which all of this content must have come; `UnexpectedEof` for an end that looks in order
    /// and is too early. A reset looks so too where the writer of this side has met it first.
    pub(crate) fn until_end(&mut self, seed: u64, size: u64) -> io::Result<()> {
        self.reads_until_end = true;
        let mut content = Expected::new(seed, size, &self.what);
        loop {
            content.compare(&self.unread[self.at..]);
            self.at = self.unread.len();
            if self.fill()? == 0 {
                return if content.offset == size { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Throws away what comes next; 0 at the end.
    pub(crate) fn discard(&mut self) -> io::Result<usize> {
        self.at = self.unread.len();
        self.fill()
    }

    /// Reads a short text of the proxy's own.
    pub(crate) fn text(&mut self, framing: Framing) -> io::Result<String> {
        let Framing::Length(length) = framing else { return Err(io::Error::other("no Content-Length")) };
        while (self.rest().len() as u64) < length {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        let end = self.at + usize::try_from(length).unwrap_or(0);
        let text = text(&self.unread[self.at..end]);
        self.at = end;
        Ok(text)
    }

    /// What a body has to be that is read in parts.
    pub(crate) fn begin_body(&self, seed: u64, size: u64) -> Expected {
        Expected::new(seed, size, &self.what)
    }

    /// Reads so many bytes of a body.
    pub(crate) fn take(&mut self, mut count: u64, content: &mut Expected) -> io::Result<()> {
        while count > 0 {
            if self.rest().is_empty() && self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let now = usize::try_from(count).map_or(self.rest().len(), |count| count.min(self.rest().len()));
            content.compare(&self.unread[self.at..self.at + now]);
            self.at += now;
            count -= now as u64;
        }
        Ok(())
    }
}

/// Whether a read or write has taken longer than anything may.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

/// What has to come next.
pub(crate) struct Expected {
    content: Content,
    seed: u64,
    offset: u64,
    size: u64,
    block: Vec<u8>,
    what: String,
}

impl Expected {
    fn new(seed: u64, size: u64, what: &str) -> Self {
        let content = Content::new(seed, size);
        Self { content, seed, offset: 0, size, block: vec![0; 64 * 1024], what: what.into() }
    }

    fn compare(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(self.block.len()) {
            let expected = &mut self.block[..part.len()];
            let count = self.content.read(expected).expect("reading from memory");
            let wrong = expected[..count].iter().zip(part).position(|(expected, came)| expected != came);
            if wrong.is_some() || count < part.len() {
                let wrong = wrong.unwrap_or(count);
                panic!(
                    "wrong byte at {} of {}: {}; {}",
                    self.offset + wrong as u64,
                    self.size,
                    whence(&part[wrong..], self.seed, self.size),
                    self.what
                );
            }
            self.offset += part.len() as u64;
        }
    }

    fn expect_end(&self) {
        assert_eq!(self.offset, self.size, "an end that looks in order, too early: {}", self.what);
    }
}

/// Where in the content these bytes stand, which tells how many were lost or doubled.
fn whence(bytes: &[u8], seed: u64, size: u64) -> String {
    let begin = &bytes[..bytes.len().min(16)];
    let all = Content::new(seed, size).to_vec();
    match all.windows(begin.len()).position(|window| window == begin) {
        Some(at) if begin.len() >= 8 => format!("there stands what belongs to {at}"),
        _ => format!("there stands {:?}", text(&bytes[..bytes.len().min(80)])),
    }
}
