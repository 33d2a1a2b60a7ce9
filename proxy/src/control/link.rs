//! One task per worker process: tells it what the supervisor says, passes on what it answers, sees it end.
//!
//! Sending waits for the worker here, so a worker that does not keep up delays nobody but itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::spawn::{spawn, watch};
use crate::ipc::{Channel, ToSupervisor, ToWorker};

/// Commands, each of any number of letters, that may wait for one worker.
const COMMANDS_MAX: usize = 64;
/// From its start until a worker must accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// From the end of its channel until a worker must have ended.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A message with the descriptors that go with it.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) message: ToWorker,
    pub(super) descriptors: Vec<Arc<OwnedFd>>,
}

impl From<ToWorker> for Letter {
    fn from(message: ToWorker) -> Self {
        Self { message, descriptors: Vec::new() }
    }
}

/// What became of a worker process.
#[derive(Debug)]
pub(super) enum Event {
    /// It said something.
    Said(ToSupervisor),
    /// It was told to drain.
    DrainSent,
    /// It did not accept connections in time, and was killed.
    StartTimeout,
    /// It has ended.
    Ended(io::Result<ExitStatus>),
}

/// Who an event is about. A process number tells a worker from its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) worker: usize,
    pub(super) process: u64,
}

impl Source {
    /// The number of the worker.
    pub(super) fn number(self) -> u16 {
        u16::try_from(self.worker).unwrap_or(u16::MAX)
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It goes out as soon as the worker takes it.
    Queued,
    /// Too many wait already: the worker does not take them.
    Stuck,
    /// The worker has ended; an event says so.
    Ended,
}

/// The supervisor's end of a running task. Dropping it leaves the worker to its commands.
#[derive(Debug)]
pub(super) struct Link {
    commands: mpsc::Sender<Vec<Letter>>,
    kill: Arc<Notify>,
    pub(super) pid: Option<u32>,
}

impl Link {
    /// Starts a worker process and its task. `start` is sent before any command.
    pub(super) fn start(
        executable: &Path,
        source: Source,
        start: Vec<Letter>,
        events: mpsc::Sender<(Source, Event)>,
    ) -> io::Result<Self> {
        let (ours, theirs) = Channel::pair()?;
        let readiness = watch(ours.as_fd(), Interest::READABLE | Interest::WRITABLE)?;
        let child = spawn(executable, &OwnedFd::from(theirs))?;
        let pid = child.id();
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let kill = Arc::new(Notify::new());
        let task = Task {
            child,
            channel: ours,
            readiness,
            outgoing: start.into(),
            writable: true,
            commands: receiver,
            kill: kill.clone(),
            kill_at: Some(Instant::now() + START_TIMEOUT),
            running: false,
            source,
            events,
        };
        tokio::spawn(task.run());
        Ok(Self { commands, kill, pid })
    }

    /// Hands a command over, without waiting.
    pub(super) fn tell(&self, command: Vec<Letter>) -> Told {
        match self.commands.try_send(command) {
            Ok(()) => Told::Queued,
            Err(mpsc::error::TrySendError::Full(_)) => Told::Stuck,
            Err(mpsc::error::TrySendError::Closed(_)) => Told::Ended,
        }
    }

    /// Whether a command more would be too many.
    pub(super) fn is_full(&self) -> bool {
        self.commands.capacity() == 0 && !self.commands.is_closed()
    }

