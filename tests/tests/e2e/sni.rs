//! TCP connections routed by the server name of TLS: real clients, real servers, and hellos in any number of pieces.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use underpass_command::state::{Protocol, ProxyProtocol, RedirectMode, Route, SendProxy};
use underpass_tests::body::{Content, hash_of};
use underpass_tests::certificate::Certificate;
use underpass_tests::nginx::Nginx;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, PATIENCE, Peer, Proxy, curl};

/// A route by server name, to the cluster of the first of these names.
fn route(name: &str, cluster: &str) -> Route {
    let mut route = Route::new(cluster);
    route.sni = Some(name.into());
    route
}

/// `one.example` leads to the cluster "one", every name below `two.example` to "two", the rest to nothing.
fn by_name(one: SocketAddr, two: SocketAddr) -> Setup {
    Setup::to(&[]).cluster("one", &[one]).cluster("two", &[two]).with(|state| {
        state.clusters.retain(|cluster| cluster.name != "app");
        state.listeners[0].protocol = Protocol::Tcp;
        state.listeners[0].default_cluster = None;
        state.routes = vec![route("one.example", "one"), route("*.two.example", "two")];
    })
}

/// An nginx that tells its own name and the server name that TLS told it.
fn nginx(name: &str, certificate: &Certificate, files: &[(&str, Content)]) -> Nginx {
    let who = format!("location /who {{ return 200 \"{name} $ssl_server_name $ssl_protocol\"; }}");
    Nginx::start_tls(files, certificate, &who)
}

/// What the server answers to `/who` under this name, or the status of the curl that failed.
fn who(proxy: &Proxy, certificate: &Certificate, name: &str, options: &[&str]) -> Result<String, i32> {
    let port = proxy.address().port();
    let resolve = format!("{name}:{port}:127.0.0.1");
    let file = certificate.file().display().to_string();
    // curl checks the certificate, so TLS goes from end to end.
    let mut all = vec!["--cacert", &file, "--resolve", &resolve];
    all.extend(options);
    curl::text(&format!("https://{name}:{port}/who"), &all)
}

#[test]
fn the_server_name_chooses_the_cluster_and_tls_passes_untouched() {
    let names = ["one.example", "*.two.example", "other.example"];
    let certificate = Certificate::new(&names);
    let content = Content::new(11, 5_000_000);
    let one = nginx("one", &certificate, &[("file", content.clone())]);
    let two = nginx("two", &certificate, &[]);
    for &mode in RedirectMode::ALL {
        let proxy = by_name(one.address(), two.address()).redirect(mode).start();
        for (option, version) in [("--tlsv1.3", "TLSv1.3"), ("--tls-max=1.2", "TLSv1.2")] {
            let option: Vec<&str> = option.split('=').collect();
            for (name, server) in [("one.example", "one"), ("a.two.example", "two"), ("A.TWO.example", "two")]
            {
                let told = who(&proxy, &certificate, name, &option);
                let lower = name.to_ascii_lowercase();
                assert_eq!(told, Ok(format!("{server} {lower} {version}")), "{mode}: {name}");
            }
        }
        let port = proxy.address().port();
        let file = certificate.file().display().to_string();
        let resolve = format!("one.example:{port}:127.0.0.1");
        let got = curl::get(
            &format!("https://one.example:{port}/length/file"),
            &["--cacert", &file, "--resolve", &resolve],
        );
        assert_eq!(got, hash_of(&mut content.clone()).expect("a content"), "{mode}");
        // 35: the handshake failed.
        assert_eq!(who(&proxy, &certificate, "other.example", &[]), Err(35));
        assert_eq!(proxy.refused_requests("tls_server_name_unknown"), 1);
        proxy.stop();
    }
}

