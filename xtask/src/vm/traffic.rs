//! The world outside of the guest: a backend that knows which bytes belong where, and a client that compares them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use underpass_lab::exchange::{Pattern, parse_target};

use super::network::{HOST, Network};

/// The largest body.
pub(super) const BODY_MAX: usize = 4 << 20;
/// Longest line and most fields of a head that are taken; far more than the proxy sends.
const LINE_MAX: u64 = 8192;
const FIELDS_MAX: usize = 64;
/// For a connection, and for each read and write.
const PATIENCE: Duration = Duration::from_secs(30);
/// The lengths of a chunked body's chunks, again and again: from next to nothing to more than a pipe holds.
const CHUNKS: [usize; 5] = [1, 100, 5_000, 70_000, 1_200_000];
/// Ports of the guest's listeners: HTTP, and connections whose bytes mean nothing to the proxy.
const PORT_HTTP: u16 = 80;
const PORT_TCP: u16 = 81;
/// A tunnel carries so many messages there and back, one after the other, and then [`BODY_MAX`] bytes at once.
const MESSAGES: usize = 200;
const MESSAGE_SIZE: usize = 1024;

/// Where backends are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backends {
    /// Speaks HTTP: `GET /size/N/from/K` gives that part of the pattern, with `Content-Length` or, where the request has
    /// the field `X-Chunked`, in chunks; where it has `Upgrade`, bytes come back as they are from then on. `POST` gives
    /// back what came.
    pub(super) http: SocketAddr,
    /// Gives back what comes, as it comes.
    pub(super) echo: SocketAddr,
}

impl Backends {
    /// Starts them in the namespace; they serve until the program ends.
    pub(super) fn start(network: &Network, pattern: &Arc<Pattern>) -> Result<Self> {
        let pattern = Arc::clone(pattern);
        Ok(Self {
            http: start_backend(network, move |stream| serve(stream, &pattern))?,
            echo: start_backend(network, |stream| echo(&mut BufReader::new(stream)))?,
        })
    }
}

