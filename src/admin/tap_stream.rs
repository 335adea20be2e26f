//! `GET /api/tap`: finished requests as server-sent events, as many as the filter, the sample and the rate allow.

use super::body::{self, Body};
use super::connections::Reading;
use crate::telemetry::tap::{TURN, TapReader};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use std::fmt::Write;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The interval of the numbers of requests that were left out.
const REPORT: Duration = if cfg!(test) { TURN } else { Duration::from_secs(1) };
/// The time without anything to write after which a comment keeps the stream alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Returns the response: an event `request` for each record, and `left_out` with a number of requests. It ends when the
/// listener pauses.
pub(super) fn respond(reader: TapReader, reading: Reading, paused: watch::Receiver<bool>) -> Response<Body> {
    let (sender, body) = body::channel(reading);
    tokio::spawn(write(reader, sender, paused));
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Writes records until the client disconnects or the listener pauses. While a slow client has not taken the last piece,
/// no records are made for it.
async fn write(mut reader: TapReader, sender: mpsc::Sender<Bytes>, mut paused: watch::Receiver<bool>) {
    // The head goes out with the first bytes of the body.
    if sender.send(Bytes::from_static(b": requests follow\n\n")).await.is_err() {
        return;
    }
    let mut turns = interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut left_out, mut reported, mut written) = (0, Instant::now(), Instant::now());
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = sender.closed() => return,
            _ = paused.wait_for(|paused| *paused) => return,
        }
        let (records, more_left_out) = reader.take();
        left_out += more_left_out;
        let mut text = String::new();
        for record in &records {
            let _ = write!(text, "event: request\ndata: {record}\n\n");
        }
        if left_out > 0 && reported.elapsed() >= REPORT {
            let _ = write!(text, "event: left_out\ndata: {{\"requests\":{left_out}}}\n\n");
            (left_out, reported) = (0, Instant::now());
        }
        if text.is_empty() && written.elapsed() >= HEARTBEAT {
            text.push_str(": alive\n\n");
        }
        if !text.is_empty() {
            tokio::select! {
                sent = sender.send(Bytes::from(text)) => if sent.is_err() { return },
                _ = paused.wait_for(|paused| *paused) => return,
            }
            written = Instant::now();
        }
        reader.renew();
    }
}
