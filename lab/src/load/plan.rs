//! What a step of load is to do, and what it has given.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::accounting::{MachineTime, ProcessTime};
use crate::latency::Percentiles;
use crate::response::Expected;
#[cfg(doc)]
use crate::schedule::Schedule;

/// What to do, how often, for how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Where to connect to.
    pub address: SocketAddr,
    /// What one operation is.
    pub exchange: Exchange,
    /// When operations begin.
    pub arrivals: Arrivals,
    /// Most connections at a time. An operation that finds none free waits, and its latency grows.
    pub connections_max: usize,
    /// Connections that are opened before the first operation is due.
    pub connections_at_start: usize,
    /// Load before the measured span.
    pub warm_up: Duration,
    /// Length of the measured span.
    pub span: Duration,
    /// An operation that is not complete so long after it was due has timed out.
    pub timeout: Duration,
    /// Processes whose processor time is reported.
    pub watched: Vec<u32>,
}

/// When operations begin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// When the one before is complete, on each connection.
    Closed,
    /// At times fixed in advance: see [`Schedule`].
    Open {
        /// Mean rate.
        per_s: f64,
        /// The same seed gives the same times.
        seed: u64,
    },
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// Gets a body of the benchmark's own backend; every one is checked.
    Download {
        /// Bytes of the body.
        size: usize,
        /// Whether a connection serves more than one request.
        reuse: bool,
    },
    /// Sends a body to the benchmark's own backend.
    Upload {
        /// Bytes of the body.
        size: usize,
    },
    /// Sends a message through a tunnel and waits for its echo.
    Tunnel {
        /// Bytes of the message.
        message_size: usize,
        /// Whether the tunnel begins as HTTP, with the benchmark's own upgrade; otherwise everything is echoed from the
        /// first byte on.
        upgrade: bool,
    },
    /// Any URL: GET, or POST with a body.
    Url {
        /// Value of `Host`.
        authority: String,
        /// Request target.
        target: String,
        /// Bytes of the request's body; 0: GET.
        upload_size: usize,
    },
}

impl Exchange {
    /// Bytes that an operation sends after its head.
    pub(crate) fn upload_size(&self) -> usize {
        match self {
            Self::Download { .. } => 0,
            Self::Upload { size } | Self::Tunnel { message_size: size, .. } => *size,
            Self::Url { upload_size, .. } => *upload_size,
        }
    }

    /// Whether a connection serves more than one operation.
    pub(crate) fn keeps_connections(&self) -> bool {
        !matches!(self, Self::Download { reuse: false, .. })
    }

    pub(crate) fn write_head(&self, head: &mut Vec<u8>, from: usize) {
        let text = match self {
            Self::Download { size, reuse } => {
                let close = if *reuse { "" } else { "Connection: close\r\n" };
                format!(
                    "GET /size/{size}/from/{from:04} HTTP/1.1\r\nHost: lab.test\r\nAccept: */*\r\n{close}\r\n"
                )
            }
            Self::Upload { size } => format!(
                "POST /upload/from/{from:04} HTTP/1.1\r\nHost: lab.test\r\nContent-Length: {size}\r\n\r\n"
            ),
            Self::Tunnel { .. } => String::new(),
            Self::Url { authority, target, upload_size: 0 } => format!(
                "GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: underpass-lab\r\nAccept: */*\r\n\r\n"
            ),
            Self::Url { authority, target, upload_size } => format!(
                "POST {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: underpass-lab\r\nAccept: */*\r\n\
                 Content-Type: application/octet-stream\r\nContent-Length: {upload_size}\r\n\r\n"
            ),
        };
        head.extend_from_slice(text.as_bytes());
    }

    pub(crate) fn expected(&self, from: usize) -> Expected {
        match self {
            Self::Download { size, .. } => Expected { status: Some(200), body: Some((from, *size as u64)) },
            Self::Upload { .. } | Self::Tunnel { .. } => Expected { status: Some(200), body: Some((0, 0)) },
            Self::Url { .. } => Expected { status: None, body: None },
        }
    }
}

/// What one step has given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Rate that was asked for; none in a closed loop.
    pub asked_per_s: Option<f64>,
    /// Length of the span over which times and bytes were counted, in nanoseconds.
    pub span_ns: u64,
    /// Operations that were due within the span.
    pub due: u64,
    /// Of those, the ones that were completed in time.
    pub completed: u64,
    /// Of those, the ones that took too long.
    pub timeouts: u64,
    /// Of those, the ones that failed.
    pub errors: u64,
    /// Why anything failed, and how often, warm-up included.
    pub error_reasons: BTreeMap<String, u64>,
    /// Operations that were completed within the span, whenever they were due.
    pub completed_in_span: u64,
    /// Body bytes moved within the span.
    pub body_bytes: u64,
    /// Body bytes of the last operation that was completed, whenever that was.
    pub body_size_last: Option<u64>,
    /// Of the operations that were due within the span, from when they were due; those that timed out count as long as
    /// the timeout.
    pub latency: Percentiles,
    /// How late the load generator itself noticed that an operation was due.
    pub lag: Percentiles,
    /// Connections that were opened, from the beginning on.
    pub connections_opened: u64,
    /// The processes that were watched.
    pub processes: Vec<ProcessTime>,
    /// The load generator.
    pub load: ProcessTime,
    /// All cores.
    pub machine: MachineTime,
}

impl Step {
    /// Length of the span in seconds.
    pub fn span_s(&self) -> f64 {
        self.span_ns as f64 / 1e9
    }

    /// Operations per second that were completed.
    pub fn achieved_per_s(&self) -> f64 {
        self.completed_in_span as f64 / self.span_s()
    }

    /// Share of the operations that failed or timed out.
    pub fn failed_share(&self) -> f64 {
        (self.timeouts + self.errors) as f64 / self.due.max(1) as f64
    }

    /// Body bytes per second.
    pub fn bytes_per_s(&self) -> f64 {
        self.body_bytes as f64 / self.span_s()
    }
}
