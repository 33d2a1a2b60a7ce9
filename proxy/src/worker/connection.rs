//! Connections to backends and their pools.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Token};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};
use underpass_command::state::{Limits, SendProxy, Settings};

use super::core::{Core, Presence};
use super::event_loop::{Kind, token};
use super::session::Session;
use crate::forward::Endpoint;
use crate::metrics::Counter;
use crate::proxy_protocol::{Addresses, Header};

/// A connection to a backend.
pub(super) struct Connection {
    pub(super) endpoint: Endpoint,
    /// Tells its events from those of connections that had its key before.
    pub(super) generation: u32,
    /// Index of the backend.
    pub(super) upstream: u32,
    /// Key of the session that uses it; none while it is idle.
    pub(super) session: Option<usize>,
}

/// All connections of a worker to backends.
pub(super) type Connections = Slab<Connection>;

/// The most connections to backends: one for each client, and as many idle ones.
pub(super) fn most(settings: &Settings) -> usize {
    2 * settings.limits.connections as usize
}

/// The number of a connection's deadline in the wheel: behind those of the sessions.
pub(super) fn wheel_entry(core: &Core, key: usize) -> usize {
    core.settings.limits.connections as usize + super::session::OVERFLOW + key
}

/// Begins to connect to a backend for a session. The outcome shows when the socket becomes writable.
pub(super) fn open(
    core: &mut Core,
    connections: &mut Connections,
    upstream: u32,
    session: usize,
) -> io::Result<usize> {
    if connections.len() >= most(&core.settings) && !close_one_idle(core, connections) {
        let reason = "the worker's limit of connections to backends is reached";
        return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
    }
    let mut stream = connect(core.upstreams[upstream as usize].address, &core.settings.limits)?;
    let entry = connections.vacant_entry();
    let key = entry.key();
    let generation = core.next_generation();
    core.registry.register(
        &mut stream,
        token(Kind::Backend, key, generation),
        Interest::READABLE | Interest::WRITABLE,
    )?;
    entry.insert(Connection {
        endpoint: Endpoint::new(stream, false, false),
        generation,
        upstream,
        session: Some(session),
    });
    core.count(Counter::BackendConnects);
    core.gauge(Counter::BackendsOpen, true);
    Ok(key)
}

