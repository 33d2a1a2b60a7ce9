//! What is counted for each listener, cluster and backend, and where that lies in a worker's block.
//!
//! Each kind has an area of slots of the same size, found by the number that the supervisor has given the item. The block
//! is sparse: pages of slots that nobody has counted in take no memory. What a request touches lies at the start of its
//! slots, one cache line each, then one line of each histogram.

use underpass_command::live;

use super::durations::{COARSE, COARSE_BUCKETS, FINE, FINE_BUCKETS, Scale};

/// Listeners that can be told apart.
pub const LISTENERS_MAX: u32 = as_number(live::LISTENERS_MAX);
/// Clusters that can be told apart.
pub const CLUSTERS_MAX: u32 = as_number(live::CLUSTERS_MAX);
/// Backends of all clusters together that can be told apart.
pub const BACKENDS_MAX: u32 = as_number(live::BACKENDS_MAX);

#[allow(clippy::cast_possible_truncation, reason = "checked in the line before, when this is compiled")]
const fn as_number(count: usize) -> u32 {
    assert!(count <= 1 << 16);
    count as u32
}

/// Words of a page, and of the boundaries between areas.
pub(super) const PAGE_WORDS: usize = 4096 / size_of::<u64>();

/// Where slots of one kind lie in a block.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Its first word.
    pub(super) first: usize,
    /// Number of slots.
    pub(super) slots: u32,
    /// Words of one slot.
    pub(super) slot_words: usize,
}

impl Area {
    const fn after(end: usize, slots: u32, slot_words: usize) -> Self {
        assert!(slot_words.is_power_of_two() && slot_words <= PAGE_WORDS);
        Self { first: end.next_multiple_of(PAGE_WORDS), slots, slot_words }
    }

    /// The word behind its last.
    pub(super) const fn end(&self) -> usize {
        self.first + self.slots as usize * self.slot_words
    }

    /// The first word of a slot.
    ///
    /// # Panics
    /// For a number that no item can have.
    #[inline]
    pub(super) fn slot(&self, number: u32) -> usize {
        assert!(number < self.slots, "slot {number} of {}", self.slots);
        self.first + number as usize * self.slot_words
    }
}

/// Where the counters of listeners lie.
pub(super) const LISTENERS: Area = Area::after(super::PROCESS_WORDS, LISTENERS_MAX, 128);
/// Where the counters of clusters lie.
pub(super) const CLUSTERS: Area = Area::after(LISTENERS.end(), CLUSTERS_MAX, 256);
/// Where the counters of backends lie.
pub(super) const BACKENDS: Area = Area::after(CLUSTERS.end(), BACKENDS_MAX, 64);
/// Words of a block.
pub(super) const WORDS: usize = BACKENDS.end().next_multiple_of(PAGE_WORDS);

/// Counters in front of the histograms of a slot.
pub(super) const SLOT_COUNTERS: usize = 16;
/// Histograms of a slot at most.
pub(super) const SLOT_DURATIONS: usize = 2;

const _: () = {
    assert!(ListenerCounter::ALL.len() <= SLOT_COUNTERS);
    assert!(SLOT_COUNTERS + 1 + FINE_BUCKETS <= LISTENERS.slot_words);
    assert!(ClusterCounter::ALL.len() <= SLOT_COUNTERS);
    assert!(SLOT_COUNTERS + SLOT_DURATIONS * (1 + FINE_BUCKETS) <= CLUSTERS.slot_words);
    assert!(BackendCounter::ALL.len() <= SLOT_COUNTERS);
    assert!(SLOT_COUNTERS + SLOT_DURATIONS * (1 + COARSE_BUCKETS) <= BACKENDS.slot_words);
};

/// A counter of one kind of item.
pub trait SlotCounter: Copy + 'static {
    /// Every counter, in their order in the slot.
    const ALL: &'static [Self];
    /// Where the slots lie.
    const AREA: Area;
    /// The scales of the histograms behind the counters.
    const SCALES: &'static [&'static Scale];

    /// Its place in the slot.
    fn index(self) -> usize;
    /// Its name in documents.
    fn name(self) -> &'static str;
    /// What it counts.
    fn help(self) -> &'static str;
    /// Whether it goes down again.
    fn is_gauge(self) -> bool {
        self.help().contains("(gauge)")
    }
}

macro_rules! slot_counter {
    ($name:ident, $area:ident, $scales:expr) => {
        impl SlotCounter for $name {
            const ALL: &'static [Self] = Self::ALL;
            const AREA: Area = $area;
            const SCALES: &'static [&'static Scale] = $scales;

            #[inline]
            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                self.name()
            }

            fn help(self) -> &'static str {
                self.help()
            }
        }
    };
}

