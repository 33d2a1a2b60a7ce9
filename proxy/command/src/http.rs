//! As much HTTP/1.1 as requests over the admin socket need.
//!
//! The peer is underpass itself, so this reads a status line, fields, and a body that `Content-Length`, the chunked coding
//! or the end of the connection delimits (RFC 9112 section 6.3). Everything is bounded.

use std::io::{self, BufRead, BufReader, Read, Write};

/// The longest head of a response in bytes.
const HEAD_SIZE_MAX: u64 = 16 * 1024;
/// The longest body of a response in bytes, but for streams of events.
const BODY_SIZE_MAX: u64 = 256 * 1024 * 1024;
/// The longest line with the size of a chunk.
const CHUNK_LINE_SIZE_MAX: u64 = 256;

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    /// The method.
    pub(crate) method: &'a str,
    /// The path with its query.
    pub(crate) target: &'a str,
    /// Fields that not every request has.
    pub(crate) fields: Vec<(&'a str, String)>,
    /// A body of JSON.
    pub(crate) body: Option<&'a [u8]>,
}

/// A response whose body has been read.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// Whether the connection can be used for another request.
    pub(crate) reusable: bool,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) struct Broken {
    /// Whether the request was not sent as a whole, so that the peer has done nothing.
    pub(crate) untouched: bool,
    /// What went wrong.
    pub(crate) source: io::Error,
}

