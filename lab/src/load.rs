//! One step of load: so many operations per second for so long, from one thread.

mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use slab::Slab;

use crate::accounting::{
    MachineClock, MachineCounters, ProcessTime, nanoseconds, process_since, process_time,
};
use crate::connection::{Connection, Driven, Operation, Seen, Shared};
use crate::exchange::{Pattern, SHIFTS};
use crate::latency::Latencies;
use crate::schedule::Schedule;

pub use plan::{Arrivals, Exchange, Plan, Step};

/// Read size: large enough for the rest of a body to be dropped in few calls.
const BUFFER_SIZE: usize = 1024 * 1024;
/// Between two looks for operations that have timed out.
const SWEEP: Duration = Duration::from_millis(20);
/// Reasons that are told apart; further ones are counted as "other".
const REASONS_MAX: usize = 8;
const TIMER: Token = Token(usize::MAX);

/// Makes the load.
///
/// # Errors
/// The system refused something, or a watched process has ended. What the server does wrong is counted instead.
pub fn run(plan: &Plan) -> Result<Step> {
    run_unless(plan, &AtomicBool::new(false))
}

/// Makes the load, unless the flag is set meanwhile.
///
/// # Errors
/// The same, and that it was interrupted.
pub fn run_unless(plan: &Plan, interrupted: &AtomicBool) -> Result<Step> {
    Load::new(plan)?.run(interrupted)
}

/// All counters at the span's border.
struct Border {
    at: Instant,
    processes: Vec<ProcessTime>,
    load: ProcessTime,
    machine: MachineCounters,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    WarmUp,
    Span {
        from: Duration,
        to: Duration,
    },
    /// Operations that were due within the span are finished.
    Rest {
        from: Duration,
        to: Duration,
    },
}

struct Load<'a> {
    plan: &'a Plan,
    shared: Shared<'a>,
    poll: Poll,
    timer: TimerFd,
    schedule: Option<Schedule>,
    began: Instant,
    stage: Stage,
    connections: Slab<Connection>,
    /// Keys of connections that are free, the one used last on top: few connections are kept busy, as in a pool.
    idle: Vec<usize>,
    /// Operations that are due and found no connection.
    waiting: VecDeque<Operation>,
    number: usize,
    sweep_at: Duration,
    tally: Tally,
}

