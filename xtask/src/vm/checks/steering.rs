//! Do connections from outside arrive at the worker of their queue?

use anyhow::{Context as _, Result, bail, ensure};

use super::{Scene, ensure_equal, nic, number};
use crate::process::check_interrupt;
use crate::vm::guest::CPUS;
use crate::vm::network::GUEST;
use crate::vm::traffic::{Client, Kind};

/// Connections for one reading of the matrix.
const CONNECTIONS: usize = 400;
/// How often a reading is repeated in which workers were stalled: CPUs of a guest are threads of a host that has other
/// things to do, and a worker that gets no CPU is rightly passed over.
const TRIES: usize = 5;

type Matrix = [[u64; CPUS as usize]; CPUS as usize];

/// Connections by the CPU that handled the request and by worker, and what goes with it.
struct Reading {
    matrix: Matrix,
    /// What each worker says it has accepted.
    accepted: [u64; CPUS as usize],
    /// Connections that went elsewhere because their worker was stalled or overloaded.
    busy: u64,
}

impl Reading {
    fn take(scene: &mut Scene<'_>) -> Result<Self> {
        let status = scene.status()?;
        let mut matrix = Matrix::default();
        let rows = status["steering"]["matrix"].as_array().context("the status has no matrix")?;
        for row in rows {
            let cpu = usize::try_from(number(row, "/cpu")?)?;
            let line = matrix.get_mut(cpu).with_context(|| format!("the matrix has a CPU {cpu}"))?;
            for (worker, count) in line.iter_mut().enumerate() {
                *count = number(row, &format!("/workers/{worker}"))?;
            }
        }
        let mut accepted = [0; CPUS as usize];
        for (worker, count) in accepted.iter_mut().enumerate() {
            *count = number(&status, &format!("/workers/{worker}/counters/values/connections_accepted"))?;
        }
        let outcomes = &status["steering"]["outcomes"];
        let busy = ["stalled", "overloaded"].iter().filter_map(|name| outcomes[*name].as_u64()).sum();
        Ok(Self { matrix, accepted, busy })
    }

    fn since(&self, earlier: &Self) -> Self {
        let mut since = Self { matrix: self.matrix, accepted: self.accepted, busy: self.busy - earlier.busy };
        for (now, before) in since.matrix.as_flattened_mut().iter_mut().zip(earlier.matrix.as_flattened()) {
            *now -= before;
        }
        for (now, before) in since.accepted.iter_mut().zip(&earlier.accepted) {
            *now -= before;
        }
        since
    }
}

/// Makes connections from outside, one after the other, with a request each; each answer is compared.
pub(super) fn connect(scene: &mut Scene<'_>, count: usize) -> Result<()> {
    let pattern = scene.pattern;
    scene.network.within(|| {
        for number in 0..count {
            let mut client = Client::connect(GUEST)?;
            client.exchange(pattern, Kind::Download, 100, number % 1000)?;
            check_interrupt()?;
        }
        Ok(())
    })
}

pub(super) fn by_cpu(scene: &mut Scene<'_>) -> Result<String> {
    scene.guest.run("underpass steering set cpu")?;
    expect(scene, |cpu| cpu)
}

/// The queue decides also where it interrupts the CPU of another worker: so it is the queue, and not the CPU, that counts.
pub(super) fn by_queue(scene: &mut Scene<'_>) -> Result<String> {
    scene.guest.run("underpass steering set rx-queue")?;
    let straight = expect(scene, |cpu| cpu)?;
    // The table of queues was made when the policy was set; from here on queue n interrupts CPU n + 1.
    let turned: Vec<u32> = (0..CPUS).map(|queue| (queue + 1) % CPUS).collect();
    nic::move_rx_interrupts(&mut scene.guest, &turned)?;
    connect(scene, CONNECTIONS / 4)?;
    let crossed = expect(scene, |cpu| (cpu + CPUS as usize - 1) % CPUS as usize);
    let back: Vec<u32> = (0..CPUS).collect();
    nic::move_rx_interrupts(&mut scene.guest, &back)?;
    scene.guest.run("underpass steering set cpu")?;
    Ok(format!("{straight}; with each interrupt on the next CPU: {}", crossed?))
}

/// Of many connections, 99 % must go from each CPU to the worker that `worker_of` names, and each worker must get some.
fn expect(scene: &mut Scene<'_>, worker_of: fn(usize) -> usize) -> Result<String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let before = Reading::take(scene)?;
        connect(scene, CONNECTIONS)?;
        let reading = Reading::take(scene)?.since(&before);
        let Reading { matrix, accepted, busy } = &reading;
        let total: u64 = matrix.as_flattened().iter().sum();
        ensure_equal("connections in the matrix", total, CONNECTIONS as u64)?;
        for (worker, accepted) in accepted.iter().enumerate() {
            let steered: u64 = matrix.iter().map(|row| row[worker]).sum();
            ensure_equal(&format!("connections accepted by worker {worker}"), *accepted, steered)?;
            ensure!(*accepted >= CONNECTIONS as u64 / 20, "worker {worker} has just {accepted}: {matrix:?}");
        }
        scene.guest.run("underpass steering get")?;
        let own: u64 = matrix.iter().enumerate().map(|(cpu, row)| row[worker_of(cpu)]).sum();
        if own * 100 >= total * 99 {
            return Ok(format!("{own} of {total} connections at the worker of their queue, {accepted:?}"));
        }
        last = format!(
            "{own} of {total} connections at the worker of their queue: {matrix:?}, {busy} passed over busy workers"
        );
        ensure!(own + busy >= total, "{last}");
    }
    bail!("after {TRIES} tries: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_compared() {
        let reading = |count: u64| {
            let mut reading = Reading { matrix: Matrix::default(), accepted: [count; 4], busy: count };
            reading.matrix[1][2] = count;
            reading
        };
        let since = reading(7).since(&reading(3));
        assert_eq!((since.matrix[1][2], since.matrix[0][0], since.accepted[3], since.busy), (4, 0, 4, 4));
    }
}
