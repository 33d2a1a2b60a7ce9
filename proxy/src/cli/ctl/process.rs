//! `underpass ctl worker`, `underpass ctl sessions` and `underpass ctl drain`.

use std::str::FromStr;

use clap::{Args, Subcommand};
use underpass_command::api::{Draining, EventKind, SESSIONS_MAX, SessionSelect, WorkerDrain};

use super::super::Failure;
use super::events::Watch;
use super::{Context, tables};

#[derive(Debug, Subcommand)]
pub(super) enum WorkerAction {
    /// Show the workers
    List,
    /// Let a worker's process finish what it has while another one takes its place
    Drain {
        /// Number of the worker, or all: one after the other
        worker: Which,
        /// Cut what is left after so many milliseconds; else it is timeouts.drain_ms
        #[arg(long, value_name = "MS")]
        deadline_ms: Option<u64>,
        /// End only when the last connection of the process has ended
        #[arg(long)]
        wait: bool,
        /// Wait no longer than so many seconds for each
        #[arg(long, value_name = "N", default_value_t = 300, requires = "wait")]
        timeout: u64,
    },
}

/// Which workers are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    One(u16),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = text.parse().map_err(|_| "neither the number of a worker nor \"all\"".to_owned());
        number.map(Self::One)
    }
}

pub(super) fn worker(context: &Context, action: WorkerAction) -> Result<(), Failure> {
    match action {
        WorkerAction::List => {
            let workers = context.client.workers().map_err(Failure::runtime)?;
            context.show(&workers, |workers| tables::workers(workers))
        }
        WorkerAction::Drain { worker, deadline_ms, wait, timeout } => {
            let workers = match worker {
                Which::One(number) => vec![number],
                Which::All => {
                    let workers = context.client.workers().map_err(Failure::runtime)?;
                    workers.iter().map(|worker| worker.index).collect()
                }
            };
            let wait = wait.then_some(timeout);
            workers.into_iter().try_for_each(|number| drain_worker(context, number, deadline_ms, wait))
        }
    }
}

/// Drains one worker; with `wait`, ends when the process before has, within so many seconds.
fn drain_worker(
    context: &Context,
    number: u16,
    deadline_ms: Option<u64>,
    wait: Option<u64>,
) -> Result<(), Failure> {
    // Listening begins before the drain, so that its event cannot be missed.
    let watch = wait.map(|seconds| Watch::begin(context, seconds)).transpose()?;
    let draining =
        context.client.drain_worker(number, WorkerDrain { deadline_ms }).map_err(Failure::runtime)?;
    context.show(&draining, |draining| {
        format!(
            "worker {number}: process {} serves; process {} finishes what it has, what is left after {} ms is cut\n",
            draining.successor, draining.pid, draining.deadline_ms
        )
    })?;
    let Some(watch) = watch else { return Ok(()) };
    let ended =
        watch.until(|kind| matches!(kind, EventKind::WorkerDrained { pid, .. } if *pid == draining.pid));
    let ended = ended.map_err(|reason| Failure::runtime(format!("worker {number}: {reason}")))?;
    context.show(&ended, |ended| match &ended.kind {
        EventKind::WorkerDrained { reason: Some(reason), .. } => {
            format!("worker {number}: process {} ended: {reason}\n", draining.pid)
        }
        _ => format!("worker {number} has drained: process {} has ended\n", draining.pid),
    })
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
