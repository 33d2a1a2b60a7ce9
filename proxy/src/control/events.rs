//! What happens, for those who listen to it: the last events are kept, so that who was away can catch up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use underpass_command::api::{Event, EventKind};

/// Events that are kept for those who come back, and that a listener may be behind.
const KEPT: usize = 1024;

/// The events of a proxy.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    shared: Arc<Mutex<Kept>>,
    sender: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Event>,
}

/// What a listener gets: first what it has missed, then what happens.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// Those that happened after the one it knew last, as far as they are kept.
    pub(crate) missed: Vec<Event>,
    /// Those that happen from now on; one that is too far behind is told how many it has lost.
    pub(crate) coming: broadcast::Receiver<Event>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { shared: Arc::default(), sender: broadcast::channel(KEPT).0 }
    }

    /// Tells everybody who listens.
    pub(super) fn tell(&self, kind: EventKind) {
        // The clock may stand before 1970; an event is worth telling all the same.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let event = Event { sequence: kept.last, time_ms, kind };
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event.clone());
        // Nobody may be listening. Under the lock, so that no listener gets one twice or in another order.
        let _ = self.sender.send(event);
    }

    /// Listens from now on; with `after` to those too that have happened after that one and are still kept.
    pub(crate) fn subscribe(&self, after: Option<u64>) -> Subscription {
        let kept = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = match after {
            Some(after) => kept.events.iter().filter(|event| event.sequence > after).cloned().collect(),
            None => Vec::new(),
        };
        Subscription { missed, coming: self.sender.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_catches_up_as_far_as_events_are_kept() {
        let events = Events::new();
        for worker in 0..3 {
            events.tell(EventKind::WorkerUp { worker });
        }
        let mut subscription = events.subscribe(Some(1));
        let missed: Vec<u64> = subscription.missed.iter().map(|event| event.sequence).collect();
        assert_eq!(missed, [2, 3]);
        assert!(events.subscribe(None).missed.is_empty());
        events.tell(EventKind::Saved { revision: 9 });
        let next = subscription.coming.try_recv().expect("one has happened");
        assert_eq!((next.sequence, next.kind), (4, EventKind::Saved { revision: 9 }));
        for revision in 0..2 * KEPT as u64 {
            events.tell(EventKind::Saved { revision });
        }
        assert_eq!(events.subscribe(Some(0)).missed.len(), KEPT);
        assert!(matches!(subscription.coming.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
    }
}
