//! The floor: what it costs to pass bytes on, and nothing else.
//!
//! The same event loop as underpass's worker (mio, edge-triggered, one thread), one backend connection for each
//! client connection, no parsing, no timers, no pool. A read that returns less than was asked for ends the reading, so a
//! request and its response cost four system calls and their share of `epoll_wait`. What a proxy costs beyond this is
//! its own code. With `--splice` the responses go through a pipe instead, which is the floor for large bodies.

mod splice;

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};

use anyhow::{Context, Result};
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use splice::Pipe;

/// Where to listen and whereto to connect.
#[derive(clap::Args)]
pub struct Options {
    /// Address to listen on; the first line on the standard output tells the port that was taken.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the backend.
    #[arg(long)]
    backend: SocketAddr,
    /// Size of the one buffer in bytes.
    #[arg(long, default_value_t = 64 * 1024, value_parser = clap::value_parser!(u32).range(1..))]
    buffer_size: u32,
    /// Move the responses through pipes (splice) and not through the buffer.
    #[arg(long)]
    splice: bool,
}

/// Most client connections; further ones are closed at once.
const CONNECTIONS_MAX: usize = 16 * 1024;
const LISTENER: Token = Token(usize::MAX);
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Passes bytes on until it is killed.
///
/// # Errors
/// The address cannot be had, or the event loop fails.
pub fn run(options: &Options) -> Result<()> {
    let mut listener = TcpListener::bind(options.listen)
        .with_context(|| format!("address {}: cannot listen", options.listen))?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut pairs: Slab<Pair> = Slab::new();
    let mut buffer = vec![0; usize::try_from(options.buffer_size)?];
    let mut events = Events::with_capacity(256);
    println!("{}", listener.local_addr()?);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut pairs, options)?;
                continue;
            }
            // Even tokens are clients, odd ones their backend connections.
            let (key, is_backend) = (event.token().0 / 2, event.token().0 % 2 == 1);
            if let Some(pair) = pairs.get_mut(key)
                && !matches!(pair.on_event(event, is_backend, &mut buffer), Ok(Open::Yes))
            {
                pairs.remove(key);
            }
        }
    }
}

fn accept(listener: &TcpListener, poll: &Poll, pairs: &mut Slab<Pair>, options: &Options) -> Result<()> {
    let address = options.backend;
    loop {
        let mut client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("cannot accept"),
        };
        if pairs.len() >= CONNECTIONS_MAX {
            continue;
        }
        let mut backend =
            TcpStream::connect(address).with_context(|| format!("backend {address}: cannot connect"))?;
        client.set_nodelay(true)?;
        backend.set_nodelay(true)?;
        let down = if options.splice { Store::Pipe(Pipe::new()?) } else { Store::empty() };
        let entry = pairs.vacant_entry();
        poll.registry().register(&mut client, Token(entry.key() * 2), BOTH)?;
        poll.registry().register(&mut backend, Token(entry.key() * 2 + 1), BOTH)?;
        entry.insert(Pair { client, backend, up: Direction::by(Store::empty()), down: Direction::by(down) });
    }
}

/// Whether a pair has more to do.
#[derive(PartialEq, Eq)]
enum Open {
    Yes,
    No,
}

/// A client connection and its backend connection.
struct Pair {
    client: TcpStream,
    backend: TcpStream,
    up: Direction,
    down: Direction,
}

impl Pair {
    fn on_event(&mut self, event: &Event, is_backend: bool, buffer: &mut [u8]) -> io::Result<Open> {
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        let (from_here, to_here) =
            if is_backend { (&mut self.down, &mut self.up) } else { (&mut self.up, &mut self.down) };
        from_here.readable |= readable;
        from_here.hangup |= event.is_read_closed() || event.is_error();
        let resume = event.is_writable() && !to_here.store.is_empty();
        let (here, there) = if is_backend {
            (&mut self.backend, &mut self.client)
        } else {
            (&mut self.client, &mut self.backend)
        };
        if readable {
            from_here.pump(here, there, buffer)?;
        }
        if resume {
            to_here.pump(there, here, buffer)?;
        }
        Ok(if self.up.ended && self.down.ended { Open::No } else { Open::Yes })
    }
}

/// One way through a pair.
struct Direction {
    /// What the source gave and the target did not take; nothing more is taken while there is any.
    store: Store,
    readable: bool,
    /// The source's end is on its way: no further event tells when it can be read.
    hangup: bool,
    ended: bool,
}

/// Where bytes are between source and target.
enum Store {
    /// The rest of one buffer at most.
    Memory(VecDeque<u8>),
    Pipe(Pipe),
}

impl Store {
    fn empty() -> Self {
        Self::Memory(VecDeque::new())
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Memory(unsent) => unsent.is_empty(),
            Self::Pipe(pipe) => pipe.is_empty(),
        }
    }
}

/// Whether a step may be followed by another.
#[derive(PartialEq, Eq)]
enum Step {
    Moved,
    SourceEmpty,
    SourceEnded,
    TargetFull,
}

impl Direction {
    fn by(store: Store) -> Self {
        Self { store, readable: false, hangup: false, ended: false }
    }

    /// Moves bytes until the source has none or the target takes none.
    fn pump(&mut self, source: &mut TcpStream, target: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
        let flushed = match &mut self.store {
            Store::Memory(unsent) => flush(unsent, target)?,
            Store::Pipe(pipe) => pipe.flush(target)?,
        };
        if !flushed {
            return Ok(());
        }
        while self.readable && !self.ended {
            let step = match &mut self.store {
                Store::Memory(unsent) => copy(source, target, buffer, unsent, self.hangup)?,
                Store::Pipe(pipe) => pipe.pass(source, target)?,
            };
            match step {
                Step::Moved => {}
                Step::SourceEmpty => self.readable = false,
                Step::SourceEnded => {
                    self.ended = true;
                    return target.shutdown(Shutdown::Write);
                }
                Step::TargetFull => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Reads once and sends that.
fn copy(
    source: &mut TcpStream,
    target: &mut TcpStream,
    buffer: &mut [u8],
    unsent: &mut VecDeque<u8>,
    hangup: bool,
) -> io::Result<Step> {
    let Some(length) = unless_blocked(|| source.read(buffer))? else { return Ok(Step::SourceEmpty) };
    if length == 0 {
        return Ok(Step::SourceEnded);
    }
    let sent = unless_blocked(|| target.write(&buffer[..length]))?.unwrap_or(0);
    if sent < length {
        // A short write has filled the socket: space in it raises the next event.
        unsent.extend(&buffer[sent..length]);
        return Ok(Step::TargetFull);
    }
    // A short read has emptied the socket: the next byte raises the next event.
    Ok(if length == buffer.len() || hangup { Step::Moved } else { Step::SourceEmpty })
}

/// Sends what is left over; false when the target takes no more.
fn flush(unsent: &mut VecDeque<u8>, target: &mut TcpStream) -> io::Result<bool> {
    while !unsent.is_empty() {
        let Some(length) = unless_blocked(|| target.write(unsent.as_slices().0))? else { return Ok(false) };
        unsent.drain(..length);
    }
    Ok(true)
}

/// None when the socket is not ready.
fn unless_blocked(mut operation: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match operation() {
            Ok(length) => return Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
