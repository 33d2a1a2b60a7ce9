//! `underpass ctl listener`.

use std::net::SocketAddr;

use clap::Subcommand;
use underpass_command::api::{EventKind, Select};
use underpass_command::live::Operation;
use underpass_command::state::Listener;

use super::super::Failure;
use super::backend::Wait;
use super::change::{change, say, send, text};
use super::events::Watch;
use super::item::{Setting, edit};
use super::{Conditions, Context, Edited, Filter, Removed, tables};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the listeners
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// Add a listener
    Add {
        /// Its name
        name: String,
        /// Address to listen on
        address: SocketAddr,
        /// Cluster of the requests that no route matches
        #[arg(long, value_name = "CLUSTER")]
        default_cluster: Option<String>,
        /// A field and its value, as at_limit=wait; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Change a listener; its address and protocol stay
    Change(Edited),
    /// Remove a listener: its sockets are closed, and what is under way is finished
    Remove {
        #[command(flatten)]
        removed: Removed,
        #[command(flatten)]
        wait: Wait,
    },
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { filter } => {
            let listeners =
                super::state::pages(&filter, filter.select(None), |select| context.client.listeners(select))?;
            context.show(&listeners, tables::listeners)
        }
        Action::Add { name, address, default_cluster, set, conditions } => {
            let label = format!("listener \"{name}\"");
            let listener = edit(&label, &Listener { default_cluster, ..Listener::new(name, address) }, &set)?;
            change(context, vec![Operation::AddListener { listener }], conditions)
        }
        Action::Change(Edited { name, set, conditions }) => {
            let listener = edit(&format!("listener \"{name}\""), &find(context, &name)?, &set)?;
            change(context, vec![Operation::ChangeListener { listener }], conditions)
        }
        Action::Remove { removed: Removed { name, conditions }, wait } => {
            remove(context, name, wait, conditions)
        }
    }
}

fn find(context: &Context, name: &str) -> Result<Listener, Failure> {
    let select = Select { name: Some(name.to_owned()), ..Select::default() };
    let page = context.client.listeners(&select).map_err(Failure::runtime)?;
    page.items.into_iter().find(|listener| listener.name == name).ok_or_else(|| {
        Failure::runtime(format!("there is no listener \"{name}\"; underpass ctl listener list shows all"))
    })
}

fn remove(context: &Context, name: String, wait: Wait, conditions: Conditions) -> Result<(), Failure> {
    let operations = vec![Operation::RemoveListener { name: name.clone() }];
    if !wait.wait || conditions.dry_run {
        return change(context, operations, conditions);
    }
    let watch = Watch::begin(context, wait.timeout)?;
    say(context, text(&send(context, operations, conditions)?).trim_end())?;
    let event =
        watch.until(|kind| matches!(kind, EventKind::ListenerDrained { listener } if *listener == name));
    let event = event.map_err(|reason| Failure::runtime(format!("listener \"{name}\": {reason}")))?;
    context.show(&event, |_| format!("listener \"{name}\" has drained\n"))
}
