//! As much HTTP/1.1 as one request over the admin socket needs.
//!
//! The peer is underpass itself, so this reads a status line, fields, and a body that `Content-Length` or the end of
//! the connection delimits. Everything is bounded.

use std::io::{self, BufRead, BufReader, Read, Write};

/// The longest head of a response in bytes.
const HEAD_SIZE_MAX: u64 = 16 * 1024;
/// The longest body of a response in bytes.
const BODY_SIZE_MAX: u64 = 16 * 1024 * 1024;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Sends a request and reads its response; the connection is of no use afterwards.
pub(crate) fn exchange<S: Read + Write>(
    mut stream: S,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> io::Result<Response> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: underpass\r\nConnection: close\r\n").into_bytes();
    if let Some(body) = body {
        let fields = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        request.extend_from_slice(fields.as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body.unwrap_or_default());
    stream.write_all(&request)?;
    read_response(stream)
}

fn read_response<R: Read>(stream: R) -> io::Result<Response> {
    let mut reader = BufReader::new(stream);
    let mut head = (&mut reader).take(HEAD_SIZE_MAX);
    let status = parse_status_line(&read_line(&mut head)?)?;
    let mut length = None;
    loop {
        let line = read_line(&mut head)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a field without a colon"))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<u64>().map_err(|_| invalid("an invalid Content-Length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(invalid("a transfer coding, which this client does not know"));
        }
    }
    let body = read_body(&mut reader, length)?;
    Ok(Response { status, body })
}

fn read_body<R: Read>(reader: R, length: Option<u64>) -> io::Result<Vec<u8>> {
    if length.is_some_and(|length| length > BODY_SIZE_MAX) {
        return Err(invalid("a body above 16 MiB"));
    }
    let mut body = Vec::new();
    let read = reader.take(length.unwrap_or(BODY_SIZE_MAX + 1)).read_to_end(&mut body)? as u64;
    match length {
        Some(length) if read < length => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the response ended before its body was whole"))
        }
        None if read > BODY_SIZE_MAX => Err(invalid("a body above 16 MiB")),
        _ => Ok(body),
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
        None => Err(invalid("a head that is cut or above 16 KiB")),
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

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the response has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Response> {
        read_response(bytes)
    }

    #[test]
    fn a_body_ends_at_its_length() {
        let response = read(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 2\r\n\r\n{}more").expect("valid");
        assert_eq!((response.status, response.body.as_slice()), (200, &b"{}"[..]));
    }

    #[test]
    fn a_body_without_length_ends_with_the_connection() {
        let response = read(b"HTTP/1.1 500 \r\n\r\nwhole").expect("valid");
        assert_eq!((response.status, response.body.as_slice()), (500, &b"whole"[..]));
    }

    #[test]
    fn a_cut_response_is_an_error() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
        ] {
            assert!(read(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9\r\n\r\n"[..],
            b"HTTP/1.1 999 Odd\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        ] {
            assert!(read(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_head_without_end_is_bounded() {
        let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
        bytes.resize(1024 * 1024, b'a');
        let error = read(&bytes).expect_err("too long");
        assert!(error.to_string().contains("16 KiB"), "{error}");
    }

    /// Reads from one buffer, writes into another.
    struct Scripted {
        answer: io::Cursor<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.answer.read(buffer)
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.sent.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        let answer = io::Cursor::new(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec());
        let mut stream = Scripted { answer, sent: Vec::new() };
        exchange(&mut stream, "PUT", "/v1/redirect", Some(b"{}")).expect("answered");
        let sent = String::from_utf8(stream.sent).expect("text");
        assert!(sent.starts_with("PUT /v1/redirect HTTP/1.1\r\nHost: "), "{sent}");
        assert!(sent.contains("\r\nContent-Length: 2\r\n"), "{sent}");
        assert!(sent.ends_with("\r\n\r\n{}"), "{sent}");
    }
}
