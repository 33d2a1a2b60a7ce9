//! Workers as processes without any privilege: what they get are open descriptors.

mod common;

use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use common::*;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use underpass_loader::{
    LoadError, Options, Outcome, Policy, Steering, WorkerSlot, WorkerState, monotonic_ns,
};

/// How the process of [`worker_process`] is told what it is: index, descriptor of the slots, descriptor of its listener.
const ROLE: &str = "UNDERPASS_TEST_WORKER";

#[test]
fn a_stopped_worker_gets_no_connection_after_200_ms() {
    let test = "a_stopped_worker_gets_no_connection_after_200_ms";
    // The default threshold, 100 ms, is what promises this.
    let options = Options { generation: 1, policy: Policy::Cpu, ..Options::new(2) };
    let Some(setup) = Setup::all_to_worker_0(test, &options) else { return };
    let workers = [Worker::spawn(&setup, 0), Worker::spawn(&setup, 1)];
    for _ in 0..20 {
        setup.connect_only();
    }
    assert_eq!(setup.counted(Some(0), Outcome::Own), 20);
    // Asleep in its poll, with nothing to do: no heartbeat could tell that it is stopped.
    until("idle worker", || (setup.accepted(0) == 20 && setup.is_idle(0)).then_some(()));
    workers[0].signal(Signal::SIGSTOP);
    until("stopped worker", || (workers[0].state() == 'T').then_some(()));

    let stopped_ns = monotonic_ns();
    while monotonic_ns() < stopped_ns + 200_000_000 {
        setup.connect_only();
    }
    let given = || setup.matrix().count(|cell| cell.worker == Some(1));
    until("the other worker has caught up", || {
        (setup.accepted(1) >= given() && setup.is_idle(1)).then_some(())
    });
    let before = setup.matrix();
    for _ in 0..100 {
        // On a slow machine the other worker might count as stalled as well, were it given more than it has taken.
        let taken = setup.accepted(1);
        setup.connect_only();
        until("the other worker takes it", || (setup.accepted(1) > taken && setup.is_idle(1)).then_some(()));
    }
    let since = setup.matrix().since(&before);
    assert_eq!(
        since.count(|cell| cell.worker == Some(1) && cell.outcome == Outcome::Stalled),
        100,
        "{since}"
    );
    assert_eq!(since.count(|_| true), 100, "{since}");

    workers[0].signal(Signal::SIGCONT);
    // It takes what has waited, and gets its connections again, without anybody having reset anything.
    let mine = setup.counted(Some(0), Outcome::Own);
    until("worker that has caught up", || (setup.accepted(0) == mine).then_some(()));
    setup.connect_only();
    assert_eq!(setup.counted(Some(0), Outcome::Own), mine + 1);
}

#[test]
fn connections_of_a_killed_worker_wait_for_its_successor() {
    let test = "connections_of_a_killed_worker_wait_for_its_successor";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(1, Policy::Cpu)) else { return };
    let worker = Worker::spawn(&setup, 0);
    setup.connect_only();
    until("accepted connection", || (setup.accepted(0) == 1).then_some(()));
    drop(worker);
    // The socket is held here, so the connection is established, and waits.
    setup.connect_only();
    setup.steering.reset_worker(0).expect("reset");
    let _successor = Worker::spawn(&setup, 0);
    until("accepted connection", || (setup.accepted(0) == 2).then_some(()));
    assert_eq!(setup.steering.worker(0).expect("worker").state, WorkerState::Running);
}

/// Runs in a process of its own, started by the tests above.
#[test]
#[ignore = "is started by other tests, as the process of a worker"]
fn worker_process() {
    let role = std::env::var(ROLE).expect("started by another test");
    let [index, slots, listener] = role.split(' ').collect::<Vec<_>>()[..] else { panic!("{role}") };
    // SAFETY: the test that started this process has opened the descriptor for it alone.
    let slots = unsafe { OwnedFd::from_raw_fd(slots.parse().expect("descriptor")) };
    // SAFETY: as above.
    let listener = unsafe { TcpListener::from_raw_fd(listener.parse().expect("descriptor")) };
    drop_all_privileges();
    let slot = WorkerSlot::map(slots.as_fd(), index.parse().expect("index")).expect("slot");
    slot.start(1, 0);
    loop {
        let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::from(60_000u16)).expect("poll");
        slot.begin_turn(monotonic_ns());
        while listener.accept().is_ok() {
            slot.accepted(1);
        }
        slot.end_turn();
    }
}

fn drop_all_privileges() {
    for set in
        [caps::CapSet::Bounding, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        caps::clear(None, set).expect("dropping capabilities");
    }
    let options = Options { kernel_reads: false, ..Options::new(1) };
    let error = Steering::load(&options).expect_err("no privilege is left");
    assert!(matches!(&error, LoadError::Unavailable { reason, .. } if reason.contains("CAP_BPF")), "{error}");
}

/// The process of a worker; killed in the end.
struct Worker {
    child: Child,
}

impl Worker {
    /// Starts it, and waits until it runs.
    fn spawn(setup: &Setup, index: u16) -> Self {
        setup.slots[usize::from(index)].set_state(WorkerState::Down);
        let slots = inheritable(setup.steering.slots_fd());
        let listener = inheritable(setup.sockets[usize::from(index)].as_ref().expect("socket").as_fd());
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "worker_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, format!("{index} {} {}", slots.as_raw_fd(), listener.as_raw_fd()))
            .stdout(Stdio::null())
            .spawn()
            .expect("worker process");
        let worker = Self { child };
        let state = || setup.steering.worker(index).expect("worker").state;
        until("running worker", || (state() == WorkerState::Running).then_some(()));
        worker
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process id"))
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal");
    }

    /// The state that the kernel shows: `T` for stopped.
    fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("process");
        stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).expect("state")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself, if a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy of a descriptor that a child inherits. (Children of tests that run meanwhile inherit it too, which does no
/// harm: they know nothing of it.)
fn inheritable(fd: BorrowedFd<'_>) -> OwnedFd {
    let copy = fd.try_clone_to_owned().expect("copy");
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty())).expect("inheritable");
    copy
}

trait Connections {
    fn connect_only(&self);
    fn accepted(&self, worker: u16) -> u64;
    fn is_idle(&self, worker: u16) -> bool;
}

impl Connections for Setup {
    /// Connects, leaves accepting to the workers' processes, and closes.
    fn connect_only(&self) {
        std::net::TcpStream::connect_timeout(&self.address, DEADLINE).expect("connect");
    }

    fn accepted(&self, worker: u16) -> u64 {
        self.steering.worker(worker).expect("worker").accepted
    }

    fn is_idle(&self, worker: u16) -> bool {
        self.steering.worker(worker).expect("worker").busy_since_ns == 0
    }
}
