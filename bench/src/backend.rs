//! An HTTP/1.1 server that answers from memory, takes uploads and echoes (`lab/src/exchange.rs`).

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::MsgFlags;
use slab::Slab;
use underpass_lab::body::{Body, PEEK_SIZE, Received, receive};
use underpass_lab::exchange::{
    ECHO_PROTOCOL, ECHO_RESPONSE, ECHO_TARGET, Pattern, parse_target, parse_upload_target,
    write_response_head,
};

/// Where to serve, and how large bodies can get.
#[derive(clap::Args)]
pub struct Options {
    /// Address to listen on; the first line on the standard output tells the port that was taken.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The largest body in bytes that can be asked for.
    #[arg(long, default_value_t = 10 << 20)]
    size_max: usize,
}

/// Longest request head in bytes.
const HEAD_SIZE_MAX: usize = 4096;
/// Most fields in a request head.
const FIELDS_MAX: usize = 32;
/// Read size: large enough for the rest of a body to be dropped in few calls.
const SCRATCH_SIZE: usize = 1024 * 1024;
/// Most connections; further ones are closed at once.
const CONNECTIONS_MAX: usize = 16 * 1024;
const LISTENER: Token = Token(usize::MAX);

/// Serves until it is killed.
///
/// # Errors
/// The address cannot be had, or the event loop fails.
pub fn run(options: &Options) -> Result<()> {
    let mut listener = TcpListener::bind(options.listen)
        .with_context(|| format!("address {}: cannot listen", options.listen))?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let pattern = Pattern::new(options.size_max);
    let mut connections: Slab<Connection> = Slab::new();
    let mut events = Events::with_capacity(256);
    let mut scratch = vec![0; SCRATCH_SIZE];
    println!("{}", listener.local_addr()?);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections)?;
            } else if let Some(connection) = connections.get_mut(event.token().0)
                && connection.serve(event, &pattern, &mut scratch).is_err()
            {
                connections.remove(event.token().0);
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, connections: &mut Slab<Connection>) -> Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("cannot accept"),
        };
        if connections.len() >= CONNECTIONS_MAX {
            continue;
        }
        stream.set_nodelay(true)?;
        let entry = connections.vacant_entry();
        poll.registry().register(&mut stream, Token(entry.key()), Interest::READABLE | Interest::WRITABLE)?;
        entry.insert(Connection::new(stream));
    }
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    readable: bool,
    /// The client's end is on its way: no further event tells when it can be read.
    hangup: bool,
    head: Vec<u8>,
    output: Option<Output>,
    state: State,
}

/// What the bytes are that come next.
enum State {
    /// A request's head.
    Head,
    /// A request's body; `close`: the connection ends with the response.
    Upload { body: Body, close: bool },
    /// Of a tunnel: they go back.
    Echo,
}

/// A response that is being sent.
struct Output {
    from: usize,
    size: usize,
    /// Bytes of head and body that are out already.
    sent: usize,
    close: bool,
}

