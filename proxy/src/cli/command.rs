//! The commands that ask or change a running proxy.

use serde::Serialize;
use underpass_command::api::{RedirectChange, RedirectScope, SteeringChange};
use underpass_command::state::SteeringPolicy;
use underpass_command::{Client, ClientError};

use super::{Failure, Format, Mode, print, text};

pub(super) fn status(client: &Client, format: Format) -> Result<(), Failure> {
    show(client.status(), format, text::status)
}

pub(super) fn redirect(client: &Client, format: Format) -> Result<(), Failure> {
    show(client.redirect(), format, text::redirect)
}

pub(super) fn set_redirect(
    client: &Client,
    mode: Mode,
    cluster: Option<String>,
    listener: Option<String>,
    format: Format,
) -> Result<(), Failure> {
    let scope = match (cluster, listener) {
        (Some(cluster), _) => RedirectScope::Cluster(cluster),
        (None, Some(listener)) => RedirectScope::Listener(listener),
        (None, None) => RedirectScope::Process,
    };
    if mode.0.is_none() && scope == RedirectScope::Process {
        return Err(Failure::usage(
            "inherit needs --cluster or --listener: the process has nothing to inherit from",
        ));
    }
    show(client.set_redirect(&RedirectChange { mode: mode.0, scope }), format, text::redirect)
}

pub(super) fn steering(client: &Client, format: Format) -> Result<(), Failure> {
    show(client.steering(), format, text::steering)
}

pub(super) fn set_steering(client: &Client, policy: SteeringPolicy, format: Format) -> Result<(), Failure> {
    show(client.set_steering(SteeringChange { policy }), format, text::steering)
}

fn show<T: Serialize>(
    answer: Result<T, ClientError>,
    format: Format,
    to_text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let document = answer.map_err(Failure::runtime)?;
    if format.json {
        let json = serde_json::to_string_pretty(&document).map_err(Failure::runtime)?;
        return print(&(json + "\n"));
    }
    print(&to_text(&document))
}
