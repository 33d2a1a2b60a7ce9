//! Starts a worker process, and lets the event loop watch descriptors.
//!
//! The only unsafe code of this folder: what happens between fork and exec, and the promise that a watched descriptor
//! stays open.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use crate::worker::{CONTROL_FD, WORKER_ARGUMENT};

/// What a worker inherits of the environment; anything else could change what it does unseen.
const ENVIRONMENT: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];

/// Starts `executable` as a worker that finds `control` at [`CONTROL_FD`] and no other descriptor but stderr.
///
/// It gets a process group of its own: Ctrl-C in a terminal is for the supervisor, who tells the workers to drain.
pub(super) fn spawn(executable: &Path, control: &OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(executable);
    command
        .arg0(OsStr::new("underpass-worker"))
        .arg(WORKER_ARGUMENT)
        .env_clear()
        .envs(inherited_environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true);
    let control = control.as_raw_fd();
    // SAFETY: `hand_over` makes system calls and nothing else: no allocation, no lock, as is required after a fork.
    unsafe { command.pre_exec(move || hand_over(control)) };
    command.spawn()
}

fn inherited_environment() -> Vec<(&'static str, OsString)> {
    ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))).collect()
}

/// Puts the control channel to its number and closes, at exec, everything above it.
fn hand_over(control: RawFd) -> io::Result<()> {
    if control == CONTROL_FD {
        // dup2 onto itself would leave close-on-exec set.
        // SAFETY: changes a flag of a descriptor that is open.
        check(unsafe { libc::fcntl(control, libc::F_SETFD, 0) })?;
    } else {
        // SAFETY: both numbers are valid; what was at CONTROL_FD is of no use to the worker.
        check(unsafe { libc::dup2(control, CONTROL_FD) })?;
    }
    let first: libc::c_long = libc::c_long::from(CONTROL_FD) + 1;
    let last: libc::c_long = libc::c_long::from(u32::MAX);
    let flags: libc::c_long = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
    // Our own descriptors are close-on-exec already; this is for those that whoever started us forgot. Kernels before
    // 5.11 do not have it, which is no reason to fail.
    // SAFETY: sets a flag on descriptors, closes none of them now.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the event loop watch what a descriptor refers to, by a descriptor of its own.
pub(super) fn watch(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let own = fd.try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` keeps the same descriptor open until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(own, interest) }?)
}
