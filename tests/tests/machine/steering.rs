//! Each queue of a network device feeds its own worker.

use std::net::SocketAddr;

use underpass_command::api::{SteeringChange, SteeringStatus};
use underpass_command::state::SteeringPolicy;
use underpass_tests::proxy::Setup;
use underpass_tests::{Backend, GET, OK, Peer, Proxy};

use crate::network::{Network, SERVER};

const PER_QUEUE: u64 = 200;

/// New connections by CPU, which is the queue, and worker.
#[derive(Debug)]
struct Spread([[u64; 2]; 2]);

impl Spread {
    fn of(before: &SteeringStatus, after: &SteeringStatus) -> Self {
        let count = |status: &SteeringStatus, cpu: usize, worker: usize| {
            let row = status.matrix.iter().find(|row| row.cpu as usize == cpu);
            row.and_then(|row| row.workers.get(worker)).copied().unwrap_or(0)
        };
        Self([0, 1].map(|cpu| [0, 1].map(|worker| count(after, cpu, worker) - count(before, cpu, worker))))
    }

    fn of_queue(&self, queue: usize) -> u64 {
        self.0[queue].iter().sum()
    }

    /// Percent of the connections that went to the worker of their queue.
    fn own_percent(&self) -> u64 {
        (self.0[0][0] + self.0[1][1]) * 100 / self.0.iter().flatten().sum::<u64>().max(1)
    }
}

/// Makes connections, each with a request, until each queue has had enough of them.
fn connect_many(proxy: &Proxy, address: SocketAddr) -> Spread {
    let before = proxy.status().steering;
    // The device spreads connections over its queues by their hash: a few more are needed than twice that many.
    for round in 1..=8 {
        for _ in 0..PER_QUEUE / 2 {
            let mut client = Peer::connect(address);
            client.send(GET);
            assert_eq!(client.response().text(), "ok");
        }
        let spread = Spread::of(&before, &proxy.status().steering);
        if spread.of_queue(0).min(spread.of_queue(1)) >= PER_QUEUE {
            return spread;
        }
        assert!(round < 8, "the device does not use both queues: {spread:?}");
    }
    unreachable!("the loop ends by return or by its assertion")
}

#[test]
fn each_queues_connections_are_served_by_its_own_worker() {
    let _alone = crate::alone();
    if !crate::can_steer() {
        return;
    }
    let network = Network::new().expect("network namespaces");
    // Both ends of a connection to the backend are in the server's network; its loopback is down at first.
    network.enter(&network.server);
    bring_loopback_up(&network.server);
    let backend = Backend::answering(OK);
    let proxy = Setup::to(&[backend.address()])
        .run_by(&["ip", "netns", "exec", &network.server])
        .with(|state| {
            state.settings.workers = 2;
            state.settings.steering = SteeringPolicy::Cpu;
            state.listeners[0].address = SocketAddr::new(SERVER, 0);
        })
        .start();
    assert!(proxy.status().steering.active, "{:?}", proxy.status().steering.reason);
    network.pin_queues();
    network.enter(&network.client);
    // It shall not matter where the client runs.
    crate::pin(0);

    let accepted = |worker: usize| proxy.status().workers[worker].counters.value("connections_accepted");
    let by_cpu = connect_many(&proxy, proxy.address());
    assert!(by_cpu.own_percent() >= 99, "policy cpu: {by_cpu:?}");
    // What the program decided is what happened.
    for worker in [0, 1] {
        assert_eq!(accepted(worker), by_cpu.0[0][worker] + by_cpu.0[1][worker], "{by_cpu:?}");
    }

    let change = SteeringChange { policy: SteeringPolicy::Hash };
    proxy.client().set_steering(change).expect("another policy while running");
    let by_hash = connect_many(&proxy, proxy.address());
    assert!(by_hash.own_percent() < 75, "policy hash: {by_hash:?}");

    network.enter(&network.server);
    proxy.stop();
    drop(backend);
}

fn bring_loopback_up(namespace: &str) {
    let status = std::process::Command::new("ip").args(["-n", namespace, "link", "set", "lo", "up"]).status();
    assert!(status.is_ok_and(|status| status.success()), "loopback of {namespace}");
}
