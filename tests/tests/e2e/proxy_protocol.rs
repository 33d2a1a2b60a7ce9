//! The PROXY protocol: HAProxy in front that sends it, nginx behind that wants it, and peers that get it wrong.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use underpass_command::state::{Protocol, ProxyProtocol, RedirectMode, SendProxy};
use underpass_tests::body::{Content, hash_of};
use underpass_tests::haproxy::Haproxy;
use underpass_tests::nginx::Nginx;
use underpass_tests::ports::ReservedPort;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer, curl};

/// A client's address that is not the proxy's own.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn requiring(setup: Setup) -> Setup {
    setup.with(|state| state.listeners[0].proxy_protocol = ProxyProtocol::Require)
}

fn tcp(setup: Setup) -> Setup {
    setup.with(|state| state.listeners[0].protocol = Protocol::Tcp)
}

fn sending(setup: Setup, version: SendProxy) -> Setup {
    setup.with(|state| state.clusters[0].send_proxy = version)
}

/// An nginx that wants the PROXY protocol and answers `/who` with what it was told.
fn nginx(files: &[(&str, Content)]) -> Nginx {
    let who = "location /who { return 200 \"$proxy_protocol_addr:$proxy_protocol_port \
               $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }";
    Nginx::start_with(files, "proxy_protocol", who)
}

/// A version 2 header of these parts.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a length");
    [V2_SIGNATURE, &[command, family], &length.to_be_bytes(), rest].concat()
}

#[test]
fn the_client_that_haproxy_tells_is_the_client() {
    for option in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"] {
        let backend = Backend::answering(OK);
        let proxy = requiring(Setup::to(&[backend.address()])).start();
        let front = Haproxy::start(proxy.address(), option);
        let mut client = Peer::connect_from(CLIENT, front.address());
        for _ in 0..3 {
            client.send(GET);
            assert_eq!(client.response().text(), "ok", "{option}");
        }
        drop(client);
        for request in backend.requests() {
            assert_eq!(request.value("X-Forwarded-For"), Some("127.0.0.9"), "{option}");
        }
        drop(front);
        proxy.stop();
    }
}

#[test]
fn nginx_learns_the_client_of_every_request() {
    for version in [SendProxy::V1, SendProxy::V2] {
        let nginx = nginx(&[]);
        let proxy = sending(Setup::to(&[nginx.address()]), version).start();
        let sources = [CLIENT, IpAddr::V4(Ipv4Addr::new(127, 0, 0, 10))];
        let mut clients = sources.map(|source| Peer::connect_from(source, proxy.address()));
        // In turns, so that a connection that was kept would be taken by the other client.
        for _ in 0..3 {
            for client in &mut clients {
                client.send("GET /who HTTP/1.1\r\nHost: a\r\n\r\n");
                let address = client.stream().local_addr().expect("its address");
                assert_eq!(client.response().text(), format!("{address} {}", proxy.address()), "{version}");
            }
        }
        drop(clients);
        proxy.expect_quiet();
        // A connection that has told one client's address is not kept for another.
        assert_eq!(proxy.counter("backend_connections_open"), 0);
        assert_eq!(proxy.counter("backend_reuses"), 0);
        proxy.stop();
    }
}

#[test]
fn the_client_is_told_from_end_to_end_over_tcp() {
    let content = Content::new(3, 5_000_000);
    let nginx = nginx(&[("file", content.clone())]);
    for (option, version) in [("send-proxy", SendProxy::V2), ("send-proxy-v2", SendProxy::V1)] {
        for &mode in RedirectMode::ALL {
            let setup = tcp(sending(requiring(Setup::to(&[nginx.address()])), version));
            let proxy = setup.redirect(mode).start();
            let front = Haproxy::start(proxy.address(), option);
            let mut client = Peer::connect_from(CLIENT, front.address());
            client.send("GET /who HTTP/1.1\r\nHost: a\r\n\r\n");
            let address = client.stream().local_addr().expect("its address");
            // Where the client connected to is HAProxy.
            assert_eq!(client.response().text(), format!("{address} {}", front.address()), "{option} {mode}");
            drop(client);
            let got = curl::get(&format!("http://{}/length/file", front.address()), &[]);
            assert_eq!(got, hash_of(&mut content.clone()).expect("a content"), "{option} {mode}");
            drop(front);
            proxy.stop();
        }
    }
}

/// Whatever comes behind the header, in the same segment or not, belongs to the protocol behind it.
#[test]
fn not_a_byte_too_many_is_taken() {
    let line = &b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"[..];
    let binary = v2(
        0x21,
        0x11,
        &[&[192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 4, 1, 0xbb][..], &[4, 0, 3, 1, 2, 3]].concat(),
    );
    let backend = Backend::answering(OK);
    let proxy = requiring(Setup::to(&[backend.address()])).start();
    let echo = Backend::start(|connection| {
        while let Ok(bytes) = connection.peer.some()
            && !bytes.is_empty()
        {
            connection.peer.send(bytes);
        }
    });
    let tunnel = tcp(requiring(Setup::to(&[echo.address()]))).start();
    for header in [line, &binary] {
        let whole = [header, GET.as_bytes(), GET.as_bytes()].concat();
        for at in (1..whole.len()).step_by(7).chain([header.len() - 1, header.len(), header.len() + 1]) {
            let mut client = Peer::connect(proxy.address());
            let mut other = Peer::connect(tunnel.address());
            for peer in [&mut client, &mut other] {
                peer.send(&whole[..at]);
            }
            // What was sent is read by the one before the other is connected and answers.
            for peer in [&mut client, &mut other] {
                peer.send(&whole[at..]);
            }
            for _ in 0..2 {
                assert_eq!(client.response().text(), "ok", "cut at {at}");
            }
            assert_eq!(other.bytes(2 * GET.len()), [GET, GET].concat().as_bytes(), "cut at {at}");
            other.finish();
            other.expect_end();
        }
    }
    assert!(backend.requests().iter().all(|request| request.value("X-Forwarded-For") == Some("192.0.2.1")));
    proxy.stop();
    tunnel.stop();
}

