//! Messages that end, begin or wrap just where a buffer does.

use underpass_tests::body::Content;
use underpass_tests::proxy::{MODES, Setup};
use underpass_tests::{Backend, GET, Peer};

/// The proxy's buffers are this large here, and a head may be as large.
const BUFFER: usize = 4096;

fn setup(backend: &Backend) -> Setup {
    Setup::to(&[backend.address()]).with(|state| {
        let size = u32::try_from(BUFFER).expect("a small number");
        state.settings.limits.buffer_size = size;
        state.settings.limits.head_size_max = size;
        state.settings.limits.target_size_max = size / 2;
    })
}

/// A head of exactly so many bytes.
fn head_of(size: usize, start: &str, framing: &str) -> String {
    let rest = format!("{start}\r\n{framing}\r\nX: \r\n\r\n").len();
    format!("{start}\r\n{framing}\r\nX: {}\r\n\r\n", "v".repeat(size - rest))
}

/// Chunks of one byte, of an odd size, and of nearly a buffer, so that chunk headers fall on every place of a buffer.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = body;
    for size in [1, 777, BUFFER - 7].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, after) = rest.split_at(size.min(rest.len()));
        out.extend(format!("{:x};n=v\r\n", chunk.len()).into_bytes());
        out.extend(chunk);
        out.extend(b"\r\n");
        rest = after;
    }
    out.extend(b"0\r\nX-Trailer: t\r\n\r\n");
    out
}

/// Heads of all sizes around the end of a buffer, with bodies of both framings behind them, in both directions.
#[test]
fn bodies_begin_at_every_place_around_the_end_of_a_buffer() {
    const BODY: u64 = 10_000;
    for mode in MODES {
        let body = Content::new(11, BODY).to_vec();
        let chunks = chunked(&body);
        let backend = Backend::start({
            let (body, chunks) = (body.clone(), chunks.clone());
            move |connection| {
                while let Some(request) = connection.request_without_copy() {
                    assert!(request.body == body, "the request's body changed on its way");
                    // The size of the response's head is in the request's target.
                    let size = request.target()[1..].parse().expect("a size");
                    let framings = [
                        (format!("Content-Length: {BODY}"), &body),
                        ("Transfer-Encoding: chunked".into(), &chunks),
                    ];
                    let (framing, bytes) = &framings[size % 2];
                    let head = head_of(size, "HTTP/1.1 200 OK", framing);
                    connection.peer.send([head.as_bytes(), bytes].concat());
                }
            }
        });
        let proxy = setup(&backend).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        for size in (BUFFER - 80)..=BUFFER {
            let start = format!("POST /{size} HTTP/1.1\r\nHost: a");
            let framings = [
                ("Transfer-Encoding: chunked".to_owned(), &chunks),
                (format!("Content-Length: {BODY}"), &body),
            ];
            let (framing, bytes) = &framings[size / 2 % 2];
            let head = head_of(size, &start, framing);
            assert_eq!(head.len(), size);
            client.send([head.as_bytes(), bytes].concat());
            let response = client.response();
            assert_eq!(response.status(), 200, "{mode}: head of {size} bytes");
            assert!(response.body == body, "{mode}: body behind a head of {size} bytes");
        }
        drop(client);
        proxy.stop();
    }
}

/// Many chunks of one byte: each chunk header is read by userspace, so this is where a proxy could drown or lose count.
#[test]
fn a_body_in_chunks_of_one_byte() {
    const BODY: usize = 50_000;
    for mode in MODES {
        let body = Content::new(12, BODY as u64).to_vec();
        let mut chunks = Vec::new();
        for byte in &body {
            chunks.extend([b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
        }
        chunks.extend(b"0\r\n\r\n");
        let backend = Backend::start({
            let (body, chunks) = (body.clone(), chunks.clone());
            move |connection| {
                while let Some(request) = connection.request_without_copy() {
                    assert!(request.body == body, "the request's body changed on its way");
                    connection.peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    connection.peer.send(&chunks);
                }
            }
        });
        let proxy = setup(&backend).redirect(mode).start();
        let mut client = Peer::connect(proxy.address());
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(&chunks);
        assert!(client.response().body == body, "{mode}: the response's body changed on its way");
        drop(client);
        proxy.stop();
    }
}

/// A client that sends requests without reading answers: the proxy stops reading, and loses nothing.
#[test]
fn a_flood_of_pipelined_requests_waits_for_its_reader() {
    const REQUESTS: usize = 20_000;
    let backend = Backend::start(|connection| {
        while connection.request_without_copy().is_some() {
            connection
                .peer
                .send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000)));
        }
    });
    let proxy = setup(&backend).start();
    let mut client = Peer::connect(proxy.address());
    let stream = client.stream().try_clone().expect("a second descriptor");
    let writer = std::thread::spawn(move || Peer::over(stream).send(GET.repeat(REQUESTS)));
    for _ in 0..REQUESTS {
        assert_eq!(client.response().body.len(), 1000);
    }
    writer.join().expect("all requests are taken");
    drop(client);
    assert_eq!(backend.connections(), 1);
    proxy.stop();
}

/// Interim responses without end: the proxy passes on a bounded number of them.
#[test]
fn a_flood_of_interim_responses_ends() {
    let backend = Backend::start(|connection| {
        if connection.request().is_some() {
            while connection
                .peer
                .try_send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(100))
                .is_ok()
            {}
        }
    });
    let proxy = setup(&backend).start();
    let mut client = Peer::connect(proxy.address());
    client.send(GET);
    let mut interim = 0;
    loop {
        match client.try_response_to("GET") {
            Ok(response) if response.status() == 103 => interim += 1,
            Ok(response) => {
                assert_eq!(response.status(), 502);
                break;
            }
            Err(error) => panic!("no final response after {interim} interim ones: {error}"),
        }
    }
    assert!((1..1000).contains(&interim), "{interim}");
    drop(client);
    proxy.stop();
}
