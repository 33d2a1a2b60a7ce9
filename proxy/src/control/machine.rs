//! What the machine gives: CPUs, descriptors, users.

use std::collections::BTreeMap;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, User};
use underpass_command::state::{Limits, SteeringPolicy};

/// Descriptors of a worker that are neither connections nor pipes: listeners, epoll, log, control channel, maps.
const DESCRIPTORS_OTHER: u64 = 64;

/// The CPUs that this process may use, in ascending order; empty if the kernel does not tell.
pub(crate) fn allowed_cpus() -> Vec<u16> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .filter_map(|cpu| u16::try_from(cpu).ok())
        .collect()
}

/// The CPU of each of `workers` workers; 0 workers means one for each CPU that is allowed.
pub(super) fn assign_cpus(workers: u16, allowed: &[u16]) -> Vec<Option<u16>> {
    let count = if workers == 0 { allowed.len().max(1) } else { usize::from(workers) };
    (0..count).map(|index| allowed.get(index % allowed.len().max(1)).copied()).collect()
}

/// The worker of each CPU; where several share one, the first.
pub(crate) fn cpu_table(cpus: &[Option<u16>]) -> Vec<(u32, u16)> {
    let mut table = BTreeMap::new();
    for (worker, cpu) in (0..).zip(cpus) {
        if let Some(cpu) = cpu {
            table.entry(u32::from(*cpu)).or_insert(worker);
        }
    }
    table.into_iter().collect()
}

/// What is wrong with the number of workers, if anything is: steering by CPU knows one worker of each.
pub(super) fn idle_workers(policy: SteeringPolicy, cpus: &[Option<u16>]) -> Option<String> {
    let by_cpu = matches!(policy, SteeringPolicy::Cpu | SteeringPolicy::RxQueue);
    let mut used: Vec<u16> = cpus.iter().flatten().copied().collect();
    used.sort_unstable();
    used.dedup();
    (by_cpu && !used.is_empty() && used.len() < cpus.len()).then(|| {
        format!(
            "{} workers share {} CPUs: with steering policy {policy} only the first worker of each CPU gets connections; \
             set workers = 0, or steering = \"hash\"",
            cpus.len(),
            used.len()
        )
    })
}

/// Raises the soft limit of open descriptors to the hard one, which workers inherit; returns the limit.
pub(super) fn raise_descriptor_limit() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many descriptors one worker may come to hold: each client may have a connection to a backend, a pipe has two
/// ends.
pub(super) fn descriptors_needed(limits: &Limits) -> u64 {
    u64::from(limits.connections) * 2 + u64::from(limits.pipes) * 2 + DESCRIPTORS_OTHER
}

/// What is wrong with the limit of open descriptors, if anything is.
pub(super) fn descriptor_shortage(limits: &Limits, limit: u64) -> Option<String> {
    let needed = descriptors_needed(limits);
    (limit < needed).then(|| {
        format!(
            "limit of open files: {limit}, but {needed} may be needed by a worker (limits.connections = {}, \
             limits.pipes = {}); raise it (ulimit -Hn, or LimitNOFILE= of the systemd unit), or lower limits.connections",
            limits.connections, limits.pipes
        )
    })
}

/// Why the workers' user cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none of this name.
    #[error(
        "settings.user: there is no user \"{0}\" on this machine; create it (useradd --system {0}), or name another"
    )]
    Unknown(String),
    /// The user database cannot be read.
    #[error("settings.user: user \"{name}\" cannot be looked up: {source}")]
    Lookup {
        /// The user's name.
        name: String,
        /// Why.
        source: nix::Error,
    },
}

/// Checks that the workers' user exists; only root can switch to it, others keep their own.
pub(super) fn check_user(name: &str) -> Result<(), UserError> {
    if name.is_empty() || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match User::from_name(name) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(UserError::Unknown(name.to_owned())),
        Err(source) => Err(UserError::Lookup { name: name.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_workers_are_one_for_each_allowed_cpu() {
        assert_eq!(assign_cpus(0, &[2, 5]), [Some(2), Some(5)]);
    }

    #[test]
    fn more_workers_than_cpus_wrap_around() {
        assert_eq!(assign_cpus(3, &[2, 5]), [Some(2), Some(5), Some(2)]);
    }

    #[test]
    fn without_knowledge_of_cpus_workers_are_not_pinned() {
        assert_eq!(assign_cpus(0, &[]), [None]);
        assert_eq!(assign_cpus(2, &[]), [None, None]);
    }

    #[test]
    fn the_first_of_several_workers_has_the_cpu() {
        assert_eq!(cpu_table(&[Some(3), Some(1), Some(3), None]), [(1, 1), (3, 0)]);
    }

    #[test]
    fn workers_that_steering_would_leave_idle_are_told() {
        let shared = [Some(0), Some(1), Some(0)];
        let text = idle_workers(SteeringPolicy::Cpu, &shared).expect("worker 2 is idle");
        assert!(text.contains("3 workers share 2 CPUs"), "{text}");
        assert_eq!(idle_workers(SteeringPolicy::Hash, &shared), None);
        assert_eq!(idle_workers(SteeringPolicy::Cpu, &shared[..2]), None);
        assert_eq!(idle_workers(SteeringPolicy::Cpu, &[None, None]), None);
    }

    #[test]
    fn the_cpus_of_this_process_are_found() {
        let allowed = allowed_cpus();
        assert!(!allowed.is_empty());
        assert!(allowed.is_sorted());
    }

    #[test]
    fn a_shortage_names_value_need_and_remedy() {
        let limits = Limits { connections: 1000, pipes: 10, ..Limits::default() };
        assert_eq!(descriptors_needed(&limits), 2084);
        assert_eq!(descriptor_shortage(&limits, 2084), None);
        let text = descriptor_shortage(&limits, 1024).expect("too low");
        assert!(text.contains("1024") && text.contains("2084") && text.contains("LimitNOFILE"), "{text}");
    }

    #[test]
    fn an_unknown_user_is_refused_for_root() {
        let checked = check_user("no-such-user-here");
        if nix::unistd::geteuid().is_root() {
            let text = checked.expect_err("unknown").to_string();
            assert!(text.contains("\"no-such-user-here\"") && text.contains("useradd"), "{text}");
        } else {
            checked.expect("an ordinary user keeps its own");
        }
    }
}
