//! `underpass ctl cluster`.

use std::net::SocketAddr;

use clap::Subcommand;
use underpass_command::live::Operation;
use underpass_command::state::{Backend, Cluster};

use super::super::Failure;
use super::change::change;
use super::item::{Setting, edit};
use super::{Conditions, Context, Edited, Filter, Removed, tables};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the clusters
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one cluster with its backends
    Show {
        /// The cluster
        name: String,
    },
    /// Add a cluster
    Add {
        /// Its name
        name: String,
        /// Address of a backend; may be repeated
        #[arg(long, value_name = "ADDRESS")]
        backend: Vec<SocketAddr>,
        /// A field and its value, as balance=least-loaded; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Change a cluster's own settings; its backends stay
    Change(Edited),
    /// Remove a cluster with its backends
    Remove {
        #[command(flatten)]
        removed: Removed,
        /// Remove the routes that lead to it as well
        #[arg(long)]
        routes: bool,
    },
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { filter } => {
            let clusters =
                super::state::pages(&filter, filter.select(None), |select| context.client.clusters(select))?;
            context.show(&clusters, tables::clusters)
        }
        Action::Show { name } => {
            let cluster = context.client.cluster(&name).map_err(Failure::runtime)?;
            context.show(&cluster, tables::cluster)
        }
        Action::Add { name, backend, set, conditions } => {
            let empty =
                Cluster { backends: backend.into_iter().map(Backend::new).collect(), ..Cluster::new(name) };
            let cluster = edit(&format!("cluster \"{}\"", empty.name), &empty, &set)?;
            change(context, vec![Operation::AddCluster { cluster }], conditions)
        }
        Action::Change(Edited { name, set, conditions }) => {
            let mut cluster = context.client.cluster(&name).map_err(Failure::runtime)?;
            cluster.backends.clear();
            let cluster = edit(&format!("cluster \"{name}\""), &cluster, &set)?;
            change(context, vec![Operation::ChangeCluster { cluster }], conditions)
        }
        Action::Remove { removed: Removed { name, conditions }, routes } => {
            let mut operations = Vec::new();
            if routes {
                operations = super::route::removals(context, &name)?;
            }
            operations.push(Operation::RemoveCluster { name });
            change(context, operations, conditions)
        }
    }
}
