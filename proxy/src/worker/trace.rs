//! The trace that a request belongs to.

use underpass_command::state::TraceContext;

use super::random::Random;
use crate::http1::{Fields, TraceParent};

/// The trace of a request, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    parent: Option<TraceParent>,
    /// It begins here, so the backend must be told.
    started: bool,
}

impl Trace {
    pub(super) fn none() -> Self {
        Self { parent: None, started: false }
    }

    /// The trace of a request that came with these fields. `logged` tells that somebody wants to know it, even where it just
    /// passes.
    pub(super) fn of(
        mode: TraceContext,
        buffer: &[u8],
        fields: &Fields,
        random: &mut Random,
        logged: bool,
    ) -> Self {
        let clients = match mode {
            TraceContext::Off => return Self::none(),
            TraceContext::Keep if !logged => return Self::none(),
            TraceContext::Keep | TraceContext::Start => TraceParent::of(buffer, fields),
        };
        if clients.is_some() || mode == TraceContext::Keep {
            return Self { parent: clients, started: false };
        }
        let trace_id = u128::from(random.next()) << 64 | u128::from(random.next());
        Self { parent: Some(TraceParent::start(trace_id, random.next())), started: true }
    }

    /// What takes the place of the client's fields, if anything does.
    pub(super) fn replacement(&self) -> Option<&[u8]> {
        self.parent.as_ref().filter(|_| self.started).map(TraceParent::as_bytes)
    }

    /// Its id in hexadecimal; empty where none is known.
    pub(super) fn id(&self) -> &[u8] {
        self.parent.as_ref().map_or(b"", TraceParent::trace_id)
    }
}
