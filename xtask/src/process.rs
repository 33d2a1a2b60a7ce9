//! The processes of a benchmark: pinned, bound to our life, and gone at the end whatever happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How often a wait looks again. The looking costs the load's core microseconds.
const POLL: Duration = Duration::from_millis(10);
/// Until a process that was told to stop is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Until a process that was started has to be ready.
const START_PATIENCE: Duration = Duration::from_secs(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C and SIGTERM end the run by an error, so that everything on the way out is cleaned up.
///
/// To be called before any other thread is started.
pub(crate) fn catch_interrupts() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        while signals.wait().is_err() {}
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// An error if the run is to end.
pub(crate) fn check_interrupt() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Looks again and again until there is something; an error at the deadline or when the run is interrupted.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        check_interrupt()?;
        ensure!(Instant::now() < deadline, "waited {} s for {what}", patience.as_secs());
        thread::sleep(POLL);
    }
}

/// What starts processes, and where their output goes.
pub(crate) struct Launcher {
    /// The binary `underpass-bench`.
    pub(crate) tool: PathBuf,
    /// The binary `underpass`, if it is among the contenders.
    pub(crate) underpass: Option<PathBuf>,
    /// Folder for configurations and output.
    pub(crate) folder: PathBuf,
}

/// A process that ends when this is dropped, together with those it has started.
pub(crate) struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    ended: bool,
}

impl Launcher {
    /// The binary `underpass`.
    pub(crate) fn underpass(&self) -> Result<&Path> {
        self.underpass.as_deref().context("underpass was not built")
    }

    /// Starts a program on these cores.
    pub(crate) fn start(
        &self,
        name: &str,
        cores: &[usize],
        program: &Path,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Process> {
        check_interrupt()?;
        let output = self.folder.join(format!("{name}.out"));
        let errors = self.folder.join(format!("{name}.err"));
        let child = Command::new(&self.tool)
            .arg("run")
            .args(cores.iter().map(|core| format!("--core={core}")))
            .args(["--parent", &std::process::id().to_string(), "--"])
            .arg(program)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?)
            // A group of its own, so that what it starts can be ended with it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: cannot run {}", self.tool.display()))?;
        Ok(Process { name: name.to_owned(), child, output, errors, ended: false })
    }

    /// Starts a subcommand of the benchmark's own binary on one core.
    pub(crate) fn start_own(
        &self,
        name: &str,
        core: usize,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Process> {
        self.start(name, &[core], &self.tool, arguments.into_iter().map(OsString::from))
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that it has started, and that are still there.
    pub(crate) fn children(&self) -> Result<Vec<u32>> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("{path}: cannot read"))?;
        text.split_ascii_whitespace().map(|pid| Ok(pid.parse()?)).collect()
    }

    /// The address that it prints as its first line.
    pub(crate) fn printed_address(&mut self) -> Result<SocketAddr> {
        let output = self.output.clone();
        self.until(&format!("the address of {}", self.name), START_PATIENCE, || {
            let text = fs::read_to_string(&output)?;
            let Some((line, _)) = text.split_once('\n') else { return Ok(None) };
            Ok(Some(line.parse().with_context(|| format!("not an address: \"{line}\""))?))
        })
    }

    /// Waits until it is ready, and says how it ended if it ends before that.
    pub(crate) fn ready(&mut self, mut is_ready: impl FnMut() -> bool) -> Result<()> {
        self.until(&format!("{} to be ready", self.name), START_PATIENCE, || Ok(is_ready().then_some(())))
    }

    fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let found = wait_for(what, patience, || {
            let found = look()?;
            if found.is_none()
                && let Some(status) = self.has_ended()?
            {
                bail!("{} ended with {status}", self.name);
            }
            Ok(found)
        });
        found.with_context(|| self.complaint())
    }

    /// Waits for its end; what it printed, if it ended well.
    pub(crate) fn finish(mut self, patience: Duration) -> Result<String> {
        let what = format!("the end of {}", self.name);
        let status = wait_for(&what, patience, || self.has_ended()).with_context(|| self.complaint())?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.complaint());
        fs::read_to_string(&self.output).with_context(|| format!("{}: cannot read", self.output.display()))
    }

    /// Asks it to end by a signal and waits until it has.
    pub(crate) fn end_by(mut self, signal: Signal) -> Result<()> {
        kill(pid_of(&self.child), signal).with_context(|| format!("cannot signal {}", self.name))?;
        wait_for(&format!("the end of {}", self.name), STOP_PATIENCE, || self.has_ended())?;
        Ok(())
    }

    fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        self.ended |= status.is_some();
        Ok(status)
    }

    /// The last lines that it wrote about its trouble.
    fn complaint(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        match lines.as_slice() {
            [] => format!("{} said nothing", self.name),
            lines => format!("{} said: {}", self.name, lines[lines.len().saturating_sub(5)..].join(" | ")),
        }
    }

    /// Ends the process and its group: by request first, by force at the deadline.
    fn stop(&mut self) {
        if self.ended {
            return;
        }
        let pid = pid_of(&self.child);
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + STOP_PATIENCE;
        // It is looked at without being reaped: until then no other process or group can have its number.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while Instant::now() < deadline {
            match waitid(Id::Pid(pid), flags) {
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => thread::sleep(POLL),
                _ => break,
            }
        }
        let _ = killpg(pid, Signal::SIGKILL);
        let _ = self.child.wait();
        self.ended = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pid_of(child: &Child) -> Pid {
    // Process ids are positive and far below 2^31 (PID_MAX_LIMIT is 2^22).
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(program: &str, arguments: &[&str], folder: &Path) -> Result<Process> {
        let (output, errors) = (folder.join("out"), folder.join("err"));
        let child = Command::new(program)
            .args(arguments)
            .stdout(File::create(&output)?)
            .stderr(File::create(&errors)?)
            .process_group(0)
            .spawn()?;
        Ok(Process { name: "it".into(), child, output, errors, ended: false })
    }

    #[test]
    fn a_process_and_its_children_end_with_their_handle() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut parent = process("sh", &["-c", "sleep 600 & echo $!; wait"], folder.path())?;
        let output = folder.path().join("out");
        parent.ready(|| fs::read_to_string(&output).is_ok_and(|text| text.ends_with('\n')))?;
        let child: i32 = fs::read_to_string(&output)?.trim().parse()?;
        assert_eq!(parent.children()?, [u32::try_from(child)?]);
        drop(parent);
        // The orphan is reaped by init, so wait for that.
        wait_for("the child's end", Duration::from_secs(10), || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            Ok((stat.is_empty() || stat.contains(") Z ")).then_some(()))
        })
    }

    #[test]
    fn a_process_that_fails_is_reported_with_its_words() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let failing = process("sh", &["-c", "echo no such thing >&2; exit 3"], folder.path())?;
        let error = failing.finish(Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such thing"), "{error}");
        let mut early = process("true", &[], folder.path())?;
        let error = format!("{:#}", early.ready(|| false).unwrap_err());
        assert!(error.contains("it ended with exit status: 0"), "{error}");
        Ok(())
    }
}
