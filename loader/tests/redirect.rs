//! What redirection by sockmap relies on, one fact of the kernel each: a kernel that behaves otherwise fails here, and not in
//! somebody's body. The order of steps that follows from them stands in the proxy's `forward/redirect.rs`.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, skip};
use socket2::SockRef;
use underpass_loader::{
    LoadError, RedirectMaps, RedirectPrograms, has_unread, socket_cookie, tcp_handed_at_least,
    tcp_handed_exactly, tcp_sent,
};

const SLOT: u32 = 3;

/// Two connections: what the `client` sends arrives at `source`, what goes into `sink` arrives at the `server`.
struct Bench {
    _programs: RedirectPrograms,
    maps: RedirectMaps,
    client: TcpStream,
    source: TcpStream,
    sink: TcpStream,
    server: TcpStream,
    cookie: u64,
}

impl Bench {
    /// None, having said so, where kernel or privileges do not allow it.
    fn new(test: &str) -> Option<Self> {
        let programs = match RedirectPrograms::load(8) {
            Ok(programs) => programs,
            Err(error @ LoadError::Unavailable { .. }) => {
                skip(test, &error.to_string());
                return None;
            }
            Err(error) => panic!("loading: {error}"),
        };
        let descriptors: Vec<OwnedFd> = programs
            .descriptors()
            .into_iter()
            .map(|fd| fd.try_clone_to_owned().expect("a second descriptor"))
            .collect();
        let maps = RedirectMaps::open(descriptors.try_into().expect("all maps")).expect("the maps");
        let ((client, source), (server, sink)) = (connection(), connection());
        let cookie = socket_cookie(source.as_fd()).expect("a cookie");
        Some(Self { _programs: programs, maps, client, source, sink, server, cookie })
    }

    /// Lets so many bytes through from now on.
    fn start(&mut self, limit: u64) {
        self.maps.bind(self.cookie, SLOT).expect("an account");
        self.maps.open_account(SLOT, limit, limit);
        self.maps.insert_target(self.cookie, self.sink.as_fd()).expect("the target");
        self.maps.insert_source(self.cookie, self.source.as_fd()).expect("the source");
    }

    fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        until(what, || is_so(self));
    }

    fn expect_at_server(&mut self, bytes: &[u8]) {
        let mut came = vec![0; bytes.len()];
        self.server.read_exact(&mut came).expect("what was redirected");
        assert!(came == bytes, "other bytes than were sent");
    }

    /// Takes the source back as the proxy does: first a call that takes its lock.
    fn take_back(&mut self) {
        tcp_sent(self.source.as_fd()).expect("TCP_INFO");
        self.maps.remove_source(self.cookie);
    }
}

/// Both ends of a connection over loopback: the far one, and the one that the proxy would have.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let far = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (near, _) = listener.accept().expect("its other end");
    near.set_nonblocking(true).expect("O_NONBLOCK");
    far.set_nodelay(true).expect("TCP_NODELAY");
    far.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    (far, near)
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|place| (place ^ place >> 8 ^ place >> 16).to_le_bytes()[0]).collect()
}

#[test]
fn what_exceeds_the_limit_stays_in_the_queue_of_the_source() {
    let Some(mut bench) = Bench::new("what_exceeds_the_limit_stays_in_the_queue_of_the_source") else {
        return;
    };
    bench.start(1000);
    let bytes = content(5000);
    bench.client.write_all(&bytes).expect("sending");
    bench.until("the parser stops", |bench| bench.maps.account(SLOT).stopped);
    assert_eq!(bench.maps.account(SLOT).used, 1000);
    assert_eq!(bench.maps.next_wake(), Some(SLOT), "the worker is woken");
    bench.expect_at_server(&bytes[..1000]);
    bench.take_back();
    let mut rest = Vec::new();
    let mut block = [0; 8192];
    while rest.len() < 4000 {
        match bench.source.read(&mut block) {
            Ok(count) => rest.extend_from_slice(&block[..count]),
            // The pending error of the stop, or not all has arrived.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("reading what was left: {error}"),
        }
    }
    assert!(rest == bytes[1000..], "other bytes than were sent");
}

/// The stream parser of the kernel asks once more for what is left of a buffer after it was told to stop. A limit raised
/// between the two must not let anything through: the worker takes what a stopped account says for final, and takes the target
/// out of its map when so many bytes have arrived there.
#[test]
fn a_stop_is_final_whenever_the_limit_is_raised() {
    const ROUNDS: u32 = 50;
    for _ in 0..ROUNDS {
        let Some(mut bench) = Bench::new("a_stop_is_final_whenever_the_limit_is_raised") else { return };
        bench.start(1000);
        thread::scope(|scope| {
            let mut client = &bench.client;
            scope.spawn(move || client.write_all(&content(5000)).expect("sending"));
            let deadline = Instant::now() + DEADLINE;
            // Spins, to raise the limit as soon after the stop as a worker on another CPU could.
            while !bench.maps.account(SLOT).stopped {
                assert!(Instant::now() < deadline, "the parser does not stop");
            }
            bench.maps.grant(SLOT, u64::MAX, u64::MAX);
        });
        tcp_sent(bench.source.as_fd()).expect("TCP_INFO");
        assert_eq!(bench.maps.account(SLOT).used, 1000);
    }
}