struct Tally {
    due: u64,
    completed: u64,
    timeouts: u64,
    errors: u64,
    error_reasons: BTreeMap<String, u64>,
    completed_in_span: u64,
    body_bytes: u64,
    body_size_last: Option<u64>,
    connections_opened: u64,
    latency: Latencies,
    lag: Latencies,
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan) -> Result<Self> {
        let poll = Poll::new()?;
        // epoll counts milliseconds; arrivals come by the microsecond.
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
                .context("cannot make a timer")?;
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let pattern_size = match &plan.exchange {
            Exchange::Download { size, .. } => *size,
            other => other.upload_size(),
        };
        let schedule = match plan.arrivals {
            Arrivals::Closed => None,
            Arrivals::Open { per_s, seed } => Some(Schedule::new(per_s, seed)),
        };
        Ok(Self {
            plan,
            shared: Shared {
                exchange: &plan.exchange,
                pattern: Pattern::new(pattern_size),
                buffer: vec![0; BUFFER_SIZE],
            },
            poll,
            timer,
            schedule,
            began: Instant::now(),
            stage: Stage::WarmUp,
            connections: Slab::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            number: 0,
            sweep_at: Duration::ZERO,
            tally: Tally {
                due: 0,
                completed: 0,
                timeouts: 0,
                errors: 0,
                error_reasons: BTreeMap::new(),
                completed_in_span: 0,
                body_bytes: 0,
                body_size_last: None,
                connections_opened: 0,
                latency: Latencies::new()?,
                lag: Latencies::new()?,
            },
        })
    }

    fn run(mut self, interrupted: &AtomicBool) -> Result<Step> {
        let clock = MachineClock::new()?;
        let mut events = Events::with_capacity(256);
        self.began = Instant::now();
        for _ in 0..self.plan.connections_at_start.min(self.plan.connections_max) {
            self.open(None);
        }
        let mut begin = None;
        let mut end = None;
        loop {
            ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            let now = self.began.elapsed();
            self.take_due(now);
            match self.stage {
                Stage::WarmUp if now >= self.plan.warm_up => {
                    begin = Some(self.border(&clock)?);
                    let from = self.began.elapsed();
                    self.stage = Stage::Span { from, to: from + self.plan.span };
                }
                Stage::Span { from, to } if now >= to => {
                    end = Some(self.border(&clock)?);
                    self.stage = Stage::Rest { from, to };
                }
                Stage::Rest { to, .. } if self.is_settled() || now >= to + self.plan.timeout + SWEEP * 4 => {
                    break;
                }
                _ => {}
            }
            self.sweep(now);
            self.dispatch();
            self.wait(&mut events)?;
            for event in &events {
                if event.token() != TIMER {
                    let hangup = event.is_read_closed() || event.is_error();
                    self.drive(event.token().0, Seen { readable: event.is_readable(), hangup });
                }
            }
        }
        let (begin, end) = begin.zip(end).context("the span has no borders")?;
        Ok(self.step(&begin, &end))
    }

    /// Takes the operations that have come due.
    fn take_due(&mut self, now: Duration) {
        if self.schedule.is_none() {
            return self.take_as_completed(now);
        }
        let until = match self.stage {
            Stage::WarmUp => now,
            Stage::Span { to, .. } => now.min(to),
            Stage::Rest { .. } => return,
        };
        while let Some(due) = self.schedule.as_mut().and_then(|schedule| schedule.take_due(until)) {
            if let Stage::Span { from, .. } = self.stage
                && due >= from
            {
                self.tally.lag.record(now - due);
            }
            let operation = next_operation(&mut self.number, due);
            self.admit(operation);
        }
    }

    /// In a closed loop operations are due as connections are free.
    fn take_as_completed(&mut self, now: Duration) {
        if matches!(self.stage, Stage::Rest { .. }) {
            return;
        }
        let free = self.idle.len() + self.plan.connections_max.saturating_sub(self.connections.len());
        for _ in self.waiting.len()..free {
            let operation = next_operation(&mut self.number, now);
            self.admit(operation);
        }
    }

    fn admit(&mut self, operation: Operation) {
        if self.counts(operation) {
            self.tally.due += 1;
        }
        self.waiting.push_back(operation);
    }

    /// Whether an operation was due within the span.
    fn counts(&self, operation: Operation) -> bool {
        match self.stage {
            Stage::WarmUp => false,
            Stage::Span { from, to } | Stage::Rest { from, to } => (from..to).contains(&operation.due),
        }
    }

    fn is_settled(&self) -> bool {
        self.tally.completed + self.tally.timeouts + self.tally.errors >= self.tally.due
    }

    /// Gives waiting operations to connections that are free, or opens more.
    fn dispatch(&mut self) {
        while let Some(&operation) = self.waiting.front() {
            if let Some(key) = self.idle.pop() {
                let Some(connection) = self.connections.get_mut(key) else { continue };
                connection.begin(operation, &self.plan.exchange);
                self.waiting.pop_front();
                self.drive(key, Seen::default());
            } else if self.connections.len() < self.plan.connections_max {
                self.waiting.pop_front();
                self.open(Some(operation));
            } else {
                return;
            }
        }
    }

    /// Opens a connection for an operation, or for the first that comes.
    fn open(&mut self, operation: Option<Operation>) {
        self.tally.connections_opened += 1;
        let opened = Connection::open(self.plan.address).and_then(|mut connection| {
            let entry = self.connections.vacant_entry();
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut connection.stream, Token(entry.key()), both)?;
            if let Some(operation) = operation {
                connection.begin(operation, &self.plan.exchange);
            }
            entry.insert(connection);
            Ok(())
        });
        if let Err(error) = opened {
            self.fail(operation, &error);
        }
    }

    fn drive(&mut self, key: usize, seen: Seen) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let was_idle = connection.is_idle();
        match connection.drive(seen, &mut self.shared) {
            Ok(driven) => {
                let is_idle = connection.is_idle();
                if driven.ended {
                    let cut = connection.operation();
                    self.remove(key);
                    if cut.is_some() {
                        self.fail(cut, &anyhow::anyhow!("connection was closed"));
                    }
                } else if is_idle && !was_idle {
                    self.idle.push(key);
                }
                self.count(&driven);
            }
            Err(error) => {
                let operation = connection.operation();
                self.remove(key);
                self.fail(operation, &error);
            }
        }
    }

    fn remove(&mut self, key: usize) {
        self.connections.remove(key);
        self.idle.retain(|&other| other != key);
    }

    fn count(&mut self, driven: &Driven) {
        let in_span = matches!(self.stage, Stage::Span { .. });
        if in_span {
            self.tally.body_bytes += driven.body_bytes;
        }
        let Some(operation) = driven.completed else { return };
        self.tally.body_size_last = Some(driven.completed_bytes);
        if in_span {
            self.tally.completed_in_span += 1;
        }
        if self.counts(operation) {
            self.tally.completed += 1;
            self.tally.latency.record(self.began.elapsed().saturating_sub(operation.due));
        }
    }

    fn fail(&mut self, operation: Option<Operation>, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        // A tunnel that does not open, for instance, is an error of none of the operations.
        if operation.is_some_and(|operation| self.counts(operation)) {
            self.tally.errors += 1;
        }
        let reasons = &mut self.tally.error_reasons;
        let reason = if reasons.len() < REASONS_MAX || reasons.contains_key(&reason) {
            reason
        } else {
            "other".into()
        };
        *reasons.entry(reason).or_default() += 1;
    }

    /// Ends operations that have timed out.
    fn sweep(&mut self, now: Duration) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = now + SWEEP;
        let timeout = self.plan.timeout;
        let is_late = |operation: Operation| now.saturating_sub(operation.due) > timeout;
        while let Some(&operation) = self.waiting.front().filter(|operation| is_late(**operation)) {
            self.waiting.pop_front();
            self.time_out(operation);
        }
        let late: Vec<(usize, Operation)> = self
            .connections
            .iter()
            .filter_map(|(key, connection)| Some((key, connection.operation()?)))
            .filter(|(_, operation)| is_late(*operation))
            .collect();
        for (key, operation) in late {
            // What comes of it later must not be taken for the answer to another.
            self.remove(key);
            self.time_out(operation);
        }
    }

    fn time_out(&mut self, operation: Operation) {
        if self.counts(operation) {
            self.tally.timeouts += 1;
            self.tally.latency.record(self.plan.timeout);
        }
    }

    /// Waits for events, and not beyond the next operation.
    fn wait(&mut self, events: &mut Events) -> Result<()> {
        let now = self.began.elapsed();
        let next = match (self.stage, &self.schedule) {
            (Stage::WarmUp, Some(schedule)) => schedule.peek().min(self.plan.warm_up),
            (Stage::WarmUp, None) => self.plan.warm_up,
            (Stage::Span { to, .. }, Some(schedule)) => schedule.peek().min(to),
            (Stage::Span { to, .. }, None) => to,
            (Stage::Rest { .. }, _) => self.sweep_at,
        };
        let until = next.min(self.sweep_at.max(now + SWEEP));
        let patience = match until.saturating_sub(now) {
            Duration::ZERO => Some(Duration::ZERO),
            wait => {
                let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
                self.timer.set(expiration, TimerSetTimeFlags::empty()).context("cannot set a timer")?;
                None
            }
        };
        match self.poll.poll(events, patience) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result.context("cannot wait for events"),
        }
    }

    fn border(&self, clock: &MachineClock) -> Result<Border> {
        Ok(Border {
            processes: self.plan.watched.iter().map(|&pid| process_time(pid)).collect::<Result<_>>()?,
            load: process_time(std::process::id())?,
            machine: clock.read()?,
            at: Instant::now(),
        })
    }

    fn step(self, begin: &Border, end: &Border) -> Step {
        let Tally { due, completed, timeouts, errors, .. } = self.tally;
        debug_assert!(completed + timeouts + errors <= due, "an operation ends once");
        let processes = end.processes.iter().zip(&begin.processes);
        Step {
            asked_per_s: match self.plan.arrivals {
                Arrivals::Closed => None,
                Arrivals::Open { per_s, .. } => Some(per_s),
            },
            span_ns: nanoseconds(end.at - begin.at),
            due,
            completed,
            // What is neither complete nor failed when nobody waits any longer.
            timeouts: due - completed - errors,
            errors,
            error_reasons: self.tally.error_reasons,
            completed_in_span: self.tally.completed_in_span,
            body_bytes: self.tally.body_bytes,
            body_size_last: self.tally.body_size_last,
            latency: self.tally.latency.percentiles(),
            lag: self.tally.lag.percentiles(),
            connections_opened: self.tally.connections_opened,
            processes: processes.map(|(now, earlier)| process_since(*now, *earlier)).collect(),
            load: process_since(end.load, begin.load),
            machine: end.machine.since(begin.machine),
        }
    }
}

fn next_operation(number: &mut usize, due: Duration) -> Operation {
    *number += 1;
    // Differs from those of the other connections.
    Operation { due, from: *number % SHIFTS }
}

#[cfg(test)]
mod tests;
