//! A proxy with all that stands around it, and what has to be true when everything is over.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering::Relaxed;

use underpass_command::state::{Listener, RedirectMode, Route, State};
use underpass_tests::proxy::Setup;
use underpass_tests::wait::until_within;
use underpass_tests::{Backend, PATIENCE, Proxy, is_root, skip, until};

use crate::server;

/// Runs a test in every mode that this machine has. `UNDERPASS_REDIRECT_MODE` names a single one.
pub(crate) fn each_mode(test: impl Fn(RedirectMode)) {
    let only = std::env::var("UNDERPASS_REDIRECT_MODE").ok();
    for &mode in RedirectMode::ALL {
        if only.as_ref().is_some_and(|only| *only != mode.to_string()) {
            continue;
        }
        if is_sockmap(mode) && !is_root() {
            skip("mode sockmap needs root, to load BPF programs");
            continue;
        }
        test(mode);
    }
}

pub(crate) fn is_sockmap(mode: RedirectMode) -> bool {
    mode.to_string() == "sockmap"
}

/// A number of the environment, for longer runs than a test's.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Drawn anew by `UNDERPASS_REDIRECT_SEED`; said when a test begins, so that a failure can be repeated.
pub(crate) fn seed(what: &str, mode: RedirectMode) -> u64 {
    let seed = setting("UNDERPASS_REDIRECT_SEED", 1);
    eprintln!("{what}, mode {mode}: UNDERPASS_REDIRECT_SEED={seed}");
    (seed & 0xfff) << 40 | (mode as u64) << 36
}

/// A running proxy, its backends, and the kernel's log.
pub(crate) struct Rig {
    pub(crate) proxy: Proxy,
    mode: RedirectMode,
    backends: Vec<Backend>,
    kernel: Option<KernelLog>,
    /// Descriptors of the supervisor, and of a worker, before anything happened.
    descriptors: (usize, usize),
}

impl Rig {
    /// Two backends and two listeners, of which one each speaks IPv6 where the machine does.
    pub(crate) fn new(mode: RedirectMode, change: impl FnOnce(Setup) -> Setup) -> Self {
        let mut backends = vec![Backend::start(server::serve)];
        let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
        let has_six = six.is_ok();
        if let Ok(six) = six {
            backends.push(Backend::on(six, server::serve));
        }
        Self::over(mode, backends, |setup| {
            let setup = setup.with(|state| {
                if has_six {
                    let mut listener = Listener::new("six", SocketAddr::from((Ipv6Addr::LOCALHOST, 0)));
                    listener.default_cluster = Some("app".into());
                    state.listeners.push(listener);
                }
            });
            change(setup)
        })
    }

    /// A proxy before these backends.
    pub(crate) fn over(
        mode: RedirectMode,
        backends: Vec<Backend>,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let kernel = KernelLog::open();
        let addresses: Vec<SocketAddr> = backends.iter().map(Backend::address).collect();
        let proxy = change(Setup::to(&addresses).redirect(mode).with(roomy)).start();
        let descriptors = (descriptors(supervisor(&proxy)), most_descriptors(&proxy));
        Self { proxy, mode, backends, kernel, descriptors }
    }

    /// All addresses.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.proxy.status().listeners.iter().map(|listener| listener.address).collect()
    }

    /// How many bytes went which way.
    pub(crate) fn moved(&self) -> String {
        let total = self.proxy.status().total;
        let shown: Vec<String> = total
            .values
            .iter()
            .filter(|(name, value)| {
                **value > 0
                    && ["bytes_", "bodies_", "fallback_", "sockmap_"].iter().any(|p| name.starts_with(p))
            })
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        shown.join(", ")
    }

    /// Waits until nothing is under way, ends everything, and looks for what was left behind.
    pub(crate) fn finish(self) {
        let Self { proxy, mode, backends, kernel, descriptors } = self;
        proxy.expect_quiet();
        // A slow one may have much to read that the kernel holds.
        until("the backends have read to the end", || (server::TUNNELS.load(Relaxed) == 0).then_some(()));
        until("no flow is redirected", || (proxy.status().total.value("sockmap_flows") == 0).then_some(()));
        expect_mode(&proxy, mode);
        // Those of the backends may be somebody else's as soon as these are gone.
        let ports: Vec<u16> =
            proxy.status().listeners.iter().map(|listener| listener.address.port()).collect();
        drop(backends);
        until("the processes have no more descriptors than before", || {
            let now = (self::descriptors(supervisor(&proxy)), most_descriptors(&proxy));
            (now.0 <= descriptors.0 && now.1 <= descriptors.1).then_some(())
        });
        let gone = until_within(PATIENCE, || connections(&ports).is_empty().then_some(()));
        assert!(gone.is_some(), "connections are left:\n{}", connections(&ports).join("\n"));
        proxy.stop();
        if let Some(kernel) = kernel {
            kernel.expect_silent();
        }
    }
}

