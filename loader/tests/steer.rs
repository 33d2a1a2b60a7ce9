//! The program `steer` in the running kernel, with real connections over loopback.

mod common;

use common::*;
use underpass_loader::{Outcome, Policy};

#[test]
fn cpu_policy_steers_to_the_worker_of_the_clients_cpu() {
    let cpus = cpu_count();
    if cpus < 2 {
        return skip("cpu_policy_steers_to_the_worker_of_the_clients_cpu", "there is just one CPU");
    }
    let options = options(2, Policy::Cpu);
    let Some(mut setup) = Setup::new("cpu_policy_steers_to_the_worker_of_the_clients_cpu", &options) else {
        return;
    };
    // Crossed, so that an identity by chance does not pass.
    setup.steering.set_cpus(&[(0, 1), (1, 0)]).expect("table");
    for cpu in [0, 1] {
        pin(cpu);
        let counts = setup.spread(50);
        let own = 1 - cpu as usize;
        assert_eq!(counts[own], 50, "client on CPU {cpu}: {counts:?}");
    }
    let matrix = setup.matrix();
    for cpu in [0u32, 1] {
        let own = u16::try_from(1 - cpu).expect("small");
        let counted =
            matrix.count(|cell| cell.cpu == cpu && cell.worker == Some(own) && cell.outcome == Outcome::Own);
        assert_eq!(counted, 50);
    }
    assert_eq!(matrix.count(|_| true), 100);
}
