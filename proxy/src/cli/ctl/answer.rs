//! `underpass ctl answer`.

use clap::Subcommand;
use underpass_command::api::Select;
use underpass_command::live::Operation;
use underpass_command::state::Answer;

use super::super::Failure;
use super::change::change;
use super::item::{Setting, edit};
use super::{Conditions, Context, Edited, Filter, Removed, tables};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Show the answers
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// Add an answer
    Add {
        /// Its name
        name: String,
        /// Its body, a template
        body: String,
        /// Its status; 0 is that of the case it is used in
        #[arg(long, default_value_t = 0)]
        status: u16,
        /// A field and its value, as status=503; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
        #[command(flatten)]
        conditions: Conditions,
    },
    /// Change an answer
    Change(Edited),
    /// Remove an answer
    Remove(Removed),
}

pub(super) fn run(context: &Context, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { filter } => {
            let answers =
                super::state::pages(&filter, filter.select(None), |select| context.client.answers(select))?;
            context.show(&answers, tables::answers)
        }
        Action::Add { name, body, status, set, conditions } => {
            let label = format!("answer \"{name}\"");
            let empty = Answer::new(name, status, body);
            let answer = edit(&label, &empty, &set)?;
            change(context, vec![Operation::AddAnswer { answer }], conditions)
        }
        Action::Change(Edited { name, set, conditions }) => {
            let answer = edit(&format!("answer \"{name}\""), &find(context, &name)?, &set)?;
            change(context, vec![Operation::ChangeAnswer { answer }], conditions)
        }
        Action::Remove(Removed { name, conditions }) => {
            change(context, vec![Operation::RemoveAnswer { name }], conditions)
        }
    }
}

fn find(context: &Context, name: &str) -> Result<Answer, Failure> {
    let select = Select { name: Some(name.to_owned()), ..Select::default() };
    let page = context.client.answers(&select).map_err(Failure::runtime)?;
    page.items.into_iter().find(|answer| answer.name == name).ok_or_else(|| {
        Failure::runtime(format!("there is no answer \"{name}\"; underpass ctl answer list shows all"))
    })
}
