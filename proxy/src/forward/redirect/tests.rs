//! What nobody tells: bytes and ends that the kernel holds back because its parser was put off, and the error of a stop that looks
//! like a full buffer.

use std::io::{IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use underpass_command::state::RedirectMode;
use underpass_loader::{RedirectPrograms, has_unread, tcp_sent};

use super::{Redirector, Run};
use crate::forward::testing::{connection, redirector, until};
use crate::forward::{BufferPool, Endpoint, Flow, Kind, Ledger, PipePool, Policy, Tools, TrailerLimits};
use crate::http1::Framing;
use crate::metrics::Block;

/// A source in the map whose bytes stay in its queue, and no account says that it has stopped: as it is while the kernel's
/// parser is put off because the socket is in use.
struct PutOff {
    _programs: RedirectPrograms,
    redirector: Redirector,
    far: TcpStream,
    source: Endpoint,
    _peer: TcpStream,
    sink: Endpoint,
    slot: u32,
    cookie: u64,
}

impl PutOff {
    /// None where kernel or privileges do not allow it.
    fn new(test: &str) -> Option<Self> {
        let (programs, mut redirector) = redirector(4096, test)?;
        let ((far, mut source), (peer, sink)) = (connection().unwrap(), connection().unwrap());
        let (slot, cookie) = source.account(&mut redirector).unwrap().unwrap();
        redirector.maps.open_account(slot, 0, 0);
        redirector.maps.insert_target(cookie, sink.as_fd()).unwrap();
        redirector.maps.insert_source(cookie, source.as_fd()).unwrap();
        source.redirect.is_source = true;
        // Without an account the parser lets nothing through, and has nowhere to say so.
        redirector.maps.unbind(cookie);
        Some(Self { _programs: programs, redirector, far, source, _peer: peer, sink, slot, cookie })
    }

    fn until_unread(&self) {
        until("it has come", || has_unread(self.source.as_fd()).unwrap());
    }
}

#[test]
fn an_end_that_the_kernel_has_not_read_yet_is_looked_for_again() {
    let name = "an_end_that_the_kernel_has_not_read_yet_is_looked_for_again";
    let Some(mut bench) = PutOff::new(name) else { return };
    bench.far.write_all(b"x").unwrap();
    bench.until_unread();
    assert!(!bench.source.reclaim(Some(&mut bench.redirector)));
    assert!(!bench.redirector.is_waiting(), "a byte makes the parser stop, and that wakes");
    bench.far.shutdown(Shutdown::Write).unwrap();
    until("its end has come", || tcp_sent(bench.source.as_fd()).unwrap().ended);
    bench.source.hangup = true; // as the event says
    assert!(!bench.source.reclaim(Some(&mut bench.redirector)));
    assert!(bench.redirector.is_waiting());
}

/// Makes the parser stop, and waits until its error is pending.
fn stop(bench: &mut PutOff) {
    bench.far.write_all(b"x").unwrap();
    until("the parser stops", || {
        let mut polled = [PollFd::new(bench.source.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
            && polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
    });
}

#[test]
fn a_write_that_meets_the_error_of_a_stop_is_tried_again() {
    let Some(mut bench) = PutOff::new("a_write_that_meets_the_error_of_a_stop_is_tried_again") else {
        return;
    };
    stop(&mut bench);
    assert_eq!(bench.source.send(&[IoSlice::new(b"answer")]).unwrap(), 6);
    assert!(bench.source.writable);
}

#[test]
fn a_splice_that_meets_the_error_of_a_stop_is_tried_again() {
    const SIZE: usize = 10_000;
    let Some(mut bench) = PutOff::new("a_splice_that_meets_the_error_of_a_stop_is_tried_again") else {
        return;
    };
    stop(&mut bench);
    let ((mut far, mut source), mut buffers) = (connection().unwrap(), BufferPool::new(1, 4096));
    buffers.reserve(1);
    far.write_all(&[0; SIZE]).unwrap();
    until("it has come", || has_unread(source.as_fd()).unwrap());
    source.readable = true;
    let ledger = Ledger::new(Framing::Length(SIZE as u64), TrailerLimits { size_max: 0, count_max: 0 });
    let policy = Policy::fixed(RedirectMode::Splice);
    let mut flow = Flow::new(Kind::Tunnel, ledger, policy, false);
    let mut tools = Tools {
        buffers: &mut buffers,
        pipes: &mut PipePool::new(1, 65536),
        metrics: &Block::create().unwrap(),
        redirector: None,
        session: 0,
    };
    flow.pump(&mut source, &mut bench.source, &mut tools).unwrap();
    assert!(bench.source.writable && flow.moved() > 0);
    flow.finish(&mut tools);
}

/// Else a backend's bytes behind its response would be taken for the next one.
#[test]
fn what_a_backend_says_behind_its_response_is_seen_though_no_event_tells() {
    let name = "what_a_backend_says_behind_its_response_is_seen_though_no_event_tells";
    for says in [false, true] {
        let Some(mut bench) = PutOff::new(name) else { return };
        if says {
            bench.far.write_all(b"x").unwrap();
            bench.until_unread();
        }
        let policy = Policy::fixed(RedirectMode::Sockmap);
        let mut flow = Flow::new(Kind::Response, Ledger::settled(), policy, false);
        let (slot, cookie) = (bench.slot, bench.cookie);
        flow.run = Some(Run { slot, cookie, base: 0, total: 0, debited: 0, limit: 0, reset: None });
        bench.redirector.running = 1;
        let mut tools = Tools {
            buffers: &mut BufferPool::new(1, 4096),
            pipes: &mut PipePool::new(0, 0),
            metrics: &Block::create().unwrap(),
            redirector: Some(&mut bench.redirector),
            session: 0,
        };
        assert!(flow.end_run(&mut bench.source, &mut bench.sink, &mut tools).is_none());
        assert_eq!(bench.source.readable, says);
    }
}

#[test]
fn in_mode_auto_bodies_neither_small_nor_large_are_redirected() {
    let (_far, source) = connection().unwrap();
    let policy = Policy {
        mode: RedirectMode::Auto,
        splice_size_min: 0,
        sockmap_size_min: 50_000,
        sockmap_size_max: 90_000,
    };
    let limits = TrailerLimits { size_max: 0, count_max: 0 };
    let flow = |size| Flow::new(Kind::Response, Ledger::new(Framing::Length(size), limits), policy, false);
    for (size, is_wanted) in [(49_999, false), (50_000, true), (90_000, true), (90_001, false)] {
        assert_eq!(flow(size).wants_redirection(&source), is_wanted, "{size}");
    }
    // Neither is the end of a large one.
    let mut large = flow(120_000);
    large.ledger.debit(60_000);
    assert!(!large.wants_redirection(&source));
    // What is left of one that is not large is, as long as it is worth it.
    let mut other = flow(90_000);
    other.ledger.debit(40_000);
    assert!(other.wants_redirection(&source));
    other.ledger.debit(1);
    assert!(!other.wants_redirection(&source));
}
