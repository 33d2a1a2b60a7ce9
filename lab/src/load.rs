//! One step of load: so many operations per second for so long, from one thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::accounting::{
    MachineClock, MachineCounters, MachineTime, ProcessTime, nanoseconds, process_since, process_time,
};
use crate::connection::{Connection, Driven, Operation, Seen, Shared};
use crate::exchange::{Pattern, SHIFTS};
use crate::latency::{Latencies, Percentiles};
use crate::response::Expected;
use crate::schedule::Schedule;

/// What to do, how often, for how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where to connect to.
    pub address: SocketAddr,
    /// What one operation is.
    pub exchange: Exchange,
    /// When operations begin.
    pub arrivals: Arrivals,
    /// Most connections at a time. An operation that finds none free waits, and its latency grows.
    pub connections_max: usize,
    /// Connections that are opened before the first operation is due.
    pub connections_at_start: usize,
    /// Load before the measured span.
    pub warm_up: Duration,
    /// Length of the measured span.
    pub span: Duration,
    /// An operation that is not complete so long after it was due has timed out.
    pub timeout: Duration,
    /// Processes whose processor time is reported.
    pub watched: Vec<u32>,
}

/// When operations begin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// When the one before is complete, on each connection.
    Closed,
    /// At times fixed in advance: see [`Schedule`].
    Open {
        /// Mean rate.
        per_s: f64,
        /// The same seed gives the same times.
        seed: u64,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// Gets a body of the benchmark's own backend; every one is checked.
    Download {
        /// Bytes of the body.
        size: usize,
        /// Whether a connection serves more than one request.
        reuse: bool,
    },
    /// Sends a body to the benchmark's own backend.
    Upload {
        /// Bytes of the body.
        size: usize,
    },
    /// Sends a message through a tunnel and waits for its echo.
    Tunnel {
        /// Bytes of the message.
        message_size: usize,
    },
    /// Any URL: GET, or POST with a body.
    Url {
        /// Value of `Host`.
        authority: String,
        /// Request target.
        target: String,
        /// Bytes of the request's body; 0: GET.
        upload_size: usize,
    },
}

impl Exchange {
    /// Bytes that an operation sends after its head.
    pub(crate) fn upload_size(&self) -> usize {
        match self {
            Self::Download { .. } => 0,
            Self::Upload { size } | Self::Tunnel { message_size: size } => *size,
            Self::Url { upload_size, .. } => *upload_size,
        }
    }

    /// Whether a connection serves more than one operation.
    pub(crate) fn keeps_connections(&self) -> bool {
        !matches!(self, Self::Download { reuse: false, .. })
    }

    pub(crate) fn write_head(&self, head: &mut Vec<u8>, from: usize) {
        let text = match self {
            Self::Download { size, reuse } => {
                let close = if *reuse { "" } else { "Connection: close\r\n" };
                format!(
                    "GET /size/{size}/from/{from:04} HTTP/1.1\r\nHost: lab.test\r\nAccept: */*\r\n{close}\r\n"
                )
            }
            Self::Upload { size } => format!(
                "POST /upload/from/{from:04} HTTP/1.1\r\nHost: lab.test\r\nContent-Length: {size}\r\n\r\n"
            ),
            Self::Tunnel { .. } => String::new(),
            Self::Url { authority, target, upload_size: 0 } => format!(
                "GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: underpass-lab\r\nAccept: */*\r\n\r\n"
            ),
            Self::Url { authority, target, upload_size } => format!(
                "POST {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: underpass-lab\r\nAccept: */*\r\n\
                 Content-Type: application/octet-stream\r\nContent-Length: {upload_size}\r\n\r\n"
            ),
        };
        head.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn expected(&self, from: usize) -> Expected {
        match self {
            Self::Download { size, .. } => Expected { status: Some(200), body: Some((from, *size as u64)) },
            Self::Upload { .. } | Self::Tunnel { .. } => Expected { status: Some(200), body: Some((0, 0)) },
            Self::Url { .. } => Expected { status: None, body: None },
        }
    }
}

/// What one step has given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Rate that was asked for; none in a closed loop.
    pub asked_per_s: Option<f64>,
    /// Length of the span over which times and bytes were counted, in nanoseconds.
    pub span_ns: u64,
    /// Operations that were due within the span.
    pub due: u64,
    /// Of those, the ones that were completed in time.
    pub completed: u64,
    /// Of those, the ones that took too long.
    pub timeouts: u64,
    /// Of those, the ones that failed.
    pub errors: u64,
    /// Why, and how often.
    pub error_reasons: BTreeMap<String, u64>,
    /// Operations that were completed within the span, whenever they were due.
    pub completed_in_span: u64,
    /// Body bytes moved within the span.
    pub body_bytes: u64,
    /// Of the operations that were due within the span, from when they were due; those that timed out count as long as
    /// the timeout.
    pub latency: Percentiles,
    /// How late the load generator itself noticed that an operation was due.
    pub lag: Percentiles,
    /// Connections that were opened, from the beginning on.
    pub connections_opened: u64,
    /// The processes that were watched.
    pub processes: Vec<ProcessTime>,
    /// The load generator.
    pub load: ProcessTime,
    /// All cores.
    pub machine: MachineTime,
}

impl Step {
    /// Length of the span in seconds.
    pub fn span_s(&self) -> f64 {
        self.span_ns as f64 / 1e9
    }

    /// Operations per second that were completed.
    pub fn achieved_per_s(&self) -> f64 {
        self.completed_in_span as f64 / self.span_s()
    }

    /// Share of the operations that failed or timed out.
    pub fn failed_share(&self) -> f64 {
        (self.timeouts + self.errors) as f64 / self.due.max(1) as f64
    }

    /// Body bytes per second.
    pub fn bytes_per_s(&self) -> f64 {
        self.body_bytes as f64 / self.span_s()
    }
}

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
    Load::new(plan)?.run()
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
                connections_opened: 0,
                latency: Latencies::new()?,
                lag: Latencies::new()?,
            },
        })
    }

    fn run(mut self) -> Result<Step> {
        let clock = MachineClock::new()?;
        let mut events = Events::with_capacity(256);
        self.began = Instant::now();
        for _ in 0..self.plan.connections_at_start.min(self.plan.connections_max) {
            self.open(None);
        }
        let mut begin = None;
        let mut end = None;
        loop {
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
        let counted = match operation {
            Some(operation) => self.counts(operation),
            // A tunnel that does not open is an error of none of the operations, and of all.
            None => false,
        };
        if !counted {
            return;
        }
        self.tally.errors += 1;
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
