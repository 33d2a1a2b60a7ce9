//! The client's side.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;

use underpass_tests::Peer;
use underpass_tests::random::Random;

use crate::plan::{Breaker, CALM, Fault, Plan, Tunnel, WILD};
use crate::server::send_direction;
use crate::wire::{Line, Out, Pace, is_timeout};

/// What became of the requests, so that a run in which everything was refused or cut is no success.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) answered: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) tunnels: AtomicU64,
    pub(crate) broken_tunnels: AtomicU64,
}

/// What a client may put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tolerance {
    /// Nothing but what its own plan, and that of the backend, brings about.
    None,
    /// Any end of the connection: somebody kills processes. A wrong byte or a hang is still one.
    Ends,
}

/// How a client behaves that does not wait for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    None,
    /// It breaks off somewhere in what it sends.
    Sending,
    /// It breaks off somewhere in what it receives.
    Receiving,
}

/// One client connection.
struct Client<'a> {
    peer: Peer,
    random: Random,
    plans: Vec<Plan>,
    exit: Exit,
    resets: bool,
    tolerance: Tolerance,
    outcomes: &'a Outcomes,
}

fn connect(address: SocketAddr, random: &mut Random) -> Peer {
    if random.percent(15) { Peer::connect_with_small_window(address) } else { Peer::connect(address) }
}

/// A connection with up to so many requests; returns how many were asked for.
pub(crate) fn requests(
    address: SocketAddr,
    seed: u64,
    most: u64,
    tolerance: Tolerance,
    outcomes: &Outcomes,
) -> u64 {
    let mut random = Random::new(seed);
    let count = (1 + random.below(10) as u64).min(most);
    let mut plans = Vec::new();
    for number in 0..count {
        plans.push(Plan::new(seed + (number << 52)));
        if plans.last().is_some_and(Plan::is_last) {
            break;
        }
    }
    let exit = match random.below(12) {
        _ if seed & CALM != 0 => Exit::None,
        // Who sends little breaks off while it receives.
        _ if seed & WILD != 0 && plans[0].fault == Fault::None => match plans[0].up {
            Some(_) if random.percent(50) => Exit::Sending,
            _ => Exit::Receiving,
        },
        0 => Exit::Sending,
        1 => Exit::Receiving,
        _ => Exit::None,
    };
    let asked = plans.len() as u64;
    let resets = random.percent(50);
    let peer = connect(address, &mut random);
    Client { peer, random, plans, exit, resets, tolerance, outcomes }.run();
    asked
}

impl Client<'_> {
    fn run(mut self) {
        if self.exit != Exit::None && self.resets {
            self.peer.reset_on_close();
        }
        let up: u64 = self.plans.iter().map(|plan| plan.up_size + 100).sum();
        let down: u64 = self.plans.iter().map(|plan| plan.down_size + 100).sum();
        let at = self.random.below(1000) as u64;
        let pace = Pace::new(&mut self.random);
        // Either the next request goes out at once, or it waits for the answer to the one before.
        let pipelined = self.random.percent(50);
        let (answered, answers) = mpsc::channel();
        let seed = self.plans[0].seed;
        let mut line = Line::new(self.peer.stream(), seed, pace);
        if self.exit == Exit::Receiving {
            line.quit_at = down * at / 1000;
        }
        let mut out = Out::new(self.peer.stream(), seed);
        out.watched_by(&mut line);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                if self.exit == Exit::Sending {
                    out.cut_after(up * at / 1000);
                }
                let sent = self.send(&mut out, pipelined, answers);
                if self.exit == Exit::Sending && (out.is_cut || sent.is_ok()) {
                    // With a reset nothing of an end may be sent before, so only the reader of this side is woken.
                    let end = if self.resets { Shutdown::Read } else { Shutdown::Both };
                    let _ = self.peer.stream().shutdown(end);
                }
                sent.is_ok()
            });
            if self.receive(&mut line, answered) {
                let writer_met_it = writer.join().is_ok_and(|sent| !sent);
                assert!(writer_met_it, "half an answer looks whole: {}", line.what);
            }
            // The writer must not outlive the reader; what has not been sent is not wanted.
            let _ = self.peer.stream().shutdown(Shutdown::Both);
        });
    }

    fn send(&self, out: &mut Out<'_>, pipelined: bool, answers: mpsc::Receiver<()>) -> io::Result<()> {
        for plan in &self.plans {
            out.push(plan.request_head().as_bytes())?;
            if let Some(framing) = plan.up {
                out.body(framing.chunk_max(), plan.seed, plan.up_size)?;
            }
            if !pipelined {
                out.flush()?;
                if answers.recv().is_err() {
                    return Ok(());
                }
            }
        }
        out.flush()
    }

    /// Reads the answers; true where one that only the end of the connection ends was cut by an end that looks in order.
    fn receive(&self, line: &mut Line<'_>, answered: mpsc::Sender<()>) -> bool {
        for (number, plan) in self.plans.iter().enumerate() {
            line.what = format!("read by the client: {plan:?}, request {number} of its connection");
            match self.answer(line, plan) {
                Ok(goes_on) => {
                    // The writer may have broken off.
                    let _ = answered.send(());
                    if !goes_on {
                        return false;
                    }
                }
                Err(error) => {
                    assert!(!is_timeout(&error), "hangs: {plan:?}, request {number} of its connection");
                    // A reset takes with it what was sent before and has not arrived.
                    let excused = self.tolerance == Tolerance::Ends
                        || self.exit != Exit::None
                        || self.plans[number..].iter().any(|plan| plan.fault != Fault::None);
                    assert!(excused, "{error} in the answer to {plan:?}, request {number} of its connection");
                    self.outcomes.cut.fetch_add(1, Relaxed);
                    let sees_end = self.exit == Exit::None && self.tolerance == Tolerance::None;
                    return sees_end && line.reads_until_end && error.kind() == io::ErrorKind::UnexpectedEof;
                }
            }
        }
        false
    }

    /// Reads one answer; whether the connection goes on.
    fn answer(&self, line: &mut Line<'_>, plan: &Plan) -> io::Result<bool> {
        let head = line.head()?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let framing = head.response_framing(plan.method)?;
        match head.status() {
            200 => {
                line.body(framing, plan.down_seed(), plan.down_size)?;
                assert!(plan.fault == Fault::None, "half an answer looks whole: {plan:?}");
                self.outcomes.answered.fetch_add(1, Relaxed);
            }
            // A backend's connection may have been stale, and an upload is no longer at hand to be sent again.
            502 | 503 if self.tolerance == Tolerance::Ends => {
                self.outcomes.refused.fetch_add(1, Relaxed);
                return Ok(false);
            }
            502 if plan.fault != Fault::None || (plan.up.is_some() && plan.seed & CALM == 0) => {
                let text = line.text(framing)?;
                assert!(text.starts_with("502"), "{text:?}");
                self.outcomes.refused.fetch_add(1, Relaxed);
            }
            status => panic!("{status} to {plan:?}: {:?}, {:?}", head.fields, line.text(framing)),
        }
        Ok(head.value("Connection") != Some("close"))
    }
}

