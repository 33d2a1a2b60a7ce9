//! Log lines of the BPF programs.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// The lines that BPF programs log: rare events, such as a worker that is found stalled.
///
/// Readable (in the sense of poll) when there are some: register it with the event loop, and then
/// [`drain`](ProgramLog::drain) it. The kernel's buffer is bounded; lines that do not fit are lost.
pub struct ProgramLog {
    logger: EbpfLogger<Sink>,
    lines: Receiver<LogLine>,
}

/// One line that a BPF program has logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Whether it is a warning or worse; otherwise it is for information.
    pub warning: bool,
    /// What happened.
    pub text: String,
}

impl ProgramLog {
    pub(crate) fn take_from(ebpf: &mut Ebpf) -> Result<Self, aya_log::Error> {
        let (sender, lines) = channel();
        Ok(Self { logger: EbpfLogger::init_with_logger(ebpf, Sink(sender))?, lines })
    }

    /// Takes the lines that are there; never blocks.
    pub fn drain(&mut self) -> Vec<LogLine> {
        self.logger.flush();
        self.lines.try_iter().collect()
    }
}

impl AsFd for ProgramLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.logger.as_fd()
    }
}

impl AsRawFd for ProgramLog {
    fn as_raw_fd(&self) -> RawFd {
        self.logger.as_raw_fd()
    }
}

impl fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramLog").field("fd", &self.as_raw_fd()).finish_non_exhaustive()
    }
}

/// Takes the lines from the library's hands; `flush` is the only one to call it.
struct Sink(Sender<LogLine>);

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = LogLine { warning: record.level() <= Level::Warn, text: record.args().to_string() };
        // The receiver lives as long as the sink.
        let _ = self.0.send(line);
    }

    fn flush(&self) {}
}
