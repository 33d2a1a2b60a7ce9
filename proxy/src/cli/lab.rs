//! `underpass lab`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use underpass_command::Client;
use underpass_command::state::RedirectMode;
use underpass_lab::deployed::{self, Options};
use underpass_lab::ramp::{Bounds, Ladder};
use underpass_lab::report;
use underpass_lab::url::Url;

use super::{Failure, print};

/// What to load, and how far.
#[derive(Debug, Args)]
pub(super) struct Lab {
    /// What to download: `http://HOST[:PORT]/PATH`
    #[arg(required_unless_present = "tunnel")]
    url: Option<Url>,
    /// Also send bodies of so many bytes to the URL, by POST
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1 << 30))]
    upload: u32,
    /// Also send messages there and back through connections to this TCP server, which must send back what it gets
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    tunnel: Option<SocketAddr>,
    /// Admin socket of the proxy: its redirect modes are switched and compared, and put back at the end
    #[arg(long, value_name = "PATH")]
    admin: Option<PathBuf>,
    /// Modes to compare [default: all]
    #[arg(long, value_delimiter = ',', requires = "admin")]
    modes: Vec<RedirectMode>,
    /// Requests per second to begin with
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Requests per second that are not exceeded
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    rate_max: u32,
    /// Steps at most, for each mode
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u8).range(1..))]
    steps: u8,
    /// Length of a step in seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// An answer that takes longer has timed out
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    timeout: Duration,
    /// The 99th percentile of the latency, in milliseconds, beyond which a step counts as broken
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    p99_max: u32,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4000))]
    connections: u16,
    /// Rounds in which modes are compared; six are needed to tell a difference from noise
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Folder for lab.json and lab.html
    #[arg(long, value_name = "FOLDER", default_value = "underpass-lab")]
    out: PathBuf,
}

/// Bytes of a message through a tunnel.
const MESSAGE_SIZE: usize = 1024;
/// Each step asks for so much more than the one before.
const FACTOR: f64 = 1.5;
/// Steps between the highest rate that held and the lowest that broke.
const REFINEMENTS: usize = 2;
/// In the rounds, load as a share of the lowest knee.
const LOAD_SHARE: f64 = 0.5;
/// Load before each step's span.
const WARM_UP: Duration = Duration::from_millis(200);
/// The longest step, and the longest timeout.
const SECONDS_MAX: f64 = 600.0;

/// Measures, prints the tables, writes the report.
pub(super) fn lab(arguments: Lab) -> Result<(), Failure> {
    let out = arguments.out.clone();
    let options = options(arguments);
    let goal = options.url.as_ref().map_or_else(String::new, |url| format!(" on {}", url.authority));
    eprintln!(
        "This makes load{goal}: up to {:.0} requests per second over {} connections, for up to {:.0} s. Ctrl-C ends it.",
        options.ladder.per_s_max,
        options.connections,
        options.duration_max().as_secs_f64()
    );
    let interrupted = catch_interrupts()?;
    let report = deployed::run(&options, &interrupted, &mut |line| eprintln!("{line}"))
        .map_err(|error| Failure::runtime(format!("{error:#}")))?;
    print(&report::text(&report))?;
    let [json, page] = report.write(&out).map_err(|error| Failure::runtime(format!("{error:#}")))?;
    print(&format!("\n{}\n{}\n", json.display(), page.display()))
}

fn options(arguments: Lab) -> Options {
    let rate = f64::from(arguments.rate);
    Options {
        url: arguments.url,
        upload_size: usize::try_from(arguments.upload).unwrap_or(usize::MAX),
        tunnel: arguments.tunnel,
        message_size: MESSAGE_SIZE,
        admin: arguments.admin.map(Client::new),
        modes: if arguments.modes.is_empty() { RedirectMode::ALL.to_vec() } else { arguments.modes },
        ladder: Ladder {
            rates: vec![rate],
            factor: FACTOR,
            per_s_max: f64::from(arguments.rate_max).max(rate),
            steps_max: usize::from(arguments.steps),
            refinements: REFINEMENTS,
        },
        bounds: Bounds { p99_ns_max: u64::from(arguments.p99_max) * 1_000_000, ..Bounds::default() },
        rounds: arguments.rounds,
        load_share: LOAD_SHARE,
        span: arguments.seconds,
        warm_up: WARM_UP,
        timeout: arguments.timeout,
        connections: usize::from(arguments.connections),
        command: std::env::args().collect::<Vec<_>>().join(" "),
    }
}

/// A flag that Ctrl-C and SIGTERM set, so that the mode of the proxy is put back.
fn catch_interrupts() -> Result<Arc<AtomicBool>, Failure> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(Failure::runtime)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    std::thread::Builder::new().name("lab-signals".into()).spawn(move || {
        while signals.wait().is_err() {}
        flag.store(true, Ordering::Relaxed);
    })?;
    Ok(interrupted)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if !(0.05..=SECONDS_MAX).contains(&seconds) {
        return Err(format!("{text} is not between 0.05 and {SECONDS_MAX} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut addresses = text.to_socket_addrs().map_err(|error| format!("{error}; write HOST:PORT"))?;
    addresses.next().ok_or_else(|| "the host has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_sensible_lengths() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "601", "x"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(address("127.0.0.1:80").map(|address| address.port()), Ok(80));
        assert!(address("127.0.0.1").is_err_and(|error| error.contains("HOST:PORT")));
    }
}