/// Why a connection ends.
enum End {
    Closed,
    Failed,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: vec![0; HEAD_SIZE_MAX],
            filled: 0,
            readable: false,
            hangup: false,
            head: Vec::with_capacity(256),
            output: None,
            state: State::Head,
        }
    }

    /// Answers requests until there is nothing to read, or the client doesn't take more.
    fn serve(&mut self, event: &Event, pattern: &Pattern, scratch: &mut [u8]) -> Result<(), End> {
        self.hangup |= event.is_read_closed() || event.is_error();
        self.readable |= event.is_readable() || self.hangup;
        loop {
            if !self.send(pattern)? {
                return Ok(());
            }
            let went_on = match self.state {
                State::Head => self.take_request(pattern)?,
                State::Upload { .. } => self.take_upload(pattern, scratch)?,
                State::Echo => self.take_echo(scratch)?,
            };
            if went_on {
                continue;
            }
            if !self.readable {
                return Ok(());
            }
            if matches!(self.state, State::Head) {
                self.read()?;
            }
        }
    }

    /// Takes what has come of an upload, and answers when it is complete; whether it is.
    fn take_upload(&mut self, pattern: &Pattern, scratch: &mut [u8]) -> Result<bool, End> {
        let State::Upload { body, close } = &mut self.state else { return Ok(false) };
        // What came with the head.
        let length = self.filled.min(usize::try_from(body.left()).unwrap_or(usize::MAX));
        if length > 0 {
            body.take(&self.input[..length], pattern).map_err(|_| End::Failed)?;
            self.input.copy_within(length..self.filled, 0);
            self.filled -= length;
        }
        while body.left() > 0 && self.readable {
            match body.read(&self.stream, pattern, scratch).map_err(|_| End::Failed)? {
                Received::Bytes(_, drained) => self.readable = !drained || self.hangup,
                Received::Nothing => self.readable = false,
                Received::End => return Err(End::Closed),
            }
        }
        if body.left() > 0 {
            return Ok(false);
        }
        let close = *close;
        self.state = State::Head;
        self.answer(0, 0, close);
        Ok(true)
    }

    /// Sends back what has come; whether something has.
    fn take_echo(&mut self, scratch: &mut [u8]) -> Result<bool, End> {
        self.head.clear();
        self.head.extend_from_slice(&self.input[..self.filled]);
        self.filled = 0;
        if self.head.is_empty() && self.readable {
            match receive(&self.stream, &mut scratch[..PEEK_SIZE], MsgFlags::empty())
                .map_err(|_| End::Failed)?
            {
                Received::Bytes(length, drained) => {
                    self.readable = !drained || self.hangup;
                    self.head.extend_from_slice(&scratch[..length]);
                }
                Received::Nothing => self.readable = false,
                Received::End => return Err(End::Closed),
            }
        }
        if self.head.is_empty() {
            return Ok(false);
        }
        self.output = Some(Output { from: 0, size: 0, sent: 0, close: false });
        Ok(true)
    }

    /// Begins a response with a body of the pattern.
    fn answer(&mut self, from: usize, size: usize, close: bool) {
        self.head.clear();
        write_response_head(&mut self.head, size);
        self.output = Some(Output { from, size, sent: 0, close });
    }

    fn read(&mut self) -> Result<(), End> {
        let space = &mut self.input[self.filled..];
        match self.stream.read(space) {
            Ok(0) => Err(End::Closed),
            Ok(length) => {
                // A short read has emptied the socket: the next byte raises the next event.
                self.readable = length == space.len() || self.hangup;
                self.filled += length;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts the answer to the next request, if there is one.
    fn take_request(&mut self, pattern: &Pattern) -> Result<bool, End> {
        if self.filled == 0 {
            return Ok(false);
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(&self.input[..self.filled]) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if self.filled < HEAD_SIZE_MAX => return Ok(false),
            Ok(httparse::Status::Partial) => return self.refuse("431 Request Header Fields Too Large"),
            Err(_) => return self.refuse("400 Bad Request"),
        };
        let mut close = request.version != Some(1);
        let (mut upgrade, mut content_length) = (false, None);
        for field in request.headers.iter() {
            let named = |name: &str| field.name.eq_ignore_ascii_case(name);
            if named("transfer-encoding") {
                return self.refuse("411 Length Required");
            } else if named("content-length") {
                content_length =
                    std::str::from_utf8(field.value).ok().and_then(|text| text.parse::<u64>().ok());
            }
            upgrade |= named("upgrade") && field.value == ECHO_PROTOCOL.as_bytes();
            close |= named("connection") && field.value.eq_ignore_ascii_case(b"close");
        }
        let target = request.path.unwrap_or_default();
        match (request.method, content_length) {
            (Some("POST"), Some(size)) => {
                let Some(from) = parse_upload_target(target).filter(|from| {
                    usize::try_from(size).is_ok_and(|size| pattern.body(*from, size).is_some())
                }) else {
                    return self.refuse("404 Not Found");
                };
                self.state = State::Upload { body: Body::new(Some(from), size), close };
            }
            (Some("GET"), None) if target == ECHO_TARGET && upgrade => self.state = State::Echo,
            (Some("GET"), None) => {}
            (Some("GET"), Some(_)) => return self.refuse("413 Content Too Large"),
            _ => return self.refuse("405 Method Not Allowed"),
        }
        let wanted = parse_target(target).filter(|(size, from)| pattern.body(*from, *size).is_some());
        self.input.copy_within(length..self.filled, 0);
        self.filled -= length;
        match (&self.state, wanted) {
            (State::Upload { .. }, _) => {}
            (State::Echo, _) => {
                self.head.clear();
                self.head.extend_from_slice(ECHO_RESPONSE.as_bytes());
                self.output = Some(Output { from: 0, size: 0, sent: 0, close: false });
            }
            (State::Head, Some((size, from))) => self.answer(from, size, close),
            (State::Head, None) => return self.refuse("404 Not Found"),
        }
        Ok(true)
    }

    /// Says why and closes; what the socket doesn't take at once is lost.
    fn refuse(&mut self, status: &str) -> Result<bool, End> {
        let response = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        self.stream.write_all(response.as_bytes())?;
        Err(End::Closed)
    }

    /// Sends what is left of the response; false when the socket takes no more.
    fn send(&mut self, pattern: &Pattern) -> Result<bool, End> {
        let Some(output) = &mut self.output else { return Ok(true) };
        let body = pattern.body(output.from, output.size).ok_or(End::Failed)?;
        let total = self.head.len() + body.len();
        while output.sent < total {
            let head = self.head.get(output.sent..).unwrap_or_default();
            let rest = &body[output.sent.saturating_sub(self.head.len())..];
            let written = if head.is_empty() {
                self.stream.write(rest)
            } else {
                self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(rest)])
            };
            match written {
                Ok(length) => output.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let close = output.close;
        self.output = None;
        if close { Err(End::Closed) } else { Ok(true) }
    }
}