#[test]
fn what_no_route_takes_goes_to_the_default_cluster() {
    let certificate = Certificate::new(&["one.example", "other.example"]);
    let one = nginx("one", &certificate, &[]);
    let rest = nginx("rest", &certificate, &[]);
    let proxy = by_name(one.address(), one.address())
        .cluster("rest", &[rest.address()])
        .with(|state| state.listeners[0].default_cluster = Some("rest".into()))
        .start();
    assert_eq!(who(&proxy, &certificate, "one.example", &[]), Ok("one one.example TLSv1.3".into()));
    assert_eq!(who(&proxy, &certificate, "other.example", &[]), Ok("rest other.example TLSv1.3".into()));
    // No name at all: an IP address has none. The certificate is not for it.
    let url = format!("https://{}/who", proxy.address());
    assert_eq!(curl::text(&url, &["--insecure"]), Ok("rest  TLSv1.3".into()));
    // No TLS at all: nginx says so itself.
    let url = format!("http://{}/who", proxy.address());
    assert_eq!(curl::text(&url, &[]), Err(22));
    proxy.stop();
}

/// The first flight of a real client: openssl, with these arguments.
fn hello(arguments: &[&str]) -> Vec<u8> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("openssl cannot be started: {error}; on Debian: apt-get install openssl")
        });
    let (mut stream, _) = listener.accept().expect("openssl connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).expect("the header of a record");
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    stream.read_exact(&mut record[5..]).expect("a record");
    drop(stream);
    // It has nobody to talk to any more.
    let _ = openssl.kill();
    let _ = openssl.wait();
    assert_eq!(record[0], 22, "no handshake");
    record
}

/// The same handshake message in records of at most so many bytes.
fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).expect("a length").to_be_bytes();
        [&[22, 3, 1][..], &length, piece].concat()
    };
    hello[5..].chunks(size).flat_map(record).collect()
}

/// A backend that names itself, and sends back whatever comes.
fn echo(name: &'static str) -> Backend {
    Backend::start(move |connection| {
        connection.peer.send(name);
        while let Ok(bytes) = connection.peer.some()
            && !bytes.is_empty()
        {
            connection.peer.send(bytes);
        }
    })
}

#[test]
fn a_hello_in_any_number_of_records_and_segments() {
    let (one, two) = (echo("one"), echo("two"));
    let proxy = by_name(one.address(), two.address()).start();
    let cases: [(&[&str], &[u8]); 3] = [
        (&["-servername", "one.example"], b"one"),
        (&["-servername", "x.y.two.example", "-tls1_2"], b"two"),
        (&["-servername", "One.Example", "-alpn", "h2,http/1.1", "-tls1_3"], b"one"),
    ];
    for (arguments, expected) in cases {
        let hello = hello(arguments);
        for size in [1, 7, 64, 16_384] {
            let sent = fragmented(&hello, size);
            for pieces in [1, 2, 50] {
                let mut client = Peer::connect(proxy.address());
                for piece in sent.chunks(sent.len().div_ceil(pieces)) {
                    client.send(piece);
                }
                assert_eq!(client.bytes(3), expected, "{arguments:?} in records of {size}");
                assert!(client.bytes(sent.len()) == sent, "what came is not what was sent");
                client.send("more");
                assert_eq!(client.bytes(4), b"more");
                client.finish();
                client.expect_end();
            }
        }
    }
    proxy.stop();
}

