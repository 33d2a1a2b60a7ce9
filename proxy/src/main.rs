//! The `underpass` executable.

use std::process::ExitCode;

use underpass::worker;

fn main() -> ExitCode {
    // The supervisor executes this same file once more for each worker.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == worker::WORKER_ARGUMENT) {
        // The kernel names it after the link it was executed by, "exe". A name is for people: no reason to fail.
        let _ = std::fs::write("/proc/self/comm", "underpassworker");
        return worker::run_from_environment();
    }
    underpass::cli::main()
}
