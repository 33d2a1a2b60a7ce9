//! `GET /v1/events`: what happens, as a stream of server-sent events (WHATWG HTML section 9.2).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use underpass_command::api::Event;

use super::connections::Deadline;
use crate::control::commands::{Failure, Handle};
use crate::control::events::Subscription;

/// Streams at a time.
const STREAMS_MAX: usize = 32;
/// Without an event, until a comment tells that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Events that wait for a connection to take them; more wait in the subscription, which drops the oldest.
const QUEUE: usize = 16;

/// How many streams there may be yet.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// Answers with events until the caller goes, or the proxy ends.
pub(super) fn respond(
    handle: &Handle,
    streams: &Streams,
    deadline: &Deadline,
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let after = last_event_id(headers)?;
    let Ok(place) = streams.0.clone().try_acquire_owned() else {
        let text = format!("{STREAMS_MAX} callers listen to events already");
        return Err(Failure::new(503, text, "end another, or let one listen for all"));
    };
    // From here on nothing is missed.
    let subscription = handle.events().subscribe(after);
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(pass_on(subscription, after, sender, place));
    deadline.lift();
    let fields = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((fields, Body::new(Blocks(receiver))).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        Failure::new(400, "Last-Event-ID is no number", "give the id of the last event, or leave it out")
    })
}

/// Sends what was missed and what comes; ends when nobody takes it any more.
async fn pass_on(
    mut subscription: Subscription,
    after: Option<u64>,
    sender: mpsc::Sender<Bytes>,
    place: OwnedSemaphorePermit,
) {
    let mut before = after;
    // The first block at once, so that the caller knows that it listens.
    let mut block = Bytes::from_static(b":\n\n");
    let mut missed = std::mem::take(&mut subscription.missed).into_iter();
    while sender.send(block).await.is_ok() {
        block = match missed.next() {
            Some(event) => event_block(&event, &mut before),
            None => match timeout(HEARTBEAT, subscription.coming.recv()).await {
                Err(_) => Bytes::from_static(b":\n\n"),
                Ok(Ok(event)) => event_block(&event, &mut before),
                // What was lost is told with the next event, whose number shows how many.
                Ok(Err(RecvError::Lagged(_))) => Bytes::from_static(b":\n\n"),
                Ok(Err(RecvError::Closed)) => break,
            },
        };
    }
    drop(place);
}

/// An event as a block; before it another that tells how many were lost, where some were.
fn event_block(event: &Event, before: &mut Option<u64>) -> Bytes {
    let mut block = String::new();
    let lost = before.map_or(0, |before| event.sequence.saturating_sub(before + 1));
    if lost > 0 {
        block.push_str(&format!("event: lost\ndata: {{\"lost\":{lost}}}\n\n"));
    }
    *before = Some(event.sequence);
    match serde_json::to_string(event) {
        Ok(json) => block.push_str(&format!("id: {}\ndata: {json}\n\n", event.sequence)),
        Err(error) => tracing::error!("event {} cannot be told: {error}", event.sequence),
    }
    block.into()
}

/// A body that comes block by block.
struct Blocks(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Blocks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|block| block.map(|block| Ok(Frame::data(block))))
    }
}

#[cfg(test)]
mod tests {
    use underpass_command::api::EventKind;

    use super::*;

    fn event(sequence: u64) -> Event {
        Event { sequence, time_ms: 5, kind: EventKind::WorkerUp { worker: 1 } }
    }

    #[test]
    fn an_event_is_a_block_with_its_number() {
        let mut before = None;
        let block = event_block(&event(7), &mut before);
        assert_eq!(
            block,
            "id: 7\ndata: {\"sequence\":7,\"time_ms\":5,\"event\":\"worker_up\",\"worker\":1}\n\n".as_bytes()
        );
        assert!(event_block(&event(8), &mut before).starts_with(b"id: 8\n"));
    }

    #[test]
    fn what_was_lost_is_told_before_what_comes_next() {
        let mut before = Some(3);
        let block = event_block(&event(9), &mut before);
        assert!(block.starts_with(b"event: lost\ndata: {\"lost\":5}\n\nid: 9\n"), "{block:?}");
        assert!(event_block(&event(10), &mut before).starts_with(b"id: 10\n"));
    }
}
