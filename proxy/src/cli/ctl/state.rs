//! `underpass ctl state`, `underpass ctl reload` and `underpass reload`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use underpass_command::ClientError;
use underpass_command::api::{ChangeRequest, Page, Select, StateDocument};
use underpass_command::live::{Configuration, Operation, diff};
use underpass_command::state::State;

use super::super::{Failure, print};
use super::change::{read, text};
use super::{Conditions, Context, Filter};
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the configuration; as a configuration file where not as JSON
    Show,
    /// Show what would change if the configuration were that of a file; exit status 1 if anything would
    Diff {
        /// Configuration file (TOML), or a document of ctl state show --json
        file: PathBuf,
    },
    /// Save the configuration: the next start begins with it
    Save,
    /// Make the configuration that of a file: adds, changes and removes
    Load {
        /// Configuration file (TOML), or a document of ctl state show --json
        file: PathBuf,
        #[command(flatten)]
        conditions: Conditions,
    },
}

/// Arguments of `underpass ctl reload`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ReloadOptions {
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::Show => {
            let document = context.client.state().map_err(Failure::runtime)?;
            context.show(&document, |document| {
                format!("# revision {}\n{}", document.revision, config::to_toml(&document.state))
            })
        }
        Action::Diff { file } => {
            let (revision, operations) = compare(context, &file)?;
            show_diff(context, revision, &operations)?;
            // As diff(1) tells scripts.
            if operations.is_empty() { Ok(()) } else { Err(Failure { code: 1, text: String::new() }) }
        }
        Action::Save => {
            let saved = context.client.save().map_err(Failure::runtime)?;
            context.show(&saved, |saved| {
                format!("revision {} saved in {}\n", saved.revision, saved.path.display())
            })
        }
        Action::Load { file, conditions } => load(context, &file, conditions),
    }
}

pub(super) fn reload(context: &Context, arguments: &ReloadOptions) -> Result<(), Failure> {
    let changed = context.client.reload(arguments.dry_run).map_err(Failure::runtime)?;
    context.show(&changed, text)
}

fn show_diff(context: &Context, revision: u64, operations: &[Operation]) -> Result<(), Failure> {
    if context.json {
        let document = json!({ "revision": revision, "operations": operations });
        return context.show(&document, |_| String::new());
    }
    let lines: String = operations.iter().map(|operation| format!("  {operation}\n")).collect();
    print(&lines)
}

fn load(context: &Context, file: &Path, conditions: Conditions) -> Result<(), Failure> {
    let (revision, operations) = compare(context, file)?;
    let request = ChangeRequest {
        operations,
        // What was compared is what is changed: who else changes meanwhile makes this one fail.
        if_revision: conditions.if_revision.or(Some(revision)),
        dry_run: conditions.dry_run,
    };
    match context.client.change(&request) {
        Err(ClientError::Refused { status: 412, .. }) if conditions.if_revision.is_none() => {
            Err(Failure::runtime("the configuration has changed meanwhile; try it again"))
        }
        Err(error) => Err(Failure::runtime(error)),
        Ok(changed) => context.show(&changed, text),
    }
}

/// The revision of the running configuration, and what leads from it to that of a file.
fn compare(context: &Context, file: &Path) -> Result<(u64, Vec<Operation>), Failure> {
    let mut wanted = read_state(file)?;
    let StateDocument { revision, mut state } = context.client.state().map_err(Failure::runtime)?;
    for key in config::settled_differently(&wanted.settings, &state.settings) {
        eprintln!("warning: {key}: it is settled when the proxy starts; restart to change it");
    }
    config::keep_settled(&mut wanted.settings, &state.settings);
    let wanted = configuration(file.display(), wanted)?;
    // Where the file leaves a choice to the kernel, what it has chosen is what is meant.
    for listener in &mut state.listeners {
        let of_file = wanted.listeners().get(&listener.name);
        if let Some(wish) = of_file.filter(|wish| wish.address.port() == 0)
            && wish.address.ip() == listener.address.ip()
        {
            listener.address.set_port(0);
        }
    }
    let running = configuration("the running configuration", state)?;
    Ok((revision, diff(&running, &wanted)))
}

fn configuration(whose: impl std::fmt::Display, state: State) -> Result<Configuration, Failure> {
    Configuration::new(state).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(|error| format!("{whose}: {error}")).collect();
        Failure { code: 2, text: lines.join("\n") }
    })
}

/// A state from a configuration file, or from a document of the admin API.
fn read_state(file: &Path) -> Result<State, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", file.display()));
    let bytes = read(file, config::FILE_SIZE_MAX).map_err(|error| wrong(&error))?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        return match serde_json::from_slice::<StateDocument>(&bytes) {
            Ok(document) => Ok(document.state),
            Err(error) => Err(wrong(&error)),
        };
    }
    let text = String::from_utf8(bytes).map_err(|error| wrong(&error))?;
    config::parse(&text, &file.display().to_string()).map_err(|errors| Failure::configuration(&errors))
}

/// The items of as many pages as it takes.
pub(super) fn pages<T>(
    filter: &Filter,
    mut select: Select,
    fetch: impl Fn(&Select) -> Result<Page<T>, ClientError>,
) -> Result<Page<T>, Failure> {
    let mut all = Page { revision: 0, items: Vec::new(), next: None };
    loop {
        let left = filter.limit - all.items.len();
        select.limit = Some(left.min(underpass_command::api::PAGE_SIZE_MAX));
        let page = fetch(&select).map_err(Failure::runtime)?;
        all.revision = page.revision;
        all.items.extend(page.items);
        all.next = page.next;
        if all.next.is_none() || all.items.len() >= filter.limit {
            return Ok(all);
        }
        select.after.clone_from(&all.next);
    }
}