super::counters! {
    /// What is counted for each listener.
    ListenerCounter {
        /// Requests that have ended, and TCP connections.
        Requests = "requests",
        /// Responses of class 1xx (101 only) sent to clients.
        Responses1xx = "responses_1xx",
        /// Responses of class 2xx sent to clients.
        Responses2xx = "responses_2xx",
        /// Responses of class 3xx sent to clients.
        Responses3xx = "responses_3xx",
        /// Responses of class 4xx sent to clients, our own included.
        Responses4xx = "responses_4xx",
        /// Responses of class 5xx sent to clients, our own included.
        Responses5xx = "responses_5xx",
        /// Bytes of bodies and tunnels that came from clients and were passed on.
        BytesIn = "bytes_in",
        /// Bytes of bodies and tunnels sent to clients.
        BytesOut = "bytes_out",
        /// Client connections accepted.
        Connections = "connections",
        /// Client connections open now (gauge).
        ConnectionsActive = "connections_active",
        /// Client connections refused because of the limit of connections.
        LimitReached = "connections_limit_reached",
    }
}
slot_counter!(ListenerCounter, LISTENERS, &[&FINE]);

super::counters! {
    /// What is counted for each cluster.
    ClusterCounter {
        /// Requests that have ended, answered or not, and TCP connections.
        Requests = "requests",
        /// Responses of class 1xx (101 only) sent to clients.
        Responses1xx = "responses_1xx",
        /// Responses of class 2xx sent to clients.
        Responses2xx = "responses_2xx",
        /// Responses of class 3xx sent to clients.
        Responses3xx = "responses_3xx",
        /// Responses of class 4xx sent to clients, our own included.
        Responses4xx = "responses_4xx",
        /// Responses of class 5xx sent to clients, our own included.
        Responses5xx = "responses_5xx",
        /// Bytes of bodies and tunnels that came from clients and were passed on.
        BytesIn = "bytes_in",
        /// Bytes of bodies and tunnels sent to clients.
        BytesOut = "bytes_out",
        /// Times that another attempt was made for a request.
        Retries = "retries",
        /// Requests that waited for a backend with room.
        Queued = "queued",
        /// Requests refused because too many waited.
        QueueFull = "queue_full",
        /// Requests refused because they had waited for too long.
        QueueTimeouts = "queue_timeouts",
        /// Requests that wait for a backend with room now (gauge).
        QueueActive = "queue_active",
        /// Requests that ended without their response, or in the middle of it, and connections that were broken off.
        Broken = "broken",
        /// Requests answered by the proxy itself, because no backend did.
        OwnAnswers = "own_answers",
    }
}
slot_counter!(ClusterCounter, CLUSTERS, &[&FINE, &FINE]);

super::counters! {
    /// What is counted for each backend.
    BackendCounter {
        /// Requests that have ended here, answered or not, and TCP connections.
        Requests = "requests",
        /// Responses of class 1xx (101 only) passed on.
        Responses1xx = "responses_1xx",
        /// Responses of class 2xx passed on.
        Responses2xx = "responses_2xx",
        /// Responses of class 3xx passed on.
        Responses3xx = "responses_3xx",
        /// Responses of class 4xx passed on.
        Responses4xx = "responses_4xx",
        /// Responses of class 5xx passed on.
        Responses5xx = "responses_5xx",
        /// Bytes of bodies and tunnels sent to the backend.
        BytesIn = "bytes_in",
        /// Bytes of bodies and tunnels that came from the backend and were passed on.
        BytesOut = "bytes_out",
        /// Requests and TCP connections under way now (gauge).
        Active = "active",
        /// Connections that were begun.
        Connects = "connects",
        /// Connections that could not be made.
        ConnectFailures = "connect_failures",
        /// Requests sent on a pooled connection.
        Reuses = "reuses",
        /// Requests for which it went away, or answered what cannot be passed on.
        Broken = "broken",
        /// Times that it was taken out of the choice because requests failed.
        Ejections = "ejections",
    }
}
slot_counter!(BackendCounter, BACKENDS, &[&COARSE, &COARSE]);

/// The histogram of a listener, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ListenerDuration {
    /// From the first byte of a request to the last byte of its response.
    Total = 0,
}

/// The histograms of a cluster, by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ClusterDuration {
    /// From the first byte of a request to the last byte of its response.
    Total = 0,
    /// From the first byte of a request to the first byte of its response.
    FirstByte = 1,
}

/// The histograms of a backend, by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum BackendDuration {
    /// From the start of a connection until it was made.
    Connect = 0,
    /// From the end of a request's head to the first byte of the response.
    Response = 1,
}
