//! `GET /api/events`: the events of the proxy as server-sent events (WHATWG HTML 9.2).

use super::body::{self, Body};
use super::connections::Reading;
use crate::control::{Events, NewEvents, RecordedEvent};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The interval of comments that keep an idle stream alive.
const HEARTBEAT: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(15) };
/// Events that are written at once.
const BATCH: usize = 16;
/// The time after which a client that has lost its connection tries again, in milliseconds.
const RETRY: u32 = 2000;

/// Returns the response: the events that are kept, after the one that `Last-Event-ID` names, then those that come. It
/// ends when the listener pauses.
pub(super) fn respond(
    events: Arc<Events>,
    fields: &HeaderMap,
    reading: Reading,
    paused: watch::Receiver<bool>,
) -> Response<Body> {
    let last = fields.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let begin = last.map_or(0, |last| position(events.epoch, last));
    let (sender, body) = body::channel(reading);
    tokio::spawn(write(events, begin, sender, paused));
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Returns the number of the last event that a client has received; 0 where its `Last-Event-ID` is of another process.
fn position(epoch: u64, id: &str) -> u64 {
    let sequence = id.split_once('-').filter(|(of, _)| of.parse() == Ok(epoch)).map(|(_, sequence)| sequence);
    sequence.and_then(|sequence| sequence.parse().ok()).unwrap_or(0)
}

/// Writes events until the client disconnects or the listener pauses. A slow client delays only this task: the ring of
/// events does not wait for it.
async fn write(events: Arc<Events>, begin: u64, sender: mpsc::Sender<Bytes>, mut paused: watch::Receiver<bool>) {
    let mut changed = events.subscribe();
    // The head goes out with the first bytes of the body.
    if sender.send(Bytes::from(format!("retry: {RETRY}\n\n"))).await.is_err() {
        return;
    }
    let mut last = begin;
    loop {
        changed.mark_unchanged();
        let NewEvents { missed, events: new } = events.after(last, BATCH);
        let mut text = String::new();
        if missed > 0 {
            // Without an id: `Last-Event-ID` names events alone.
            let _ = write!(text, "event: missed\ndata: {{\"kind\":\"missed\",\"events\":{missed}}}\n\n");
        }
        for event in &new {
            add(&mut text, events.epoch, event);
        }
        if let Some(newest) = new.last() {
            last = newest.sequence;
            tokio::select! {
                sent = sender.send(Bytes::from(text)) => if sent.is_err() { return },
                _ = paused.wait_for(|paused| *paused) => return,
            }
            continue;
        }
        tokio::select! {
            // The sender of the number is a part of `events`.
            _ = changed.changed() => {}
            () = tokio::time::sleep(HEARTBEAT) => {
                // A client that has not read the last piece needs no comment.
                if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(Bytes::from_static(b": alive\n\n")) {
                    return;
                }
            }
            () = sender.closed() => return,
            _ = paused.wait_for(|paused| *paused) => return,
        }
    }
}

fn add(text: &mut String, epoch: u64, event: &RecordedEvent) {
    let data = serde_json::to_string(event).unwrap_or_default();
    let (sequence, kind) = (event.sequence, event.event.kind());
    let _ = write!(text, "id: {epoch}-{sequence}\nevent: {kind}\ndata: {data}\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::connections::AdminConnections;
    use crate::control::{Event, RING};
    use http_body_util::BodyExt;

    #[test]
    fn only_ids_of_this_process_count() {
        assert_eq!(position(7, "7-12"), 12);
        for other in ["8-12", "12", "7-", "", "7-x"] {
            assert_eq!(position(7, other), 0, "{other}");
        }
    }

    /// The ring does not wait for a slow reader, which gets the number of the events that it has lost.
    #[tokio::test]
    async fn a_slow_reader_loses_events_and_is_told_how_many() {
        let (events, place) = (Events::new(), Arc::new(AdminConnections::take(&Arc::default())));
        let (_pause, paused) = watch::channel(false);
        let reading = place.read().unwrap();
        let mut body = respond(Arc::clone(&events), &HeaderMap::new(), reading, paused).into_body();
        let record = || events.record(Event::Drain { timeout_seconds: 1.0 });
        record();
        let mut text = String::new();
        while !text.contains("-1\n") {
            text += std::str::from_utf8(&body.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap();
        }
        // One piece may wait in the channel, and another one at its door.
        for _ in 0..2 {
            record();
            tokio::task::yield_now().await;
        }
        (0..RING + 10).for_each(|_| record());
        while !text.contains(&format!("-{}\n", RING + 13)) {
            text += std::str::from_utf8(&body.frame().await.unwrap().unwrap().into_data().unwrap()).unwrap();
        }
        let missed: u64 = text.split("\"events\":").nth(1).unwrap().split('}').next().unwrap().parse().unwrap();
        let ids = text.lines().filter(|line| line.starts_with("id: ")).count() as u64;
        assert_eq!(ids + missed, RING as u64 + 13, "{missed} missed");
        assert!(missed > 0 && text.matches("event: missed").count() == 1);
    }

    #[tokio::test]
    async fn a_quiet_stream_has_a_heartbeat_and_ends_with_the_listener() {
        let (events, place) = (Events::new(), Arc::new(AdminConnections::take(&Arc::default())));
        let (pause, paused) = watch::channel(false);
        let mut body = respond(events, &HeaderMap::new(), place.read().unwrap(), paused).into_body();
        let began = tokio::time::Instant::now();
        for expected in ["retry: 2000\n\n", ": alive\n\n", ": alive\n\n"] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), expected);
        }
        assert!(began.elapsed() >= HEARTBEAT * 2);
        pause.send_replace(true);
        assert!(body.frame().await.is_none());
    }
}
