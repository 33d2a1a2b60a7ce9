//! The `underpass` executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    underpass::cli::main()
}
