//! How many connections went where, and why.

use std::fmt;

use underpass_ebpf::{Outcome, Outcomes};

/// Connections by the CPU that handled their request, by the worker they went to, and by why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    workers: u16,
    /// What was counted, without zeros.
    pub cells: Vec<Cell>,
}

/// One count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The CPU that handled the connection request.
    pub cpu: u32,
    /// The chosen worker; `None` where the choice was left to the kernel.
    pub worker: Option<u16>,
    /// How it came to that.
    pub outcome: Outcome,
    /// Connections.
    pub count: u64,
}

impl Matrix {
    pub(super) fn new(workers: u16) -> Self {
        Self { workers, cells: Vec::new() }
    }

    pub(super) fn add<'a>(&mut self, worker: Option<u16>, per_cpu: impl Iterator<Item = &'a Outcomes>) {
        for (cpu, outcomes) in (0..).zip(per_cpu) {
            let counts = Outcome::ALL.into_iter().zip(outcomes.counts).filter(|(_, count)| *count > 0);
            self.cells.extend(counts.map(|(outcome, count)| Cell { cpu, worker, outcome, count }));
        }
    }

    /// Connections that meet a condition.
    pub fn count(&self, condition: impl Fn(&Cell) -> bool) -> u64 {
        self.cells.iter().filter(|cell| condition(cell)).map(|cell| cell.count).sum()
    }

    /// What was counted since an earlier reading of the same steering.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |cell: &Cell| {
            earlier.count(|old| (old.cpu, old.worker, old.outcome) == (cell.cpu, cell.worker, cell.outcome))
        };
        let cells =
            self.cells.iter().map(|cell| Cell { count: cell.count.saturating_sub(before(cell)), ..*cell });
        Self { workers: self.workers, cells: cells.filter(|cell| cell.count > 0).collect() }
    }
}

/// A table with a line for each CPU and a column for each worker, then the reasons for what did not go to its own.
impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus: Vec<u32> = self.cells.iter().map(|cell| cell.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.is_empty() {
            return writeln!(f, "no connections yet");
        }
        write!(f, "{:<9}", "")?;
        for worker in 0..self.workers {
            write!(f, "{:>12}", format!("worker {worker}"))?;
        }
        writeln!(f, "{:>12}", "kernel")?;
        for cpu in cpus {
            write!(f, "{:<9}", format!("CPU {cpu}"))?;
            for worker in (0..self.workers).map(Some).chain([None]) {
                write!(f, "{:>12}", self.count(|cell| cell.cpu == cpu && cell.worker == worker))?;
            }
            writeln!(f)?;
        }
        for outcome in Outcome::ALL.into_iter().filter(|outcome| *outcome != Outcome::Own) {
            let count = self.count(|cell| cell.outcome == outcome);
            if count > 0 {
                writeln!(f, "{count} {}", reason(outcome))?;
            }
        }
        Ok(())
    }
}

fn reason(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Own => "went to their own worker",
        Outcome::Unmapped => "went elsewhere: no worker belongs to their CPU or queue",
        Outcome::Down => "went elsewhere: their worker was not running",
        Outcome::Generation => "went elsewhere: their worker was of another generation",
        Outcome::Overloaded => "went elsewhere: their worker was at its limit, or its accept queue full",
        Outcome::Stalled => "went elsewhere: their worker was stalled",
        Outcome::Empty => "went elsewhere: their worker had no socket on the listener",
        Outcome::Off => "were left to the kernel by the policy off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(counts: &[(Outcome, u64)]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for (outcome, count) in counts {
            outcomes.counts[*outcome as usize] = *count;
        }
        outcomes
    }

    fn sample() -> Matrix {
        let mut matrix = Matrix::new(2);
        matrix.add(Some(0), [outcomes(&[(Outcome::Own, 7)]), outcomes(&[(Outcome::Stalled, 2)])].iter());
        matrix.add(Some(1), [outcomes(&[]), outcomes(&[(Outcome::Own, 5)])].iter());
        matrix.add(None, [outcomes(&[(Outcome::Off, 1)]), outcomes(&[])].iter());
        matrix
    }

    #[test]
    fn counts_by_any_condition() {
        let matrix = sample();
        assert_eq!(matrix.count(|_| true), 15);
        assert_eq!(matrix.count(|cell| cell.cpu == 1), 7);
        assert_eq!(matrix.count(|cell| cell.worker.is_none()), 1);
        let mut earlier = Matrix::new(2);
        earlier.add(Some(0), [outcomes(&[(Outcome::Own, 4)]), outcomes(&[(Outcome::Stalled, 2)])].iter());
        let since = matrix.since(&earlier);
        assert_eq!(since.count(|cell| cell.outcome == Outcome::Own), 8);
        assert_eq!(since.count(|cell| cell.outcome == Outcome::Stalled), 0);
    }

    #[test]
    fn prints_a_table() {
        let text = sample().to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["worker", "0", "worker", "1", "kernel"]);
        assert_eq!(lines[1], ["CPU", "0", "7", "0", "1"]);
        assert_eq!(lines[2], ["CPU", "1", "2", "5", "0"]);
        assert_eq!(lines[3][..2], ["2", "went"]);
        assert_eq!(lines[4][..2], ["1", "were"]);
        assert_eq!(Matrix::new(1).to_string(), "no connections yet\n");
    }
}
