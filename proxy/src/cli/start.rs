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
    // For `underpass reload`, from whatever folder.
    let file = std::path::absolute(file).map_err(Failure::runtime)?;
    let options = control::Options { file: Some(file), ..control::Options::default() };
    control::run(state, options).map_err(Failure::runtime)
}

pub(super) fn demo(options: &Demo) -> Result<(), Failure> {
    // The demo speaks for itself; the log is for what goes wrong.
    start_log("error")?;
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
    let (source, text) = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => ("RUST_LOG", text),
        _ => ("log.level", level.to_owned()),
    };
    // What the BPF library says of each relocation is for those who ask for it by its name.
    let quiet = if text.contains("aya") { "" } else { ",aya=info,aya_obj=info" };
    let filter = EnvFilter::try_new(text.clone() + quiet).map_err(|error| {
        Failure::usage(format!("{source} = \"{text}\": {error}; use a level such as info, or a filter such as warn,underpass=debug"))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    Ok(())
}
