//! The steering policies, under many short connections, with a worker for each core.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use underpass_command::Client;
use underpass_command::api::{SteeringChange, SteeringStatus};
use underpass_command::state::SteeringPolicy;
use underpass_lab::load::Arrivals;
use underpass_lab::report::{Kind, Round, SteeringRow, SteeringRun, Workload};

use super::contender::{backend_address, steered_address};
use super::measure::{Lab, start_underpass};
use super::network::Side;
use crate::bench::contender::{forwards, underpass_with};
use crate::bench::rotated;
use crate::process::{check_interrupt, wait_for};

/// Short connections: what steering decides about is a new connection.
const WORKLOAD: Workload = Workload { kind: Kind::Connections, size: 1024, connections: 256 };
/// For the workers to be there.
const PATIENCE: Duration = Duration::from_secs(20);

impl Lab<'_> {
    /// Measures every policy.
    pub(super) fn steer(&mut self) -> Result<()> {
        eprintln!("[{}] steering policies", self.elapsed());
        let cores = [self.cores.load, self.cores.proxy];
        let mut sorted = cores;
        sorted.sort_unstable();
        self.network.receive_for_proxy(&sorted)?;
        self.network.enter(Side::Proxy)?;
        let admin = self.launcher.folder.join("steered.sock");
        let settings = "workers = 2\nsteering = \"cpu\"\n";
        let text = underpass_with(steered_address(), backend_address(), &admin, settings);
        let underpass = start_underpass(&self.launcher, "steered", &cores, &text)?;
        self.network.enter(Side::Client)?;
        let admin = Client::new(admin);
        wait_for("the workers of the steered underpass", PATIENCE, || {
            let running = admin.status().is_ok_and(|status| status.workers.len() == cores.len());
            Ok((running && forwards(steered_address())).then_some(()))
        })?;
        let workers = underpass.children()?;
        ensure!(workers.len() == cores.len(), "{} workers instead of {}", workers.len(), cores.len());
        self.report.arrangement.push(format!(
            "For steering: two workers, one on each of the cores {} and {}; each receives one of the two queues of the \
             client's link, and load generator and backend share the first.",
            sorted[0], sorted[1]
        ));

        let before = self.report.steering.len();
        for &policy in SteeringPolicy::ALL {
            let (status, closed) = self.under(&admin, policy, Arrivals::Closed, &workers)?;
            self.report.steering.push(SteeringRun {
                policy: policy.name().to_owned(),
                reason: status.reason.filter(|_| policy != SteeringPolicy::Off),
                matrix: Vec::new(),
                closed_per_s: Some(closed.achieved_per_s()),
                rounds: Vec::new(),
                figures: None,
            });
        }
        let slowest =
            self.report.steering[before..].iter().filter_map(|run| run.closed_per_s).reduce(f64::min);
        let per_s =
            slowest.filter(|rate| *rate > 0.0).context("no connection was served")? * self.plan.load_share;
        for round in 0..self.plan.rounds {
            if self.is_over() {
                break;
            }
            for policy in rotated(SteeringPolicy::ALL, round as usize) {
                check_interrupt()?;
                self.wait_until_quiet()?;
                let matrix_before = admin.steering()?;
                let arrivals = Arrivals::Open { per_s, seed: 1000 + u64::from(round) };
                let (matrix_after, step) = self.under(&admin, policy, arrivals, &workers)?;
                let disturbed = self.is_disturbed(&step);
                let run = self.report.steering[before..].iter_mut().find(|run| run.policy == policy.name());
                let run = run.context("a policy without a run")?;
                add(&mut run.matrix, &matrix_before, &matrix_after, workers.len());
                run.rounds.push(Round { round, workers: workers.len(), disturbed, step });
            }
        }
        eprintln!("[{}]   compared in {} rounds at {per_s:.0}/s", self.elapsed(), self.plan.rounds);
        Ok(())
    }

    fn under(
        &mut self,
        admin: &Client,
        policy: SteeringPolicy,
        arrivals: Arrivals,
        workers: &[u32],
    ) -> Result<(SteeringStatus, underpass_lab::load::Step)> {
        admin.set_steering(SteeringChange { policy })?;
        let step = self.load(steered_address(), WORKLOAD, arrivals, workers)?;
        Ok((admin.steering()?, step))
    }
}

/// Adds what has come between two looks.
fn add(matrix: &mut Vec<SteeringRow>, before: &SteeringStatus, after: &SteeringStatus, workers: usize) {
    for row in &after.matrix {
        let earlier = before.matrix.iter().find(|other| other.cpu == row.cpu);
        let count = |worker: usize| {
            let of =
                |row: &underpass_command::api::SteeringRow| row.workers.get(worker).copied().unwrap_or(0);
            of(row) - earlier.map_or(0, of).min(of(row))
        };
        let kernel = row.kernel - earlier.map_or(0, |earlier| earlier.kernel).min(row.kernel);
        let counts: Vec<u64> = (0..workers).map(count).chain([kernel]).collect();
        match matrix.iter_mut().find(|other| other.cpu == row.cpu) {
            Some(found) => found.workers.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
            None => matrix.push(SteeringRow { cpu: row.cpu, workers: counts }),
        }
    }
    matrix.sort_unstable_by_key(|row| row.cpu);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_meanwhile_is_added() {
        let status = |rows: &[(u32, [u64; 2], u64)]| SteeringStatus {
            matrix: rows
                .iter()
                .map(|&(cpu, workers, kernel)| underpass_command::api::SteeringRow {
                    cpu,
                    workers: workers.to_vec(),
                    kernel,
                })
                .collect(),
            ..SteeringStatus::default()
        };
        let mut matrix = Vec::new();
        add(&mut matrix, &status(&[(0, [5, 1], 0)]), &status(&[(0, [9, 1], 2), (1, [0, 3], 0)]), 2);
        add(&mut matrix, &status(&[(0, [9, 1], 2)]), &status(&[(0, [10, 1], 2)]), 2);
        let row = |cpu, workers: [u64; 3]| SteeringRow { cpu, workers: workers.to_vec() };
        assert_eq!(matrix, [row(0, [5, 0, 2]), row(1, [0, 3, 0])]);
    }
}
