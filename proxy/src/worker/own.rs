//! The texts of the proxy's own answers: the built-in ones, and those that the configuration names.

use std::collections::HashMap;
use std::io::Write;
use std::rc::Rc;

use underpass_command::state;

use super::core::Core;
use crate::http1::Reason;
use crate::route::{Groups, IN_ANSWER, Template, Values};

/// The methods that RFC 9110 section 9 and RFC 5789 define, without CONNECT, which routes allow or not, and TRACE, which is
/// not answered here.
pub(super) const ALLOW: &str = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n";

/// The standard phrases (RFC 9110 section 15, RFC 6585, RFC 7725).
pub(super) fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ if status < 300 => "Success",
        _ if status < 400 => "Redirection",
        _ => "Error",
    }
}

/// The longest request id that is shown in an answer, in bytes.
const REQUEST_ID_SIZE_MAX: usize = 64;

/// A request id as it may stand in any kind of text: the client may have chosen it, and an answer may be a page with
/// scripts.
fn harmless<'b>(id: &[u8], buffer: &'b mut [u8; REQUEST_ID_SIZE_MAX]) -> &'b [u8] {
    let length = id.len().min(buffer.len());
    for (to, from) in buffer.iter_mut().zip(id) {
        let plain = from.is_ascii_alphanumeric() || b"-_.:".contains(from);
        *to = if plain { *from } else { b'_' };
    }
    &buffer[..length]
}

/// A named answer, ready to be written.
#[derive(Debug)]
pub(super) struct Named {
    /// 0: that of the case it is used in.
    status: u16,
    /// Its field lines, `Content-Type` among them where there is a body.
    fields: Vec<u8>,
    retry_after: bool,
    body: Template,
}

impl Named {
    /// Makes it ready.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the body.
    fn new(answer: &state::Answer) -> Result<Self, String> {
        let mut fields = Vec::new();
        let mut add = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                fields.extend_from_slice(part.as_bytes());
            }
        };
        if !answer.body.is_empty() {
            add("Content-Type", &answer.content_type);
        }
        answer.fields.iter().for_each(|field| add(&field.name, &field.value));
        let retry_after = answer.fields.iter().any(|field| field.name.eq_ignore_ascii_case("retry-after"));
        let body = Template::new(&answer.body, IN_ANSWER, &Groups::default())?;
        Ok(Self { status: answer.status, fields, retry_after, body })
    }
}

impl Core {
    /// The answer that the configuration wants in place of the proxy's own: the cluster's before the listener's.
    pub(super) fn answer_for(&self, listener: u16, cluster: Option<u32>, status: u16) -> Option<Rc<Named>> {
        let of_cluster = cluster.map(|number| &self.clusters[number as usize].configured.answers);
        let of_listener = &self.listeners.get(usize::from(listener))?.configured.answers;
        let mut wanted = of_cluster.into_iter().chain([of_listener]).flatten();
        let wanted = wanted.find(|wanted| wanted.status == status)?;
        self.own.named(&wanted.answer)
    }
}

/// What an answer is made of beside its text.
pub(super) struct Frame<'a> {
    pub(super) status: u16,
    pub(super) reason: Option<Reason>,
    /// The line that tells what becomes of the connection, or nothing.
    pub(super) connection: &'a str,
    /// It answers HEAD: RFC 9110 section 9.3.2.
    pub(super) head_only: bool,
    pub(super) client: &'a [u8],
    pub(super) request_id: &'a [u8],
    /// Longest answer.
    pub(super) room: usize,
}

impl Frame<'_> {
    /// RFC 9110 section 6.4.1: none in answer to HEAD, none with 204.
    fn has_body(&self, status: u16) -> bool {
        !self.head_only && status != 204
    }
}

/// The named answers of a worker, and the space in which an answer is written.
#[derive(Debug, Default)]
pub(super) struct OwnAnswers {
    named: HashMap<String, Rc<Named>>,
    /// Field lines of the answer to come.
    fields: Vec<u8>,
    body: Vec<u8>,
    text: Vec<u8>,
    no_groups: Groups,
}

