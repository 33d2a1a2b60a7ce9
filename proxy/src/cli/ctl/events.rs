//! `underpass ctl events`, and waiting for one of them.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use underpass_command::ClientError;
use underpass_command::api::{Event, EventKind};

use super::super::{Failure, print};
use super::Context;

/// Events that may wait for who watches them.
const QUEUE: usize = 256;

/// Arguments of `underpass ctl events`.
#[derive(Debug, Args)]
pub(super) struct Follow {
    /// Begin with what has happened after this event, as far as it is known
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    count: Option<usize>,
}

/// Prints events until the proxy ends; as JSON one object on each line.
pub(super) fn follow(context: &Context, arguments: &Follow) -> Result<(), Failure> {
    let events = context.client.events(arguments.after).map_err(Failure::runtime)?;
    for event in events.take(arguments.count.unwrap_or(usize::MAX)) {
        let event = event.map_err(Failure::runtime)?;
        let line = match context.json {
            true => serde_json::to_string(&event).map_err(Failure::runtime)?,
            false => text(&event),
        };
        print(&format!("{line}\n"))?;
    }
    Ok(())
}

/// An event as a line for people.
fn text(event: &Event) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(event.time_ms)).unwrap_or(SystemTime::UNIX_EPOCH);
    format!("{:>6}  {}  {}", event.sequence, humantime::format_rfc3339_millis(time), describe(&event.kind))
}

/// What happened, for people: the name of the event, then its fields as JSON has them.
fn describe(kind: &EventKind) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(kind) else { return String::new() };
    let mut words = Vec::new();
    if let Some(serde_json::Value::String(name)) = fields.remove("event") {
        words.push(name.replace('_', " "));
    }
    words.extend(fields.iter().map(|(name, value)| match value {
        serde_json::Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    }));
    words.join("  ")
}

/// Watches events for a time.
#[derive(Debug)]
pub(super) struct Watch {
    events: Receiver<Result<Event, ClientError>>,
    deadline: Instant,
    seconds: u64,
}

impl Watch {
    /// From when this returns no event is missed.
    pub(super) fn begin(context: &Context, seconds: u64) -> Result<Self, Failure> {
        let events = context.client.events(None).map_err(Failure::runtime)?;
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        // It ends with the process, or when nobody watches any more.
        thread::spawn(move || events.map_while(|event| sender.send(event).ok()).for_each(drop));
        // A deadline that cannot be told apart from none.
        let deadline = Instant::now() + Duration::from_secs(seconds.min(365 * 24 * 3600));
        Ok(Self { events: receiver, deadline, seconds })
    }

    /// Waits for an event of which the condition is true.
    pub(super) fn until(&self, wanted: impl Fn(&EventKind) -> bool) -> Result<Event, String> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Ok(event)) if wanted(&event.kind) => return Ok(event),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!(
                        "still not drained after {} s; wait longer with --timeout, or see what is under way with underpass status",
                        self.seconds
                    ));
                }
                Err(RecvTimeoutError::Disconnected) => return Err("the proxy has ended".into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let backend = "127.0.0.1:9000".parse().expect("an address");
        let kind = EventKind::BackendDrained { cluster: "app".into(), backend };
        let line = text(&Event { sequence: 12, time_ms: 1_500, kind });
        assert_eq!(
            line,
            "    12  1970-01-01T00:00:01.500Z  backend drained  backend 127.0.0.1:9000  cluster app"
        );
    }
}