impl From<io::Error> for Broken {
    fn from(source: io::Error) -> Self {
        Self { untouched: false, source }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection<S: Read> {
    reader: BufReader<S>,
}

impl<S: Read + Write> Connection<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    /// Sends a request and reads its response.
    pub(crate) fn exchange(&mut self, request: &Request<'_>) -> Result<Response, Broken> {
        self.send(request)?;
        let head = read_head(&mut self.reader)?;
        let framing = head.framing;
        if matches!(framing, Framing::Length(length) if length > BODY_SIZE_MAX) {
            return Err(too_large().into());
        }
        let mut body = Vec::new();
        let read = Body::new(&mut self.reader, framing).take(BODY_SIZE_MAX + 1).read_to_end(&mut body)?;
        if read as u64 > BODY_SIZE_MAX {
            return Err(too_large().into());
        }
        let reusable = !head.closes && !matches!(framing, Framing::End);
        Ok(Response { status: head.status, reusable, body })
    }

    /// Sends a request; its response is a stream of lines if it was successful, and whole otherwise.
    pub(crate) fn stream(mut self, request: &Request<'_>) -> Result<Result<Lines<S>, Response>, Broken> {
        self.send(request)?;
        let head = read_head(&mut self.reader)?;
        let mut body = Body::new(self.reader, head.framing);
        if head.status == 200 {
            return Ok(Ok(Lines { reader: BufReader::new(body) }));
        }
        let mut bytes = Vec::new();
        (&mut body).take(BODY_SIZE_MAX).read_to_end(&mut bytes)?;
        Ok(Err(Response { status: head.status, reusable: false, body: bytes }))
    }

    fn send(&mut self, request: &Request<'_>) -> Result<(), Broken> {
        let mut bytes =
            format!("{} {} HTTP/1.1\r\nHost: underpass\r\n", request.method, request.target).into_bytes();
        for (name, value) in &request.fields {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(body) = request.body {
            let fields = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            bytes.extend_from_slice(fields.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(request.body.unwrap_or_default());
        match self.reader.get_mut().write_all(&bytes) {
            Ok(()) => Ok(()),
            // A peer that refuses the connection answers and closes without having read: that answer says why.
            Err(source) if source.kind() == io::ErrorKind::BrokenPipe => match self.reader.fill_buf() {
                Ok([_, ..]) => Ok(()),
                _ => Err(Broken { untouched: true, source }),
            },
            Err(source) => Err(Broken { untouched: true, source }),
        }
    }
}

/// What a response's head says that matters here.
struct Head {
    status: u16,
    closes: bool,
    framing: Framing,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(u64),
    Chunked,
    End,
}

fn read_head<R: BufRead>(reader: &mut R) -> io::Result<Head> {
    let mut limited = reader.take(HEAD_SIZE_MAX);
    let status = parse_status_line(&read_line(&mut limited)?)?;
    let mut head = Head { status, closes: false, framing: Framing::End };
    loop {
        let line = read_line(&mut limited)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a field without a colon"))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = value.parse().map_err(|_| invalid("an invalid Content-Length"))?;
                head.framing = Framing::Length(length);
            }
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => head.framing = Framing::Chunked,
            "transfer-encoding" => {
                return Err(invalid("a transfer coding, which this client does not know"));
            }
            "connection" => head.closes = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    // RFC 9112 section 6.3: these have no body, whatever their fields say.
    if matches!(status, 204 | 304) {
        head.framing = Framing::Length(0);
    }
    Ok(head)
}

/// The body of a response, without its coding.
#[derive(Debug)]
struct Body<R> {
    reader: R,
    framing: Framing,
    /// Of the body, or of the chunk under way.
    left: u64,
    /// Whether the last chunk was read.
    ended: bool,
    /// Whether a chunk was read, whose line end comes before the next one's size.
    within: bool,
}

impl<R: BufRead> Body<R> {
    fn new(reader: R, framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(length) => length,
            Framing::Chunked => 0,
            Framing::End => u64::MAX,
        };
        Self { reader, framing, left, ended: false, within: false }
    }

    /// Reads the line that tells how long the next chunk is (RFC 9112 section 7.1).
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut limited = (&mut self.reader).take(CHUNK_LINE_SIZE_MAX);
        if self.within && !read_line(&mut limited)?.is_empty() {
            return Err(invalid("a chunk longer than it says"));
        }
        let line = read_line(&mut limited)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        // A sign is no digit of the grammar, though from_str_radix would take one.
        let digits = Some(size).filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let parsed = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.left = parsed.ok_or_else(|| invalid("an invalid size of a chunk"))?;
        self.within = true;
        if self.left == 0 {
            self.ended = true;
            let mut trailer = (&mut self.reader).take(HEAD_SIZE_MAX);
            while !read_line(&mut trailer)?.is_empty() {}
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if matches!(self.framing, Framing::Chunked) && self.left == 0 && !self.ended {
            self.next_chunk()?;
        }
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 && !matches!(self.framing, Framing::End) {
            let text = "the response ended before its body was whole";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        if !matches!(self.framing, Framing::End) {
            self.left -= read as u64;
        }
        Ok(read)
    }
}

/// The lines of a response that lasts.
#[derive(Debug)]
pub(crate) struct Lines<S: Read> {
    reader: BufReader<Body<BufReader<S>>>,
}

impl<S: Read> Lines<S> {
    /// The next line without its end; none at the end of the stream.
    pub(crate) fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let read = (&mut self.reader).take(HEAD_SIZE_MAX).read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(Some(line.strip_suffix('\r').unwrap_or(line).to_owned())),
            None if read == 0 => Ok(None),
            None => Err(invalid("a line that is cut or above 16 KiB")),
        }
    }
}

/// Reads a line without its end; running into the limit or the end of the stream is an error.
fn read_line<R: BufRead>(reader: &mut R) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None if line.is_empty() => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before a response"))
        }
        None => Err(invalid("a line that is cut, or a head above 16 KiB")),
    }
}

fn parse_status_line(line: &str) -> io::Result<u16> {
    let mut parts = line.splitn(3, ' ');
    let version = parts.next().unwrap_or_default();
    let code = parts.next().and_then(|code| code.parse::<u16>().ok());
    match code {
        Some(code) if version.starts_with("HTTP/1.") && (100..600).contains(&code) => Ok(code),
        _ => Err(invalid("no HTTP/1.1 status line")),
    }
}

