//! The supervisor's hold on the programs for redirection by sockmap: programs and maps for each worker, if the kernel
//! has passed the self-test.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;

use underpass_command::api::SockmapStatus;
use underpass_command::state::Limits;
use underpass_loader::{LoadError, RedirectPrograms};

use super::program_log::WatchedLog;
use crate::forward::self_test;
use crate::metrics::TURNS;

/// Programs and maps of each worker's processes, or why there are none.
#[derive(Debug)]
pub(super) struct Redirection {
    flows: u32,
    /// Why bodies cannot be redirected.
    off: Option<String>,
    workers: Vec<[Option<Loaded>; TURNS]>,
}

/// The programs of one process.
#[derive(Debug)]
struct Loaded {
    /// Attached as long as this lives.
    _programs: RedirectPrograms,
    log: Option<WatchedLog>,
}

impl Redirection {
    /// Tries what the kernel can do.
    pub(super) fn start(limits: &Limits, workers: usize) -> Self {
        let off = match limits.redirect_flows {
            0 => Some("limits.redirect_flows is 0".to_owned()),
            // The first line tells; what follows is the verifier's log.
            _ => self_test::run().err().map(|text| text.lines().next().unwrap_or_default().to_owned()),
        };
        match &off {
            None => tracing::info!("sockmap: available, the self-test has passed"),
            Some(reason) => tracing::info!("sockmap: off: {reason}; bodies that are to go by it are spliced"),
        }
        Self { flows: limits.redirect_flows, off, workers: (0..workers).map(|_| [None, None]).collect() }
    }

    /// The maps for a worker that is about to start, new ones for each process: what its predecessor left in them goes
    /// with it.
    pub(super) fn prepare(&mut self, worker: usize, turn: usize) -> Option<Vec<Arc<OwnedFd>>> {
        if self.off.is_some() {
            return None;
        }
        match load(self.flows) {
            Ok((loaded, descriptors)) => {
                *self.workers.get_mut(worker)?.get_mut(turn)? = Some(loaded);
                Some(descriptors)
            }
            Err(error) => {
                tracing::error!(worker, "sockmap: off for this worker: {error}");
                None
            }
        }
    }

    /// Gives up what a process had that has ended, and that none follows in its turn for now.
    pub(super) fn release(&mut self, worker: usize, turn: usize) {
        if let Some(loaded) = self.workers.get_mut(worker).and_then(|turns| turns.get_mut(turn)) {
            *loaded = None;
        }
    }

    /// Waits until a program has logged something, and passes it on.
    pub(super) async fn pass_on_log(&mut self) {
        poll_fn(|context| {
            for log in self.workers.iter_mut().flatten().flatten().filter_map(|loaded| loaded.log.as_mut()) {
                if log.poll_pass_on(context).is_ready() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
    }

    pub(super) fn status(&self) -> SockmapStatus {
        SockmapStatus { available: self.off.is_none(), reason: self.off.clone() }
    }
}

fn load(flows: u32) -> Result<(Loaded, Vec<Arc<OwnedFd>>), LoadError> {
    let mut programs = RedirectPrograms::load(flows)?;
    let log = programs.take_log().map(WatchedLog::new).transpose()?;
    let duplicated = programs.descriptors().into_iter().map(|fd| fd.try_clone_to_owned().map(Arc::new));
    let descriptors = duplicated
        .collect::<std::io::Result<_>>()
        .map_err(|error| LoadError::Step { step: "duplicating a map".into(), error: error.to_string() })?;
    Ok((Loaded { _programs: programs, log }, descriptors))
}
