//! The events of a running proxy: a bounded ring for the readers of the admin API.

use super::node_state;
use crate::clock;
use crate::config::NodeState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// The most events that are kept; the oldest go first.
pub(crate) const CAPACITY: usize = 1024;
/// The number of reloads that are kept apart, however many other events come after them.
const RELOADS: usize = 10;
/// The longest text of an event, in bytes: operators' URLs and nodes' errors come from outside.
const MAX_TEXT: usize = 1024;

/// A change in a running proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The configuration file was read; where it is not in force, the place of the first error.
    Reload {
        success: bool,
        error: Option<String>,
        file: Option<String>,
        line: Option<usize>,
        column: Option<usize>,
        needs_restart: Vec<String>,
    },
    /// A new binary takes over, or has failed to.
    Upgrade { success: bool, error: Option<String> },
    /// An operator has set the state of a node.
    NodeState {
        pool: String,
        node: String,
        #[serde(with = "node_state")]
        state: NodeState,
        /// The person and the address, where it was set for the whole fleet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// The verdict of the health checks of a node has changed.
    NodeHealth { pool: String, node: String, healthy: bool, error: Option<String> },
    /// A node was taken out because requests to it failed, or is back.
    NodeEjection { pool: String, node: String, ejected: bool, reason: String, seconds: Option<f64> },
    /// The cache was purged: by `url`, `prefix`, `tag`, or `all`; and the number of responses.
    Purge { by: String, value: Option<String>, soft: bool, responses: u64 },
    /// A record of the idempotency store was released: its request may run again.
    RecordReleased { id: String, by: String },
    /// A saga was compensated, or waits for a person; and the step that it failed at.
    Saga { id: String, route: String, state: String, step: Option<String>, status: Option<u16> },
    /// A person has decided on a saga that was stuck.
    SagaDecided { id: String, decision: String, by: String },
    /// The process drains, and ends.
    Drain { timeout_seconds: f64 },
    /// A certificate is in use; its end in seconds since 1970.
    Certificate { name: String, file: String, expires: i64 },
    /// The idempotency store, or the bus of the fleet, has begun, ceased, or begun again to work.
    Store { store: String, working: bool, error: Option<String> },
}

impl Event {
    /// Returns the word of the kind, for `kind` and as the name of a server-sent event.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Event::Reload { .. } => "reload",
            Event::Upgrade { .. } => "upgrade",
            Event::NodeState { .. } => "node_state",
            Event::NodeHealth { .. } => "node_health",
            Event::NodeEjection { .. } => "node_ejection",
            Event::Purge { .. } => "purge",
            Event::RecordReleased { .. } => "record_released",
            Event::Saga { .. } => "saga",
            Event::SagaDecided { .. } => "saga_decided",
            Event::Drain { .. } => "drain",
            Event::Certificate { .. } => "certificate",
            Event::Store { .. } => "store",
        }
    }

    /// Cuts a text that may come from outside.
    fn bound(&mut self) {
        let text = match self {
            Event::Reload { error, .. }
            | Event::Upgrade { error, .. }
            | Event::NodeHealth { error, .. }
            | Event::Store { error, .. }
            | Event::Purge { value: error, .. } => error.as_mut(),
            Event::SagaDecided { by, .. } => Some(by),
            Event::NodeState { by, .. } => by.as_mut(),
            _ => None,
        };
        if let Some(text) = text.filter(|text| text.len() > MAX_TEXT) {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text.push('\u{2026}');
        }
    }
}

/// An event with its number and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RecordedEvent {
    /// Counts from 1 in each process.
    pub(crate) sequence: u64,
    /// In RFC 3339, to the millisecond.
    pub(crate) time: String,
    #[serde(flatten)]
    pub(crate) event: Event,
}

/// The last events of the process.
pub(crate) struct Events {
    /// Distinguishes the sequence of this process from that of another: the time of its start in milliseconds.
    pub(crate) epoch: u64,
    ring: Mutex<VecDeque<Arc<RecordedEvent>>>,
    reloads: Mutex<VecDeque<Arc<RecordedEvent>>>,
    /// The number of the last event.
    last: watch::Sender<u64>,
}

/// The events after a number.
pub(crate) struct NewEvents {
    /// The number of events that are gone already.
    pub(crate) missed: u64,
    pub(crate) events: Vec<Arc<RecordedEvent>>,
}

