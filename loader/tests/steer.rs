//! The program `steer` in the running kernel, with real connections over loopback: policies, and every way around a
//! worker that cannot take a connection.

mod common;

use std::net::TcpStream;
use std::time::Duration;

use common::*;
use underpass_loader::{Options, Outcome, Policy, QueueWorker, WorkerState, monotonic_ns};

const STALL: Duration = Duration::from_millis(50);

#[test]
fn cpu_policy_steers_to_the_worker_of_the_clients_cpu() {
    let test = "cpu_policy_steers_to_the_worker_of_the_clients_cpu";
    if cpu_count() < 2 {
        return skip(test, "there is just one CPU");
    }
    let Some(mut setup) = Setup::new(test, &options(2, Policy::Cpu)) else { return };
    // Crossed, so that a worker that is numbered as its CPU by chance does not pass.
    setup.steering.set_cpus(&[(0, 1), (1, 0)]).expect("table");
    for cpu in [0, 1] {
        pin(cpu);
        let counts = setup.spread(50);
        assert_eq!(counts[1 - cpu as usize], 50, "client on CPU {cpu}: {counts:?}");
    }
    let matrix = setup.matrix();
    for cpu in [0u32, 1] {
        let own = u16::try_from(1 - cpu).expect("small");
        let own =
            matrix.count(|cell| cell.cpu == cpu && cell.worker == Some(own) && cell.outcome == Outcome::Own);
        assert_eq!(own, 50);
    }
    assert_eq!(matrix.count(|_| true), 100);
}

#[test]
fn a_cpu_without_worker_is_shared_among_all() {
    let test = "a_cpu_without_worker_is_shared_among_all";
    let Some(setup) = Setup::new(test, &options(2, Policy::Cpu)) else { return };
    let counts = setup.spread(200);
    assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
    let unmapped = setup.matrix().count(|cell| cell.worker.is_some() && cell.outcome == Outcome::Unmapped);
    assert_eq!(unmapped, 200);
}

#[test]
fn hash_policy_spreads_over_the_workers() {
    let test = "hash_policy_spreads_over_the_workers";
    let Some(setup) = Setup::all_to_worker_0(test, &options(3, Policy::Hash)) else { return };
    let counts = setup.spread(300);
    assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
    assert_eq!(setup.matrix().count(|cell| cell.worker.is_some() && cell.outcome == Outcome::Own), 300);
}

#[test]
fn off_leaves_the_choice_to_the_kernel() {
    let test = "off_leaves_the_choice_to_the_kernel";
    let Some(setup) = Setup::all_to_worker_0(test, &options(2, Policy::Off)) else { return };
    let counts = setup.spread(200);
    assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
    assert_eq!(setup.counted(None, Outcome::Off), 200);
    assert_eq!(setup.matrix().count(|_| true), 200);
}

#[test]
fn rx_queue_policy_goes_by_cpu_where_no_queue_is_known() {
    let test = "rx_queue_policy_goes_by_cpu_where_no_queue_is_known";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::RxQueue)) else { return };
    // Loopback records no queue; should it be taken for queue 0, this would show.
    setup.steering.set_queues(&[QueueWorker { interface: 1, queue: 0, worker: 1 }]).expect("table");
    assert_eq!(setup.spread(20), [20, 0]);
    assert_eq!(setup.counted(Some(0), Outcome::Own), 20);
}

#[test]
fn policies_switch_while_running() {
    let test = "policies_switch_while_running";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    assert_eq!(setup.spread(20), [20, 0]);
    setup.steering.set_policy(Policy::Hash).expect("switch");
    assert_eq!(setup.steering.policy().expect("policy"), Policy::Hash);
    let counts = setup.spread(100);
    assert!(counts[1] > 20, "{counts:?}");
    let before = setup.matrix();
    setup.steering.set_policy(Policy::Off).expect("switch");
    setup.spread(10);
    let since = setup.matrix().since(&before);
    assert_eq!(since.count(|cell| cell.outcome == Outcome::Off), 10);
    assert_eq!(since.count(|_| true), 10);
    setup.steering.set_policy(Policy::Cpu).expect("switch");
    assert_eq!(setup.spread(20), [20, 0]);
}

