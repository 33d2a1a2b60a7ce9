//! The access log: copies lines from the workers' pipes to a file or the standard output.
//!
//! A thread of its own, because writing to a file can block for long. Then the pipes fill up, and the workers drop
//! lines and count them: what is buffered is bounded by the pipes. One pipe per worker process keeps its lines in order and
//! whole, also when it dies in the middle of one.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::metrics::TURNS;

/// Lines wait here while the file is slow; an unprivileged process may ask for as much.
const PIPE_SIZE: i32 = 1024 * 1024;
/// Read at once; also the longest line that is kept whole.
const CHUNK_SIZE: usize = 64 * 1024;
/// How long the end waits for the last lines to be written.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
const WAKE: Token = Token(usize::MAX);

enum Command {
    Pipe { queue: usize, reader: OwnedFd },
    Reopen,
    Finish,
}

/// The running copier.
#[derive(Debug)]
pub(super) struct AccessLog {
    commands: Sender<Command>,
    waker: Waker,
    finished: Receiver<()>,
    lost_bytes: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log (`-` is the standard output) and starts copying for `workers` workers.
    pub(super) fn start(path: &Path, workers: usize) -> io::Result<Self> {
        let output = Output::open(path)?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (commands, receiver) = channel();
        let (done, finished) = channel();
        let lost_bytes = Arc::new(AtomicU64::new(0));
        let queues = (0..workers * TURNS).map(|_| VecDeque::new()).collect();
        let copier = Copier { poll, commands: receiver, output, queues, lost_bytes: lost_bytes.clone() };
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            copier.run();
            // Nobody waits any more if finish() has timed out.
            let _ = done.send(());
        })?;
        Ok(Self { commands, waker, finished, lost_bytes })
    }

    /// Makes a pipe for the next process of a worker in this turn; returns the end to write to.
    pub(super) fn pipe(&self, worker: usize, turn: usize) -> io::Result<OwnedFd> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Smaller than asked for if the user's share of pipe memory is used up.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        self.tell(Command::Pipe { queue: worker * TURNS + turn, reader });
        Ok(writer)
    }

    /// Opens the file anew, after it was renamed.
    pub(super) fn reopen(&self) {
        self.tell(Command::Reopen);
    }

    /// Bytes that could not be written.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes.load(Relaxed)
    }

    /// Copies what the ended workers left in their pipes, and ends. Gives up on a file that blocks.
    pub(super) fn finish(self) {
        self.tell(Command::Finish);
        if self.finished.recv_timeout(FINISH_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("access log: its end could not be written within {} s", FINISH_TIMEOUT.as_secs());
        }
    }

    fn tell(&self, command: Command) {
        if self.commands.send(command).is_ok()
            && let Err(error) = self.waker.wake()
        {
            tracing::error!("access log: cannot wake its thread: {error}");
        }
    }
}

/// A pipe being read, and the beginning of a line whose end has not come yet.
struct Reader {
    pipe: File,
    partial: Vec<u8>,
    registered: bool,
    ready: bool,
}

struct Copier {
    poll: Poll,
    commands: Receiver<Command>,
    output: Output,
    /// By worker and turn: the pipes of its processes, oldest first. Only the first is read, so lines keep their order. A process
    /// that drains and its successor have different turns: neither waits for the other.
    queues: Vec<VecDeque<Reader>>,
    lost_bytes: Arc<AtomicU64>,
}

impl Copier {
    fn run(mut self) {
        let mut events = Events::with_capacity(64);
        let mut chunk = vec![0; CHUNK_SIZE];
        let mut finishing = false;
        loop {
            let busy = self.queues.iter().any(|queue| queue.front().is_some_and(|reader| reader.ready));
            if finishing && !busy {
                return;
            }
            let timeout = busy.then_some(Duration::ZERO);
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!("access log: waiting for lines failed, no more are written: {error}");
                return;
            }
            for event in events.iter().filter(|event| event.token() != WAKE) {
                if let Some(reader) = self.queues.get_mut(event.token().0).and_then(VecDeque::front_mut) {
                    reader.ready = true;
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Pipe { queue, reader } => self.add(queue, reader),
                    Command::Reopen => self.output.reopen(),
                    Command::Finish => finishing = true,
                }
            }
            // One chunk of each worker in turn: a busy one does not starve the others.
            for queue in 0..self.queues.len() {
                self.copy_chunk(queue, &mut chunk);
            }
        }
    }

    fn add(&mut self, queue: usize, pipe: OwnedFd) {
        let reader = Reader { pipe: pipe.into(), partial: Vec::new(), registered: false, ready: true };
        if let Some(readers) = self.queues.get_mut(queue) {
            readers.push_back(reader);
        }
    }

    fn copy_chunk(&mut self, queue: usize, chunk: &mut [u8]) {
        let Some(reader) = self.queues[queue].front_mut().filter(|reader| reader.ready) else { return };
        if !reader.registered {
            let fd = reader.pipe.as_raw_fd();
            let registered =
                self.poll.registry().register(&mut SourceFd(&fd), Token(queue), Interest::READABLE);
            if let Err(error) = registered {
                tracing::error!(
                    "access log: the pipe of worker {} cannot be watched: {error}",
                    queue / TURNS
                );
                self.queues[queue].pop_front();
                return;
            }
            reader.registered = true;
        }
        match reader.pipe.read(chunk) {
            Ok(0) => self.end(queue),
            Ok(length) => {
                reader.partial.extend_from_slice(&chunk[..length]);
                let whole = match memchr::memrchr(b'\n', &reader.partial) {
                    Some(end) => end + 1,
                    // Longer than any line of ours: passed on as it is rather than held without bound.
                    None if reader.partial.len() >= CHUNK_SIZE => reader.partial.len(),
                    None => 0,
                };
                self.output.write(&reader.partial[..whole], &self.lost_bytes);
                reader.partial.drain(..whole);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => reader.ready = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!("access log: the pipe of worker {} cannot be read: {error}", queue / TURNS);
                self.end(queue);
            }
        }
    }

    /// The writing process has ended: its last line is ended too, its successor's pipe comes next.
    fn end(&mut self, queue: usize) {
        if let Some(mut reader) = self.queues[queue].pop_front()
            && !reader.partial.is_empty()
        {
            reader.partial.push(b'\n');
            self.output.write(&reader.partial, &self.lost_bytes);
        }
    }
}

