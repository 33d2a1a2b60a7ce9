//! The load against servers that do right, stall, fail, or do not answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::*;
use crate::exchange::{ECHO_RESPONSE, parse_target, parse_upload_target, write_response_head};

/// Serves each connection on a thread of its own, until the test's process ends.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A request's method and target, and whatever of its body came along; none at the end.
fn request(stream: &mut TcpStream) -> Option<(String, String, usize)> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).ok()?;
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
    Some((method, target, length.unwrap_or(0)))
}

/// The benchmark's exchanges, byte for byte.
fn serve_right(mut stream: TcpStream) {
    let pattern = Pattern::new(1 << 20);
    while let Some((method, target, length)) = request(&mut stream) {
        let mut response = Vec::new();
        if let Some((size, from)) = parse_target(&target) {
            write_response_head(&mut response, size);
            response.extend_from_slice(pattern.body(from, size).unwrap());
        } else if let Some(from) = parse_upload_target(&target) {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            assert_eq!((method.as_str(), pattern.body(from, length)), ("POST", Some(&body[..])));
            write_response_head(&mut response, 0);
        } else {
            stream.write_all(ECHO_RESPONSE.as_bytes()).unwrap();
            let mut copy = stream.try_clone().unwrap();
            let _ = io::copy(&mut stream, &mut copy);
            return;
        }
        if stream.write_all(&response).is_err() {
            return;
        }
    }
}

fn plan(address: SocketAddr, exchange: Exchange, per_s: f64) -> Plan {
    Plan {
        address,
        exchange,
        arrivals: Arrivals::Open { per_s, seed: 1 },
        connections_max: 16,
        connections_at_start: 2,
        warm_up: Duration::from_millis(20),
        span: Duration::from_millis(200),
        timeout: Duration::from_secs(10),
        watched: vec![std::process::id()],
    }
}

fn exchanges() -> Vec<(Exchange, u64)> {
    let url = |upload_size| Exchange::Url {
        authority: "lab.test".into(),
        target: if upload_size == 0 { "/size/100".into() } else { "/upload/from/7".into() },
        upload_size,
    };
    vec![
        (Exchange::Download { size: 100, reuse: true }, 100),
        (Exchange::Download { size: 500_000, reuse: true }, 500_000),
        (Exchange::Upload { size: 500_000 }, 500_000),
        (Exchange::Tunnel { message_size: 1024, upgrade: true }, 1024),
        (url(0), 100),
    ]
}

#[test]
fn every_exchange_is_done_and_checked() {
    let address = server(serve_right);
    for (exchange, size) in exchanges() {
        let step = run(&plan(address, exchange.clone(), 200.0)).unwrap();
        assert!(step.due > 10, "{exchange:?}: {step:?}");
        assert_eq!((step.completed, step.error_reasons.len()), (step.due, 0), "{exchange:?}: {step:?}");
        assert_eq!((step.latency.count, step.lag.count), (step.due, step.due));
        assert_eq!((step.body_size_last, step.processes.len()), (Some(size), 1), "{exchange:?}: {step:?}");
        assert!(step.latency.p50_ns <= step.latency.p9999_ns && step.latency.p9999_ns <= step.latency.max_ns);
    }
}

#[test]
fn a_closed_loop_keeps_every_connection_busy() {
    let address = server(serve_right);
    let closed = Plan {
        arrivals: Arrivals::Closed,
        connections_max: 4,
        ..plan(address, Exchange::Download { size: 100, reuse: true }, 1.0)
    };
    let step = run(&closed).unwrap();
    // How much is done in so short a time is the machine's business.
    assert_eq!((step.errors, step.completed, step.asked_per_s), (0, step.due, None), "{step:?}");
    assert_eq!((step.connections_opened, step.body_size_last), (4, Some(100)), "{step:?}");
}

#[test]
fn connections_are_not_used_again_when_they_may_not_be() {
    let address = server(|mut stream| {
        let Some((_, target, _)) = request(&mut stream) else { return };
        assert!(target.starts_with("/size/"));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
    let step = run(&plan(address, Exchange::Download { size: 0, reuse: false }, 200.0)).unwrap();
    assert_eq!(step.completed, step.due, "{step:?}");
    assert!(step.connections_opened >= step.completed, "{step:?}");
}

/// The stall hits one operation; that others were due meanwhile must show all the same.
#[test]
fn a_stalled_server_shows_with_every_operation_that_was_due() {
    const STALL: Duration = Duration::from_millis(400);
    let served = std::sync::Mutex::new(0);
    let address = server(move |mut stream| {
        while request(&mut stream).is_some() {
            let mut served = served.lock().unwrap();
            *served += 1;
            if *served == 20 {
                // What is under test is how a stall is measured. All connections wait for the lock meanwhile.
                thread::sleep(STALL);
            }
            drop(served);
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    });
    let step = run(&Plan {
        connections_max: 2,
        warm_up: Duration::ZERO,
        span: Duration::from_millis(500),
        ..plan(address, Exchange::Download { size: 0, reuse: true }, 400.0)
    })
    .unwrap();
    assert_eq!(step.completed, step.due, "{step:?}");
    // 20 of about 200 operations were served before the stall; most others were due during it, spread over its length.
    // Without the correction two operations would show it, which is 1 %.
    assert!(step.latency.p50_ns > 50_000_000, "{:?}", step.latency);
    assert!(step.latency.p90_ns > 200_000_000, "{:?}", step.latency);
}

#[test]
fn failures_are_counted_by_reason() {
    let unavailable = server(|mut stream| {
        while request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let wrong = server(|mut stream| {
        while request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhaha");
        }
    });
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, reason) in [(unavailable, "status 503"), (wrong, "wrong body"), (refused, "cannot connect")]
    {
        let step = run(&plan(address, Exchange::Download { size: 4, reuse: true }, 200.0)).unwrap();
        assert!(step.due > 0 && step.errors == step.due, "{reason}: {step:?}");
        assert!(step.error_reasons.keys().all(|found| found.contains(reason)), "{reason}: {step:?}");
    }
}

#[test]
fn what_never_comes_times_out_and_counts_as_long() {
    let address = server(|mut stream| {
        let _ = request(&mut stream);
        // Answers nothing, and keeps the connection until the client goes.
        let _ = stream.read(&mut [0]);
    });
    let timeout = Duration::from_millis(50);
    let step =
        run(&Plan { timeout, ..plan(address, Exchange::Download { size: 4, reuse: true }, 200.0) }).unwrap();
    assert_eq!((step.timeouts, step.completed), (step.due, 0), "{step:?}");
    assert!(step.latency.p50_ns >= 49_900_000 && step.failed_share() >= 1.0, "{step:?}");
}

#[test]
fn a_tunnel_without_http_is_an_echo_from_the_first_byte_on() {
    let address = server(|mut stream| {
        let mut copy = stream.try_clone().unwrap();
        let _ = io::copy(&mut stream, &mut copy);
    });
    let step = run(&plan(address, Exchange::Tunnel { message_size: 70_000, upgrade: false }, 200.0)).unwrap();
    assert!(step.due > 10 && step.completed == step.due, "{step:?}");
}

#[test]
fn a_load_that_is_interrupted_ends_at_once() {
    let address = server(serve_right);
    let endless = Plan {
        span: Duration::from_secs(3600),
        ..plan(address, Exchange::Download { size: 1, reuse: true }, 50.0)
    };
    let error = run_unless(&endless, &AtomicBool::new(true)).unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
}
