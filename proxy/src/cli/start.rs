//! `underpass start` and `underpass check`.

use std::io::{self, IsTerminal};
use std::path::Path;

use nix::unistd::geteuid;
use tracing_subscriber::EnvFilter;
use underpass_command::state::State;
use underpass_command::{SYSTEM_SOCKET, default_socket};

use super::{Demo, Failure, print};
use crate::demo::Plan;
use crate::{config, control, demo};

pub(super) fn start(file: &Path) -> Result<(), Failure> {
    let (mut state, warnings) =
        config::load_with_warnings(file).map_err(|errors| Failure::configuration(&errors))?;
    start_log(&state.settings.log.level)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    choose_socket(&mut state);
    control::run(state, control::Options::default()).map_err(Failure::runtime)
}

pub(super) fn demo(options: &Demo) -> Result<(), Failure> {
    // The demo speaks for itself; the log is for what goes wrong.
    start_log("warn")?;
    let plan = Plan {
        listen: options.listen,
        workers: options.workers,
        seconds: options.seconds,
        load: !options.no_load,
    };
    demo::run(&plan).map_err(Failure::runtime)
}

/// `underpass check`.
pub(super) fn check(file: Option<&Path>, explain: bool, man: bool) -> Result<(), Failure> {
    if explain {
        print(&config::explain())?;
    }
    if man {
        print(&config::man_page())?;
    }
    let Some(file) = file else { return Ok(()) };
    let (state, warnings) =
        config::load_with_warnings(file).map_err(|errors| Failure::configuration(&errors))?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    if man || explain {
        return Ok(());
    }
    print(&format!(
        "{}: valid; {} listeners, {} clusters, {} routes\n",
        file.display(),
        state.listeners.len(),
        state.clusters.len(),
        state.routes.len()
    ))
}

/// An ordinary user cannot write where root has the socket, and gets the place where `underpass status` looks.
fn choose_socket(state: &mut State) {
    let socket = &mut state.settings.admin_socket;
    if socket == Path::new(SYSTEM_SOCKET) && !geteuid().is_root() {
        *socket = default_socket();
        tracing::info!("admin socket: {}", socket.display());
    }
}

/// The log of this process goes to its standard error; `RUST_LOG` is preferred to the configured level.
pub(super) fn start_log(level: &str) -> Result<(), Failure> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(&filter)
            .map_err(|error| Failure::usage(format!("RUST_LOG=\"{filter}\": {error}; use info, or debug")))?,
        _ => EnvFilter::try_new(level).map_err(|error| {
            Failure::usage(format!("settings.log.level = \"{level}\": {error}; use info, or debug"))
        })?,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    Ok(())
}
