//! Reads one response after the other from a connection and checks each of them.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use underpass_lab::exchange::Pattern;

/// Longest response head in bytes.
const HEAD_SIZE_MAX: usize = 8 * 1024;
/// Most fields in a response head.
const FIELDS_MAX: usize = 32;
/// Most bytes in a read whose bytes may be of no interest.
const PEEK_SIZE: usize = 16 * 1024;
/// Bytes at the end of a body that are always compared.
const TAIL_SIZE: usize = 1024;

/// The response that a connection waits for.
#[derive(Clone, Copy)]
pub(crate) struct Expected {
    /// Where in the pattern its body begins.
    pub(crate) from: usize,
    /// Bytes of its body.
    pub(crate) size: usize,
    /// Whether every byte of it is compared, or only its beginning and its end.
    pub(crate) fully: bool,
}

/// How far the response has come.
pub(crate) struct Reader {
    /// A head of which only a part has come yet.
    head: Vec<u8>,
    in_body: bool,
    body_received: usize,
}

/// What one call has read.
pub(crate) struct Progress {
    /// Body bytes.
    pub(crate) body_bytes: usize,
    /// The response is complete.
    pub(crate) complete: bool,
    /// The socket is empty; the next byte raises the next event.
    pub(crate) drained: bool,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { head: Vec::with_capacity(HEAD_SIZE_MAX), in_body: false, body_received: 0 }
    }

    /// Reads once.
    ///
    /// What is not compared is not even copied: the kernel drops it (MSG_TRUNC, tcp(7)). So a client costs less than the
    /// proxy that it measures. It is the proxy that has to look at each byte, not the client.
    pub(crate) fn read(
        &mut self,
        stream: &TcpStream,
        expected: Expected,
        pattern: &Pattern,
        buffer: &mut [u8],
    ) -> Result<Progress> {
        let rest = expected.size - self.body_received;
        let drop = self.in_body && !expected.fully && rest > PEEK_SIZE;
        let (flags, wanted) = match (drop, expected.fully) {
            (true, _) => (MsgFlags::MSG_TRUNC, (rest - TAIL_SIZE).min(buffer.len())),
            (false, false) => (MsgFlags::empty(), PEEK_SIZE.min(buffer.len())),
            (false, true) => (MsgFlags::empty(), buffer.len()),
        };
        let length = match recv(stream.as_raw_fd(), &mut buffer[..wanted], flags) {
            Ok(0) => bail!("connection was closed {}", self.place(expected)),
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(Progress { body_bytes: 0, complete: false, drained: true }),
            Err(Errno::EINTR) => return Ok(Progress { body_bytes: 0, complete: false, drained: false }),
            Err(error) => {
                return Err(error).with_context(|| format!("connection broke {}", self.place(expected)));
            }
        };
        let before = self.body_received;
        if drop {
            self.body_received += length;
        } else if self.in_body {
            self.take_body(&buffer[..length], expected, pattern)?;
        } else {
            self.take_head(&buffer[..length], expected, pattern)?;
        }
        let body_bytes = self.body_received - before;
        let complete = self.in_body && self.body_received == expected.size;
        if complete {
            self.in_body = false;
            self.body_received = 0;
        }
        Ok(Progress { body_bytes, complete, drained: length < wanted })
    }

    fn take_head(&mut self, bytes: &[u8], expected: Expected, pattern: &Pattern) -> Result<()> {
        if self.head.is_empty() {
            return match check_head(bytes, expected.size)? {
                Some(length) => self.begin_body(&bytes[length..], expected, pattern),
                None => {
                    self.head.extend_from_slice(bytes);
                    Ok(())
                }
            };
        }
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        if let Some(length) = check_head(&self.head, expected.size)? {
            self.head.clear();
            self.begin_body(&bytes[length - before..], expected, pattern)?;
        }
        Ok(())
    }

    fn begin_body(&mut self, bytes: &[u8], expected: Expected, pattern: &Pattern) -> Result<()> {
        self.in_body = true;
        self.take_body(bytes, expected, pattern)
    }

    fn take_body(&mut self, bytes: &[u8], expected: Expected, pattern: &Pattern) -> Result<()> {
        let rest = expected.size - self.body_received;
        ensure!(bytes.len() <= rest, "{} bytes after the response's end", bytes.len() - rest);
        let right = pattern.body(expected.from + self.body_received, bytes.len());
        ensure!(right == Some(bytes), "wrong body in the {} bytes {}", bytes.len(), self.place(expected));
        self.body_received += bytes.len();
        Ok(())
    }

    fn place(&self, expected: Expected) -> String {
        if self.in_body {
            format!("after {} of {} body bytes", self.body_received, expected.size)
        } else {
            format!("after {} bytes of a response's head", self.head.len())
        }
    }
}