/// Else the end of a stream could not be told from a pause. What was let through does not count, nor an end that was read.
#[test]
fn what_was_not_let_through_counts_as_unread() {
    let Some(mut bench) = Bench::new("what_was_not_let_through_counts_as_unread") else { return };
    assert!(!has_unread(bench.source.as_fd()).expect("SO_MEMINFO"));
    bench.start(30);
    let bytes = content(50);
    bench.client.write_all(&bytes[..30]).expect("sending");
    bench.expect_at_server(&bytes[..30]);
    bench.until("it is read", |bench| !has_unread(bench.source.as_fd()).expect("SO_MEMINFO"));
    bench.client.write_all(&bytes[30..]).expect("sending");
    bench.until("the parser stops", |bench| bench.maps.account(SLOT).stopped);
    tcp_sent(bench.source.as_fd()).expect("TCP_INFO");
    assert!(has_unread(bench.source.as_fd()).expect("SO_MEMINFO"));
}

/// What the stop leaves behind is the error that a full buffer gives, so that whoever meets it first tries again.
#[test]
fn a_stop_leaves_an_error_that_means_try_again() {
    let Some(mut bench) = Bench::new("a_stop_leaves_an_error_that_means_try_again") else { return };
    bench.start(10);
    bench.client.write_all(&content(20)).expect("sending");
    bench.until("the parser stops", |bench| bench.maps.account(SLOT).stopped);
    tcp_sent(bench.source.as_fd()).expect("TCP_INFO");
    let error = bench.source.take_error().expect("SO_ERROR").expect("an error is pending");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(bench.source.take_error().expect("SO_ERROR").is_none(), "told once");
}

/// What the parser sees is a whole buffer, of which userspace may have read a part.
#[test]
fn what_userspace_has_read_is_not_passed_on() {
    let Some(mut bench) = Bench::new("what_userspace_has_read_is_not_passed_on") else { return };
    let bytes = content(3000);
    bench.client.write_all(&bytes).expect("sending");
    until("all has arrived", || bench.source.peek(&mut [0; 4096]).is_ok_and(|count| count == bytes.len()));
    bench.source.read_exact(&mut [0; 100]).expect("a head");
    bench.start(2000);
    // What lay there before is not seen until somebody looks.
    let _ = bench.source.peek(&mut [0]);
    bench.until("the parser stops", |bench| bench.maps.account(SLOT).stopped);
    bench.expect_at_server(&bytes[100..2100]);
    bench.take_back();
    let _ = bench.source.take_error();
    let mut rest = [0; 900];
    bench.source.read_exact(&mut rest).expect("what was left");
    assert!(rest == bytes[2100..], "other bytes than were sent");
}

/// The end of the source's stream is not passed on; that nothing is left to pass on can be seen.
#[test]
fn an_end_is_not_passed_on_and_shows_in_the_state() {
    let Some(mut bench) = Bench::new("an_end_is_not_passed_on_and_shows_in_the_state") else { return };
    bench.start(u64::MAX);
    let bytes = content(100_000);
    assert!(!tcp_sent(bench.source.as_fd()).expect("TCP_INFO").ended);
    bench.client.write_all(&bytes).expect("sending");
    bench.client.shutdown(Shutdown::Write).expect("the end");
    bench.until("the end is seen", |bench| tcp_sent(bench.source.as_fd()).is_ok_and(|sent| sent.ended));
    bench.until("all is let through", |bench| has_unread(bench.source.as_fd()).is_ok_and(|unread| !unread));
    assert_eq!(bench.maps.account(SLOT).used, 100_000);
    bench.expect_at_server(&bytes);
    bench.server.set_nonblocking(true).expect("O_NONBLOCK");
    let error = bench.server.read(&mut [0]).expect_err("the connection is open");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

/// What has been handed to the target is what was let through, when all of it has arrived there, and never more.
#[test]
fn what_the_target_was_handed_can_be_counted() {
    let Some(mut bench) = Bench::new("what_the_target_was_handed_can_be_counted") else { return };
    bench.sink.write_all(b"a head").expect("sending");
    let (base, _) = tcp_handed_exactly(bench.sink.as_fd()).expect("the count");
    bench.start(u64::MAX);
    let bytes = content(3_000_000);
    thread::scope(|scope| {
        let mut server = bench.server.try_clone().expect("a second descriptor");
        let size = bytes.len() + 6;
        scope.spawn(move || server.read_exact(&mut vec![0; size]).expect("all of it"));
        let mut client = bench.client.try_clone().expect("a second descriptor");
        let bytes = &bytes;
        scope.spawn(move || client.write_all(bytes).expect("sending"));
        let handed = || {
            let handed = tcp_handed_at_least(bench.sink.as_fd()).expect("the count").0.saturating_sub(base);
            let used = bench.maps.account(SLOT).used;
            assert!(handed <= used, "{handed} were handed over, {used} were let through");
            handed
        };
        until("all is handed over", || handed() == bytes.len() as u64);
    });
}

#[test]
fn a_socket_whose_peer_has_ended_is_no_source() {
    let Some(mut bench) = Bench::new("a_socket_whose_peer_has_ended_is_no_source") else { return };
    bench.client.shutdown(Shutdown::Write).expect("the end");
    until("the end is seen", || tcp_sent(bench.source.as_fd()).is_ok_and(|sent| sent.ended));
    let error = bench.maps.insert_source(bench.cookie, bench.source.as_fd()).expect_err("CLOSE_WAIT");
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
}

/// Nobody has to take a socket out of the maps that is closed.
#[test]
fn closed_sockets_leave_the_maps() {
    let Some(mut bench) = Bench::new("closed_sockets_leave_the_maps") else { return };
    bench.start(10);
    assert_eq!(bench.maps.population().expect("the maps"), (1, 1));
    let Bench { _programs, maps, client, source, sink, server, .. } = bench;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop((client, source, sink, server));
    until("the maps are empty", || maps.population().is_ok_and(|population| population == (0, 0)));
}
