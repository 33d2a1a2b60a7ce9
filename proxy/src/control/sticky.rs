//! The secret of sticky cookies, where none is configured.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use underpass_command::state::Settings;

use crate::balance::siphash;

/// An id that this machine keeps for good and tells nobody outside: machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";

/// Settings with a secret. One that is not configured is made from the id of the machine, so that cookies outlive a restart;
/// as machine-id(5) asks, the id itself is not used, but what a hash makes of it. Without an id they outlive workers only.
pub(super) fn with_secret(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    if settings.sticky_secret.is_empty() {
        settings.sticky_secret = secret(fs::read_to_string(MACHINE_ID).ok().as_deref());
    }
    settings
}

fn secret(machine_id: Option<&str>) -> String {
    let id = machine_id.map(str::trim).filter(|id| !id.is_empty());
    match id {
        Some(id) => {
            let half = |number| siphash([number, 0x7374_6963_6b79], id.as_bytes());
            format!("{:016x}{:016x}", half(1), half(2))
        }
        None => {
            // The same for every worker, and for every process that a worker has.
            static OF_THIS_RUN: OnceLock<u64> = OnceLock::new();
            let drawn = OF_THIS_RUN.get_or_init(|| RandomState::new().hash_one(std::process::id()));
            format!("{drawn:016x}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_one_secret_that_does_not_tell_its_id() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(secret(Some(id)), secret(Some(&format!("{id}\n"))));
        assert_ne!(secret(Some(id)), secret(Some("another")));
        assert!(!secret(Some(id)).contains(&id[..16]));
        assert_ne!(secret(None), secret(Some(id)));
        assert_eq!(secret(None), secret(Some(" ")), "without an id all processes of a run have one too");
    }

    #[test]
    fn a_configured_secret_is_kept() {
        let settings = Settings { sticky_secret: "mine".into(), ..Settings::default() };
        assert_eq!(with_secret(&settings).sticky_secret, "mine");
        assert!(!with_secret(&Settings::default()).sticky_secret.is_empty());
    }
}