impl Events {
    pub(crate) fn new() -> Arc<Events> {
        let epoch = u64::try_from(clock::since_1970().as_millis()).unwrap_or(u64::MAX);
        Arc::new(Events { epoch, ring: Mutex::default(), reloads: Mutex::default(), last: watch::Sender::new(0) })
    }

    /// Adds an event. Never waits for a reader.
    pub(crate) fn record(&self, mut event: Event) {
        event.bound();
        let format =
            time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let time = time::OffsetDateTime::from(clock::wall()).format(&format).unwrap_or_default();
        let mut ring = self.ring.lock();
        let sequence = *self.last.borrow() + 1;
        if ring.len() >= CAPACITY {
            ring.pop_front();
        }
        let recorded = Arc::new(RecordedEvent { sequence, time, event });
        if matches!(recorded.event, Event::Reload { .. }) {
            let mut reloads = self.reloads.lock();
            reloads.truncate(RELOADS - 1);
            reloads.push_front(Arc::clone(&recorded));
        }
        ring.push_back(recorded);
        // Under the lock, so that numbers are published in their order.
        self.last.send_replace(sequence);
    }

    /// Returns the events after a number, at most `most`.
    pub(crate) fn after(&self, sequence: u64, most: usize) -> NewEvents {
        let ring = self.ring.lock();
        let first = ring.front().map_or(sequence + 1, |event| event.sequence);
        let skipped = usize::try_from((sequence + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        NewEvents {
            missed: first.saturating_sub(sequence + 1),
            events: ring.iter().skip(skipped).take(most).cloned().collect(),
        }
    }

    /// Returns the last reloads, the newest first.
    pub(crate) fn reloads(&self) -> Vec<RecordedEvent> {
        self.reloads.lock().iter().map(|event| RecordedEvent::clone(event)).collect()
    }

    /// Returns a receiver of the number of the last event.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(events: &Events, count: usize) {
        (0..count).for_each(|_| events.record(Event::Drain { timeout_seconds: 1.0 }));
    }

    #[test]
    fn the_ring_is_bounded_and_tells_what_is_gone() {
        let events = Events::new();
        assert_eq!((events.after(0, 10).missed, events.after(0, 10).events.len()), (0, 0));
        drain(&events, CAPACITY + 5);
        let all = events.after(0, usize::MAX);
        assert_eq!((all.missed, all.events.len(), all.events[0].sequence), (5, CAPACITY, 6));
        let some = events.after(7, 3);
        let numbers: Vec<u64> = some.events.iter().map(|event| event.sequence).collect();
        assert_eq!((some.missed, numbers), (0, vec![8, 9, 10]));
        assert!(events.after(CAPACITY as u64 + 5, 3).events.is_empty());
    }

    #[test]
    fn the_last_reloads_outlive_other_events() {
        let events = Events::new();
        for number in 0..RELOADS + 2 {
            let error = Some(number.to_string());
            let (file, line, column, needs_restart) = (None, None, None, Vec::new());
            events.record(Event::Reload { success: false, error, file, line, column, needs_restart });
        }
        drain(&events, CAPACITY);
        let reloads = events.reloads();
        assert_eq!((reloads.len(), reloads[0].sequence), (RELOADS, RELOADS as u64 + 2));
        assert!(events.after(0, usize::MAX).events.iter().all(|event| event.event.kind() == "drain"));
    }

    #[test]
    fn an_event_is_flat_json_and_its_text_is_bounded() {
        let events = Events::new();
        events.record(Event::NodeState { pool: "app".into(), node: "n0".into(), state: NodeState::Drain, by: None });
        events.record(Event::Purge {
            by: "tag".into(),
            value: Some("\u{e9}".repeat(MAX_TEXT)),
            soft: false,
            responses: 0,
        });
        let all = events.after(0, 2).events;
        let json = serde_json::to_value(&*all[0]).unwrap();
        assert_eq!(
            (&json["sequence"], &json["kind"], &json["state"]),
            (&1.into(), &"node_state".into(), &"drain".into())
        );
        assert_eq!(serde_json::from_value::<RecordedEvent>(json).unwrap(), *all[0]);
        assert!(serde_json::to_string(&*all[1]).unwrap().len() < 2 * MAX_TEXT);
        for event in all {
            assert_eq!(serde_json::to_value(&event.event).unwrap()["kind"], event.event.kind());
        }
    }
}
