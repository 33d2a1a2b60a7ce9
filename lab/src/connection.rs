//! One connection of the load generator, and the operation on it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use nix::sys::socket::MsgFlags;

use crate::body::{Received, receive};
use crate::exchange::{ECHO_PROTOCOL, ECHO_TARGET, Pattern};
use crate::load::Exchange;
use crate::response::{Expected, Reader};

/// An operation: a request with its response, or a message with its echo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    /// When it was to begin, since the load's beginning.
    pub(crate) due: Duration,
    /// Where in the pattern its body begins.
    pub(crate) from: usize,
}

/// What all connections share.
pub(crate) struct Shared<'a> {
    pub(crate) exchange: &'a Exchange,
    pub(crate) pattern: Pattern,
    pub(crate) buffer: Vec<u8>,
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    phase: Phase,
    operation: Option<Operation>,
    /// What goes before a body: a request's head.
    head: Vec<u8>,
    /// Bytes of head and body that are out already.
    sent: u64,
    /// Bytes of an echo that have come back.
    echoed: usize,
    /// Body bytes that the operation has moved.
    moved: u64,
    reader: Reader,
    readable: bool,
    /// The peer's end is on its way: no further event tells when it can be read.
    hangup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// Waits for 101.
    Upgrading,
    /// An operation may begin or is under way.
    Open,
    /// The last response is complete, the peer has yet to close.
    Ending,
}

/// What an event has told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) readable: bool,
    pub(crate) hangup: bool,
}