fn start_backend(
    network: &Network,
    serve: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static,
) -> Result<SocketAddr> {
    let listener = network.within(|| {
        TcpListener::bind((HOST, 0)).with_context(|| format!("backend: address {HOST}: cannot listen"))
    })?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            // A connection that fails shows at the client, by what it misses.
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

/// Sends back what comes, until the end.
fn echo(input: &mut BufReader<TcpStream>) -> Result<()> {
    let mut output = input.get_ref().try_clone()?;
    output.set_nodelay(true)?;
    std::io::copy(input, &mut output)?;
    Ok(output.shutdown(Shutdown::Write)?)
}

fn serve(stream: TcpStream, pattern: &Pattern) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    while let Some(head) = Head::read(&mut input)? {
        if head.upgrade {
            write!(
                output,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            )?;
            return echo(&mut input);
        }
        let mut body = vec![0; head.length.unwrap_or(0).min(BODY_MAX)];
        input.read_exact(&mut body)?;
        let mut words = head.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let wanted = parse_target(target).and_then(|(size, from)| pattern.body(from, size));
        let answer = if method == "POST" { Some(body.as_slice()) } else { wanted };
        match answer {
            None => write!(output, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
            Some(answer) if head.wants_chunks => write_chunked(&mut output, answer)?,
            Some(answer) => {
                write!(output, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len())?;
                output.write_all(answer)?;
            }
        }
    }
    Ok(())
}

fn write_chunked(output: &mut impl Write, mut body: &[u8]) -> Result<()> {
    write!(output, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for length in CHUNKS.into_iter().cycle() {
        let (chunk, rest) = body.split_at(length.min(body.len()));
        write!(output, "{:x}\r\n", chunk.len())?;
        output.write_all(chunk)?;
        write!(output, "\r\n")?;
        if chunk.is_empty() {
            break;
        }
        body = rest;
    }
    Ok(())
}

/// What is needed of a request's or response's head.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    first: String,
    length: Option<usize>,
    chunked: bool,
    wants_chunks: bool,
    upgrade: bool,
}

impl Head {
    /// `None` where the peer has ended instead.
    fn read(input: &mut impl BufRead) -> Result<Option<Self>> {
        let first = read_line(input)?;
        if first.is_empty() {
            return Ok(None);
        }
        let mut head = Self { first, ..Self::default() };
        for _ in 0..FIELDS_MAX {
            let line = read_line(input)?;
            let Some((name, value)) = line.split_once(':') else {
                ensure!(line.is_empty(), "a line that is no field: {line}");
                return Ok(Some(head));
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = Some(value.trim().parse().context("Content-Length")?),
                "transfer-encoding" => head.chunked = value.trim() == "chunked",
                "x-chunked" => head.wants_chunks = true,
                "upgrade" => head.upgrade = true,
                _ => {}
            }
        }
        bail!("a head of more than {FIELDS_MAX} fields")
    }
}

/// A line without its end.
fn read_line(input: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    input.take(LINE_MAX).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// How a body is fetched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Download,
    Chunked,
    Upload,
}

/// A connection to the guest's proxy. Only within the namespace.
pub(super) struct Client {
    input: BufReader<TcpStream>,
}

impl Client {
    pub(super) fn connect(address: Ipv4Addr) -> Result<Self> {
        Ok(Self { input: BufReader::new(connect((address, PORT_HTTP).into())?) })
    }

    /// A connection whose bytes come back from the backend: by HTTP after the answer 101, or without HTTP.
    pub(super) fn tunnel(address: Ipv4Addr, http: bool) -> Result<Self> {
        let port = if http { PORT_HTTP } else { PORT_TCP };
        let mut client = Self { input: BufReader::new(connect((address, port).into())?) };
        if http {
            let output = client.input.get_mut();
            write!(
                output,
                "GET / HTTP/1.1\r\nHost: guest.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            )?;
            let head = Head::read(&mut client.input).context("the response's head")?;
            let first = head.map(|head| head.first).unwrap_or_default();
            ensure!(first.starts_with("HTTP/1.1 101 "), "the answer is: {first}");
        }
        Ok(client)
    }

    /// Sends messages and much at once through a tunnel; an error unless all comes back as it was sent, and then the end.
    pub(super) fn through(mut self, pattern: &Pattern) -> Result<()> {
        let mut came = vec![0; MESSAGE_SIZE];
        for number in 0..MESSAGES {
            let message = pattern.body(number, MESSAGE_SIZE).context("a message beyond the pattern")?;
            self.input.get_mut().write_all(message).with_context(|| format!("sending message {number}"))?;
            self.input
                .read_exact(&mut came)
                .with_context(|| format!("message {number} does not come back"))?;
            ensure!(came == message, "message {number} comes back as another");
        }
        let all = pattern.body(0, BODY_MAX).context("more than the pattern")?;
        let mut output = self.input.get_ref().try_clone()?;
        thread::scope(|scope| {
            let sender = scope.spawn(move || {
                output.write_all(all)?;
                output.shutdown(Shutdown::Write)
            });
            let mut came = Vec::new();
            let received = self.input.read_to_end(&mut came);
            let sent =
                sender.join().unwrap_or_else(|_| Err(std::io::Error::other("the sending thread panicked")));
            sent.context("sending much at once")?;
            received.with_context(|| format!("after {} bytes", came.len()))?;
            let same = came.iter().zip(all).take_while(|(a, b)| a == b).count();
            ensure!(
                came == all,
                "{} of {BODY_MAX} bytes came back, they differ from byte {same} on",
                came.len()
            );
            Ok(())
        })
    }

    /// One exchange; an error unless each byte of the answer is the right one.
    pub(super) fn exchange(&mut self, pattern: &Pattern, kind: Kind, size: usize, from: usize) -> Result<()> {
        let expected = pattern.body(from, size).context("a body beyond the pattern")?;
        let context = || format!("{kind:?} of {size} bytes from {from}");
        self.send(kind, expected, size, from).with_context(context)?;
        let body = self.receive().with_context(context)?;
        let same = body.iter().zip(expected).take_while(|(a, b)| a == b).count();
        if body != expected {
            bail!("{}: {} bytes came, they differ from byte {same} on", context(), body.len());
        }
        Ok(())
    }

    fn send(&mut self, kind: Kind, body: &[u8], size: usize, from: usize) -> Result<()> {
        let output = self.input.get_mut();
        let (line, field) = match kind {
            Kind::Download => (format!("GET /size/{size}/from/{from}"), String::new()),
            Kind::Chunked => (format!("GET /size/{size}/from/{from}"), "X-Chunked: 1\r\n".into()),
            Kind::Upload => ("POST /".into(), format!("Content-Length: {size}\r\n")),
        };
        write!(output, "{line} HTTP/1.1\r\nHost: guest.test\r\n{field}\r\n").context("sending the head")?;
        if matches!(kind, Kind::Upload) {
            output.write_all(body).context("sending the body")?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let head = Head::read(&mut self.input).context("the response's head")?;
        let head = head.context("the connection was closed instead of an answer")?;
        ensure!(head.first.starts_with("HTTP/1.1 200 "), "the answer is: {}", head.first);
        let mut body = Vec::new();
        if let Some(length) = head.length {
            ensure!(length <= BODY_MAX, "a body of {length} bytes was announced");
            body.resize(length, 0);
            self.input.read_exact(&mut body).context("the response's body")?;
            return Ok(body);
        }
        ensure!(head.chunked, "the answer has no framing");
        loop {
            let line = read_line(&mut self.input).context("a chunk's head")?;
            let length =
                usize::from_str_radix(&line, 16).with_context(|| format!("a chunk's length: {line}"))?;
            ensure!(body.len() + length <= BODY_MAX, "chunks beyond {BODY_MAX} bytes");
            let start = body.len();
            body.resize(start + length, 0);
            self.input.read_exact(&mut body[start..]).context("a chunk")?;
            let end = read_line(&mut self.input).context("a chunk's end")?;
            ensure!(end.is_empty(), "a chunk is longer than it says: {end}");
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("{address}: connecting"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn heads_are_read_up_to_their_end() {
        let mut input = &b"HTTP/1.1 200 OK\r\nVia: 1.1 x\r\ncontent-LENGTH: 7\r\n\r\nbody"[..];
        let head = Head::read(&mut input).unwrap().unwrap();
        assert_eq!((head.first.as_str(), head.length, head.chunked), ("HTTP/1.1 200 OK", Some(7), false));
        assert_eq!(input, b"body");
        assert_eq!(Head::read(&mut &b""[..]).unwrap(), None);
        assert!(Head::read(&mut &b"GET / HTTP/1.1\r\nno field\r\n\r\n"[..]).is_err());
    }

    /// A client whose peer is the backend itself, over loopback, and how the backend ended.
    fn direct(pattern: &Arc<Pattern>) -> (Client, mpsc::Receiver<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (served, ended) = mpsc::channel();
        let pattern = Arc::clone(pattern);
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = served.send(serve(stream, &pattern).is_ok());
        });
        (Client { input: BufReader::new(connect(address).unwrap()) }, ended)
    }

    #[test]
    fn what_comes_back_is_compared() {
        let pattern = Arc::new(Pattern::new(BODY_MAX));
        let (mut client, ended) = direct(&pattern);
        for kind in [Kind::Download, Kind::Chunked, Kind::Upload] {
            for size in [0, 1, 70_000, BODY_MAX] {
                client.exchange(&pattern, kind, size, 17).unwrap();
            }
        }
        // Another place's bytes are not the right ones.
        client.send(Kind::Download, &[], 100, 1).unwrap();
        assert_ne!(client.receive().unwrap(), pattern.body(2, 100).unwrap());
        drop(client);
        assert!(ended.recv_timeout(PATIENCE).unwrap(), "the backend saw an orderly end");
    }

    #[test]
    fn after_an_upgrade_bytes_come_back() {
        let pattern = Arc::new(Pattern::new(BODY_MAX));
        let (mut client, ended) = direct(&pattern);
        write!(client.input.get_mut(), "GET / HTTP/1.1\r\nUpgrade: echo\r\n\r\n").unwrap();
        let head = Head::read(&mut client.input).unwrap().unwrap();
        assert_eq!(head.first, "HTTP/1.1 101 Switching Protocols");
        client.through(&pattern).unwrap();
        assert!(ended.recv_timeout(PATIENCE).unwrap(), "the backend saw an orderly end");
    }
}
