//! `underpass ctl worker`, `underpass ctl sessions` and `underpass ctl drain`.

use clap::{Args, Subcommand};
use underpass_command::api::{Draining, SESSIONS_MAX, SessionSelect};

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

#[derive(Debug, Args)]
pub(super) struct SessionOptions {
    /// Only those with a request to this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Of each worker at most so many
    #[arg(long, value_name = "N", default_value_t = SESSIONS_MAX)]
    limit: u32,
}

pub(super) fn sessions(context: &Context, options: SessionOptions) -> Result<(), Failure> {
    let select = SessionSelect { limit: options.limit, cluster: options.cluster };
    let sessions = context.client.sessions(&select).map_err(Failure::runtime)?;
    context.show(&sessions, tables::sessions)
}

pub(super) fn drain(context: &Context) -> Result<(), Failure> {
    context.show(&context.client.drain().map_err(Failure::runtime)?, text)
}

fn text(draining: &Draining) -> String {
    format!("the proxy drains; what is left after {} ms is cut\n", draining.deadline_ms)
}
