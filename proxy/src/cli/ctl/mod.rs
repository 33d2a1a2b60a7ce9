//! `underpass ctl`: everything that a running proxy can be asked for, one command each.
//!
//! A command is a request of the admin API, or a change of one or a few operations; what is given as `--set KEY=VALUE` are
//! fields of the API's documents (`item`), so that there is no field that a command does not know.

mod answer;
mod backend;
mod change;
mod cluster;
mod events;
mod item;
mod listener;
mod process;
mod route;
mod settings;
mod state;
mod tables;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use underpass_command::api::Select;
use underpass_command::{Client, default_socket};

use self::item::Setting;
use super::{Failure, print};

pub(super) use self::state::ReloadOptions;

/// Arguments of `underpass ctl`.
#[derive(Debug, Args)]
pub(super) struct Ctl {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    action: Action,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Admin socket of the proxy [default: where a proxy that this user started has it]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print the document of the admin API instead of a table
    #[arg(long, global = true)]
    json: bool,
}

/// When, and whether really, a change is made.
#[derive(Clone, Copy, Debug, Default, Args)]
struct Conditions {
    /// Only if the configuration has this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    /// Only tell what the change would come to
    #[arg(long)]
    dry_run: bool,
}

/// An item, and what is changed of it.
#[derive(Clone, Debug, Args)]
struct Edited {
    /// Its name
    name: String,
    /// A field and its value, as for add; without a value it gets its default; may be repeated
    #[arg(long, value_name = "KEY=VALUE", required = true)]
    set: Vec<Setting>,
    #[command(flatten)]
    conditions: Conditions,
}

/// An item that is removed.
#[derive(Clone, Debug, Args)]
struct Removed {
    /// Its name
    name: String,
    #[command(flatten)]
    conditions: Conditions,
}

/// Which items of a list are shown.
#[derive(Clone, Debug, Args)]
struct Filter {
    /// Only items whose name contains this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    limit: usize,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Clusters: groups of backends that serve the same application
    #[command(subcommand)]
    Cluster(cluster::Action),
    /// Backends of clusters
    #[command(subcommand)]
    Backend(backend::Action),
    /// Routes: which requests go where
    #[command(subcommand)]
    Route(Box<route::Action>),
    /// Listeners: where connections come in
    #[command(subcommand)]
    Listener(listener::Action),
    /// Answers of the proxy itself, which routes and listeners name
    #[command(subcommand)]
    Answer(answer::Action),
    /// Bounds of each worker
    #[command(subcommand)]
    Limit(settings::LimitAction),
    /// Settings of the process
    #[command(subcommand)]
    Settings(settings::Action),
    /// Worker processes
    #[command(subcommand)]
    Worker(process::WorkerAction),
    /// Show client connections that are open, those first whose request has been under way for longest
    Sessions(process::SessionOptions),
    /// The whole configuration
    #[command(subcommand)]
    State(state::Action),
    /// Read the configuration file again, and change what differs: `underpass reload`
    Reload(ReloadOptions),
    /// Show what happens, as it happens
    Events(events::Follow),
    /// Make a change of many operations, from a file
    Change(change::FromFile),
    /// Finish what is under way, take nothing new, and end
    Drain,
}

/// What a command is carried out with.
#[derive(Debug)]
struct Context {
    client: Client,
    json: bool,
}

/// Carries out `underpass ctl`.
pub(super) fn ctl(arguments: Ctl) -> Result<(), Failure> {
    let context = Context::new(arguments.common.socket, arguments.common.json);
    match arguments.action {
        Action::Cluster(action) => cluster::run(&context, action),
        Action::Backend(action) => backend::run(&context, action),
        Action::Route(action) => route::run(&context, *action),
        Action::Listener(action) => listener::run(&context, action),
        Action::Answer(action) => answer::run(&context, action),
        Action::Limit(action) => settings::limit(&context, action),
        Action::Settings(action) => settings::run(&context, action),
        Action::Worker(action) => process::worker(&context, action),
        Action::Sessions(options) => process::sessions(&context, options),
        Action::State(action) => state::run(&context, action),
        Action::Reload(action) => state::reload(&context, &action),
        Action::Events(follow) => events::follow(&context, &follow),
        Action::Change(change) => change::from_file(&context, &change),
        Action::Drain => process::drain(&context),
    }
}

/// Carries out `underpass reload`.
pub(super) fn reload_of(
    socket: Option<PathBuf>,
    json: bool,
    arguments: &ReloadOptions,
) -> Result<(), Failure> {
    state::reload(&Context::new(socket, json), arguments)
}

impl Context {
    fn new(socket: Option<PathBuf>, json: bool) -> Self {
        Self { client: Client::new(socket.unwrap_or_else(default_socket)), json }
    }

    /// Prints a document, as it is or as text.
    fn show<T: Serialize>(&self, document: &T, to_text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(document).map_err(Failure::runtime)?;
            return print(&(json + "\n"));
        }
        print(&to_text(document))
    }
}

impl Filter {
    fn select(&self, cluster: Option<String>) -> Select {
        Select { name: self.name.clone(), cluster, ..Select::default() }
    }
}
