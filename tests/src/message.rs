//! HTTP/1.1 messages as a test sees them: an own reader, strict and simple, that shares nothing with the proxy's.

use std::io;

/// One message, read whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The bytes of the head, with the empty line.
    pub head: Vec<u8>,
    /// Request line or status line, without the line end.
    pub start: String,
    /// Field lines in their order: name as sent, value without surrounding white space.
    pub fields: Vec<(String, String)>,
    /// The body, decoded if it was chunked.
    pub body: Vec<u8>,
    /// Data of each chunk, if the body was chunked.
    pub chunks: Vec<Vec<u8>>,
    /// Field lines of the trailer section.
    pub trailers: Vec<(String, String)>,
}

/// How far a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks up to the empty one.
    Chunked,
    /// Everything until the connection ends.
    Close,
}

impl Message {
    /// Reads a head that is complete, up to and with its empty line.
    ///
    /// # Errors
    /// `InvalidData` where it is not a head.
    pub fn from_head(head: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(head).map_err(|error| invalid(&format!("head: {error}")))?;
        let lines = text.strip_suffix("\r\n\r\n").ok_or_else(|| invalid("head without its end"))?;
        let mut lines = lines.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let fields = lines.map(field).collect::<io::Result<_>>()?;
        Ok(Self { head: head.to_vec(), start, fields, ..Self::default() })
    }

    /// Status code of a response.
    #[track_caller]
    pub fn status(&self) -> u16 {
        let code = self.start.strip_prefix("HTTP/1.1 ").or_else(|| self.start.strip_prefix("HTTP/1.0 "));
        let code = code.and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("not a status line: {:?}", self.start))
    }

    /// Method of a request.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// Target of a request.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// Values of all field lines of this name, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let same = |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields.iter().filter(same).map(|field| field.1.as_str()).collect()
    }

    /// The value of a field that stands there at most once.
    #[track_caller]
    pub fn value(&self, name: &str) -> Option<&str> {
        let values = self.values(name);
        assert!(values.len() <= 1, "{name} stands {} times in {:?}", values.len(), self.fields);
        values.first().copied()
    }

    /// The body as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Framing of a request.
    ///
    /// # Errors
    /// `InvalidData` where it is ambiguous.
    pub fn request_framing(&self) -> io::Result<Framing> {
        Ok(self.framing()?.unwrap_or(Framing::None))
    }

    /// Framing of a response to a request of this method.
    ///
    /// # Errors
    /// `InvalidData` where it is ambiguous.
    pub fn response_framing(&self, method: &str) -> io::Result<Framing> {
        match self.status() {
            100..=199 | 204 | 304 => Ok(Framing::None),
            _ if method == "HEAD" => Ok(Framing::None),
            _ => Ok(self.framing()?.unwrap_or(Framing::Close)),
        }
    }

    fn framing(&self) -> io::Result<Option<Framing>> {
        match (&self.values("Content-Length")[..], &self.values("Transfer-Encoding")[..]) {
            ([], []) => Ok(None),
            ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                let length = length.parse().map_err(|error| invalid(&format!("Content-Length: {error}")))?;
                Ok(Some(Framing::Length(length)))
            }
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Some(Framing::Chunked)),
            (lengths, codings) => Err(invalid(&format!(
                "ambiguous framing: Content-Length {lengths:?}, Transfer-Encoding {codings:?}"
            ))),
        }
    }
}

/// Splits a field line.
///
/// # Errors
/// `InvalidData` where it is not one.
pub fn field(line: &str) -> io::Result<(String, String)> {
    let (name, value) = line.split_once(':').ok_or_else(|| invalid(&format!("field line {line:?}")))?;
    if name.is_empty() || name.contains([' ', '\t']) {
        return Err(invalid(&format!("field name {name:?}")));
    }
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// An error for what a peer sent.
pub(crate) fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &str) -> Message {
        Message::from_head(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn a_head_is_split_into_its_parts() {
        let message = Message::from_head(b"GET /a?b HTTP/1.1\r\nHost: x\r\nA:  1 \r\na: 2\r\n\r\n").unwrap();
        assert_eq!((message.method(), message.target()), ("GET", "/a?b"));
        assert_eq!(message.values("A"), ["1", "2"]);
        assert_eq!(message.value("host"), Some("x"));
        assert_eq!(message.value("none"), None);
    }

    #[test]
    fn framing_follows_the_rfc() {
        assert_eq!(head("Content-Length: 5\r\n").response_framing("GET").unwrap(), Framing::Length(5));
        assert_eq!(head("Content-Length: 5\r\n").response_framing("HEAD").unwrap(), Framing::None);
        assert_eq!(head("Transfer-Encoding: chunked\r\n").response_framing("GET").unwrap(), Framing::Chunked);
        assert_eq!(head("").response_framing("GET").unwrap(), Framing::Close);
        assert_eq!(head("").request_framing().unwrap(), Framing::None);
        let both = head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n");
        assert!(both.response_framing("GET").is_err());
        assert!(head("Content-Length: 5\r\nContent-Length: 5\r\n").request_framing().is_err());
    }

    #[test]
    fn a_head_that_is_none_is_refused() {
        assert!(Message::from_head(b"GET / HTTP/1.1\r\n").is_err());
        assert!(Message::from_head(b"GET / HTTP/1.1\r\nno colon\r\n\r\n").is_err());
        assert!(Message::from_head(b"GET / HTTP/1.1\r\nA : b\r\n\r\n").is_err());
    }
}
