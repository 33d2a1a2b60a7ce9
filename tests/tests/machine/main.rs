//! Tests that need the machine for themselves, most of them as root: steering, stopped and killed workers, system calls.

mod killed;
#[path = "../../../loader/tests/common/network.rs"]
mod network;
mod privileges;
mod steering;
mod stopped;
mod switching;
mod syscalls;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One of these tests at a time: what one does to the machine would show in the numbers of another.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that could matter to the next.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pins the calling thread to a CPU.
fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("a CPU number");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("an affinity mask");
}

/// Whether this machine has the CPUs and the privileges that a test of steering needs; says so if not.
fn can_steer() -> bool {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if !underpass_tests::is_root() {
        underpass_tests::skip("needs root, to load BPF programs");
        return false;
    }
    if cpus < 2 {
        underpass_tests::skip("needs two CPUs");
        return false;
    }
    true
}
