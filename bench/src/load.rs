//! The load generator: a closed loop over kept connections, every response checked.
//!
//! Each connection sends its next request when the response to the last one is complete. So latency and throughput are
//! two sides of one thing here: N connections, and no request waits for being sent.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::report::{Latency, LoadReport};
use crate::response::{Expected, Reader};
use underpass_lab::accounting::{
    MachineClock, MachineCounters, ProcessTime, nanoseconds, process_since, process_time, pss_kib,
};
use underpass_lab::exchange::{Pattern, Request, SHIFTS};

/// What load to make, and what to watch.
#[derive(clap::Args)]
pub struct Options {
    /// Address of the proxy.
    #[arg(long)]
    address: SocketAddr,
    /// Bytes in each response's body.
    #[arg(long)]
    size: usize,
    /// Connections, each with one request under way at all times.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Length of the measured span; it goes on until there are as many responses as connections.
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// Load before the span begins.
    #[arg(long, default_value = "0.5", value_parser = seconds)]
    warm_up: Duration,
    /// Compare every byte of every body; otherwise of one in sixteen, and the beginning and the end of the others.
    #[arg(long)]
    compare_fully: bool,
    /// Process whose processor time and memory are reported; may be given several times.
    #[arg(long = "watch")]
    watched: Vec<u32>,
    /// Named pipe to tell `perf stat --control` when the span begins and ends.
    #[arg(long, requires = "perf_ack")]
    perf_control: Option<PathBuf>,
    /// Named pipe on which perf acknowledges that.
    #[arg(long, requires = "perf_control")]
    perf_ack: Option<PathBuf>,
}

/// A number of seconds, from a text.
///
/// # Errors
/// It is not one, or it is negative or too large.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// One body in so many is compared in full.
const COMPARED_FULLY_ONE_IN: u64 = 16;
/// Read size: large enough for the rest of a body to be dropped in few calls.
const BUFFER_SIZE: usize = 1024 * 1024;
/// Longest time without any byte before the run is given up.
const STALL: Duration = Duration::from_secs(10);
/// Latencies from 1 ns to a minute, with three digits.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Runs the load and prints the report.
///
/// # Errors
/// A response was wrong, a connection was closed, nothing moved for ten seconds, or the system refused something.
pub fn run(options: &Options) -> Result<()> {
    let report = Load::connect(options)?.run()?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

struct Load<'a> {
    options: &'a Options,
    poll: Poll,
    clients: Vec<Client>,
    pattern: Pattern,
    perf: Option<Perf>,
    tally: Tally,
}

/// What is counted, from the beginning of the span on; what is `overall` from the start.
struct Tally {
    responses: u64,
    responses_compared_fully: u64,
    responses_overall: u64,
    requests_overall: u64,
    body_bytes: u64,
    latency: Histogram<u64>,
}

/// One connection.
struct Client {
    stream: TcpStream,
    request: Request,
    /// Bytes of the request that are out already.
    sent: usize,
    sent_at: Instant,
    expected: Expected,
    reader: Reader,
    readable: bool,
}

/// All counters at the span's border.
struct Border {
    at: Instant,
    processes: Vec<ProcessTime>,
    load: ProcessTime,
    machine: MachineCounters,
}

impl<'a> Load<'a> {
    fn connect(options: &'a Options) -> Result<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::new();
        for index in 0..usize::from(options.connections) {
            let stream = std::net::TcpStream::connect_timeout(&options.address, STALL)
                .with_context(|| format!("address {}: cannot connect", options.address))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
            clients.push(Client {
                stream,
                request: Request::new(options.size),
                sent: 0,
                sent_at: Instant::now(),
                expected: Expected { from: 0, size: options.size, fully: true },
                reader: Reader::new(),
                readable: false,
            });
        }
        let tally = Tally {
            responses: 0,
            responses_compared_fully: 0,
            responses_overall: 0,
            requests_overall: 0,
            body_bytes: 0,
            latency: Histogram::new_with_max(LATENCY_NS_MAX, 3)?,
        };
        let perf = match (&options.perf_control, &options.perf_ack) {
            (Some(control), Some(ack)) => Some(Perf::open(control, ack)?),
            _ => None,
        };
        Ok(Self { options, poll, clients, pattern: Pattern::new(options.size), perf, tally })
    }

    fn run(mut self) -> Result<LoadReport> {
        let clock = MachineClock::new()?;
        let mut buffer = vec![0; BUFFER_SIZE];
        let start = Instant::now();
        for client in &mut self.clients {
            client.next_request(&mut self.tally, self.options.compare_fully, start)?;
        }
        self.exchange_until(start + self.options.warm_up, 0, &mut buffer)?;

        self.tally.begin_span();
        if let Some(perf) = &mut self.perf {
            perf.tell("enable")?;
        }
        let begin = self.border(&clock)?;
        let responses_min = u64::from(self.options.connections);
        self.exchange_until(begin.at + self.options.seconds, responses_min, &mut buffer)?;
        let end = self.border(&clock)?;
        if let Some(perf) = &mut self.perf {
            perf.tell("disable")?;
        }
        self.report(&begin, &end)
    }

