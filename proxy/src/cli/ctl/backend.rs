//! `underpass ctl backend`.

use std::net::SocketAddr;

use clap::{Args, Subcommand};
use underpass_command::api::EventKind;
use underpass_command::live::Operation;
use underpass_command::state::Backend;

use super::super::Failure;
use super::change::{change, say, send, text};
use super::events::Watch;
use super::item::{Setting, edit};
use super::{Conditions, Context, Filter, tables};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the backends
    List {
        /// Only those of this cluster
        cluster: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Add a backend to a cluster
    Add {
        #[command(flatten)]
        backend: Name,
        /// A field and its value, as weight=50; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Change the settings of a backend
    Change {
        #[command(flatten)]
        backend: Name,
        /// A field and its value, as weight=50; without a value it gets its default; may be repeated
        #[arg(long, value_name = "KEY=VALUE", required = true)]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Change a backend's weight
    Weight {
        #[command(flatten)]
        backend: Name,
        /// The weight, in proportion to the others of the cluster
        weight: u16,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Give a backend no new requests; what is under way is finished
    Drain {
        #[command(flatten)]
        backend: Name,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Give a backend requests again
    Undrain {
        #[command(flatten)]
        backend: Name,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Remove a backend; what is under way is finished
    Remove {
        #[command(flatten)]
        backend: Name,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        conditions: Conditions,
    },
}

/// Which backend.
#[derive(Clone, Debug, Args)]
pub(super) struct Name {
    /// The cluster
    cluster: String,
    /// The backend's address
    address: SocketAddr,
}

/// Whether a command ends only when nothing is under way any more.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Wait {
    /// End only when the last request on it has ended in all workers: then it may be stopped
    #[arg(long)]
    pub(super) wait: bool,
    /// Wait no longer than so many seconds
    #[arg(long, value_name = "N", default_value_t = 300, requires = "wait")]
    pub(super) timeout: u64,
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { cluster, filter } => {
            let backends = super::state::pages(&filter, filter.select(cluster), |select| {
                context.client.backends(select)
            })?;
            context.show(&backends, tables::backends)
        }
        Action::Add { backend: name, set, conditions } => {
            let backend = edit(&name.label(), &Backend::new(name.address), &set)?;
            change(context, vec![Operation::AddBackend { cluster: name.cluster, backend }], conditions)
        }
        Action::Change { backend, set, conditions } => {
            change(context, vec![edited(context, &backend, &set)?], conditions)
        }
        Action::Weight { backend, weight, conditions } => {
            let set = [Setting::new("weight", weight)];
            change(context, vec![edited(context, &backend, &set)?], conditions)
        }
        Action::Drain { backend, wait, conditions } => {
            let operation = edited(context, &backend, &[Setting::new("drain", true)])?;
            change_and_wait(context, &backend, operation, wait, conditions)
        }
        Action::Undrain { backend, conditions } => {
            let operation = edited(context, &backend, &[Setting::new("drain", false)])?;
            change(context, vec![operation], conditions)
        }
        Action::Remove { backend, wait, conditions } => {
            let Name { cluster, address } = backend.clone();
            let operation = Operation::RemoveBackend { cluster, address };
            change_and_wait(context, &backend, operation, wait, conditions)
        }
    }
}

impl Name {
    fn label(&self) -> String {
        format!("backend {} of cluster \"{}\"", self.address, self.cluster)
    }
}

/// The change of a backend by some of its fields.
fn edited(context: &Context, name: &Name, set: &[Setting]) -> Result<Operation, Failure> {
    let cluster = context.client.cluster(&name.cluster).map_err(Failure::runtime)?;
    let backend = cluster.backends.iter().find(|backend| backend.address == name.address);
    let backend = backend.ok_or_else(|| {
        let known: Vec<String> = cluster.backends.iter().map(|backend| backend.address.to_string()).collect();
        Failure::runtime(format!("there is no {}; it has: {}", name.label(), known.join(", ")))
    })?;
    let backend = edit(&name.label(), backend, set)?;
    Ok(Operation::ChangeBackend { cluster: name.cluster.clone(), backend })
}

/// Changes a backend, then waits until nothing is under way on it, if that is wanted.
fn change_and_wait(
    context: &Context,
    name: &Name,
    operation: Operation,
    wait: Wait,
    conditions: Conditions,
) -> Result<(), Failure> {
    if !wait.wait || conditions.dry_run {
        return change(context, vec![operation], conditions);
    }
    // Listening begins before the change, so that its event cannot be missed.
    let watch = Watch::begin(context, wait.timeout)?;
    let changed = send(context, vec![operation], conditions)?;
    say(context, text(&changed).trim_end())?;
    if changed.effects.is_empty() {
        return Err(Failure::runtime(format!(
            "{}: nothing was changed, so there is nothing to wait for",
            name.label()
        )));
    }
    let event = watch.until(|kind| {
        matches!(kind, EventKind::BackendDrained { cluster, backend }
            if *cluster == name.cluster && *backend == name.address)
    });
    let event = event.map_err(|reason| Failure::runtime(format!("{}: {reason}", name.label())))?;
    context.show(&event, |_| format!("{} has drained: it may be stopped\n", name.label()))
}