/// One tunnel: both directions at once.
pub(crate) fn tunnel(address: SocketAddr, seed: u64, tolerance: Tolerance, outcomes: &Outcomes) {
    let plan = Tunnel::new(seed);
    let mut random = Random::new(seed);
    let peer = connect(address, &mut random);
    let stream = peer.stream();
    let mut line = Line::new(stream, seed, Pace::Fast);
    match open_tunnel(stream, &mut line, &plan) {
        Ok(()) => {}
        Err(error) => {
            // A reset takes with it what was sent before and has not arrived.
            let excused = tolerance == Tolerance::Ends || plan.breaker == Breaker::Backend;
            assert!(excused && !is_timeout(&error), "{error}: no tunnel: {plan:?}");
            outcomes.cut.fetch_add(1, Relaxed);
            return;
        }
    }
    let breaks = plan.breaker == Breaker::Client;
    if breaks {
        peer.reset_on_close();
    }
    line.set_pace(plan.client_pace);
    line.what = format!("read by the client: {plan:?}");
    thread::scope(|scope| {
        let writer = scope.spawn(|| send_direction(stream, &plan, plan.seed, plan.up_size, breaks));
        match line.until_end(!plan.seed, plan.down_size) {
            Ok(()) => outcomes.tunnels.fetch_add(1, Relaxed),
            Err(error) => {
                assert!(!is_timeout(&error), "hangs: {plan:?}");
                let excused = tolerance == Tolerance::Ends || plan.breaker != Breaker::Nobody;
                assert!(excused, "{error} in {plan:?}");
                let cut_in_order = error.kind() == io::ErrorKind::UnexpectedEof && !breaks;
                if cut_in_order && tolerance == Tolerance::None {
                    let writer_met_it = writer.join().is_ok_and(|sent| !sent);
                    assert!(writer_met_it, "half a stream looks whole: {}", line.what);
                } else if !breaks {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                outcomes.broken_tunnels.fetch_add(1, Relaxed)
            }
        }
    });
}

fn open_tunnel(stream: &TcpStream, line: &mut Line<'_>, plan: &Tunnel) -> io::Result<()> {
    let mut out = Out::new(stream, plan.seed);
    let mut expect = |out: &mut Out<'_>, request: &str, status: u16| {
        out.push(request.as_bytes())?;
        out.flush()?;
        let head = line.head()?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if head.status() == status { Ok(()) } else { Err(io::Error::other(head.start)) }
    };
    if plan.connect {
        expect(&mut out, "CONNECT tunnel.test:443 HTTP/1.1\r\nHost: tunnel.test:443\r\n\r\n", 200)?;
    }
    let target = plan.seed;
    let upgrade =
        format!("GET /tunnel/{target} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: bytes\r\n\r\n");
    expect(&mut out, &upgrade, 101)
}
