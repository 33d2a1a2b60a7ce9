//! What is made from the definition of the command line: completions of shells, manual pages.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{CommandLine, Failure, print};

/// `underpass completions`.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "underpass", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// `underpass man`: underpass.1, underpass-ctl.1, underpass-ctl-cluster.1 and so on.
pub(super) fn man_pages(folder: &Path) -> Result<(), Failure> {
    let written = clap_mangen::generate_to(CommandLine::command(), folder);
    written.map_err(|error| Failure::runtime(format!("{}: {error}", folder.display())))?;
    print(&format!(
        "written to {}; the configuration file has its own: underpass check --man\n",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn there_is_a_page_for_each_command() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        man_pages(folder.path()).expect("written");
        for (page, part) in [
            ("underpass.1", "reverse proxy"),
            ("underpass-ctl.1", "running proxy"),
            ("underpass-ctl-backend-drain.1", "no new requests"),
            ("underpass-reload.1", "dry"),
        ] {
            let text = fs::read_to_string(folder.path().join(page)).expect(page);
            assert!(text.contains(".TH") && text.contains(part), "{page}:\n{text}");
        }
    }

    #[test]
    fn completions_know_the_commands_below_others() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut CommandLine::command(), "underpass", &mut script);
        let script = String::from_utf8(script).expect("text");
        for word in ["backend", "undrain", "--if-revision", "--dry-run", "events"] {
            assert!(script.contains(word), "{word}");
        }
    }
}
