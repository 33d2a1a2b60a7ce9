//! What the kernel counts of a process, from /proc.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// What one process has used. Read when asked for; a process that has gone has none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu_s: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    /// Since the system started.
    started_s: f64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let units = |variable| sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok());
        Self::parse(&stat, units(SysconfVar::CLK_TCK)?, units(SysconfVar::PAGE_SIZE)?)
    }

    /// proc_pid_stat(5). The name in parentheses may hold anything, so fields are counted from behind it.
    fn parse(stat: &str, ticks_per_s: u64, page_size: u64) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `rest` begins with field 3, the state.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |number| field(number).map(|ticks| ticks as f64 / ticks_per_s as f64);
        Some(Self {
            cpu_s: ticks(14)? + ticks(15)?,
            threads: field(20)?,
            started_s: ticks(22)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)?.saturating_mul(page_size),
        })
    }

    /// When it started, in seconds since 1970.
    pub(super) fn start_time_s(&self, now: SystemTime) -> Option<f64> {
        let text = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
        let boot = now.checked_sub(Duration::try_from_secs_f64(uptime).ok()?)?;
        Some(boot.duration_since(UNIX_EPOCH).ok()?.as_secs_f64() + self.started_s)
    }
}

/// Descriptors that this process has open.
pub(super) fn open_descriptors() -> Option<u64> {
    fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64)
}

/// Descriptors that this process may have.
pub(super) fn descriptors_max() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_moves_no_field() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 700 4096000 25 99 0";
        let usage = Usage::parse(stat, 100, 4096).expect("valid");
        assert_eq!(
            usage,
            Usage {
                cpu_s: 3.0,
                resident_bytes: 102_400,
                virtual_bytes: 4_096_000,
                threads: 3,
                started_s: 7.0
            }
        );
        assert_eq!(Usage::parse("42 (short) S 1", 100, 4096), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let usage = Usage::of(std::process::id()).expect("it runs");
        assert!(usage.resident_bytes > 0 && usage.threads > 0);
        let now = SystemTime::now();
        let start = usage.start_time_s(now).expect("it has started");
        assert!(start <= now.duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64());
        assert!(open_descriptors() > Some(0) && open_descriptors() <= descriptors_max());
        assert_eq!(Usage::of(u32::MAX), None);
    }
}
