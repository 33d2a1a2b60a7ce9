//! The list of backends with what is known of them beside their configuration.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use underpass_command::api::{BackendEntry, BackendHealth, HealthState, Page, Select};

use crate::control::admin::lists;
use crate::control::commands::{Failure, Handle, Request};
use crate::control::health::Found;
use crate::control::supervisor::Supervisor;
use crate::metrics::{BackendCounter, BlockPair, views};

/// A page of backends, and where their counters lie.
#[derive(Debug)]
pub(in crate::control) struct Listed {
    page: Page<BackendEntry>,
    /// The number of each; none where it has none, which does not happen between changes.
    numbers: Vec<Option<u32>>,
    blocks: Arc<Vec<BlockPair>>,
}

impl Supervisor {
    /// A page of backends with what their checks have found; their counters are not read yet.
    pub(in crate::control) fn backends(&self, select: &Select) -> Result<Listed, Failure> {
        let mut page = lists::backends(&self.configuration, select)?;
        let number = |entry: &BackendEntry| self.registry.backend(&entry.cluster, entry.backend.address);
        let numbers: Vec<_> = page.items.iter().map(number).collect();
        for (entry, number) in page.items.iter_mut().zip(&numbers) {
            entry.health = health(number.and_then(|number| self.health.found(number)));
        }
        Ok(Listed { page, numbers, blocks: self.blocks.clone() })
    }
}

impl Handle {
    /// A page of backends, with their health and what is under way on them in all workers together.
    pub(in crate::control) async fn backends(&self, select: Select) -> Result<Page<BackendEntry>, Failure> {
        let listed = self.ask(|reply| Request::Backends(select, reply)).await?;
        tokio::task::spawn_blocking(move || listed.with_counters())
            .await
            .map_err(|error| Failure::new(500, format!("counters could not be read: {error}"), "try again"))
    }
}

impl Listed {
    fn with_counters(self) -> Page<BackendEntry> {
        let Self { mut page, numbers, blocks } = self;
        let views = views(&blocks);
        for (entry, number) in page.items.iter_mut().zip(numbers) {
            let Some(number) = number else { continue };
            entry.active = views.iter().map(|view| view.get(number, BackendCounter::Active)).sum();
        }
        page
    }
}

fn health(found: Option<&Found>) -> BackendHealth {
    let Some(found) = found else { return BackendHealth::default() };
    let Some(since) = found.since else {
        // Its first checks may fail: the verdict is still to come.
        let reason = Some(found.reason.clone()).filter(|reason| !reason.is_empty());
        return BackendHealth { reason, ..BackendHealth::default() };
    };
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    BackendHealth {
        state: if found.up { HealthState::Up } else { HealthState::Down },
        reason: Some(found.reason.clone()),
        since_ms: u64::try_from(since.as_millis()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_not_checked_yet_is_not_known() {
        let found = |up, since| Found { up, reason: "r".into(), since };
        assert_eq!(health(None), BackendHealth::default());
        let failing = health(Some(&found(true, None)));
        assert_eq!((failing.state, failing.reason.as_deref()), (HealthState::Unknown, Some("r")));
        let at = Some(UNIX_EPOCH + Duration::from_millis(1234));
        let expected = |state| BackendHealth { state, reason: Some("r".into()), since_ms: Some(1234) };
        assert_eq!(health(Some(&found(true, at))), expected(HealthState::Up));
        assert_eq!(health(Some(&found(false, at))), expected(HealthState::Down));
    }
}