    /// Keeps the load up until `until`, and until so many responses are complete.
    fn exchange_until(&mut self, until: Instant, responses_min: u64, buffer: &mut [u8]) -> Result<()> {
        let mut events = Events::with_capacity(256);
        let mut moved_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= until && self.tally.responses >= responses_min {
                return Ok(());
            }
            let patience = if now < until { until - now } else { STALL };
            match self.poll.poll(&mut events, Some(patience)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            if !events.is_empty() {
                moved_at = now;
            }
            ensure!(now - moved_at < STALL, "nothing came for {} s", STALL.as_secs());
            for event in &events {
                let Some(client) = self.clients.get_mut(event.token().0) else { continue };
                client.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                client.serve(&self.pattern, &mut self.tally, self.options.compare_fully, buffer)?;
            }
        }
    }

    fn border(&self, clock: &MachineClock) -> Result<Border> {
        Ok(Border {
            processes: self.options.watched.iter().map(|&pid| process_time(pid)).collect::<Result<_>>()?,
            load: process_time(std::process::id())?,
            machine: clock.read()?,
            at: Instant::now(),
        })
    }

    fn report(&self, begin: &Border, end: &Border) -> Result<LoadReport> {
        let tally = &self.tally;
        let percentile = |quantile| tally.latency.value_at_quantile(quantile);
        Ok(LoadReport {
            size: self.options.size,
            connections: self.clients.len(),
            span_ns: nanoseconds(end.at - begin.at),
            responses: tally.responses,
            body_bytes: tally.body_bytes,
            responses_compared_fully: tally.responses_compared_fully,
            responses_overall: tally.responses_overall,
            latency: Latency {
                p50_ns: percentile(0.5),
                p99_ns: percentile(0.99),
                p999_ns: percentile(0.999),
                max_ns: tally.latency.max(),
            },
            processes: end
                .processes
                .iter()
                .zip(&begin.processes)
                .map(|(now, earlier)| process_since(*now, *earlier))
                .collect(),
            load: process_since(end.load, begin.load),
            machine: end.machine.since(begin.machine),
            pss_kib: self.options.watched.iter().map(|&pid| pss_kib(pid)).collect::<Result<_>>()?,
        })
    }
}

impl Tally {
    fn begin_span(&mut self) {
        self.responses = 0;
        self.responses_compared_fully = 0;
        self.body_bytes = 0;
        self.latency.reset();
    }
}

impl Client {
    /// Receives what there is, and asks for more each time a response is complete.
    fn serve(
        &mut self,
        pattern: &Pattern,
        tally: &mut Tally,
        compare_fully: bool,
        buffer: &mut [u8],
    ) -> Result<()> {
        self.send()?;
        while self.readable {
            let progress = self.reader.read(&self.stream, self.expected, pattern, buffer)?;
            tally.body_bytes += progress.body_bytes as u64;
            self.readable = !progress.drained;
            if progress.complete {
                let now = Instant::now();
                tally.responses += 1;
                tally.responses_overall += 1;
                tally.responses_compared_fully += u64::from(self.expected.fully);
                tally.latency.saturating_record(nanoseconds(now - self.sent_at));
                self.next_request(tally, compare_fully, now)?;
            }
        }
        Ok(())
    }

    fn next_request(&mut self, tally: &mut Tally, compare_fully: bool, now: Instant) -> Result<()> {
        let number = tally.requests_overall;
        tally.requests_overall += 1;
        // Differs from the last one and from those of the other connections.
        self.expected.from = usize::try_from(number % SHIFTS as u64)?;
        self.expected.fully = compare_fully || number.is_multiple_of(COMPARED_FULLY_ONE_IN);
        self.request.set_from(self.expected.from);
        self.sent = 0;
        self.sent_at = now;
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        while let rest @ [_, ..] = &self.request.bytes()[self.sent..] {
            match self.stream.write(rest) {
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot send a request"),
            }
        }
        Ok(())
    }
}

/// The control pipes of `perf stat`.
struct Perf {
    control: File,
    ack: File,
}

impl Perf {
    fn open(control: &PathBuf, ack: &PathBuf) -> Result<Self> {
        let open = |path: &PathBuf| {
            // For reading and writing: the opening of a pipe then waits for nobody.
            let file = fs::OpenOptions::new().read(true).write(true).open(path);
            file.with_context(|| format!("{}: cannot open", path.display()))
        };
        Ok(Self { control: open(control)?, ack: open(ack)? })
    }

    /// Gives a command and waits until perf has carried it out.
    fn tell(&mut self, command: &str) -> Result<()> {
        self.control.write_all(format!("{command}\n").as_bytes())?;
        // perf acknowledges with "ack\n" and a zero byte.
        let mut answer = [0; 5];
        self.ack.read_exact(&mut answer)?;
        if !answer.starts_with(b"ack\n") {
            bail!("perf answered {:?} to {command}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}
