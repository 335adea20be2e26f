//! The access log. A worker appends lines to its own buffer and hands full buffers to one writing thread; if that
//! thread falls behind, lines are dropped and counted, and no request waits.

use super::lines::{Destination, Lines};
use crate::clock;
use prometheus::IntCounter;
use serde::Serialize;
use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use time::macros::format_description;

/// The most buffers that wait for the writing thread: with 32 KiB each, 8 MiB.
const QUEUE: usize = 256;
const BUFFER_BYTES: usize = 32 << 10;

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Common,
}

/// The content of one line. Times are in seconds.
#[derive(Serialize)]
pub(crate) struct Entry<'a> {
    pub(crate) listener: &'a str,
    pub(crate) client: &'a str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) uri: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) status: u16,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) duration: f64,
    pub(crate) connect: Option<f64>,
    pub(crate) first_byte: Option<f64>,
    pub(crate) route: &'a str,
    pub(crate) pool: Option<&'a str>,
    pub(crate) node: Option<&'a str>,
    pub(crate) attempts: u32,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) error: Option<&'a str>,
    /// The result of the cache.
    pub(crate) cache: Option<&'a str>,
    /// The result for the `Idempotency-Key`.
    pub(crate) idempotency: Option<&'a str>,
    pub(crate) ended_by: &'a str,
}

/// The writing thread's end of the log, shared by all workers.
pub(crate) struct Sink {
    format: Format,
    lines: Lines,
}

impl Sink {
    /// Opens the destination and starts the thread. `dropped` counts the lines that are lost.
    pub(crate) fn open(format: Format, destination: Destination, dropped: IntCounter) -> io::Result<Sink> {
        let lost = move |lines| dropped.inc_by(lines);
        let failing = |error: &io::Error| tracing::error!(%error, "cannot write the access log; its lines are lost");
        Ok(Sink { format, lines: Lines::open("access-log", destination, QUEUE, lost, failing)? })
    }

    /// Reopens the destination after its file was rotated.
    pub(crate) fn reopen(&self) {
        self.lines.reopen();
    }

    /// Waits until all lines are written, or until the timeout.
    pub(crate) fn flush(&self, within: Duration) -> bool {
        self.lines.flush(within)
    }
}

/// A worker's end of the log.
pub(crate) struct AccessLog {
    sink: Arc<Sink>,
    buffer: RefCell<Vec<u8>>,
}

impl AccessLog {
    pub(crate) fn new(sink: Arc<Sink>) -> AccessLog {
        AccessLog { sink, buffer: RefCell::new(Vec::with_capacity(BUFFER_BYTES)) }
    }

    pub(crate) fn sink(&self) -> &Arc<Sink> {
        &self.sink
    }

    pub(crate) fn write(&self, entry: &Entry<'_>) {
        let mut buffer = self.buffer.borrow_mut();
        match self.sink.format {
            Format::Json => write_json(&mut buffer, entry),
            Format::Common => write_common(&mut buffer, entry),
        }
        if buffer.len() >= BUFFER_BYTES - 1024 {
            self.hand_over(&mut buffer);
        }
    }

    /// Hands the buffer to the writing thread; called several times a second.
    pub(crate) fn flush(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if !buffer.is_empty() {
            self.hand_over(&mut buffer);
        }
    }

    fn hand_over(&self, buffer: &mut Vec<u8>) {
        self.sink.lines.write(std::mem::replace(buffer, Vec::with_capacity(BUFFER_BYTES)));
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let buffer = std::mem::take(self.buffer.get_mut());
        if !buffer.is_empty() {
            self.sink.lines.write(buffer);
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

fn write_json(out: &mut Vec<u8>, entry: &Entry<'_>) {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let line = Line { time: now().format(&format).unwrap_or_default(), entry };
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &line);
    out.push(b'\n');
}

/// The Common Log Format: host, identity, user, time, request line, status, bytes.
fn write_common(out: &mut Vec<u8>, entry: &Entry<'_>) {
    let format = format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
    let time = now().format(&format).unwrap_or_default();
    let _ = write!(out, "{} - - [{time}] \"{} ", entry.client, entry.method);
    for byte in entry.uri.bytes() {
        match byte {
            b'"' | b'\\' | 0..=31 | 127.. => {
                let _ = write!(out, "\\x{byte:02X}");
            }
            _ => out.push(byte),
        }
    }
    let _ = writeln!(out, " {}\" {} {}", entry.protocol, entry.status, entry.response_bytes);
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(clock::wall())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            listener: "http",
            client: "192.0.2.1",
            method: "GET",
            host: "example.com",
            uri: "/a\"b",
            protocol: "HTTP/1.1",
            status: 200,
            request_bytes: 0,
            response_bytes: 5,
            duration: 0.002,
            connect: None,
            first_byte: Some(0.001),
            route: "site",
            pool: Some("app"),
            node: Some("app-1"),
            attempts: 1,
            request_id: Some("r"),
            user_agent: None,
            error: None,
            cache: None,
            idempotency: None,
            ended_by: "completed",
        }
    }

    #[test]
    fn a_hostile_uri_stays_inside_its_quotes() {
        let mut line = Vec::new();
        write_json(&mut line, &entry());
        let parsed: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(parsed["uri"], "/a\"b");
        assert_eq!(parsed["first_byte"], 0.001);

        let mut line = Vec::new();
        write_common(&mut line, &entry());
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("192.0.2.1 - - [") && line.ends_with("\"GET /a\\x22b HTTP/1.1\" 200 5\n"), "{line}");
    }
}
