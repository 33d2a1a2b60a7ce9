//! The configuration as a whole: shown, saved, made what its file says.

use std::path::Path;

use underpass_command::SYSTEM_SOCKET;
use underpass_command::api::{ChangeRequest, Changed, EventKind, Saved, StateDocument};
use underpass_command::live::{Configuration, diff};

use super::change::Answer;
use super::commands::{Failure, Reply};
use super::supervisor::Supervisor;
use crate::config;

impl Supervisor {
    /// The configuration as it is.
    pub(super) fn state_document(&self) -> StateDocument {
        StateDocument { revision: self.configuration.revision(), state: self.configuration.state() }
    }

    /// Saves the configuration.
    pub(super) fn save(&mut self) -> Result<Saved, Failure> {
        let path = self.configuration.settings().saved_state.clone();
        let (Some(store), Some(path)) = (&mut self.store, path) else {
            let remedy = "set settings.saved_state in the configuration file, and restart";
            return Err(Failure::new(409, "there is no file to save to", remedy));
        };
        store.save(&self.configuration).map_err(|error| {
            Failure::new(500, error.to_string(), "make room there, or give the proxy the right to write")
        })?;
        let revision = self.configuration.revision();
        self.events.tell(EventKind::Saved { revision });
        Ok(Saved { path, revision })
    }

    /// Makes the configuration what its file says: what the file has more is added, what it has less is removed.
    pub(super) fn reload(&mut self, dry_run: bool, reply: Reply<Changed>) {
        match self.read_file() {
            Ok((wanted, warnings)) => {
                let operations = diff(&self.configuration, &wanted);
                let request = ChangeRequest { operations, dry_run, ..ChangeRequest::default() };
                self.change_with_warnings(&request, warnings, Answer::Changed(reply));
            }
            // The caller may have gone; nobody else wants the answer.
            Err(failure) => drop(reply.send(Err(failure))),
        }
    }

    /// The configuration that the file describes, as far as it can be had without a restart.
    fn read_file(&self) -> Result<(Configuration, Vec<String>), Failure> {
        let Some(path) = &self.options.file else {
            return Err(Failure::new(409, "the proxy was started without a file", "send a change instead"));
        };
        let (mut state, warnings) = config::load_with_warnings(path)
            .map_err(|errors| Failure::new(422, errors.to_string(), "nothing was changed; mend the file"))?;
        let mut warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let running = self.configuration.settings();
        let mut settled = state.settings.clone();
        if settled.admin_socket == Path::new(SYSTEM_SOCKET) {
            // The default stands for another path where the user is not root.
            settled.admin_socket.clone_from(&running.admin_socket);
        }
        config::keep_settled(&mut state.settings, running);
        for key in config::settled_differently(&settled, running) {
            warnings.push(format!("{key}: it is settled when the proxy starts; restart to change it"));
        }
        let wanted = Configuration::new(state).map_err(|errors| {
            let text = errors.first().map_or_else(String::new, ToString::to_string);
            Failure::new(422, text, "nothing was changed; mend the file")
        })?;
        Ok((wanted, warnings))
    }
}