/// LOCAL, UNKNOWN and families that tell nothing: the connection's own address counts.
#[test]
fn headers_without_an_address_are_taken() {
    let backend = Backend::answering(OK);
    let proxy = requiring(Setup::to(&[backend.address()])).start();
    let unknown = b"PROXY UNKNOWN ffff::1 whatever\r\n".to_vec();
    for header in
        [unknown, v2(0x20, 0, &[]), v2(0x20, 0x11, &[9; 12]), v2(0x21, 0x31, &[1; 216]), v2(0x21, 0, &[])]
    {
        let mut client = Peer::connect(proxy.address());
        client.send([&header, GET.as_bytes()].concat());
        assert_eq!(client.response().text(), "ok");
    }
    assert!(backend.requests().iter().all(|request| request.value("X-Forwarded-For") == Some("127.0.0.1")));
    proxy.stop();
}

#[test]
fn without_a_valid_header_nothing_is_served() {
    let backend = Backend::answering(OK);
    for protocol in Protocol::ALL {
        let setup = requiring(Setup::to(&[backend.address()]));
        let proxy = setup.with(|state| state.listeners[0].protocol = *protocol).start();
        let refused: [(&str, Vec<u8>); 6] = [
            ("proxy_header_missing", GET.into()),
            ("proxy_header_missing", b"\x16\x03\x01".to_vec()),
            ("proxy_header_malformed", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 99999\r\n".to_vec()),
            ("proxy_header_malformed", [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat()),
            ("proxy_header_malformed", v2(0x21, 0x11, &[1; 11])),
            ("proxy_header_too_long", v2(0x21, 0x11, &[1; 17_000])[..100].to_vec()),
        ];
        for (reason, bytes) in refused {
            let before = proxy.refused_requests(reason);
            let mut client = Peer::connect(proxy.address());
            client.send([&bytes[..], GET.as_bytes()].concat());
            client.expect_gone();
            assert_eq!(proxy.refused_requests(reason), before + 1, "{protocol}: {reason}");
        }
        let mut client = Peer::connect(proxy.address());
        client.send("PROXY TCP4");
        client.finish();
        client.expect_gone();
        assert_eq!(proxy.refused_requests("proxy_header_truncated"), 1);
        // Whoever only looks whether somebody listens does no harm.
        let mut client = Peer::connect(proxy.address());
        client.finish();
        client.expect_end();
        drop(client);
        proxy.stop();
    }
    backend.expect_untouched();
}

#[test]
fn a_header_that_does_not_come_in_time() {
    let backend = Backend::answering(OK);
    for protocol in Protocol::ALL {
        let proxy = requiring(Setup::to(&[backend.address()]))
            .with(|state| {
                state.listeners[0].protocol = *protocol;
                state.settings.timeouts.head_ms = 200;
            })
            .start();
        for begun in ["", "PROXY TCP4 1.1.1.1"] {
            let mut client = Peer::connect(proxy.address());
            // On a busy machine the deadline may come first.
            let _ = client.try_send(begun);
            client.expect_gone();
        }
        assert_eq!(proxy.refused_requests("proxy_header_timeout"), 2, "{protocol}");
        assert_eq!(proxy.counter("timeout_head"), 2, "{protocol}");
        proxy.stop();
    }
    backend.expect_untouched();
}

/// The header comes before the first byte, and again on the connection to the next backend.
#[test]
fn the_header_is_sent_to_the_backend_that_is_reached() {
    let down = ReservedPort::new();
    for protocol in Protocol::ALL {
        let first = std::sync::Arc::new(Mutex::new(Vec::new()));
        let kept = std::sync::Arc::clone(&first);
        let backend = Backend::start(move |connection| {
            let header = connection.peer.try_bytes(28).unwrap_or_default();
            kept.lock().expect("one at a time").push(header);
            connection.answer_all(OK);
        });
        let proxy = sending(Setup::to(&[down.address(), backend.address()]), SendProxy::V2)
            .with(|state| state.listeners[0].protocol = *protocol)
            .start();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = Peer::connect(proxy.address());
            client.send(GET);
            assert_eq!(client.response().text(), "ok");
            clients.push(client.stream().local_addr().expect("its address"));
        }
        let expected = |client: &SocketAddr| {
            let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (client, proxy.address()) else {
                panic!("not IPv4")
            };
            let parts = [
                &source.ip().octets()[..],
                &destination.ip().octets(),
                &source.port().to_be_bytes(),
                &destination.port().to_be_bytes(),
            ];
            v2(0x21, 0x11, &parts.concat())
        };
        let mut headers = first.lock().expect("nobody panicked").clone();
        let mut wanted: Vec<_> = clients.iter().map(expected).collect();
        headers.sort();
        wanted.sort();
        assert_eq!(headers, wanted, "{protocol}");
        proxy.stop();
    }
}
