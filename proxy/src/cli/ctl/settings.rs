//! `underpass ctl settings` and `underpass ctl limit`.

use clap::Subcommand;
use serde_json::Value;
use underpass_command::live::Operation;
use underpass_command::state::Settings;

use super::super::Failure;
use super::change::change;
use super::item::{Setting, edit};
use super::{Conditions, Context};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the settings of the process
    Show,
    /// Change settings; tells which of them take effect with the next start only
    Set {
        /// A field and its value, as timeouts.head_ms=5000; without a value it gets its default
        #[arg(value_name = "KEY=VALUE", required = true)]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum LimitAction {
    /// Show the limits
    Show,
    /// Change limits; tells which of them take effect with the next start only
    Set {
        /// A limit and its value, as backend_idle=64; without a value it gets its default
        #[arg(value_name = "KEY=VALUE", required = true)]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::Show => context.show(&current(context)?, |settings| fields("", settings)),
        Action::Set { set, conditions } => {
            let settings = Box::new(edit("settings", &current(context)?, &set)?);
            change(context, vec![Operation::ChangeSettings { settings }], conditions)
        }
    }
}

pub(super) fn limit(context: &Context, action: LimitAction) -> Result<(), Failure> {
    let mut settings = current(context)?;
    match action {
        LimitAction::Show => context.show(&settings.limits, |limits| fields("", limits)),
        LimitAction::Set { set, conditions } => {
            settings.limits = edit("limits", &settings.limits, &set)?;
            let settings = Box::new(settings);
            change(context, vec![Operation::ChangeSettings { settings }], conditions)
        }
    }
}

fn current(context: &Context) -> Result<Settings, Failure> {
    Ok(context.client.state().map_err(Failure::runtime)?.state.settings)
}

/// Every field of a document, as `--set` takes it.
fn fields<T: serde::Serialize>(prefix: &str, document: &T) -> String {
    let mut rows = Vec::new();
    if let Ok(value) = serde_json::to_value(document) {
        flatten(prefix, &value, &mut rows);
    }
    rows.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, rows);
            }
        }
        Value::String(text) => rows.push((prefix.to_owned(), text.clone())),
        Value::Null => rows.push((prefix.to_owned(), String::new())),
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_set() {
        let mut settings = Settings { via: "edge 1".into(), workers: 3, ..Settings::default() };
        settings.limits.pipes = 7;
        settings.admin_uids = vec![1000, 1001];
        let shown = fields("", &settings);
        assert!(shown.contains("limits.pipes=7\n") && shown.contains("admin_uids=[1000,1001]\n"), "{shown}");
        let set: Vec<Setting> = shown.lines().map(|line| line.parse().expect("KEY=VALUE")).collect();
        assert_eq!(edit("settings", &Settings::default(), &set).expect("valid"), settings);
    }
}