#[test]
fn a_worker_that_is_down_or_draining_gets_nothing() {
    let test = "a_worker_that_is_down_or_draining_gets_nothing";
    let Some(setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.slots[0].set_state(WorkerState::Down);
    assert_eq!(setup.spread(10), [0, 10]);
    setup.slots[0].set_state(WorkerState::Draining);
    assert_eq!(setup.spread(10), [0, 10]);
    assert_eq!(setup.counted(Some(1), Outcome::Down), 20);
    setup.slots[0].set_state(WorkerState::Running);
    assert_eq!(setup.spread(10), [10, 0]);
}

#[test]
fn a_worker_that_is_gone_gets_nothing_until_its_successor_starts() {
    let test = "a_worker_that_is_gone_gets_nothing_until_its_successor_starts";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.slots[0].begin_turn(monotonic_ns());
    setup.slots[0].set_active(7);
    setup.steering.reset_worker(0).expect("reset");
    let gone = setup.steering.worker(0).expect("worker");
    assert_eq!((gone.state, gone.busy_since_ns, gone.active), (WorkerState::Down, 0, 0));
    assert_eq!(setup.spread(10), [0, 10]);
    setup.slots[0].start(1, 0);
    assert_eq!(setup.spread(10), [10, 0]);
}

#[test]
fn only_the_current_generation_gets_connections() {
    let test = "only_the_current_generation_gets_connections";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.steering.set_generation(2).expect("generation");
    setup.slots[1].start(2, 0);
    assert_eq!(setup.spread(10), [0, 10]);
    assert_eq!(setup.counted(Some(1), Outcome::Generation), 10);
    assert_eq!(setup.steering.policy().expect("policy"), Policy::Cpu, "the rest of the configuration stays");
}

#[test]
fn a_worker_at_its_limit_is_spared() {
    let test = "a_worker_at_its_limit_is_spared";
    let Some(setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.slots[0].set_limit(5);
    setup.slots[0].set_active(4);
    assert_eq!(setup.spread(10), [10, 0]);
    setup.slots[0].set_active(5);
    assert_eq!(setup.spread(10), [0, 10]);
    assert_eq!(setup.counted(Some(1), Outcome::Overloaded), 10);
    setup.slots[0].set_limit(0);
    assert_eq!(setup.spread(10), [10, 0], "0 is no limit");
}

#[test]
fn a_full_accept_queue_is_passed_over() {
    let test = "a_full_accept_queue_is_passed_over";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.sockets[0] = Some(listener_with_backlog(setup.address, 4));
    setup.put_socket(0);
    // The kernel lets in one more than the backlog says. What it then refuses would be asked for again after a second.
    let waiting: Vec<TcpStream> =
        (0..8).map(|_| TcpStream::connect_timeout(&setup.address, DEADLINE).expect("connect")).collect();
    assert_eq!(setup.counted(Some(0), Outcome::Own), 5);
    assert_eq!(setup.counted(Some(1), Outcome::Overloaded), 3);
    drop(waiting);
}

#[test]
fn of_two_others_the_less_loaded_is_chosen() {
    let test = "of_two_others_the_less_loaded_is_chosen";
    let Some(setup) = Setup::all_to_worker_0(test, &options(3, Policy::Cpu)) else { return };
    setup.slots[0].set_state(WorkerState::Down);
    for (slot, active, limit) in [(1, 50, 100), (2, 40, 1000)] {
        setup.slots[slot].set_limit(limit);
        setup.slots[slot].set_active(active);
    }
    assert_eq!(setup.spread(50), [0, 0, 50]);
    setup.slots[2].set_active(900);
    assert_eq!(
        setup.spread(50),
        [0, 50, 0],
        "load is what part of the limit is used, not a number of sessions"
    );
}

#[test]
fn with_no_worker_fit_the_kernel_chooses() {
    let test = "with_no_worker_fit_the_kernel_chooses";
    let Some(setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.slots[0].set_limit(1);
    setup.slots[0].set_active(1);
    setup.slots[1].set_state(WorkerState::Down);
    setup.spread(10);
    assert_eq!(setup.counted(None, Outcome::Overloaded), 10);
}

#[test]
fn a_worker_too_long_in_one_turn_is_stalled() {
    let test = "a_worker_too_long_in_one_turn_is_stalled";
    let options = Options { stall: Duration::from_secs(1), ..options(2, Policy::Cpu) };
    let Some(mut setup) = Setup::all_to_worker_0(test, &options) else { return };
    let mut log = setup.steering.take_log().expect("log");
    setup.slots[0].begin_turn(monotonic_ns() - 2_000_000_000);
    assert_eq!(setup.spread(10), [0, 10]);
    assert_eq!(setup.counted(Some(1), Outcome::Stalled), 10);
    let lines = log.drain();
    assert_eq!(lines.len(), 1, "once, not for each connection: {lines:?}");
    assert!(lines[0].warning && lines[0].text.contains("worker 0 is stalled"), "{lines:?}");
    setup.slots[0].end_turn();
    assert_eq!(setup.spread(10), [10, 0], "asleep is not stalled");
}

#[test]
fn a_worker_that_leaves_connections_waiting_is_stalled_until_it_accepts() {
    let test = "a_worker_that_leaves_connections_waiting_is_stalled_until_it_accepts";
    for kernel_reads in [true, false] {
        let options = Options { stall: STALL, probe: NEVER_STALLS, kernel_reads, ..options(2, Policy::Cpu) };
        let Some(setup) = Setup::all_to_worker_0(test, &options) else { return };
        let waiting = setup.leave_waiting(STALL);
        for _ in 0..20 {
            let _stream = TcpStream::connect_timeout(&setup.address, DEADLINE).expect("connect");
            until("connection at worker 1", || setup.accept_at(1).then_some(()));
            // Or it would be stalled itself, on a machine where 20 connections take longer than the threshold.
            setup.slots[1].accepted(1);
        }
        assert_eq!(setup.counted(Some(1), Outcome::Stalled), 20, "kernel_reads {kernel_reads}");
        // The worker wakes up.
        assert!(setup.accept_at(0) && !setup.accept_at(0), "one connection waited");
        setup.slots[0].accepted(1);
        drop(waiting);
        assert_eq!(setup.spread(10), [10, 0], "kernel_reads {kernel_reads}");
    }
}

#[test]
fn a_worker_that_leaves_connections_waiting_at_its_limit_is_not_stalled() {
    let test = "a_worker_that_leaves_connections_waiting_at_its_limit_is_not_stalled";
    let options = Options { stall: STALL, ..options(2, Policy::Cpu) };
    let Some(mut setup) = Setup::all_to_worker_0(test, &options) else { return };
    let mut log = setup.steering.take_log().expect("log");
    let _waiting = setup.leave_waiting(STALL);
    setup.slots[0].set_limit(1);
    setup.slots[0].set_active(1);
    let _stream = TcpStream::connect_timeout(&setup.address, DEADLINE).expect("connect");
    until("connection at worker 1", || setup.accept_at(1).then_some(()));
    assert_eq!(setup.counted(Some(1), Outcome::Overloaded), 1);
    assert_eq!(log.drain(), []);
}

#[test]
fn a_stall_is_of_the_worker_and_holds_on_every_listener() {
    let test = "a_stall_is_of_the_worker_and_holds_on_every_listener";
    let options = Options { stall: STALL, ..options(2, Policy::Cpu) };
    let Some(mut setup) = Setup::all_to_worker_0(test, &options) else { return };
    let other = setup.attach_another("other");
    let _waiting = setup.leave_waiting(STALL);
    // Nothing was ever steered to worker 0 on this listener, so its queue there is empty.
    for _ in 0..20 {
        assert_eq!(connect_and_accept(&other).1, 1);
    }
}

#[test]
fn what_never_reaches_the_accept_queue_is_no_sign_of_a_stall() {
    let test = "what_never_reaches_the_accept_queue_is_no_sign_of_a_stall";
    let options = Options { stall: Duration::from_millis(1), ..options(2, Policy::Cpu) };
    let Some(setup) = Setup::all_to_worker_0(test, &options) else { return };
    let Some(raw) = RawSender::new(test, setup.address) else { return };
    raw.send(RawSender::SYN);
    until("count of the connection request", || (setup.counted(Some(0), Outcome::Own) == 1).then_some(()));
    // The stack answers SYN with SYN, ACK, and that with RST, since there is no such client. Longer than the
    // threshold later, the worker has still accepted nothing, and is well.
    pass(options.stall);
    assert_eq!(setup.connect().1, 0);
}

#[test]
fn segments_that_ask_for_no_connection_are_not_counted() {
    let test = "segments_that_ask_for_no_connection_are_not_counted";
    let Some(setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    let Some(raw) = RawSender::new(test, setup.address) else { return };
    raw.send(RawSender::ACK);
    raw.send(RawSender::ACK);
    raw.send(RawSender::SYN);
    // They are handled in order: once the last has been counted, the others have been seen.
    until("count of the connection request", || (setup.counted(Some(0), Outcome::Own) == 1).then_some(()));
    assert_eq!(setup.matrix().count(|_| true), 1);
}

#[test]
fn without_a_look_at_the_queue_a_probe_ends_a_false_alarm() {
    let test = "without_a_look_at_the_queue_a_probe_ends_a_false_alarm";
    let options = Options {
        stall: STALL,
        probe: Duration::from_millis(20),
        kernel_reads: false,
        ..options(2, Policy::Cpu)
    };
    let Some(setup) = Setup::all_to_worker_0(test, &options) else { return };
    // Accepted, but never published: as if the client had gone before its handshake was finished.
    assert_eq!(setup.connect().1, 0);
    pass(options.stall);
    until("false alarm", || (setup.connect().1 == 1).then_some(()));
    until("probe", || (setup.connect().1 == 0).then_some(()));
    setup.slots[0].accepted(1);
    assert_eq!(setup.spread(10), [10, 0]);
}

#[test]
fn a_worker_without_socket_is_passed_over() {
    let test = "a_worker_without_socket_is_passed_over";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    setup.steering.remove_socket("test", 0).expect("remove");
    assert_eq!(setup.spread(10), [0, 10]);
    assert_eq!(setup.counted(Some(1), Outcome::Empty), 10);
    setup.put_socket(0);
    assert_eq!(setup.spread(10), [10, 0]);
    // A socket that is closed leaves its place by itself.
    setup.sockets[0] = None;
    assert_eq!(setup.spread(10), [0, 10]);
    setup.sockets[0] = Some(listener(setup.address));
    setup.put_socket(0);
    assert_eq!(setup.spread(10), [10, 0]);
}

#[test]
fn works_for_ipv6() {
    let test = "works_for_ipv6";
    let address = ([0, 0, 0, 0, 0, 0, 0, 1], 0).into();
    if std::net::TcpListener::bind(address).is_err() {
        return skip(test, "this machine has no IPv6 loopback");
    }
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    let other = setup.attach_at("v6", address);
    for _ in 0..10 {
        assert_eq!(connect_and_accept(&other).1, 0);
    }
    assert_eq!(setup.counted(Some(0), Outcome::Own), 10);
}
