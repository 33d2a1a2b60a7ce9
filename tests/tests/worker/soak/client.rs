//! The client's side.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use underpass_tests::body::Content;
use underpass_tests::{Message, Peer};

use super::Outcomes;
use super::plan::{Fault, Plan, Random};

/// How a client behaves that does not wait for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// It does wait.
    None,
    /// It closes somewhere in what it sends.
    Closes,
    /// It resets somewhere in what it sends.
    Resets,
}

/// One connection from its begin to its end.
pub(crate) fn connection(address: SocketAddr, seed: u64, outcomes: &Outcomes) {
    let mut random = Random::new(seed);
    let peer =
        if random.percent(20) { Peer::connect_with_small_window(address) } else { Peer::connect(address) };
    let exit = match random.below(20) {
        0 => Exit::Closes,
        1 => Exit::Resets,
        _ => Exit::None,
    };
    if random.percent(10) {
        tunnel(peer, seed, exit, outcomes);
    } else {
        requests(peer, seed, exit, outcomes);
    }
}

/// Sends pieces on another thread, because the answers may have to be read meanwhile.
fn send(mut stream: &TcpStream, bytes: &[u8], exit: Exit, finish: bool, random: &mut Random) {
    let end = if exit == Exit::None { bytes.len() } else { random.below(bytes.len()) };
    for piece in random.cut(&bytes[..end]) {
        // The proxy may refuse and close.
        if stream.write_all(piece).is_err() {
            return;
        }
    }
    let shutdown = match exit {
        Exit::None if !finish => return,
        Exit::None => Shutdown::Write,
        Exit::Closes => Shutdown::Both,
        // Ends the reader; the reset follows when the last descriptor is closed.
        Exit::Resets => Shutdown::Read,
    };
    // It may have ended already.
    let _ = stream.shutdown(shutdown);
}

/// A second descriptor for the writer.
fn writer(peer: &Peer, exit: Exit) -> TcpStream {
    if exit == Exit::Resets {
        peer.reset_on_close();
    }
    peer.stream().try_clone().expect("a second descriptor")
}

fn requests(mut peer: Peer, seed: u64, exit: Exit, outcomes: &Outcomes) {
    let mut random = Random::new(seed + 1);
    let mut plans = Vec::new();
    let mut bytes = Vec::new();
    for number in 0..1 + random.below(6) as u64 {
        let plan = Plan::new(seed << 8 | number);
        bytes.extend_from_slice(&plan.request(&mut random));
        plans.push(plan);
        if plans.last().is_some_and(Plan::is_last) {
            break;
        }
        if random.percent(10) {
            bytes.extend_from_slice(b"\r\n");
        }
    }
    let writer = writer(&peer, exit);
    let finish = random.percent(30);
    thread::scope(|scope| {
        scope.spawn(|| send(&writer, &bytes, exit, finish, &mut random));
        receive(&mut peer, &plans, exit, outcomes);
    });
}

fn receive(peer: &mut Peer, plans: &[Plan], exit: Exit, outcomes: &Outcomes) {
    for (number, plan) in plans.iter().enumerate() {
        // A reset takes with it what was sent before and has not arrived.
        let excused = exit != Exit::None || plans[number..].iter().any(|plan| plan.fault != Fault::None);
        let response = match final_response(peer, plan) {
            Ok(response) => response,
            Err(error) => {
                assert!(excused, "{error} in the answer to {plan:?}");
                outcomes.cut.fetch_add(1, SeqCst);
                return;
            }
        };
        match response.status() {
            200 | 204 | 304 => {
                let expected = if plan.is_empty() { Vec::new() } else { plan.down_body() };
                assert!(response.body == expected, "another body than was sent: {plan:?}");
                assert!(plan.fault == Fault::None, "half an answer looks whole: {plan:?}");
                outcomes.answered.fetch_add(1, SeqCst);
            }
            502 => {
                // A connection that was stale costs a request that is no longer at hand.
                let fragile = plan.up.is_some() || plan.method == "POST";
                assert!(plan.fault != Fault::None || fragile, "502 to {plan:?}");
                outcomes.refused.fetch_add(1, SeqCst);
            }
            503 => {
                let no_buffer = plan.method == "HEAD" || response.text().contains("No buffer is left");
                assert!(no_buffer, "{}", response.text());
                outcomes.refused.fetch_add(1, SeqCst);
            }
            status => panic!("{status} to {plan:?}: {}", String::from_utf8_lossy(&response.head)),
        }
        if response.value("Connection") == Some("close") {
            return;
        }
    }
}

fn final_response(peer: &mut Peer, plan: &Plan) -> io::Result<Message> {
    loop {
        let response = peer.try_response_to(plan.method)?;
        if response.status() >= 200 {
            return Ok(response);
        }
        assert!(!plan.old, "an interim response to an old client: {plan:?}");
    }
}

fn tunnel(mut peer: Peer, seed: u64, exit: Exit, outcomes: &Outcomes) {
    let mut random = Random::new(seed + 2);
    let content = Content::new(seed, random.below(100_000) as u64).to_vec();
    let mut bytes =
        b"GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n".to_vec();
    bytes.extend_from_slice(&content);
    let writer = writer(&peer, exit);
    thread::scope(|scope| {
        scope.spawn(|| send(&writer, &bytes, exit, true, &mut random));
        match peer.try_head() {
            Ok(Some(head)) if head.status() == 101 => {
                let heard = peer.try_rest();
                match heard {
                    Ok(heard) if exit == Exit::None => {
                        assert!(heard == content, "another echo than was sent");
                        outcomes.tunnels.fetch_add(1, SeqCst);
                    }
                    Ok(heard) => assert!(content.starts_with(&heard), "another echo than was sent"),
                    Err(error) => assert!(
                        exit != Exit::None,
                        "{error} in the tunnel of seed {seed:#x}, {} bytes",
                        content.len()
                    ),
                }
            }
            Ok(Some(head)) => {
                assert_eq!(head.status(), 503);
                outcomes.refused.fetch_add(1, SeqCst);
            }
            Ok(None) | Err(_) => assert!(exit != Exit::None, "no answer"),
        }
    });
}