    /// Ends the worker at once.
    pub(super) fn kill(&self) {
        self.kill.notify_one();
    }
}

struct Task {
    child: Child,
    channel: Channel,
    readiness: AsyncFd<OwnedFd>,
    outgoing: VecDeque<Letter>,
    writable: bool,
    commands: mpsc::Receiver<Vec<Letter>>,
    kill: Arc<Notify>,
    /// When the process is killed if it has not done by then what it must.
    kill_at: Option<Instant>,
    running: bool,
    source: Source,
    events: mpsc::Sender<(Source, Event)>,
}

impl Task {
    async fn run(mut self) {
        let mut open = true;
        let status = loop {
            let kill_at = self.kill_at.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                message = receive(&self.channel, &self.readiness), if open => match message {
                    Ok(Some(message)) => self.said(message).await,
                    Ok(None) => {
                        open = false;
                        self.lost_channel();
                    }
                    // It has died with messages unread; how, its status tells.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                        open = false;
                        self.lost_channel();
                    }
                    Err(error) => {
                        tracing::error!(worker = self.source.worker, "control channel: {error}; worker is killed");
                        open = false;
                        self.lost_channel();
                        self.kill_child();
                    }
                },
                status = self.child.wait() => break status,
                () = self.kill.notified() => self.kill_child(),
                () = sleep_until(kill_at), if self.kill_at.is_some() => self.timed_out().await,
                sent = send(&self.channel, &self.readiness, &self.outgoing), if self.writable && !self.outgoing.is_empty() => {
                    self.sent(sent).await;
                }
                // One that is not ready yet has its start before it; how long that may take is bounded.
                Some(command) = self.commands.recv(), if self.outgoing.len() < COMMANDS_MAX || !self.running => {
                    self.outgoing.extend(command);
                }
            }
        };
        // Its last words may have come with its end.
        while let Ok(Some((message, _))) = self.channel.receive::<ToSupervisor>() {
            self.said(message).await;
        }
        self.emit(Event::Ended(status)).await;
    }

    async fn said(&mut self, message: ToSupervisor) {
        if matches!(message, ToSupervisor::Running { .. }) && !self.running {
            self.running = true;
            self.kill_at = None;
        }
        self.emit(Event::Said(message)).await;
    }

    async fn sent(&mut self, sent: io::Result<()>) {
        match sent {
            Ok(()) => {
                let letter = self.outgoing.pop_front();
                if letter.is_some_and(|letter| matches!(letter.message, ToWorker::Drain { .. })) {
                    self.emit(Event::DrainSent).await;
                }
            }
            Err(error) => {
                // A worker that ends closes its channel first; why it ended comes with its last words or status.
                self.writable = false;
                self.outgoing.clear();
                if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                    tracing::error!(
                        worker = self.source.worker,
                        "control channel: {error}; worker is killed"
                    );
                    self.kill_child();
                }
            }
        }
    }

    fn lost_channel(&mut self) {
        self.writable = false;
        self.outgoing.clear();
        self.kill_at = Some(Instant::now() + END_TIMEOUT);
    }

    async fn timed_out(&mut self) {
        self.kill_at = None;
        if !self.running {
            self.emit(Event::StartTimeout).await;
        }
        self.kill_child();
    }

    fn kill_child(&mut self) {
        if let Err(error) = self.child.start_kill() {
            tracing::error!(worker = self.source.worker, "cannot be killed: {error}");
        }
    }

    async fn emit(&self, event: Event) {
        // The supervisor is gone only when the process ends.
        let _ = self.events.send((self.source, event)).await;
    }
}

async fn receive(channel: &Channel, readiness: &AsyncFd<OwnedFd>) -> io::Result<Option<ToSupervisor>> {
    let received = readiness.async_io(Interest::READABLE, |_| channel.receive()).await?;
    Ok(received.map(|(message, _)| message))
}

/// Sends the first letter; nothing is sent if the future is dropped before it is ready.
async fn send(
    channel: &Channel,
    readiness: &AsyncFd<OwnedFd>,
    outgoing: &VecDeque<Letter>,
) -> io::Result<()> {
    let Some(letter) = outgoing.front() else { return Ok(()) };
    let descriptors: Vec<BorrowedFd<'_>> = letter.descriptors.iter().map(|fd| fd.as_fd()).collect();
    readiness.async_io(Interest::WRITABLE, |_| channel.send(&letter.message, &descriptors)).await
}
