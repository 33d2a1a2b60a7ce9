//! Who calls, who may, and how much of the server one caller can have.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::geteuid;
use tokio::net::UnixStream;

/// Connections of all callers that are served at a time; more wait in the socket's queue.
pub(super) const CONNECTIONS_MAX: usize = 128;
/// Connections of one process at a time; more are answered 503.
pub(super) const CONNECTIONS_PER_PROCESS_MAX: usize = 32;
/// Connections of one user at a time; more are answered 503.
const CONNECTIONS_PER_USER_MAX: usize = 96;
/// Connections of users that are not allowed, which are told so; more are closed without a word.
const STRANGERS_MAX: usize = 8;

/// Who calls, as the kernel tells it (SO_PEERCRED, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) uid: u32,
    /// 0 for a process of another PID namespace.
    pub(super) pid: i32,
}

impl Caller {
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid().unwrap_or(0) })
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user id {}, process id {}", self.uid, self.pid)
    }
}

/// The users that may call: root, the user whose process this is, and those of `settings.admin_uids`.
#[derive(Clone, Debug)]
pub(super) struct AllowList(Arc<Mutex<Vec<u32>>>);

impl AllowList {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Replaces the users of the settings.
    pub(super) fn set(&self, uids: &[u32]) {
        let mut list = lock(&self.0);
        list.clear();
        list.extend_from_slice(uids);
    }

    pub(super) fn allows(&self, uid: u32) -> bool {
        uid == 0 || uid == geteuid().as_raw() || lock(&self.0).contains(&uid)
    }
}

/// Counts the connections of each caller.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    processes: BTreeMap<i32, usize>,
    users: BTreeMap<u32, usize>,
    strangers: usize,
}

/// A connection's part of its caller's share, which comes back when this goes.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    caller: Caller,
    allowed: bool,
}

/// Why a connection is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Its process or user has its share already.
    Share(String),
    /// Enough callers that are not allowed are being told so.
    Strangers,
}

impl Shares {
    /// Counts a connection, if its caller has not had its share.
    pub(super) fn take(&self, caller: Caller, allowed: bool) -> Result<Share, Full> {
        let mut counts = lock(&self.0);
        if allowed {
            let of_process = counts.processes.get(&caller.pid).copied().unwrap_or(0);
            let of_user = counts.users.get(&caller.uid).copied().unwrap_or(0);
            if of_process >= CONNECTIONS_PER_PROCESS_MAX {
                return Err(Full::Share(format!("process {} has {of_process} connections", caller.pid)));
            }
            if of_user >= CONNECTIONS_PER_USER_MAX {
                return Err(Full::Share(format!("user {} has {of_user} connections", caller.uid)));
            }
            *counts.processes.entry(caller.pid).or_default() += 1;
            *counts.users.entry(caller.uid).or_default() += 1;
        } else if counts.strangers >= STRANGERS_MAX {
            return Err(Full::Strangers);
        } else {
            counts.strangers += 1;
        }
        Ok(Share { shares: self.clone(), caller, allowed })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = lock(&self.shares.0);
        if self.allowed {
            give_back(&mut counts.processes, self.caller.pid);
            give_back(&mut counts.users, self.caller.uid);
        } else {
            counts.strangers -= 1;
        }
    }
}

/// Counts one less; who has none left is forgotten, so that the counts are as few as the connections.
fn give_back<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Nothing panics while it holds one of these locks, so that what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_its_own_user_are_always_allowed_and_others_by_the_list() {
        let list = AllowList::new();
        let other = geteuid().as_raw() + 4711;
        assert!(list.allows(0) && list.allows(geteuid().as_raw()) && !list.allows(other));
        let seen_by_the_server = list.clone();
        list.set(&[other]);
        assert!(seen_by_the_server.allows(other) && seen_by_the_server.allows(0));
        list.set(&[]);
        assert!(!seen_by_the_server.allows(other));
    }

    #[test]
    fn one_process_cannot_have_everything() {
        let shares = Shares::default();
        let caller = Caller { uid: 7, pid: 1 };
        let held: Vec<Share> =
            (0..CONNECTIONS_PER_PROCESS_MAX).map(|_| shares.take(caller, true).expect("room")).collect();
        let full = shares.take(caller, true).expect_err("its share is used up");
        assert_eq!(full, Full::Share("process 1 has 32 connections".into()));
        shares.take(Caller { uid: 7, pid: 2 }, true).expect("another process has its own share");
        drop(held);
        shares.take(caller, true).expect("given back");
        assert!(lock(&shares.0).processes.is_empty() && lock(&shares.0).users.is_empty());
    }

    #[test]
    fn one_user_leaves_room_for_another() {
        let shares = Shares::default();
        let held: Vec<Share> = (0..CONNECTIONS_PER_USER_MAX)
            .map(|number| {
                let pid = i32::try_from(number).expect("small");
                shares.take(Caller { uid: 7, pid }, true).expect("room")
            })
            .collect();
        assert!(shares.take(Caller { uid: 7, pid: 5000 }, true).is_err());
        assert!(held.len() < CONNECTIONS_MAX);
        shares.take(Caller { uid: 8, pid: 5000 }, true).expect("another user has its own share");
    }

    #[test]
    fn strangers_take_nothing_from_those_who_are_allowed() {
        let shares = Shares::default();
        let stranger = Caller { uid: 9, pid: 1 };
        let held: Vec<Share> =
            (0..STRANGERS_MAX).map(|_| shares.take(stranger, false).expect("told")).collect();
        assert_eq!(shares.take(stranger, false).expect_err("enough are told"), Full::Strangers);
        shares.take(Caller { uid: 0, pid: 1 }, true).expect("not counted with them");
        drop(held);
        assert_eq!(lock(&shares.0).strangers, 0);
    }
}