/// Length of the head when all of it is there, and it is the right one.
fn check_head(bytes: &[u8], size: usize) -> Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let status = response.parse(bytes).with_context(|| {
        format!("not a response: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]))
    })?;
    let httparse::Status::Complete(length) = status else {
        ensure!(bytes.len() < HEAD_SIZE_MAX, "response head longer than {HEAD_SIZE_MAX} bytes");
        return Ok(None);
    };
    ensure!(response.code == Some(200), "status {}", response.code.unwrap_or_default());
    ensure!(response.version == Some(1), "HTTP/1.0 response");
    let mut content_length = None;
    for field in response.headers.iter() {
        let value = || String::from_utf8_lossy(field.value);
        if field.name.eq_ignore_ascii_case("content-length") {
            ensure!(content_length.is_none(), "two Content-Length fields");
            content_length = Some(value().parse::<usize>().context("Content-Length is not a number")?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("response has become Transfer-Encoding: {}", value());
        } else if field.name.eq_ignore_ascii_case("connection") && field.value.eq_ignore_ascii_case(b"close")
        {
            bail!("connection is not kept alive");
        }
    }
    ensure!(content_length == Some(size), "Content-Length {content_length:?}, must be {size}");
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream as StdStream};

    use super::*;
    use underpass_lab::exchange::write_response_head;

    const SIZE: usize = 100_000;

    /// Sends `bytes` over a connection and reads them as one response to the end.
    fn read_all(bytes: Vec<u8>, expected: Expected, buffer_size: usize) -> Result<usize> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut sender = StdStream::connect(listener.local_addr()?)?;
        let (receiver, _) = listener.accept()?;
        let sending = std::thread::spawn(move || sender.write_all(&bytes));
        // Blocking on purpose: no event loop is needed to wait for what comes.
        let receiver = TcpStream::from_std(receiver);
        let (pattern, mut reader) = (Pattern::new(SIZE), Reader::new());
        let mut buffer = vec![0; buffer_size];
        let mut received = 0;
        loop {
            let progress = reader.read(&receiver, expected, &pattern, &mut buffer)?;
            received += progress.body_bytes;
            if progress.complete {
                assert!(sending.join().is_ok_and(|sent| sent.is_ok()));
                return Ok(received);
            }
        }
    }

    fn response(from: usize, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_response_head(&mut bytes, SIZE);
        bytes.extend_from_slice(Pattern::new(SIZE).body(from, SIZE).unwrap_or_default());
        change(&mut bytes);
        bytes
    }

    #[test]
    fn right_response_is_taken_whatever_the_reads() {
        for buffer_size in [7, 300, 16 * 1024, 1 << 20] {
            for fully in [false, true] {
                let expected = Expected { from: 5, size: SIZE, fully };
                let received = read_all(response(5, |_| {}), expected, buffer_size);
                assert_eq!(received.ok(), Some(SIZE), "buffer {buffer_size}, fully {fully}");
            }
        }
    }

    #[test]
    fn wrong_responses_are_told_apart() {
        let expected = Expected { from: 5, size: SIZE, fully: true };
        let middle = SIZE / 2;
        let cases = [
            (response(6, |_| {}), "wrong body"),
            (response(5, |bytes| bytes[middle] ^= 1), "wrong body"),
            (response(5, |bytes| bytes[9] = b'3'), "status 300"),
            (response(5, |bytes| bytes.push(0)), "after the response's end"),
            (response(5, |bytes| bytes.truncate(middle)), "connection was closed"),
            (response(5, |bytes| bytes[1] = 0), "not a response"),
        ];
        for (bytes, reason) in cases {
            let error = read_all(bytes, expected, 1 << 20).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(reason)), "{reason}: {error:?}");
        }
    }

    #[test]
    fn displaced_body_is_seen_without_comparing_every_byte() {
        let expected = Expected { from: 5, size: SIZE, fully: false };
        let displaced = response(5, |bytes| {
            let removed = bytes.remove(SIZE / 2);
            bytes.push(removed);
        });
        assert!(read_all(displaced, expected, 16 * 1024).is_err());
    }

    #[test]
    fn other_framing_is_refused() {
        for (head, reason) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "must be 7"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n", "two Content-Length"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "chunked"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n", "not kept alive"),
            ("HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n", "HTTP/1.0"),
        ] {
            let error = check_head(head.as_bytes(), 7).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(reason)), "{reason}: {error:?}");
        }
    }
}
