//! Reads one response after the other from a connection, whatever its framing.

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use nix::sys::socket::MsgFlags;

use crate::body::{Body, PEEK_SIZE, Received, receive};
use crate::exchange::Pattern;

/// Longest response head in bytes.
const HEAD_SIZE_MAX: usize = 32 * 1024;
/// Most fields in a response head.
const FIELDS_MAX: usize = 100;
/// Longest line of a chunk's size, and of a trailer field.
const CHUNK_LINE_SIZE_MAX: usize = 8 * 1024;

/// What a response has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Its status; none: any of 200 to 399.
    pub(crate) status: Option<u16>,
    /// Where in the pattern its body begins, and its size; none: any body.
    pub(crate) body: Option<(usize, u64)>,
}

/// How far the response has come.
#[derive(Debug)]
pub(crate) struct Reader {
    /// A head, or a line between chunks, of which only a part has come yet.
    line: Vec<u8>,
    place: Place,
    keep_alive: bool,
}

#[derive(Debug)]
enum Place {
    Head,
    Body(Body),
    /// In a chunk of which so much is left.
    Chunk(u64),
    /// Before the line that tells a chunk's size; behind a chunk's data an empty line comes first.
    ChunkLine,
    Trailer,
    UntilClose,
}

/// What one call has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Body bytes, without the framing of chunks.
    pub(crate) body_bytes: u64,
    /// The response is complete.
    pub(crate) complete: bool,
    /// The socket is empty; the next byte raises the next event.
    pub(crate) drained: bool,
    /// The peer has closed.
    pub(crate) ended: bool,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { line: Vec::new(), place: Place::Head, keep_alive: true }
    }

    /// Whether the connection may be used again after the response that is complete.
    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Reads once.
    pub(crate) fn read(
        &mut self,
        stream: &TcpStream,
        expected: Expected,
        pattern: &Pattern,
        buffer: &mut [u8],
    ) -> Result<Progress> {
        let mut progress = Progress::default();
        let received = match &mut self.place {
            Place::Body(body) => {
                let before = body.left();
                let received = body.read(stream, pattern, buffer)?;
                progress.body_bytes = before - body.left();
                progress.complete = body.left() == 0;
                received
            }
            _ => {
                let size = buffer.len().min(PEEK_SIZE);
                let received = receive(stream, &mut buffer[..size], MsgFlags::empty())?;
                if let Received::Bytes(length, _) = received {
                    self.take(&buffer[..length], expected, pattern, &mut progress)?;
                }
                received
            }
        };
        match received {
            Received::Bytes(_, drained) => progress.drained = drained,
            Received::Nothing => progress.drained = true,
            Received::End if matches!(self.place, Place::UntilClose) => {
                (progress.complete, progress.ended) = (true, true);
            }
            Received::End => bail!("connection was closed before the response's end"),
        }
        if progress.complete {
            self.place = Place::Head;
        }
        Ok(progress)
    }

    /// Takes bytes, which may be of any number of parts.
    fn take(
        &mut self,
        mut bytes: &[u8],
        expected: Expected,
        pattern: &Pattern,
        progress: &mut Progress,
    ) -> Result<()> {
        while !progress.complete {
            match &mut self.place {
                Place::Head => {
                    let Some(rest) = self.take_head(bytes, expected)? else { return Ok(()) };
                    bytes = &bytes[bytes.len() - rest..];
                }
                Place::Body(body) => {
                    body.take(bytes, pattern)?;
                    progress.body_bytes += bytes.len() as u64;
                    progress.complete = body.left() == 0;
                    return Ok(());
                }
                Place::UntilClose => {
                    progress.body_bytes += bytes.len() as u64;
                    return Ok(());
                }
                Place::Chunk(left) => {
                    let length = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= length as u64;
                    progress.body_bytes += length as u64;
                    bytes = &bytes[length..];
                    if *left > 0 {
                        return Ok(());
                    }
                    self.place = Place::ChunkLine;
                }
                Place::ChunkLine | Place::Trailer => {
                    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                        self.line.extend_from_slice(bytes);
                        ensure!(self.line.len() <= CHUNK_LINE_SIZE_MAX, "line between chunks too long");
                        return Ok(());
                    };
                    self.line.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    progress.complete = self.take_line()?;
                }
            }
        }
        ensure!(bytes.is_empty(), "{} bytes after the response's end", bytes.len());
        Ok(())
    }

    /// Takes a head; the number of bytes behind it, or none while it is not complete.
    fn take_head(&mut self, bytes: &[u8], expected: Expected) -> Result<Option<usize>> {
        self.line.extend_from_slice(bytes);
        let Some(head) = parse_head(&self.line)? else {
            ensure!(self.line.len() < HEAD_SIZE_MAX, "response head longer than {HEAD_SIZE_MAX} bytes");
            return Ok(None);
        };
        let rest = self.line.len() - head.length;
        self.line.clear();
        // RFC 9110 section 15.2: interim responses come before the final one. 101 is final for this connection.
        if (100..200).contains(&head.status) && head.status != 101 {
            return Ok(Some(rest));
        }
        let right = match expected.status {
            Some(status) => head.status == status,
            None => (200..400).contains(&head.status),
        };
        ensure!(right, "status {}", head.status);
        self.keep_alive = head.keep_alive;
        self.place = head.place(expected)?;
        Ok(Some(rest))
    }

    /// Takes a line between chunks; whether the response ends with it.
    fn take_line(&mut self) -> Result<bool> {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let ends = if matches!(self.place, Place::Trailer) {
            line.is_empty()
        } else if !line.is_empty() {
            // RFC 9112 section 7.1: the size in hexadecimal digits, then perhaps extensions.
            let digits = line.split(|byte| b"; \t".contains(byte)).next().unwrap_or_default();
            let size =
                std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
            let size = size.context("size of a chunk not understood")?;
            self.place = if size == 0 { Place::Trailer } else { Place::Chunk(size) };
            false
        } else {
            false
        };
        self.line.clear();
        Ok(ends)
    }
}

