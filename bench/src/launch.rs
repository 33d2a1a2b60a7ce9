//! Runs a command pinned to one core or to several, bound to the life of its parent.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid};

/// Where to run what.
#[derive(clap::Args)]
pub struct Options {
    /// A core; may be given several times.
    #[arg(long = "core", required = true)]
    cores: Vec<usize>,
    /// Process id of the parent, whose end is this command's end.
    #[arg(long)]
    parent: i32,
    /// The command and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Becomes the command; returns only when that fails.
///
/// # Errors
/// The core cannot be had, the parent is gone, or the command cannot be run.
pub fn run(options: &Options) -> Result<()> {
    match become_command(options)? {}
}

fn become_command(options: &Options) -> Result<Infallible> {
    let mut cores = CpuSet::new();
    for &core in &options.cores {
        cores.set(core).with_context(|| format!("core {core}: no such core"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &cores)
        .with_context(|| format!("cores {:?}: not some that this process may use", options.cores))?;
    // SIGTERM and not SIGKILL: a proxy with worker processes ends them when it is told to stop.
    set_pdeathsig(Signal::SIGTERM).context("cannot ask for a signal at the parent's end")?;
    // The parent may have ended before the line above, and then no signal comes.
    if getppid() != Pid::from_raw(options.parent) {
        bail!("parent {} has ended", options.parent);
    }
    // The parent blocks the signals that it waits for, and a blocked signal stays so across exec.
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    let [program, arguments @ ..] = options.command.as_slice() else {
        bail!("no command given");
    };
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
