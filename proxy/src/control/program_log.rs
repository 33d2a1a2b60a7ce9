//! What the BPF programs log, passed on to the supervisor's own log.

use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use underpass_loader::{LoadError, LogLine, ProgramLog};

use super::spawn::watch;

/// The log of a loaded object, watched by the event loop.
#[derive(Debug)]
pub(super) struct WatchedLog {
    log: ProgramLog,
    readiness: AsyncFd<OwnedFd>,
    /// It cannot be read any more; this was said.
    failed: bool,
}

impl WatchedLog {
    pub(super) fn new(log: ProgramLog) -> Result<Self, LoadError> {
        let readiness = watch(log.as_fd(), Interest::READABLE).map_err(|error| LoadError::Step {
            step: "watching the programs' log".into(),
            error: error.to_string(),
        })?;
        Ok(Self { log, readiness, failed: false })
    }

    /// Waits until a program has logged something, and passes it on.
    pub(super) async fn pass_on(&mut self) {
        poll_fn(|context| self.poll_pass_on(context)).await;
    }

    /// Passes on what was logged, if something was.
    pub(super) fn poll_pass_on(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.failed {
            return Poll::Pending;
        }
        match self.readiness.poll_read_ready(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(mut ready)) => {
                self.log.drain().iter().for_each(pass_on);
                ready.clear_ready();
                Poll::Ready(())
            }
            Poll::Ready(Err(error)) => {
                tracing::error!("the log of the BPF programs cannot be read: {error}");
                self.failed = true;
                Poll::Pending
            }
        }
    }
}

fn pass_on(line: &LogLine) {
    if line.warning {
        tracing::warn!("BPF: {}", line.text);
    } else {
        tracing::info!("BPF: {}", line.text);
    }
}
