//! One TCP connection that a test reads and writes byte by byte, as a client or as a backend.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::time::Duration;

use socket2::{SockRef, Socket};

use crate::message::{Framing, Message, field, invalid};
use crate::wait::PATIENCE;

/// The longest head or line that a test has a use for.
const HEAD_SIZE_MAX: usize = 1024 * 1024;

/// A connection with what was read from it and not used yet.
#[derive(Debug)]
pub struct Peer {
    /// Shared with whoever has to end the connection when the test is over.
    stream: Arc<TcpStream>,
    unread: Vec<u8>,
}

impl Peer {
    /// Connects as a client.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Self::over(stream)
    }

    /// Connects as a client from this address.
    #[track_caller]
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)
            .expect("a socket can be made");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("an address of this host");
        socket
            .connect(&address.into())
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Self::over(socket.into())
    }

    /// Connects with a receive buffer so small that the sender soon feels it when nobody reads.
    #[track_caller]
    pub fn connect_with_small_window(address: SocketAddr) -> Self {
        let socket = Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)
            .expect("a socket can be made");
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        socket
            .connect(&address.into())
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        Self::over(socket.into())
    }

    /// Takes a connection that is there.
    #[track_caller]
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        Self { stream: Arc::new(stream), unread: Vec::new() }
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The connection, as long as it is open.
    pub(crate) fn handle(&self) -> Weak<TcpStream> {
        Arc::downgrade(&self.stream)
    }

    /// How long a read waits before it fails.
    #[track_caller]
    pub fn set_patience(&self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).expect("a read timeout");
    }

    /// Writes all of it.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        (&*self.stream)
            .write_all(bytes)
            .unwrap_or_else(|error| panic!("sending {} bytes: {error}", bytes.len()));
    }

    /// Writes all of it, unless the peer has gone.
    ///
    /// # Errors
    /// What the system says.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        (&*self.stream).write_all(bytes.as_ref())
    }

    /// Sends FIN: nothing more will be written.
    #[track_caller]
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shutting down the write side");
    }

    /// Ends the connection with a reset.
    #[track_caller]
    pub fn reset(self) {
        self.reset_on_close();
    }

    /// The connection will end with a reset when this value is dropped.
    #[track_caller]
    pub fn reset_on_close(&self) {
        SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// Reads a response to GET, interim ones not skipped.
    #[track_caller]
    pub fn response(&mut self) -> Message {
        self.response_to("GET")
    }

    /// Reads a response to a request of this method.
    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Message {
        self.try_response_to(method).unwrap_or_else(|error| self.fail("response", &error))
    }

    /// Reads a response to a request of this method.
    ///
    /// # Errors
    /// `UnexpectedEof` if the connection ends before it is whole, `InvalidData` if it is not one.
    pub fn try_response_to(&mut self, method: &str) -> io::Result<Message> {
        let message = self.try_head()?.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        let framing = message.response_framing(method)?;
        self.with_body(message, framing)
    }

    /// Reads a request; none if the connection ends before one begins.
    ///
    /// # Errors
    /// As [`Self::try_response_to`].
    pub fn try_request(&mut self) -> io::Result<Option<Message>> {
        let Some(message) = self.try_head()? else { return Ok(None) };
        let framing = message.request_framing()?;
        self.with_body(message, framing).map(Some)
    }

    /// Reads a request; none if the connection ends before one begins.
    #[track_caller]
    pub fn request(&mut self) -> Option<Message> {
        self.try_request().unwrap_or_else(|error| self.fail("request", &error))
    }

    /// Reads a head and nothing behind it.
    #[track_caller]
    pub fn head(&mut self) -> Message {
        match self.try_head() {
            Ok(Some(head)) => head,
            Ok(None) => self.fail("head", &ErrorKind::UnexpectedEof.into()),
            Err(error) => self.fail("head", &error),
        }
    }

    /// Reads a head and nothing behind it; none if the connection ends before one begins.
    ///
    /// # Errors
    /// As [`Self::try_response_to`].
    pub fn try_head(&mut self) -> io::Result<Option<Message>> {
        let mut searched: usize = 0;
        loop {
            // The end may straddle two reads.
            let from = searched.saturating_sub(3);
            if let Some(at) = self.unread[from..].windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..from + at + 4).collect();
                return Message::from_head(&head).map(Some);
            }
            searched = self.unread.len();
            if searched > HEAD_SIZE_MAX {
                return Err(invalid("head without an end"));
            }
            if self.fill()? == 0 {
                return if searched == 0 { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads exactly so many bytes.
    #[track_caller]
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.try_bytes(count).unwrap_or_else(|error| self.fail(&format!("{count} bytes"), &error))
    }

    /// Reads exactly so many bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` if the connection ends before.
    pub fn try_bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Reads what there is, at least one byte; nothing at the end.
    ///
    /// # Errors
    /// What the system says.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.unread.is_empty() {
            self.fill()?;
        }
        Ok(std::mem::take(&mut self.unread))
    }

    /// Reads until the connection ends in order.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        self.try_rest().unwrap_or_else(|error| self.fail("the rest until FIN", &error))
    }

    /// Reads until the connection ends in order.
    ///
    /// # Errors
    /// What the system says, `ConnectionReset` for instance.
    pub fn try_rest(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Asserts that the peer ends the connection in order and sends nothing before.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "bytes before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    /// Asserts that the peer ends the connection, in order or by a reset, and sends nothing before.
    #[track_caller]
    pub fn expect_gone(&mut self) {
        match self.try_rest() {
            Ok(rest) => {
                assert!(rest.is_empty(), "bytes before the end: {:?}", String::from_utf8_lossy(&rest));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => self.fail("the end", &error),
        }
    }

    /// Asserts that nothing has come for so long, and that the connection is open. Not for synchronisation: a test that
    /// calls this can only fail to notice a fault, never see one that is not there.
    #[track_caller]
    pub fn expect_silence(&mut self, time: Duration) {
        assert!(self.unread.is_empty(), "unread: {:?}", String::from_utf8_lossy(&self.unread));
        self.set_patience(time);
        match self.fill() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => self.fail("silence", &error),
            Ok(0) => panic!("the connection ended"),
            Ok(_) => panic!("received: {:?}", String::from_utf8_lossy(&self.unread)),
        }
        self.set_patience(PATIENCE);
    }

    /// Reads the body of a request whose head was read.
    ///
    /// # Errors
    /// As [`Self::try_response_to`].
    pub fn try_request_body(&mut self, head: Message) -> io::Result<Message> {
        let framing = head.request_framing()?;
        self.with_body(head, framing)
    }

    fn with_body(&mut self, mut message: Message, framing: Framing) -> io::Result<Message> {
        match framing {
            Framing::None => {}
            Framing::Length(length) => {
                let length = usize::try_from(length).map_err(|_| invalid("body above the address space"))?;
                message.body = self.try_bytes(length)?;
            }
            Framing::Close => message.body = self.try_rest()?,
            Framing::Chunked => self.chunks(&mut message)?,
        }
        Ok(message)
    }

    fn chunks(&mut self, message: &mut Message) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default();
            let size =
                usize::from_str_radix(digits, 16).map_err(|_| invalid(&format!("chunk size {line:?}")))?;
            if size == 0 {
                break;
            }
            let data = self.try_bytes(size)?;
            message.body.extend_from_slice(&data);
            message.chunks.push(data);
            if self.try_bytes(2)? != b"\r\n" {
                return Err(invalid("chunk without its line end"));
            }
        }
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(());
            }
            message.trailers.push(field(&line)?);
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.unread.drain(..at + 2).collect();
                return String::from_utf8(line[..at].to_vec()).map_err(|error| invalid(&error.to_string()));
            }
            if self.unread.len() > HEAD_SIZE_MAX {
                return Err(invalid("line without an end"));
            }
            if self.fill()? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads once; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match (&*self.stream).read(&mut chunk) {
                Ok(count) => {
                    self.unread.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    #[track_caller]
    fn fail(&self, wanted: &str, error: &io::Error) -> ! {
        panic!("waiting for {wanted}: {error}; unread: {:?}", String::from_utf8_lossy(&self.unread))
    }
}
