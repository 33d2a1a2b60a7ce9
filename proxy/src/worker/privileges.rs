//! A worker serves strangers, so it keeps no privilege: its descriptors are all it needs.

use anyhow::{Context, anyhow};
use caps::CapSet;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Uid, User, geteuid, setgid, setgroups, setuid};

/// Becomes `user` where the process is root and a user is named, and drops every capability in any case.
///
/// # Errors
/// When something could not be given up: the worker must not serve then.
pub(super) fn drop_all(user: &str) -> anyhow::Result<()> {
    let root = geteuid().is_root();
    if root {
        // While CAP_SETPCAP is there: what is not in the bounding set cannot be gained by executing anything.
        caps::clear(None, CapSet::Bounding).context("capability bounding set")?;
    }
    if root && !user.is_empty() {
        let account = User::from_name(user)?.ok_or_else(|| anyhow!("user \"{user}\" does not exist"))?;
        setgroups(&[account.gid]).context("supplementary groups")?;
        setgid(account.gid).with_context(|| format!("group of user \"{user}\""))?;
        setuid(account.uid).with_context(|| format!("user \"{user}\""))?;
        debug_assert_ne!(Uid::effective(), Uid::from_raw(0));
    }
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).with_context(|| format!("{set:?} capabilities"))?;
    }
    set_no_new_privs().context("no_new_privs")
}
