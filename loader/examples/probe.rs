//! Says what the kernel and this process's privileges allow, and loads a BPF object: `probe [OBJECT]`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use underpass_loader::{Options, Steering, probe};

fn main() -> ExitCode {
    print!("{}", probe());
    let object = std::env::args_os().nth(1).map(PathBuf::from);
    match Steering::load(&Options { object, ..Options::new(2) }) {
        Ok(steering) => {
            println!(
                "steer: loaded, {} instructions verified",
                steering.verified_instructions().unwrap_or(0)
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