/// More of everything than the default of the tests.
fn roomy(state: &mut State) {
    state.settings.limits.pipes = 64;
    state.settings.timeouts.linger_ms = 20_000;
    let mut route = Route::new("app");
    route.allow_connect = true;
    state.routes.push(route);
}

/// Little of everything, so that each bound is met again and again: of credit, of accounts, of pipes, of room in buffers.
pub(crate) fn tight(setup: Setup) -> Setup {
    setup.with(|state| {
        state.settings.sockmap_size_min = 16 * 1024;
        state.settings.sockmap_size_max = 1 << 40;
        let limits = &mut state.settings.limits;
        (limits.redirect_credit, limits.redirect_flows) = (64 * 1024, 60);
        (limits.buffer_size, limits.head_size_max, limits.target_size_max) = (4096, 4096, 2048);
        (limits.pipes, limits.pipe_size) = (6, 16 * 1024);
    })
}

/// What was to be tested has been: bytes went the way that the mode says.
fn expect_mode(proxy: &Proxy, mode: RedirectMode) {
    let total = proxy.status().total;
    let bytes = |way: &str| total.value(&format!("bytes_{way}"));
    if is_sockmap(mode) && bytes("sockmap") == 0 && total.value("fallback_sockmap_off") > 0 {
        skip(&format!("this kernel has no safe sockmap: {:?}", proxy.status().sockmap.reason));
        return;
    }
    match mode {
        RedirectMode::Copy => assert!(bytes("copied") > 0 && bytes("spliced") == 0),
        RedirectMode::Splice => assert!(bytes("spliced") > 0),
        _ if is_sockmap(mode) => assert!(bytes("sockmap") > 0, "nothing went by sockmap"),
        _ => {}
    }
}

fn supervisor(proxy: &Proxy) -> u32 {
    proxy.status().pid
}

/// Descriptors of the worker that has most.
fn most_descriptors(proxy: &Proxy) -> usize {
    proxy.worker_pids().into_iter().map(descriptors).max().unwrap_or(0)
}

/// How many descriptors a process has open; 0 when it is gone.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Connections of these ports that are neither listening nor over (TIME_WAIT).
fn connections(ports: &[u16]) -> Vec<String> {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap_or_default(), 16).ok();
    let is_ours = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, ..] = words[..] else { return false };
        let ours = [local, remote].iter().filter_map(|address| port(address)).any(|p| ports.contains(&p));
        ours && state != TIME_WAIT && state != LISTEN
    };
    let mut found = Vec::new();
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let table = fs::read_to_string(path).unwrap_or_default();
        found.extend(table.lines().skip(1).filter(is_ours).map(str::to_owned));
    }
    found
}

/// What the kernel says from now on.
struct KernelLog(File);

impl KernelLog {
    /// None where it cannot be read.
    fn open() -> Option<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
        let mut file = options.open("/dev/kmsg").ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// Fails where the kernel has warned of anything.
    fn expect_silent(mut self) {
        const WARNING: u64 = 4;
        let mut record = vec![0; 8192];
        let mut warnings = Vec::new();
        loop {
            match self.0.read(&mut record) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&record[..count]).into_owned();
                    // kernel.org, Documentation/ABI/testing/dev-kmsg: priority and facility, then a comma.
                    let level = text.split(',').next().and_then(|level| level.parse::<u64>().ok());
                    if level.is_some_and(|level| level & 7 <= WARNING) {
                        warnings.push(text);
                    }
                }
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {} // a record was overwritten
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("reading the kernel's log: {error}"),
            }
        }
        assert!(warnings.is_empty(), "the kernel warns:\n{}", warnings.join(""));
    }
}
