//! `cargo xtask vm-test`: the proxy in virtual machines with Debian's kernels and a network card of several queues.
//!
//! A machine's own kernel is one of many, and few machines that build software have a card whose queues interrupt
//! different CPUs. Here each kernel gets both: four CPUs, and four pairs of queues on a tap device.

mod build;
mod checks;
mod guest;
mod image;
mod kernel;
mod modules;
mod network;
mod report;
mod traffic;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use underpass_lab::exchange::Pattern;

use self::checks::Scene;
use self::guest::Guest;
use self::kernel::{Found, Kernel, LINES, Line};
use self::network::Network;
use self::report::Report;
use self::traffic::Backends;
use crate::process::{catch_interrupts, check_interrupt};
use crate::tools::{Tool, ensure as ensure_tools, is_root, workspace_root};

/// What it starts.
const TOOLS: &[Tool] = &[
    Tool::new("busybox", "busybox-static"),
    Tool::new("cpio", "cpio"),
    Tool::new("ethtool", "ethtool"),
    Tool::new("ip", "iproute2"),
    Tool::new("qemu-system-x86_64", "qemu-system-x86"),
    Tool::new("strip", "binutils"),
    Tool::new("xz", "xz-utils"),
];

/// Which kernels to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this kernel: 6.1, 6.12 or newest; may be repeated
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Don't install missing programs, say which they are
    #[arg(long)]
    no_install: bool,
    /// Where no kernel can be had, as without a network, say so and succeed
    #[arg(long)]
    may_skip: bool,
    /// Run the guest of a kernel in which checks failed once more; what fails twice has failed
    #[arg(long)]
    again: bool,
}

/// Why no guest can be run here, if so.
pub(crate) fn missing() -> Option<String> {
    if !is_root() {
        return Some("needs root: for a network namespace and a tap device".into());
    }
    (!cfg!(target_arch = "x86_64"))
        .then(|| "the guests are x86-64, and so must be the proxy that is built here".into())
}

/// Runs the guests, one after the other; an error if a check failed or nothing could be checked.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(reason) = missing() {
        bail!(reason);
    }
    let lines = selected(&options.kernel)?;
    ensure_tools(TOOLS, !options.no_install)?;
    let bench = Bench::set_up()?;
    let mut report = Report::default();
    for line in lines {
        match kernel::find(line, &bench.folder.join("kernels"))? {
            Found::Missing(reason) => report.skip(line.name, &format!("there is none to be had: {reason}")),
            Found::Kernel(kernel) => {
                let mut once = Report::default();
                bench.run(line, &kernel, &mut once)?;
                // Emulated processors share the machine's, and a stall of one is taken for one of what is tested.
                if options.again && once.failed() > 0 {
                    println!("        {} checks failed: the whole guest once more", once.failed());
                    report.repeated(once.failed());
                    once = Report::default();
                    bench.run(line, &kernel, &mut once)?;
                }
                report.add(&once);
            }
        }
    }
    println!("{}", report.closing_line());
    ensure!(report.failed() == 0, "checks failed");
    ensure!(options.may_skip || !report.is_empty(), "no kernel was there to be tested");
    Ok(())
}

/// Everything that all guests share.
struct Bench {
    /// Kernels, images, and what guests print.
    folder: PathBuf,
    proxy: PathBuf,
    bpf_object: Option<PathBuf>,
    network: Network,
    pattern: Arc<Pattern>,
    backends: Backends,
    tests: Vec<(String, PathBuf)>,
}

impl Bench {
    fn set_up() -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        let folder = workspace_root().join(target).join("vm");
        fs::create_dir_all(&folder).with_context(|| format!("{}: creating", folder.display()))?;
        let (proxy, tests) = (build::proxy()?, build::tests()?);
        // Not before, or cargo would not be ended by a Ctrl-C; not later, or the network would be left behind.
        catch_interrupts()?;
        let network = Network::new()?;
        let pattern = Arc::new(Pattern::new(traffic::BODY_MAX));
        let backends = Backends::start(&network, &pattern)?;
        // What `cargo xtask ci` has built from source goes before the object in the executable.
        let bpf_object = std::env::var_os("UNDERPASS_BPF_OBJECT").map(PathBuf::from);
        Ok(Self { folder, proxy, bpf_object, network, pattern, backends, tests })
    }

    /// Runs a guest with one kernel, and all checks in it. A guest that does not start is started once more: with several emulated
    /// processors QEMU may run an instruction that the kernel is just patching, half old and half new, and kernels patch
    /// themselves while they boot.
    fn run(&self, line: &Line, kernel: &Kernel, report: &mut Report) -> Result<()> {
        let folder = self.folder.join(line.name);
        fs::create_dir_all(&folder).with_context(|| format!("{}: creating", folder.display()))?;
        let contents = image::Contents {
            proxy: &self.proxy,
            bpf_object: self.bpf_object.as_deref(),
            backends: self.backends,
            tests: &self.tests,
        };
        let image = image::build(&folder, kernel, &contents)?;
        let mut guest = None;
        report.check(&kernel.release, "boot", || {
            let began = Instant::now();
            let start = || Guest::start(&folder, self.network.name(), kernel, &image);
            let (started, again) = match start() {
                Err(error) if check_interrupt().is_ok() => {
                    println!("        the guest did not start, once more: {error:#}");
                    (start()?, ", at the second start")
                }
                started => (started?, ""),
            };
            guest = Some(started);
            Ok(format!("takes commands after {:.1} s{again}", began.elapsed().as_secs_f64()))
        });
        let Some(guest) = guest else { return Ok(()) };
        let mut scene = Scene { guest, network: &self.network, pattern: &self.pattern, kernel };
        checks::run(&mut scene, &self.tests, report)?;
        write_transcript(&folder, &scene.guest)
    }
}

/// Keeps what the guest was told and what it answered, for a person to read.
fn write_transcript(folder: &Path, guest: &Guest) -> Result<()> {
    let path = folder.join("transcript.txt");
    fs::write(&path, guest.transcript()).with_context(|| format!("{}: writing", path.display()))?;
    println!("        transcript: {}", path.display());
    Ok(())
}

/// The lines that were asked for, or all.
fn selected(names: &[String]) -> Result<Vec<&'static Line>> {
    if let Some(unknown) = names.iter().find(|name| LINES.iter().all(|line| line.name != name.as_str())) {
        let known: Vec<&str> = LINES.iter().map(|line| line.name).collect();
        bail!("there is no kernel \"{unknown}\"; use one of: {}", known.join(", "));
    }
    let wanted = |line: &&Line| names.is_empty() || names.iter().any(|name| name == line.name);
    Ok(LINES.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_selected_by_name() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            selected(&names).map(|lines| lines.iter().map(|line| line.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["6.1", "6.12", "newest"]);
        assert_eq!(names(&["6.12"]).unwrap(), ["6.12"]);
        let error = names(&["6.2"]).unwrap_err().to_string();
        assert!(error.contains("no kernel \"6.2\"; use one of: 6.1, 6.12"), "{error}");
    }
}
