//! Loading, attaching and detaching; what is refused, and how it is said.

mod common;

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::Duration;

use common::*;
use underpass_loader::{LoadError, Options, Outcome, Policy, QueueWorker, probe};

#[test]
fn what_is_probed_is_what_loading_finds() {
    let report = probe();
    assert!(report.capabilities.iter().any(|capability| capability.name.contains("SK_REUSEPORT")));
    let text = report.to_string();
    for capability in report.missing() {
        assert!(text.contains(&capability.detail) && !capability.remedy.is_empty(), "{capability:?}");
    }
    let loaded = underpass_loader::Steering::load(&options(1, Policy::Cpu));
    assert_eq!(loaded.is_ok(), report.steering_available(), "{report}{loaded:?}");
    if let Err(error) = loaded {
        skip("what_is_probed_is_what_loading_finds", &error.to_string());
    }
}

#[test]
fn the_verifier_is_far_from_its_limit() {
    let Some(steering) = load("the_verifier_is_far_from_its_limit", &options(2, Policy::Cpu)) else { return };
    // A kernel's verifier goes through a million instructions at most, and some go through more than others.
    let verified = steering.verified_instructions().expect("known since Linux 5.16");
    assert!(verified < 100_000, "{verified}");
}

#[test]
fn options_without_sense_are_refused() {
    let good = options(2, Policy::Cpu);
    let bad = [
        ("workers", Options { workers: 0, ..good.clone() }),
        ("workers", Options { workers: 2000, ..good.clone() }),
        ("listeners_max", Options { listeners_max: 0, ..good.clone() }),
        ("queues_max", Options { queues_max: 0, ..good.clone() }),
        ("stall", Options { stall: Duration::ZERO, ..good }),
    ];
    for (name, options) in bad {
        let error = underpass_loader::Steering::load(&options).expect_err("refused");
        assert!(matches!(error, LoadError::Option { option, .. } if option == name), "{error}");
    }
}

#[test]
fn an_object_that_is_missing_or_foreign_is_named() {
    let test = "an_object_that_is_missing_or_foreign_is_named";
    let missing = Options { object: Some("/nonexistent/steer.o".into()), ..options(1, Policy::Cpu) };
    let error = underpass_loader::Steering::load(&missing).expect_err("missing").to_string();
    assert!(error.contains("/nonexistent/steer.o"), "{error}");
    if load(test, &options(1, Policy::Cpu)).is_none() {
        return;
    }
    let foreign = Options { object: Some("/proc/self/exe".into()), ..options(1, Policy::Cpu) };
    let error = underpass_loader::Steering::load(&foreign).expect_err("foreign");
    assert!(matches!(error, LoadError::Step { .. } | LoadError::Object { .. }), "{error}");
}

#[test]
fn a_listener_is_refused_with_the_reason() {
    let test = "a_listener_is_refused_with_the_reason";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    let sockets = group(2);
    let [first, second] = [sockets[0].as_fd(), sockets[1].as_fd()];
    let plain = TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = setup.sockets[1].as_ref().expect("socket").as_fd();
    let mut refused = |name: &str, sockets: &[_]| {
        setup.steering.attach_listener(name, sockets).expect_err("refused").to_string()
    };
    let cases = [
        (refused("new", &[first]), "has 1 sockets for 2 workers"),
        (refused("test", &[first, second]), "attached already"),
        (refused("new", &[first, plain.as_fd()]), "SO_REUSEPORT"),
    ];
    for (error, expected) in cases {
        assert!(error.contains("listener \"") && error.contains(expected), "{error}");
    }
    let busy = setup.steering.attach_listener("new", &[first, taken]).expect_err("refused").to_string();
    assert!(busy.contains("another socket array"), "{busy}");
    // Nothing is left of the attempts.
    setup.steering.attach_listener("new", &[first, second]).expect("attach");
    assert_eq!(setup.spread(10), [10, 0]);
}

#[test]
fn a_detached_listener_goes_by_the_kernels_choice() {
    let test = "a_detached_listener_goes_by_the_kernels_choice";
    let Some(mut setup) = Setup::all_to_worker_0(test, &options(2, Policy::Cpu)) else { return };
    assert_eq!(setup.spread(10), [10, 0]);
    let before = setup.matrix();
    let socket = setup.sockets[0].as_ref().expect("socket").try_clone().expect("clone");
    setup.steering.detach_listener("test", socket.as_fd()).expect("detach");
    let counts = setup.spread(100);
    assert!(counts[1] > 20, "{counts:?}");
    assert_eq!(setup.matrix(), before, "the program does not run");
    assert!(setup.steering.detach_listener("test", socket.as_fd()).is_err());
}

#[test]
fn places_of_detached_listeners_are_used_again() {
    let test = "places_of_detached_listeners_are_used_again";
    let options = Options { listeners_max: 2, ..options(2, Policy::Cpu) };
    let Some(mut setup) = Setup::all_to_worker_0(test, &options) else { return };
    for round in 0..5 {
        let other = setup.attach_another("other");
        let sockets = group(2);
        let full = setup.steering.attach_listener("third", &[sockets[0].as_fd(), sockets[1].as_fd()]);
        assert!(full.expect_err("full").to_string().contains("listeners_max"));
        for _ in 0..5 {
            assert_eq!(connect_and_accept(&other).1, 0, "round {round}");
        }
        setup.steering.detach_listener("other", other[0].as_fd()).expect("detach");
    }
    assert_eq!(setup.counted(Some(0), Outcome::Own), 25);
}

#[test]
fn workers_and_cpus_that_do_not_exist_are_refused() {
    let test = "workers_and_cpus_that_do_not_exist_are_refused";
    let Some(mut steering) = load(test, &options(2, Policy::Cpu)) else { return };
    assert!(steering.set_cpus(&[(0, 2)]).is_err());
    assert!(steering.set_cpus(&[(1_000_000, 0)]).is_err());
    assert!(steering.set_queues(&[QueueWorker { interface: 1, queue: 0, worker: 2 }]).is_err());
    assert!(steering.reset_worker(2).is_err());
    assert!(steering.worker(2).is_none());
    assert!(steering.replace_socket("test", 0, std::io::stdin().as_fd()).is_err());
}

#[test]
fn without_reads_of_kernel_memory_the_queue_is_not_known() {
    let test = "without_reads_of_kernel_memory_the_queue_is_not_known";
    let reduced = Options { kernel_reads: false, ..options(2, Policy::Cpu) };
    let Some(mut steering) = load(test, &reduced) else { return };
    assert!(steering.reduced().is_some());
    let error = steering.set_policy(Policy::RxQueue).expect_err("refused").to_string();
    assert!(error.contains("rx-queue") && error.contains("use the policy cpu"), "{error}");
    assert_eq!(steering.policy().expect("policy"), Policy::Cpu);
    let full = load(test, &options(2, Policy::RxQueue)).expect("loads, since the reduced one did");
    assert_eq!(full.reduced(), None);
}

#[test]
fn names_of_policies() {
    for policy in Policy::ALL {
        assert_eq!(policy.name().parse::<Policy>().expect("known"), policy);
    }
    assert!(
        "cpus".parse::<Policy>().expect_err("unknown").to_string().contains("use cpu, rx-queue, hash or off")
    );
}