impl OwnAnswers {
    /// Adds an answer, or puts it in the place of the one of its name.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub(super) fn put(&mut self, answer: &state::Answer) -> Result<(), String> {
        self.named.insert(answer.name.clone(), Rc::new(Named::new(answer)?));
        Ok(())
    }

    /// Removes an answer.
    pub(super) fn remove(&mut self, name: &str) {
        self.named.remove(name);
    }

    pub(super) fn named(&self, name: &str) -> Option<Rc<Named>> {
        self.named.get(name).cloned()
    }

    /// Adds a field to the answer to come.
    pub(super) fn add_field(&mut self, name: &str, value: &[u8]) {
        self.fields.clear();
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.fields.extend_from_slice(part);
        }
    }

    /// Adds a field whose value is at most `size_max` bytes long to the answer to come.
    ///
    /// # Errors
    /// When the value is longer, or `write` fails; there is no field then.
    pub(super) fn add_field_with<E>(
        &mut self,
        name: &str,
        size_max: usize,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), Option<E>> {
        self.add_field(name, b"");
        self.fields.truncate(name.len() + 2);
        let written = match write(&mut self.fields) {
            Ok(()) if self.fields.len() <= name.len() + 2 + size_max => Ok(()),
            Ok(()) => Err(None),
            Err(error) => Err(Some(error)),
        };
        match written {
            Ok(()) => self.fields.extend_from_slice(b"\r\n"),
            Err(_) => self.fields.clear(),
        }
        written
    }

    /// Writes an answer, and returns its text, its status, and the size of the body in it. One that does not fit gives way to a
    /// line of text.
    pub(super) fn write(&mut self, frame: &Frame<'_>, named: Option<&Named>) -> (&[u8], u16, usize) {
        let mut status = named.map_or(0, |named| named.status);
        if status == 0 {
            status = frame.status;
        }
        self.write_text(frame, status, named);
        if self.text.len() > frame.room {
            status = frame.status;
            self.write_text(frame, status, None);
        }
        if self.text.len() > frame.room {
            self.fields.clear(); // nothing else can be long
            self.write_text(frame, status, None);
        }
        self.fields.clear();
        let body_size = if frame.has_body(status) { self.body.len() } else { 0 };
        (&self.text, status, body_size)
    }

    fn write_text(&mut self, frame: &Frame<'_>, status: u16, named: Option<&Named>) {
        let Self { fields, body, text, no_groups, .. } = self;
        let phrase = phrase(status);
        let explanation = frame.reason.map_or("", Reason::text);
        text.clear();
        body.clear();
        // Writing into memory cannot fail.
        let _ = write!(text, "HTTP/1.1 {status} {phrase}\r\n");
        match named {
            Some(named) => {
                let mut digits = [0; 3];
                let _ = write!(&mut digits[..], "{status}");
                let values = Values {
                    status: &digits,
                    phrase: phrase.as_bytes(),
                    explanation: explanation.as_bytes(),
                    client: frame.client,
                    ..Values::default()
                };
                let mut id = [b'_'; REQUEST_ID_SIZE_MAX];
                let values = Values { request_id: harmless(frame.request_id, &mut id), ..values };
                named.body.expand(&values, no_groups, (b"", b""), body);
                text.extend_from_slice(&named.fields);
            }
            None if status == 204 => {}
            None => {
                let _ = write!(body, "{status} {phrase}");
                let _ = write!(body, "{}{explanation}", if explanation.is_empty() { "" } else { ": " });
                body.push(b'\n');
                text.extend_from_slice(b"Content-Type: text/plain\r\n");
            }
        }
        // RFC 9110 section 8.6: none in a 204 response.
        if status != 204 {
            let _ = write!(text, "Content-Length: {}\r\n", body.len());
        }
        // RFC 9110 section 15.5.6: it must be there; where routes decide, `fields` has it.
        if status == 405 && !fields.starts_with(b"Allow: ") {
            text.extend_from_slice(ALLOW.as_bytes());
        }
        if status == 503 && !named.is_some_and(|named| named.retry_after) {
            text.extend_from_slice(b"Retry-After: 1\r\n");
        }
        text.extend_from_slice(fields);
        text.extend_from_slice(frame.connection.as_bytes());
        text.extend_from_slice(b"\r\n");
        if frame.has_body(status) {
            text.extend_from_slice(body);
        }
    }
}
