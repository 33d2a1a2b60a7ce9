//! A virtual machine, and the line over which it is told what to do.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::kernel::Kernel;
use crate::process::check_interrupt;

/// CPUs of a guest, and pairs of queues of its network device.
pub(super) const CPUS: u32 = 4;
const MEMORY_MIB: u32 = 1024;
/// From the start until the guest takes commands: six seconds on an idle machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
/// For one command.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);
/// How often a wait looks whether the run was interrupted.
const POLL: Duration = Duration::from_millis(200);
/// What is shown of the console when a guest fails.
const CONSOLE_LINES: usize = 40;

/// A guest that runs; it ends when this is dropped.
pub(super) struct Guest {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    /// Number of the next command.
    number: u32,
    /// What was said and answered so far, for a person to read.
    transcript: String,
}

impl Guest {
    /// Starts a guest in the network namespace `network`, on the tap device of the same name, and waits until it takes
    /// commands. Its console goes to a file in `folder`.
    pub(super) fn start(folder: &Path, network: &str, kernel: &Kernel, image: &Path) -> Result<Self> {
        let console = folder.join("console.log");
        let mut child = command(network, kernel, image, &console)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(folder.join("qemu.err"))?)
            .spawn()
            .context("the guest could not be started")?;
        let commands = child.stdin.take().context("no pipe to the guest")?;
        let output = child.stdout.take().context("no pipe from the guest")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let transcript = String::new();
        let mut guest = Self { child, commands, lines, console, number: 0, transcript };
        let deadline = Instant::now() + BOOT_PATIENCE;
        let before =
            guest.lines_until(deadline, |line| line == "@@ready").context("the guest does not start")?;
        ensure!(before.is_empty(), "the guest complains: {}", before.join(" | "));
        Ok(guest)
    }

    /// Runs a command of the guest's shell; what it printed, if it ended well.
    pub(super) fn run(&mut self, command: &str) -> Result<String> {
        let (status, output) = self.try_run(command)?;
        ensure!(status == 0, "guest: {command}: status {status}: {}", output.trim_end());
        Ok(output)
    }

    /// Runs a command of the guest's shell; its status and what it printed.
    pub(super) fn try_run(&mut self, command: &str) -> Result<(i32, String)> {
        self.try_run_within(command, COMMAND_PATIENCE)
    }

    /// As [`Guest::try_run`], for a command that takes long.
    pub(super) fn try_run_within(&mut self, command: &str, patience: Duration) -> Result<(i32, String)> {
        let (status, output) = self.exchange(command, patience)?;
        // Writing into memory cannot fail.
        let _ = writeln!(self.transcript, "# {command}\n{output}");
        Ok((status, output))
    }

    /// As [`Guest::run`], but for answers that only a program wants to read: they are left out of the transcript.
    pub(super) fn query(&mut self, command: &str) -> Result<String> {
        let (status, output) = self.exchange(command, COMMAND_PATIENCE)?;
        ensure!(status == 0, "guest: {command}: status {status}: {}", output.trim_end());
        Ok(output)
    }

    fn exchange(&mut self, command: &str, patience: Duration) -> Result<(i32, String)> {
        ensure!(!command.contains('\n'), "a command is one line");
        self.number += 1;
        let (begin, end) = (format!("@@begin {}", self.number), format!("@@end {} ", self.number));
        let deadline = Instant::now() + patience;
        writeln!(self.commands, "{} {command}", self.number).context("the guest takes no commands")?;
        let context = || format!("guest: {command}");
        self.lines_until(deadline, |line| line == begin).with_context(context)?;
        let mut status = None;
        let lines = self
            .lines_until(deadline, |line| {
                status = line.strip_prefix(&end).and_then(|status| status.parse().ok());
                status.is_some()
            })
            .with_context(context)?;
        let output: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let status = status.context("a command without status")?;
        Ok((status, output))
    }

    /// Runs a command again and again until it ends well; an error with what it said last.
    pub(super) fn until(&mut self, command: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let (status, output) = self.try_run(command)?;
            if status == 0 {
                return Ok(output);
            }
            ensure!(Instant::now() < deadline, "guest: {command}: status {status}: {}", output.trim_end());
            thread::sleep(POLL);
        }
    }

    /// An error with the last lines of its console, if the guest has ended.
    pub(super) fn ensure_alive(&mut self) -> Result<()> {
        match self.child.try_wait().context("the guest cannot be looked at")? {
            None => Ok(()),
            Some(status) => bail!("the guest has ended, {status}{}", self.complaint(&[])),
        }
    }

    /// What was said and answered so far.
    pub(super) fn transcript(&self) -> &str {
        &self.transcript
    }

    /// What the guest's kernel has printed.
    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The lines before the one that is waited for.
    fn lines_until(&mut self, deadline: Instant, mut is_it: impl FnMut(&str) -> bool) -> Result<Vec<String>> {
        let mut before = Vec::new();
        loop {
            check_interrupt()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left.min(POLL)) {
                Ok(line) if is_it(&line) => return Ok(before),
                Ok(line) => before.push(line),
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(RecvTimeoutError::Timeout) => bail!("no answer in time{}", self.complaint(&before)),
                Err(RecvTimeoutError::Disconnected) => bail!("it has ended{}", self.complaint(&before)),
            }
        }
    }

    /// What a person needs to see why a guest failed.
    fn complaint(&self, lines: &[String]) -> String {
        let console = self.console();
        let console: Vec<&str> = console.lines().collect();
        let console = &console[console.len().saturating_sub(CONSOLE_LINES)..];
        let errors = self.console.with_file_name("qemu.err");
        let errors = fs::read_to_string(errors).unwrap_or_default();
        format!(
            "; it printed:\n{}\nits console, last lines:\n{}\nQEMU: {}",
            lines.join("\n"),
            console.join("\n"),
            errors.trim_end()
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has nothing to lose. It is our child and not waited for yet, so its number is its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(network: &str, kernel: &Kernel, image: &Path, console: &Path) -> Command {
    let mut command = Command::new("ip");
    // Both become the next by exec, so that our child is QEMU itself; should we be killed, it is too.
    command.args(["netns", "exec", network, "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    // By emulation also where there is KVM: it does the same everywhere, nested in another machine too.
    // Without cmpxchg16b: QEMU 7.2 forgets the flags of the instruction before it, and where an interrupt comes right then
    // the guest's kernel dies of a double fault with an address in EFLAGS.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max,cx16=off"]);
    command.args(["-smp", &CPUS.to_string(), "-m", &MEMORY_MIB.to_string()]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
    // A panic ends the guest (panic=-1 and -no-reboot) instead of leaving us to wait.
    command.args(["-append", "console=ttyS0 loglevel=6 panic=-1 rdinit=/init"]);
    command.args(["-netdev", &format!("tap,id=net,ifname={network},script=no,downscript=no,queues={CPUS}")]);
    // An interrupt for each direction of each queue, one for changes of the configuration, one to spare.
    let vectors = 2 * CPUS + 2;
    command.args(["-device", &format!("virtio-net-pci,netdev=net,mq=on,vectors={vectors}")]);
    // First port: the console. Second: commands.
    command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
    command
}
