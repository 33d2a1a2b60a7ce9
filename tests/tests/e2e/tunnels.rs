//! Connections that change their protocol: Upgrade and CONNECT become tunnels, both directions by the redirect mode.

use underpass_command::state::Route;
use underpass_tests::body::Content;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, Peer};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A backend that switches protocols, then sends back whatever comes until the client's end, then says goodbye.
fn echo() -> Backend {
    Backend::start(|connection| {
        let Some(request) = connection.request() else { return };
        assert_eq!(request.value("Upgrade"), Some("websocket"));
        assert!(request.value("Connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
        connection.peer.send(SWITCHED);
        loop {
            let bytes = connection.peer.some().expect("reading from a tunnel");
            if bytes.is_empty() {
                break;
            }
            connection.peer.send(bytes);
        }
        connection.peer.send("goodbye");
    })
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways_and_keeps_half_close() {
    for mode in MODES {
        let backend = echo();
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        client.send(UPGRADE);
        let response = client.response();
        assert_eq!(response.status(), 101);
        assert_eq!(response.value("Upgrade"), Some("websocket"));
        assert!(response.value("Connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
        for size in [1, 100, 16 * 1024, 100_000] {
            let sent = Content::new(size, size).to_vec();
            client.send(&sent);
            assert_eq!(client.bytes(sent.len()), sent, "{mode}: {size} bytes");
        }
        assert_eq!(proxy.counter("tunnels_active"), 1);
        client.finish();
        // The other direction is still open when the client has finished.
        assert_eq!(client.rest(), b"goodbye");
        drop(client);
        proxy.expect_quiet();
        assert_eq!(proxy.counter("tunnels"), 1);
        proxy.stop();
    }
}

#[test]
fn what_follows_the_switch_in_the_same_segment_is_not_lost() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send(format!("{SWITCHED}first words of the server"));
            assert_eq!(connection.peer.bytes(9), b"of client");
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        // A client that does not wait for the switch: what it sends belongs to the new protocol.
        client.send(format!("{UPGRADE}of client"));
        assert_eq!(client.response().status(), 101);
        assert_eq!(client.rest(), b"first words of the server");
        drop(client);
        proxy.stop();
    }
}

#[test]
fn the_servers_half_close_reaches_the_client_and_the_client_can_go_on() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send(format!("{SWITCHED}done"));
            connection.peer.finish();
            assert_eq!(connection.peer.rest().len(), 300_000);
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        client.send(UPGRADE);
        assert_eq!(client.response().status(), 101);
        assert_eq!(client.rest(), b"done");
        client.send(vec![b'x'; 300_000]);
        client.finish();
        drop(client);
        proxy.stop();
    }
}

#[test]
fn an_upgrade_that_the_backend_declines_stays_http() {
    let backend = Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    let proxy = Setup::to(&[backend.address()]).start();
    let mut client = Peer::connect(proxy.address());
    for _ in 0..2 {
        client.send(UPGRADE);
        assert_eq!(client.response().text(), "no");
    }
    drop(client);
    assert_eq!(proxy.counter("tunnels"), 0);
    proxy.stop();
}

#[test]
fn a_tunnel_whose_client_resets_ends_at_the_backend_too() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            let Some(_) = connection.request() else { return };
            connection.peer.send(SWITCHED);
            // Ends when the proxy ends it, in order or not.
            let _ = connection.peer.try_rest();
        });
        let proxy = Setup::to(&[backend.address()]).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        client.send(UPGRADE);
        assert_eq!(client.response().status(), 101);
        client.send("x");
        client.reset();
        proxy.expect_quiet();
        proxy.stop();
    }
}

#[test]
fn a_tunnel_on_which_nothing_moves_ends_at_its_deadline() {
    let backend = Backend::start(|connection| {
        let Some(_) = connection.request() else { return };
        connection.peer.send(SWITCHED);
        let _ = connection.peer.try_rest();
    });
    let proxy =
        Setup::to(&[backend.address()]).with(|state| state.settings.timeouts.tunnel_idle_ms = 200).start();
    let mut client = Peer::connect(proxy.address());
    client.send(UPGRADE);
    assert_eq!(client.response().status(), 101);
    client.expect_gone();
    drop(client);
    assert_eq!(proxy.counter("timeout_tunnel_idle"), 1);
    proxy.stop();
}

fn connect_allowed(setup: Setup) -> Setup {
    setup.with(|state| {
        let mut route = Route::new("app");
        route.host = Some("db.example".into());
        route.allow_connect = true;
        state.routes.push(route);
    })
}

const CONNECT: &str = "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n";

/// The backend speaks its own protocol: it sees nothing of the request.
#[test]
fn connect_opens_a_tunnel_where_a_route_allows_it() {
    for mode in MODES {
        let backend = Backend::start(|connection| {
            connection.peer.send("who is there?");
            assert_eq!(connection.peer.rest(), b"early bird, and more");
        });
        let proxy = connect_allowed(Setup::to(&[backend.address()])).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        // A client that does not wait for the answer.
        client.send(format!("{CONNECT}early bird"));
        let response = client.head();
        assert_eq!(response.status(), 200);
        // Framing fields have no meaning in this answer (RFC 9110 section 9.3.6).
        assert_eq!((response.value("Content-Length"), response.value("Transfer-Encoding")), (None, None));
        assert_eq!(client.bytes(13), b"who is there?");
        client.send(", and more");
        client.finish();
        client.expect_end();
        drop(client);
        assert_eq!(proxy.counter("tunnels"), 1);
        proxy.stop();
    }
}

#[test]
fn connect_to_a_backend_that_is_not_there() {
    let nobody = underpass_tests::ports::ReservedPort::new();
    let proxy = connect_allowed(Setup::to(&[nobody.address()])).start();
    let mut client = Peer::connect(proxy.address());
    client.send(CONNECT);
    assert_eq!(client.response().status(), 502);
    drop(client);
    assert_eq!(proxy.counter("tunnels"), 0);
    proxy.stop();
}