fn too_large() -> io::Error {
    invalid("a body above 256 MiB")
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the response has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads from one buffer, writes into another.
    struct Scripted {
        answer: io::Cursor<Vec<u8>>,
        sent: Vec<u8>,
        /// Whether the peer has closed.
        closed: bool,
    }

    impl Scripted {
        fn new(answer: &[u8]) -> Self {
            Self { answer: io::Cursor::new(answer.to_vec()), sent: Vec::new(), closed: false }
        }
    }

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.answer.read(buffer)
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.sent.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn get() -> Request<'static> {
        Request { method: "GET", target: "/v1/status", ..Request::default() }
    }

    fn read(bytes: &[u8]) -> Result<Response, Broken> {
        Connection::new(Scripted::new(bytes)).exchange(&get())
    }

    #[test]
    fn a_body_ends_at_its_length() {
        let response =
            read(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 2\r\nETag: \"7\"\r\n\r\n{}more").expect("valid");
        assert_eq!((response.status, response.body.as_slice()), (200, &b"{}"[..]));
        assert!(response.reusable);
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let response = read(b"HTTP/1.1 500 \r\n\r\nwhole").expect("valid");
        assert_eq!((response.status, response.body.as_slice()), (500, &b"whole"[..]));
        assert!(!response.reusable);
    }

    #[test]
    fn a_chunked_body_loses_its_coding() {
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n";
        let response = read(bytes).expect("valid");
        assert_eq!(response.body, b"abc0123456789");
        assert!(response.reusable);
    }

    #[test]
    fn requests_follow_each_other_on_a_connection() {
        let answers = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nb";
        let mut connection = Connection::new(Scripted::new(answers));
        let first = connection.exchange(&get()).expect("valid");
        let second = connection.exchange(&get()).expect("valid");
        assert_eq!((first.body.as_slice(), first.reusable), (&b"a"[..], true));
        assert_eq!((second.body.as_slice(), second.reusable), (&b"b"[..], false));
    }

    #[test]
    fn a_cut_response_is_an_error() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        ] {
            let broken = read(bytes).expect_err("cut");
            assert!(!broken.untouched, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9\r\n\r\n"[..],
            b"HTTP/1.1 999 Odd\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        ] {
            assert!(read(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_head_without_end_is_bounded() {
        let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
        bytes.resize(1024 * 1024, b'a');
        let error = read(&bytes).expect_err("too long").source;
        assert!(error.to_string().contains("16 KiB"), "{error}");
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        let mut connection = Connection::new(Scripted::new(b"HTTP/1.1 204 No Content\r\n\r\n"));
        let fields = vec![("If-Match", "\"3\"".to_owned())];
        let request = Request { method: "PUT", target: "/v1/redirect", fields, body: Some(b"{}") };
        connection.exchange(&request).expect("answered");
        let sent = String::from_utf8(connection.reader.into_inner().sent).expect("text");
        assert!(sent.starts_with("PUT /v1/redirect HTTP/1.1\r\nHost: "), "{sent}");
        assert!(sent.contains("\r\nIf-Match: \"3\"\r\n"), "{sent}");
        assert!(sent.contains("\r\nContent-Length: 2\r\n"), "{sent}");
        assert!(sent.ends_with("\r\n\r\n{}"), "{sent}");
    }

    #[test]
    fn an_answer_before_the_request_was_read_is_heard() {
        let mut stream =
            Scripted::new(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.closed = true;
        assert_eq!(Connection::new(stream).exchange(&get()).expect("answered").status, 503);
        let mut silent = Scripted::new(b"");
        silent.closed = true;
        assert!(Connection::new(silent).exchange(&get()).expect_err("nothing was sent").untouched);
    }

    #[test]
    fn a_stream_comes_line_by_line() {
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na\nb\r\r\n2\r\n\nc\r\n1\r\n\n\r\n0\r\n\r\n";
        let mut lines = match Connection::new(Scripted::new(bytes)).stream(&get()) {
            Ok(Ok(lines)) => lines,
            other => panic!("{:?}", other.map(|inner| inner.map(|_| ()))),
        };
        for expected in [Some("a"), Some("b"), Some("c"), None] {
            assert_eq!(lines.next().expect("whole").as_deref(), expected);
        }
    }
}