struct Head {
    length: usize,
    status: u16,
    keep_alive: bool,
    chunked: bool,
    content_length: Option<u64>,
}

impl Head {
    /// RFC 9112 section 6.3: how the body's end is known.
    fn place(&self, expected: Expected) -> Result<Place> {
        if let Some((from, size)) = expected.body {
            ensure!(!self.chunked, "response has become chunked");
            ensure!(
                self.content_length == Some(size),
                "Content-Length {:?}, must be {size}",
                self.content_length
            );
            return Ok(Place::Body(Body::new(Some(from), size)));
        }
        Ok(match self.content_length {
            _ if matches!(self.status, 101 | 204 | 304) => Place::Body(Body::new(None, 0)),
            _ if self.chunked => Place::ChunkLine,
            Some(size) => Place::Body(Body::new(None, size)),
            None => Place::UntilClose,
        })
    }
}

/// The head, when all of it is there.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = response.parse(bytes).context("not a response")? else {
        return Ok(None);
    };
    let mut head = Head {
        length,
        status: response.code.unwrap_or_default(),
        keep_alive: response.version == Some(1),
        chunked: false,
        content_length: None,
    };
    for field in response.headers.iter() {
        let named = |name: &str| field.name.eq_ignore_ascii_case(name);
        let value = || String::from_utf8_lossy(field.value);
        if named("content-length") {
            ensure!(head.content_length.is_none(), "two Content-Length fields");
            head.content_length = Some(value().trim().parse().context("Content-Length is not a number")?);
        } else if named("transfer-encoding") {
            ensure!(field.value.eq_ignore_ascii_case(b"chunked"), "Transfer-Encoding: {}", value());
            head.chunked = true;
        } else if named("connection") {
            head.keep_alive &= !value().split(',').any(|option| option.trim().eq_ignore_ascii_case("close"));
        }
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream as StdStream};

    use super::*;

    const ANY: Expected = Expected { status: None, body: None };

    /// Body bytes of a response that comes in pieces of a size.
    fn read(bytes: &[u8], piece: usize, expected: Expected) -> Result<(u64, bool)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut sender = StdStream::connect(listener.local_addr()?)?;
        let receiver = TcpStream::from_std(listener.accept()?.0);
        sender.write_all(bytes)?;
        drop(sender);
        let (pattern, mut reader) = (Pattern::new(1 << 16), Reader::new());
        // A small buffer cuts what is read anywhere.
        let (mut buffer, mut body_bytes) = (vec![0; piece], 0);
        loop {
            let progress = reader.read(&receiver, expected, &pattern, &mut buffer)?;
            body_bytes += progress.body_bytes;
            if progress.complete {
                return Ok((body_bytes, reader.keep_alive()));
            }
        }
    }

    #[test]
    fn every_framing_is_read_however_it_is_cut() {
        for (text, size, keep_alive) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 5, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 0, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", 0, true),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                2,
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n",
                6,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", 13, true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 1, false),
        ] {
            for piece in [1, 2, 7, 4096] {
                assert_eq!(
                    read(text.as_bytes(), piece, ANY).ok(),
                    Some((size, keep_alive)),
                    "{text} by {piece}"
                );
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let exact = Expected { status: Some(200), body: Some((0, 3)) };
        for (text, expected, reason) in [
            ("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", ANY, "status 503"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", ANY, "closed before"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhello", ANY, "after the"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", exact, "wrong body"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", exact, "must be 3"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", exact, "become chunked"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", ANY, "size of a chunk"),
            ("nonsense\r\n\r\n", ANY, "not a response"),
        ] {
            let error = read(text.as_bytes(), 4096, expected).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(reason)), "{reason}: {error:?}");
        }
    }
}
