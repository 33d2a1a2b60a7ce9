//! Many TCP connections at once over few buffers and pipes, with every way to end, drawn from a seed: to the byte, and
//! nothing is left behind.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;

use underpass::metrics::Counter;
use underpass_command::state::{Protocol, ProxyProtocol, RedirectMode};
use underpass_tests::backend::Connection;
use underpass_tests::proxy::Setup;
use underpass_tests::random::Random;
use underpass_tests::worker::Worker;
use underpass_tests::{Backend, Peer};

const CLIENTS: u32 = 8;
const CONNECTIONS: u32 = 30;
const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";
/// What a server says of its own.
const SPEECH: usize = 150_000;

/// Bytes that are not all the same.
fn content(random: &mut Random, size: usize) -> Vec<u8> {
    let start = random.below(251);
    (0..size).map(|at| u8::try_from((start + at * 7) % 251).expect("below 251")).collect()
}

/// The first byte says what the server does: `e` sends everything back until the end; `s` speaks, ends, and listens on;
/// `r` takes some and resets.
fn server(connection: &mut Connection) {
    let Ok(kind) = connection.peer.try_bytes(1) else { return };
    match kind[0] {
        b'e' => {
            while let Ok(bytes) = connection.peer.some()
                && !bytes.is_empty()
                && connection.peer.try_send(bytes).is_ok()
            {}
        }
        b's' => {
            if connection.peer.try_send(vec![b's'; SPEECH]).is_ok() {
                connection.peer.finish();
                let _ = connection.peer.try_rest();
            }
        }
        _ => {
            let _ = connection.peer.try_bytes(1000);
            connection.peer.reset_on_close();
        }
    }
}

/// One connection from its beginning to some end.
fn connection(address: SocketAddr, random: &mut Random) {
    let mut peer = Peer::connect(address);
    // The header in two pieces, the second with the first of what follows.
    let cut = random.below(HEADER.len());
    peer.send(&HEADER[..cut]);
    match random.below(4) {
        0 => {
            peer.send([&HEADER[cut..], b"s"].concat());
            assert_eq!(peer.rest(), vec![b's'; SPEECH]);
            // The other direction is open still.
            let more = random.below(200_000);
            peer.send(content(random, more));
        }
        1 => {
            peer.send([&HEADER[cut..], b"r"].concat());
            // Whatever was written before the reset was noticed is lost, and whatever is written after it fails.
            while peer.try_send([b'x'; 5000]).is_ok() {
                if peer.some().is_err() {
                    break;
                }
            }
        }
        _ => {
            peer.send([&HEADER[cut..], b"e"].concat());
            for _ in 0..random.below(6) {
                let size = 1 + random.below(60_000);
                let sent = content(random, size);
                peer.send(&sent);
                assert!(peer.bytes(sent.len()) == sent, "what came back is not what was sent");
            }
            match random.below(4) {
                0 => peer.reset(),
                // Closed with bytes unread: the kernel resets it.
                1 => peer.send([b'y'; 100]),
                _ => {
                    peer.finish();
                    peer.expect_end();
                }
            }
        }
    }
}

/// A connection that never becomes one: half a header, or none.
fn stillborn(address: SocketAddr, random: &mut Random) {
    let peer = Peer::connect(address);
    let cut = random.below(HEADER.len());
    let _ = peer.stream().write_all(&HEADER[..cut]);
    if random.below(2) == 0 {
        peer.finish();
        match peer.stream().read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("an answer to half a header: {other:?}"),
        }
    }
}

#[test]
fn many_connections_over_few_buffers() {
    for &mode in RedirectMode::ALL {
        let backend = Backend::start(server);
        let worker = Worker::start(Setup::to(&[backend.address()]).redirect(mode).with(|state| {
            let listener = &mut state.listeners[0];
            (listener.protocol, listener.proxy_protocol) = (Protocol::Tcp, ProxyProtocol::Require);
            let limits = &mut state.settings.limits;
            // Two for each client's connection and two for the one before it, which may not have ended: without a buffer for
            // what comes first a connection is refused.
            (limits.buffers, limits.pipes, limits.pipe_size) = (4 * CLIENTS, 2, 16 * 1024);
        }));
        let address = worker.address();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                thread::spawn(move || {
                    let mut random = Random::new(client.into());
                    for _ in 0..CONNECTIONS {
                        match random.below(8) {
                            0 => stillborn(address, &mut random),
                            _ => connection(address, &mut random),
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("a client failed; see its message above");
        }
        assert!(worker.counter(Counter::TcpConnections) > u64::from(CLIENTS * CONNECTIONS / 2), "{mode}");
        worker.stop();
    }
}
