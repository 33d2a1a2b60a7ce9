//! `underpass ctl worker` and `underpass ctl drain`.

use clap::Subcommand;
use underpass_command::api::Draining;

use super::super::Failure;
use super::{Context, tables};

#[derive(Debug, Subcommand)]
pub(super) enum WorkerAction {
    /// Show the workers
    List,
}

pub(super) fn worker(context: &Context, action: WorkerAction) -> Result<(), Failure> {
    match action {
        WorkerAction::List => {
            let workers = context.client.workers().map_err(Failure::runtime)?;
            context.show(&workers, |workers| tables::workers(workers))
        }
    }
}

pub(super) fn drain(context: &Context) -> Result<(), Failure> {
    context.show(&context.client.drain().map_err(Failure::runtime)?, text)
}

fn text(draining: &Draining) -> String {
    format!("the proxy drains; what is left after {} ms is cut\n", draining.deadline_ms)
}
