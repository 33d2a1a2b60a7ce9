//! Tests that cannot run here say so, in the form that `cargo xtask test` collects.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::{fs, thread};

/// Whether this process is root's.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Reports the running test as skipped. The test has to return after it.
pub fn skip(reason: &str) {
    let current = thread::current();
    let name = current.name().unwrap_or("a thread without a name");
    // Not by eprintln!, which libtest captures and shows for failed tests only. A lost line shows as a pass that was none,
    // so a failing write must fail the test.
    writeln!(std::io::stderr(), "SKIP {name}: {reason}").expect("the standard error can be written");
}
