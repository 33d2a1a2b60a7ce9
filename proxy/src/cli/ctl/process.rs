//! `underpass ctl worker` and `underpass ctl drain`.

use clap::Subcommand;
use underpass_command::api::Draining;

use super::super::Failure;
use super::{Context, tables};

#[derive(Debug, Subcommand)]
pub(super) enum WorkerAction {
    /// Show the workers
    List,
    /// Let a worker finish what is under way; another process takes its place
    Drain {
        /// Its number
        worker: u16,
    },
}

pub(super) fn worker(context: &Context, action: WorkerAction) -> Result<(), Failure> {
    match action {
        WorkerAction::List => {
            let workers = context.client.workers().map_err(Failure::runtime)?;
            context.show(&workers, |workers| tables::workers(workers))
        }
        WorkerAction::Drain { worker } => {
            context.show(&context.client.drain_worker(worker).map_err(Failure::runtime)?, text)
        }
    }
}

pub(super) fn drain(context: &Context) -> Result<(), Failure> {
    context.show(&context.client.drain().map_err(Failure::runtime)?, text)
}

fn text(draining: &Draining) -> String {
    let what = draining.worker.map_or_else(|| "the proxy".to_owned(), |worker| format!("worker {worker}"));
    format!("{what} drains; what is left after {} ms is cut\n", draining.deadline_ms)
}