/// Begins to connect, with bounds on what the kernel will hold for the connection. Those on what it receives come first,
/// because the window that it offers goes by them.
fn connect(address: SocketAddr, limits: &Limits) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if limits.backend_receive_size > 0 {
        socket.set_recv_buffer_size(limits.backend_receive_size as usize)?;
    }
    socket.set_tcp_notsent_lowat(limits.unsent_max)?;
    // Heads and small bodies go out in one piece each; Nagle's algorithm would only hold them back.
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Tells a backend who the client is, where its cluster wants to know: before the first byte, in one piece.
///
/// # Errors
/// When the connection did not take it whole.
pub(super) fn introduce(
    core: &Core,
    connection: usize,
    connections: &mut Connections,
    session: &Session,
) -> io::Result<()> {
    let cluster = session.exchange.cluster.map(|cluster| &core.clusters[cluster as usize]);
    let version = cluster.map_or(SendProxy::Off, |cluster| cluster.configured.send_proxy);
    if version == SendProxy::Off {
        return Ok(());
    }
    let destination = match session.destination {
        Some(told) => told,
        None => session.client.stream().local_addr()?,
    };
    let Some(header) = Header::new(version, Addresses { source: session.source, destination }) else {
        return Ok(());
    };
    let bytes = header.as_bytes();
    // The send buffer of a connection that has just been made is empty, and holds more than a header.
    match connections[connection].endpoint.send(&[IoSlice::new(bytes)])? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Closes the idle connection that was used longest ago, of the backend that has most of them. False if there is none.
#[cold]
fn close_one_idle(core: &mut Core, connections: &mut Connections) -> bool {
    let fullest = core.upstreams.iter().max_by_key(|upstream| upstream.idle.len());
    let Some(&key) = fullest.and_then(|upstream| upstream.idle.first()) else { return false };
    close(core, connections, key);
    true
}

/// Takes the idle connection to a backend that was used last.
pub(super) fn reuse(
    core: &mut Core,
    connections: &mut Connections,
    upstream: u32,
    session: usize,
) -> Option<usize> {
    let key = core.upstreams[upstream as usize].idle.pop()?;
    core.gauge(Counter::BackendsIdle, false);
    let entry = wheel_entry(core, key);
    core.wheel.clear(entry);
    connections[key].session = Some(session);
    core.count(Counter::BackendReuses);
    Some(key)
}

/// Gives a connection back to its pool, or closes it where the pool is full.
pub(super) fn retire(core: &mut Core, connections: &mut Connections, key: usize) {
    let connection = &mut connections[key];
    let upstream = connection.upstream as usize;
    let room = core.upstreams[upstream].idle.len() < core.settings.limits.backend_idle as usize;
    connection.endpoint.release_if_empty(&mut core.buffers);
    let idle = match &connection.endpoint {
        endpoint if endpoint.buffer.is_some() => Idle::Unsolicited,
        endpoint if endpoint.hangup || endpoint.ended => Idle::Ended,
        // What has been announced and was not read gives no further event: it would be the next request's response.
        endpoint if endpoint.readable => peek(&mut connection.endpoint),
        _ => Idle::Quiet,
    };
    if matches!(idle, Idle::Unsolicited) {
        core.count(Counter::BackendUnsolicited);
    }
    let wanted =
        core.upstreams[upstream].presence == Presence::Present && !core.upstreams[upstream].configured.drain;
    if !room || !wanted || !matches!(idle, Idle::Quiet) || core.draining {
        close(core, connections, key);
        return;
    }
    connection.session = None;
    connection.endpoint.leave_targets();
    core.upstreams[upstream].idle.push(key);
    core.gauge(Counter::BackendsIdle, true);
    let deadline = core.now.ms + core.settings.timeouts.backend_keep_alive_ms;
    let entry = wheel_entry(core, key);
    core.wheel.set(entry, deadline);
}

/// Closes a connection, idle or not.
pub(super) fn close(core: &mut Core, connections: &mut Connections, key: usize) {
    let mut connection = connections.remove(key);
    let entry = wheel_entry(core, key);
    core.wheel.clear(entry);
    if connection.session.is_none() {
        let idle = &mut core.upstreams[connection.upstream as usize].idle;
        if let Some(at) = idle.iter().rposition(|other| *other == key) {
            idle.remove(at); // the order tells which was used last
            core.gauge(Counter::BackendsIdle, false);
        }
    }
    connection.endpoint.discard_buffer(&mut core.buffers);
    connection.endpoint.detach(core.redirector.as_mut());
    core.gauge(Counter::BackendsOpen, false);
    // Closing the socket takes it out of epoll.
}

/// An event on an idle connection: the backend has closed it, or sends what nobody asked for.
pub(super) fn idle_event(core: &mut Core, connections: &mut Connections, key: usize) {
    if !connections[key].endpoint.readable {
        return;
    }
    match peek(&mut connections[key].endpoint) {
        Idle::Quiet => {}
        Idle::Ended => close(core, connections, key),
        Idle::Unsolicited => {
            // RFC 9112 section 9.3 has no response without request; whoever took it for the next one would be fooled.
            core.count(Counter::BackendUnsolicited);
            close(core, connections, key);
        }
    }
}

/// What an idle connection has to say.
pub(super) enum Idle {
    Quiet,
    Ended,
    Unsolicited,
}

/// Looks at an idle connection.
pub(super) fn peek(endpoint: &mut Endpoint) -> Idle {
    let mut byte = [0u8; 1];
    match endpoint.stream().peek(&mut byte) {
        Ok(0) => Idle::Ended,
        Ok(_) => Idle::Unsolicited,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            endpoint.readable = false;
            Idle::Quiet
        }
        Err(_) => Idle::Ended,
    }
}

/// The token of the control channel.
pub(super) const CONTROL: Token = Token(usize::MAX - 1);
/// The token of the wake-ups of the kernel's redirection.
pub(super) const REDIRECT: Token = Token(usize::MAX - 2);