/// Where lines go.
struct Output {
    path: Option<PathBuf>,
    file: File,
    failing: bool,
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            return Ok(Self { path: None, file, failing: false });
        }
        Ok(Self { path: Some(path.to_owned()), file: open_file(path)?, failing: false })
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open_file(path) {
            Ok(file) => self.file = file,
            Err(error) => {
                tracing::error!(
                    "access log: {} cannot be opened again: {error}; the old file stays",
                    path.display()
                );
            }
        }
    }

    fn write(&mut self, lines: &[u8], lost_bytes: &AtomicU64) {
        match self.file.write_all(lines) {
            Ok(()) => self.failing = false,
            Err(error) => {
                lost_bytes.fetch_add(lines.len() as u64, Relaxed);
                if !self.failing {
                    tracing::error!("access log: cannot be written: {error}; lines are lost until it can");
                }
                self.failing = true;
            }
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_successive_processes_stay_in_order_and_whole() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("access.log");
        let log = AccessLog::start(&path, 1).expect("starts");
        let mut first = File::from(log.pipe(0, 0).expect("pipe"));
        let mut second = File::from(log.pipe(0, 0).expect("pipe"));
        second.write_all(b"c\n").expect("pipe has room");
        first.write_all(b"a\nb cut").expect("pipe has room");
        drop(first);
        drop(second);
        log.finish();
        assert_eq!(std::fs::read_to_string(&path).expect("written"), "a\nb cut\nc\n");
    }

    #[test]
    fn every_line_of_every_worker_arrives_once() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("access.log");
        let log = AccessLog::start(&path, 3).expect("starts");
        let writers: Vec<_> = (0..3)
            .map(|worker| {
                let pipe = log.pipe(worker, 0).expect("pipe");
                // A blocking end, so that the test need not count what is dropped.
                fcntl(&pipe, FcntlArg::F_SETFL(OFlag::empty())).expect("fcntl");
                std::thread::spawn(move || {
                    let mut pipe = File::from(pipe);
                    for line in 0..20_000 {
                        pipe.write_all(format!("{worker} {line}\n").as_bytes()).expect("taken");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().expect("wrote");
        }
        log.finish();
        let text = std::fs::read_to_string(&path).expect("written");
        for worker in 0..3 {
            let prefix = format!("{worker} ");
            let lines: Vec<usize> =
                text.lines().filter_map(|line| line.strip_prefix(&prefix)?.parse().ok()).collect();
            assert_eq!(lines, (0..20_000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_reopened_log_goes_to_the_new_file() {
        let folder = tempfile::tempdir().expect("temp folder");
        let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let log = AccessLog::start(&path, 1).expect("starts");
        let mut pipe = File::from(log.pipe(0, 0).expect("pipe"));
        std::fs::rename(&path, &old).expect("renamed");
        log.reopen();
        pipe.write_all(b"new\n").expect("pipe has room");
        drop(pipe);
        log.finish();
        let text = |path: &Path| std::fs::read_to_string(path).expect("exists");
        assert_eq!(text(&old) + &text(&path), "new\n");
        assert!(path.exists());
    }

    #[test]
    fn a_full_disk_is_counted() {
        let log = AccessLog::start(Path::new("/dev/full"), 1).expect("starts");
        let lost = log.lost_bytes.clone();
        let mut pipe = File::from(log.pipe(0, 0).expect("pipe"));
        pipe.write_all(b"gone\n").expect("pipe has room");
        drop(pipe);
        log.finish();
        assert_eq!(lost.load(Relaxed), 5);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_at_start() {
        assert!(AccessLog::start(Path::new("/nonexistent/access.log"), 1).is_err());
    }
}