/// What a look at a connection has given.
#[derive(Debug, Default)]
pub(crate) struct Driven {
    /// The operation that was completed.
    pub(crate) completed: Option<Operation>,
    /// Body bytes that were moved.
    pub(crate) body_bytes: u64,
    /// Those that the completed operation has moved in all.
    pub(crate) completed_bytes: u64,
    /// The connection has ended in order.
    pub(crate) ended: bool,
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).context("cannot connect")?;
        Ok(Self {
            stream,
            phase: Phase::Connecting,
            operation: None,
            head: Vec::new(),
            sent: 0,
            echoed: 0,
            moved: 0,
            reader: Reader::new(),
            readable: false,
            hangup: false,
        })
    }

    /// The operation under way.
    pub(crate) fn operation(&self) -> Option<Operation> {
        self.operation
    }

    /// Whether an operation can begin at once.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Open && self.operation.is_none()
    }

    /// Begins an operation, as soon as the connection is open.
    pub(crate) fn begin(&mut self, operation: Operation, exchange: &Exchange) {
        debug_assert!(self.operation.is_none(), "one operation at a time");
        self.operation = Some(operation);
        (self.sent, self.echoed, self.moved) = (0, 0, 0);
        if !matches!(exchange, Exchange::Tunnel { .. }) {
            self.head.clear();
            exchange.write_head(&mut self.head, operation.from);
        }
    }

    /// Sends and receives what can be.
    pub(crate) fn drive(&mut self, seen: Seen, shared: &mut Shared<'_>) -> Result<Driven> {
        self.hangup |= seen.hangup;
        self.readable |= seen.readable || seen.hangup;
        let mut driven = Driven::default();
        if self.phase == Phase::Connecting && !self.connected(shared.exchange)? {
            return Ok(driven);
        }
        self.send(shared, &mut driven)?;
        self.moved += driven.body_bytes;
        while self.readable && !driven.ended {
            let before = driven.body_bytes;
            let was_completed = driven.completed.is_some();
            match (self.phase, shared.exchange) {
                (Phase::Open, Exchange::Tunnel { message_size, .. }) => {
                    self.receive_echo(*message_size, shared, &mut driven)?;
                }
                (Phase::Open, _) if self.operation.is_none() => self.expect_nothing(&mut driven)?,
                (Phase::Ending, _) => self.expect_nothing(&mut driven)?,
                _ => self.receive_response(shared, &mut driven)?,
            }
            self.moved += driven.body_bytes - before;
            if driven.completed.is_some() && !was_completed {
                driven.completed_bytes = self.moved;
            }
        }
        Ok(driven)
    }

    fn connected(&mut self, exchange: &Exchange) -> Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error).context("cannot connect");
        }
        match self.stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error).context("cannot connect"),
        }
        self.stream.set_nodelay(true)?;
        self.phase = Phase::Open;
        if let Exchange::Tunnel { upgrade: true, .. } = exchange {
            self.phase = Phase::Upgrading;
            self.head = format!(
                "GET {ECHO_TARGET} HTTP/1.1\r\nHost: lab.test\r\nConnection: Upgrade\r\nUpgrade: {ECHO_PROTOCOL}\r\n\r\n"
            )
            .into_bytes();
        }
        Ok(true)
    }

    /// Sends what is left of the handshake, or of the operation.
    fn send(&mut self, shared: &Shared<'_>, driven: &mut Driven) -> Result<()> {
        let body = match (self.phase, self.operation) {
            (Phase::Upgrading, _) => &[][..],
            (Phase::Open, Some(operation)) => {
                let size = shared.exchange.upload_size();
                shared.pattern.body(operation.from, size).context("body larger than the pattern")?
            }
            _ => return Ok(()),
        };
        let head_size = self.head.len() as u64;
        let total = head_size + body.len() as u64;
        while self.sent < total {
            let sent = usize::try_from(self.sent)?;
            let head = self.head.get(sent..).unwrap_or_default();
            let rest = &body[sent.saturating_sub(self.head.len())..];
            let written = if head.is_empty() {
                self.stream.write(rest)
            } else {
                self.stream.write_vectored(&[io::IoSlice::new(head), io::IoSlice::new(rest)])
            };
            match written {
                Ok(length) => {
                    let body_before = self.sent.max(head_size);
                    self.sent += length as u64;
                    driven.body_bytes += self.sent.max(head_size) - body_before;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(())
    }

    fn receive_response(&mut self, shared: &mut Shared<'_>, driven: &mut Driven) -> Result<()> {
        let upgrading = self.phase == Phase::Upgrading;
        let expected = match self.operation {
            _ if upgrading => Expected { status: Some(101), body: None },
            Some(operation) => shared.exchange.expected(operation.from),
            None => bail!("a response that nobody asked for"),
        };
        let progress = self.reader.read(&self.stream, expected, &shared.pattern, &mut shared.buffer)?;
        self.readable = !progress.drained || self.hangup;
        if !upgrading && shared.exchange.upload_size() == 0 {
            driven.body_bytes += progress.body_bytes;
        }
        driven.ended = progress.ended;
        if !progress.complete {
            return Ok(());
        }
        if upgrading {
            self.phase = Phase::Open;
            self.head.clear();
            self.sent = 0;
            // An operation may have been waiting for this.
            return self.send(shared, driven);
        }
        driven.completed = self.operation.take();
        if !self.reader.keep_alive() || !shared.exchange.keeps_connections() {
            self.phase = Phase::Ending;
        }
        Ok(())
    }

    fn receive_echo(&mut self, size: usize, shared: &mut Shared<'_>, driven: &mut Driven) -> Result<()> {
        match receive(&self.stream, &mut shared.buffer, MsgFlags::empty())? {
            Received::Nothing => self.readable = false,
            Received::End => bail!("tunnel was closed"),
            Received::Bytes(length, drained) => {
                self.readable = !drained || self.hangup;
                let operation = self.operation.context("bytes that nobody asked for")?;
                ensure!(length <= size - self.echoed, "more bytes than were sent");
                let right = shared.pattern.body(operation.from + self.echoed, length);
                ensure!(right == shared.buffer.get(..length), "wrong echo");
                self.echoed += length;
                if self.echoed == size {
                    driven.completed = self.operation.take();
                }
            }
        }
        Ok(())
    }

    /// Nothing may come but the end.
    fn expect_nothing(&mut self, driven: &mut Driven) -> Result<()> {
        match receive(&self.stream, &mut [0], MsgFlags::empty()) {
            Ok(Received::Nothing) => self.readable = false,
            Ok(Received::Bytes(..)) => bail!("bytes that nobody asked for"),
            // Whoever has nothing under way may reset a connection too.
            Ok(Received::End) | Err(_) => driven.ended = true,
        }
        Ok(())
    }
}