#[test]
fn what_has_no_name_that_is_served_is_closed_and_counted() {
    let backend = echo("one");
    let proxy = by_name(backend.address(), backend.address()).start();
    let mut malformed = hello(&["-servername", "one.example"]);
    malformed[5 + 4 + 34] = 33; // the length of the session id
    let endless =
        [&[22, 3, 1, 0x40, 0, 1, 0, 0x80, 0, 3, 3][..], &[0; 32], &[0, 0x70, 0], &[0; 20_000]].concat();
    let refused: [(&str, Vec<u8>); 5] = [
        ("tls_missing", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("tls_server_name_missing", hello(&["-noservername"])),
        ("tls_server_name_unknown", hello(&["-servername", "two.example"])),
        ("tls_hello_malformed", malformed),
        ("tls_hello_too_long", fragmented(&endless, 16_000)),
    ];
    for (reason, bytes) in refused {
        let mut client = Peer::connect(proxy.address());
        // The end may come before all is sent.
        let _ = client.try_send(&bytes);
        client.expect_gone();
        assert_eq!(proxy.refused_requests(reason), 1, "{reason}");
    }
    let mut client = Peer::connect(proxy.address());
    client.send(&hello(&["-servername", "one.example"])[..100]);
    client.finish();
    client.expect_gone();
    assert_eq!(proxy.refused_requests("tls_hello_truncated"), 1);
    proxy.stop();
    backend.expect_untouched();
}

#[test]
fn a_hello_that_does_not_come_in_time() {
    let backend = echo("one");
    let setup =
        || by_name(backend.address(), backend.address()).with(|state| state.settings.timeouts.head_ms = 200);
    let proxy = setup().start();
    for begun in [&[][..], &[22, 3, 1, 1]] {
        let mut client = Peer::connect(proxy.address());
        // On a busy machine the deadline may come first.
        let _ = client.try_send(begun);
        client.expect_gone();
    }
    assert_eq!(proxy.refused_requests("tls_hello_timeout"), 2);
    proxy.stop();
    backend.expect_untouched();
    // Who says nothing may wait for a server that speaks first.
    let proxy = setup().with(|state| state.listeners[0].default_cluster = Some("two".into())).start();
    let mut client = Peer::connect(proxy.address());
    assert_eq!(client.bytes(3), b"one");
    drop(client);
    proxy.stop();
}

/// A hello of exactly this size, with a padding extension (RFC 7685) behind the name.
fn padded(name: &str, size: usize) -> Vec<u8> {
    let sized = |content: &[u8]| {
        [&u16::try_from(content.len()).expect("a length").to_be_bytes()[..], content].concat()
    };
    let host = [&[0][..], &sized(name.as_bytes())].concat();
    let named = [&[0, 0][..], &sized(&sized(&host))].concat();
    let fixed = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    // Headers of the record, the message, the list of extensions, the padding.
    let padding = size - 5 - 4 - fixed.len() - 2 - named.len() - 4;
    let extensions = [&named[..], &[0, 21], &sized(&vec![0; padding])].concat();
    let body = [&fixed[..], &sized(&extensions)].concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    let hello = [&[22, 3, 1][..], &sized(&message)].concat();
    assert_eq!(hello.len(), size);
    hello
}

/// The header that came before it takes nothing off the room for a hello.
#[test]
fn a_hello_as_large_as_its_buffer() {
    let header = &b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"[..];
    let backend = echo("one");
    let proxy = by_name(backend.address(), backend.address())
        .with(|state| {
            state.listeners[0].proxy_protocol = ProxyProtocol::Require;
            let limits = &mut state.settings.limits;
            (limits.buffer_size, limits.head_size_max, limits.target_size_max) = (4096, 4096, 1000);
        })
        .start();
    for (size, fits) in [(1000, true), (4050, true), (4051, true), (4052, true), (4096, true), (4097, false)]
    {
        let hello = padded("one.example", size);
        let mut client = Peer::connect(proxy.address());
        client.send([header, &hello].concat());
        if fits {
            assert_eq!(client.bytes(3), b"one", "{size}");
            assert!(client.bytes(size) == hello, "what came is not what was sent");
        } else {
            client.expect_gone();
        }
    }
    assert_eq!(proxy.refused_requests("tls_hello_too_long"), 1);
    proxy.stop();
}

/// Header and hello in one segment, or in many.
#[test]
fn behind_the_proxy_protocol_and_before_it() {
    let header = &b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"[..];
    let backend = echo("one");
    let proxy = by_name(backend.address(), backend.address())
        .with(|state| {
            state.listeners[0].proxy_protocol = ProxyProtocol::Require;
            state.clusters[0].send_proxy = SendProxy::V1;
        })
        .start();
    let hello = hello(&["-servername", "one.example"]);
    for piece in [1, 10, header.len(), 100, 10_000] {
        let mut client = Peer::connect(proxy.address());
        for piece in [header, &hello].concat().chunks(piece) {
            client.stream().write_all(piece).expect("the proxy listens");
        }
        assert_eq!(client.bytes(3), b"one");
        assert_eq!(client.bytes(header.len()), header);
        assert!(client.bytes(hello.len()) == hello, "what came is not what was sent");
        client.finish();
        client.expect_end();
    }
    proxy.stop();
}
