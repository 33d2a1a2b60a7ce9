//! The command line.
//!
//! Exit status: 0 when it was done, 1 when it failed, 2 when the command line or the configuration is wrong.
#![forbid(unsafe_code)]

mod command;
mod ctl;
mod generate;
mod lab;
mod nic;
mod start;
mod text;
mod top;

use std::fmt::Display;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use underpass_command::state::{RedirectMode, SteeringPolicy, UnknownName};
use underpass_command::{Client, default_socket};

use crate::config;

pub(crate) use text::bytes;

/// An eBPF-steered HTTP and TCP reverse proxy for Linux.
#[derive(Debug, Parser)]
#[command(name = "underpass", version, max_term_width = 110)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a proxy until SIGTERM or SIGINT; a second signal ends it at once
    Start {
        /// Configuration file (TOML)
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration file without running it
    Check {
        /// Configuration file (TOML)
        #[arg(required_unless_present_any = ["explain", "man"])]
        file: Option<PathBuf>,
        /// Print what each key means, its default and its range
        #[arg(long)]
        explain: bool,
        /// Print the same as a page for man(1)
        #[arg(long, conflicts_with = "explain")]
        man: bool,
    },
    /// Show what a running proxy does
    Status {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Ask and change a running proxy: clusters, backends, routes, listeners, settings, workers, events
    Ctl(ctl::Ctl),
    /// Make a running proxy's configuration that of its file: what was added, changed and removed there
    Reload {
        #[command(flatten)]
        arguments: ctl::ReloadOptions,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands into a folder
    Man {
        /// The folder; it must be there
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// See it work: a proxy, two backends and a little load on this machine
    Demo(Demo),
    /// Show or change how a running proxy forwards bodies
    Redirect {
        #[command(subcommand)]
        action: RedirectAction,
    },
    /// Raise the load on a URL step by step until it breaks; with --admin, compare redirect modes. This makes load!
    Lab(lab::Lab),
    /// Show which worker each queue of a network interface feeds, and what is misaligned
    Nic {
        /// Interface [default: all whose queues have interrupts]
        interface: Option<String>,
        /// Carry out the changes that align it; needs root
        #[arg(long)]
        apply: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Watch what a running proxy does, by worker, cluster and backend
    Top(top::Options),
    /// Show or change how connections find their worker
    Steering {
        #[command(subcommand)]
        action: SteeringAction,
    },
}

/// What is said where `--listen` of the demo is not given.
const DEMO_ADDRESS: &str = "127.0.0.1:8080";

#[derive(Debug, Args)]
struct Demo {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = DEMO_ADDRESS)]
    listen: SocketAddr,
    /// Number of workers; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1024))]
    workers: u16,
    /// End by itself after so long
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Make no load; for trying it by hand
    #[arg(long)]
    no_load: bool,
}

#[derive(Debug, Subcommand)]
enum RedirectAction {
    /// Show the redirect modes
    Get {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Change a redirect mode; takes effect with the next body
    Set {
        /// copy, splice, sockmap or auto; for a cluster or listener also inherit
        #[arg(value_parser = mode_or_inherit)]
        mode: Mode,
        /// Only for this cluster
        #[arg(long, conflicts_with = "listener")]
        cluster: Option<String>,
        /// Only for this listener
        #[arg(long)]
        listener: Option<String>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, Subcommand)]
enum SteeringAction {
    /// Show the policy, and which CPU's connections went to which worker
    Get {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
    /// Change the policy
    Set {
        /// cpu, rx-queue, hash or off
        policy: SteeringPolicy,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        format: Format,
    },
}

/// Which proxy is meant.
#[derive(Debug, Args)]
struct Target {
    /// Admin socket of the proxy [default: where a proxy that this user started has it]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Target {
    fn client(&self) -> Client {
        Client::new(self.socket.clone().unwrap_or_else(default_socket))
    }
}

/// How the answer is printed.
#[derive(Clone, Copy, Debug, Args)]
struct Format {
    /// Print the document of the admin API instead of a table
    #[arg(long)]
    json: bool,
}

/// A redirect mode, or none.
#[derive(Clone, Copy, Debug)]
struct Mode(Option<RedirectMode>);

fn mode_or_inherit(text: &str) -> Result<Mode, UnknownName> {
    if text == "inherit" {
        return Ok(Mode(None));
    }
    text.parse().map(|mode| Mode(Some(mode))).map_err(|mut error: UnknownName| {
        error.allowed.push("inherit");
        error
    })
}

/// Why a command ended without success.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// It could not be done.
    fn runtime(error: impl Display) -> Self {
        Self { code: 1, text: format!("underpass: {error}") }
    }

    /// The configuration is wrong; each line of the message begins with the file's name.
    fn configuration(error: &config::Errors) -> Self {
        Self { code: 2, text: error.to_string() }
    }

    /// The command line is wrong.
    fn usage(error: impl Display) -> Self {
        Self { code: 2, text: format!("underpass: {error}") }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::runtime(error)
    }
}

/// Carries out the command that the process was called with.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    match run(line.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => {
            eprintln!("{}", text.trim_end());
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Start { config } => start::start(&config),
        Command::Check { file, explain, man } => start::check(file.as_deref(), explain, man),
        Command::Demo(demo) => start::demo(&demo),
        Command::Status { target, format } => command::status(&target.client(), format),
        Command::Ctl(arguments) => ctl::ctl(arguments),
        Command::Reload { arguments, target, format } => {
            ctl::reload_of(target.socket, format.json, &arguments)
        }
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { folder } => generate::man_pages(&folder),
        Command::Lab(arguments) => lab::lab(arguments),
        Command::Top(options) => top::run(&options),
        Command::Nic { interface, apply, target } => nic::nic(&target.client(), interface.as_deref(), apply),
        Command::Redirect { action: RedirectAction::Get { target, format } } => {
            command::redirect(&target.client(), format)
        }
        Command::Redirect { action: RedirectAction::Set { mode, cluster, listener, target, format } } => {
            command::set_redirect(&target.client(), mode, cluster, listener, format)
        }
        Command::Steering { action: SteeringAction::Get { target, format } } => {
            command::steering(&target.client(), format)
        }
        Command::Steering { action: SteeringAction::Set { policy, target, format } } => {
            command::set_steering(&target.client(), policy, format)
        }
    }
}

/// Prints to the standard output; a reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn an_unknown_mode_is_told_what_there_is() {
        let parse = |words: &[&str]| CommandLine::try_parse_from(words);
        assert!(parse(&["underpass", "redirect", "set", "splice", "--cluster", "app"]).is_ok());
        assert!(parse(&["underpass", "redirect", "set", "inherit", "--listener", "web"]).is_ok());
        let error = parse(&["underpass", "redirect", "set", "spliced"]).expect_err("unknown");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("use one of: copy, splice, sockmap, auto, inherit"), "{error}");
        let both = ["underpass", "redirect", "set", "copy", "--cluster", "a", "--listener", "b"];
        assert!(parse(&both).is_err());
    }
}
