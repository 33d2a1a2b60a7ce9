//! Programs that come with the system: is one there, and if not, which package brings it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// A program and the Debian package that brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    /// The executable's name.
    pub(crate) program: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
}

impl Tool {
    /// A program and its package.
    pub(crate) const fn new(program: &'static str, package: &'static str) -> Self {
        Self { program, package }
    }
}

/// The workspace's top folder.
pub(crate) fn workspace_root() -> &'static Path {
    // This crate lies in xtask/, one level below.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    command
}

/// Runs a command to its end; an error if it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("{text} could not be started"))?;
    if !status.success() {
        bail!("{text} ended with {status}");
    }
    Ok(())
}

/// Finds a program in PATH and where Debian keeps those of the administrator.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether this process is root's.
pub(crate) fn is_root() -> bool {
    // The owner of our own entry in /proc is our effective user: no unsafe call is needed to learn it.
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Makes sure that the programs are there: as root on Debian by apt-get, otherwise the error says what to install.
pub(crate) fn ensure(tools: &[Tool], may_install: bool) -> anyhow::Result<()> {
    let missing: Vec<Tool> = tools.iter().copied().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages_of(&missing);
    let install = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
    let programs = programs.join(", ");
    if !may_install || !is_root() || find("apt-get").is_none() {
        bail!(
            "missing: {programs}; install the packages {}, on Debian by: sudo {install}",
            packages.join(", ")
        );
    }
    eprintln!("missing: {programs}; running: apt-get update && {install}");
    apt_get(&["update", "-q"])?;
    let arguments: Vec<&str> =
        ["install", "-y", "-q", "--no-install-recommends"].into_iter().chain(packages).collect();
    apt_get(&arguments)?;
    match tools.iter().find(|tool| find(tool.program).is_none()) {
        None => Ok(()),
        Some(tool) => {
            bail!("package {} is installed, yet there is no program {}", tool.package, tool.program)
        }
    }
}

fn packages_of(tools: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_program_that_is_there_and_no_other() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-program-has-this-name"), None);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let tools = [Tool::new("sh", "dash"), Tool::new("no-program-has-this-name", "its-package")];
        let error = ensure(&tools, false).unwrap_err().to_string();
        assert!(error.contains("missing: no-program-has-this-name;"), "{error}");
        assert!(error.contains("apt-get install -y --no-install-recommends its-package"), "{error}");
    }

    #[test]
    fn a_package_is_asked_for_once() {
        let tools = [Tool::new("b", "two"), Tool::new("a", "one"), Tool::new("c", "two")];
        assert_eq!(packages_of(&tools), ["one", "two"]);
    }

    #[test]
    fn a_command_that_fails_is_an_error_with_its_text() {
        assert!(run(&mut Command::new("true")).is_ok());
        let error = run(Command::new("false").arg("x")).unwrap_err().to_string();
        assert!(error.contains("\"false\" \"x\" ended with"), "{error}");
    }
}
