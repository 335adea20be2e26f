//! The access log. A worker appends lines to its own buffer and hands full buffers to one writing thread; if that
//! thread falls behind, lines are dropped and counted, and no request waits.

use super::lines::{Destination, Lines};
use crate::clock;
use http::HeaderValue;
use prometheus::IntCounter;
use serde::{Serialize, Serializer};
use std::cell::RefCell;
use std::io::{self, Write};
use std::net::IpAddr;
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

/// A finished request: the content of one line. Times are in seconds.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Entry<'a> {
    pub(crate) listener: &'a str,
    pub(crate) client: IpAddr,
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
    pub(crate) request_id: Option<Text<'a>>,
    pub(crate) user_agent: Option<Text<'a>>,
    pub(crate) error: Option<&'a str>,
    /// The result of the cache.
    pub(crate) cache: Option<&'a str>,
    /// The result for the `Idempotency-Key`.
    pub(crate) idempotency: Option<&'a str>,
    /// What the route's guarantee said of the stored response.
    pub(crate) consistency: Option<&'a str>,
    pub(crate) ended_by: &'a str,
    /// The place of the hash key on the ring of its pool, where the request has one and went to a node.
    #[serde(skip)]
    pub(crate) key: Option<u64>,
}

/// A field's value, which is read as text only where it is written; `null` where it is none.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    value: &'a HeaderValue,
    /// The bytes after which it is cut.
    most: usize,
}

impl<'a> Text<'a> {
    pub(crate) fn of(value: &'a HeaderValue) -> Text<'a> {
        Text { value, most: usize::MAX }
    }

    /// Returns the text, cut after so many bytes.
    pub(super) fn cut(self, most: usize) -> Text<'a> {
        Text { most, ..self }
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value.to_str().ok().map(|text| &text[..text.len().min(self.most)]).serialize(to)
    }
}

/// The lines that are written, and their content.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selection {
    /// The fields of a JSON line by their names, in this order; all of them where it is empty.
    pub(crate) fields: Vec<&'static str>,
    /// The share of requests without a fault that is left out, from 0 to 1.
    pub(crate) left_out: f64,
    /// The duration in seconds from which a request is never left out.
    pub(crate) slow: f64,
}

impl Selection {
    /// Returns whether a request gets a line.
    fn wants(&self, entry: &Entry<'_>) -> bool {
        self.left_out <= 0.0
            || entry.status >= 500
            || entry.error.is_some()
            || entry.ended_by != "completed"
            || entry.duration >= self.slow
            || fastrand::f64() >= self.left_out
    }
}

/// The writing thread's end of the log, shared by all workers.
pub(crate) struct Sink {
    format: Format,
    selection: Selection,
    lines: Lines,
}

impl Sink {
    /// Opens the destination and starts the thread. `dropped` counts the lines that are lost.
    pub(crate) fn open(
        format: Format,
        selection: Selection,
        destination: Destination,
        dropped: IntCounter,
    ) -> io::Result<Sink> {
        let lost = move |lines| dropped.inc_by(lines);
        let failing = |error: &io::Error| tracing::error!(%error, "cannot write the access log; its lines are lost");
        Ok(Sink { format, selection, lines: Lines::open("access-log", destination, QUEUE, lost, failing)? })
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
        let Selection { fields, .. } = &self.sink.selection;
        if !self.sink.selection.wants(entry) {
            return;
        }
        let mut buffer = self.buffer.borrow_mut();
        match self.sink.format {
            Format::Json if !fields.is_empty() => write_fields(&mut buffer, entry, fields),
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
    let line = Line { time: timestamp(), entry };
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, &line);
    out.push(b'\n');
}

/// Writes a JSON line with some fields.
fn write_fields(out: &mut Vec<u8>, entry: &Entry<'_>, fields: &[&'static str]) {
    for (number, name) in fields.iter().enumerate() {
        out.push(if number == 0 { b'{' } else { b',' });
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut *out, name);
        out.push(b':');
        write_field(out, entry, name);
    }
    out.extend_from_slice(b"}\n");
}

fn write_field(out: &mut Vec<u8>, entry: &Entry<'_>, name: &str) {
    // Writing to memory cannot fail.
    fn write(out: &mut Vec<u8>, value: impl Serialize) {
        let _ = serde_json::to_writer(out, &value);
    }
    match name {
        "time" => write(out, timestamp()),
        "listener" => write(out, entry.listener),
        "client" => write(out, entry.client),
        "method" => write(out, entry.method),
        "host" => write(out, entry.host),
        "uri" => write(out, entry.uri),
        "protocol" => write(out, entry.protocol),
        "status" => write(out, entry.status),
        "request_bytes" => write(out, entry.request_bytes),
        "response_bytes" => write(out, entry.response_bytes),
        "duration" => write(out, entry.duration),
        "connect" => write(out, entry.connect),
        "first_byte" => write(out, entry.first_byte),
        "route" => write(out, entry.route),
        "pool" => write(out, entry.pool),
        "node" => write(out, entry.node),
        "attempts" => write(out, entry.attempts),
        "request_id" => write(out, entry.request_id),
        "user_agent" => write(out, entry.user_agent),
        "error" => write(out, entry.error),
        "cache" => write(out, entry.cache),
        "idempotency" => write(out, entry.idempotency),
        "consistency" => write(out, entry.consistency),
        _ => write(out, entry.ended_by),
    }
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

/// Returns the time in RFC 3339, to the millisecond.
pub(super) fn timestamp() -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    now().format(&format).unwrap_or_default()
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(clock::wall())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    static REQUEST_ID: HeaderValue = HeaderValue::from_static("r");

    pub(in crate::telemetry) fn entry() -> Entry<'static> {
        Entry {
            listener: "http",
            client: [192, 0, 2, 1].into(),
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
            request_id: Some(Text::of(&REQUEST_ID)),
            user_agent: None,
            error: None,
            cache: None,
            idempotency: None,
            consistency: None,
            ended_by: "completed",
            key: Some(0xab),
        }
    }

    #[test]
    fn a_hostile_uri_stays_inside_its_quotes() {
        let mut line = Vec::new();
        write_json(&mut line, &entry());
        let parsed: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(parsed["uri"], "/a\"b");
        assert_eq!((&parsed["first_byte"], &parsed["request_id"]), (&0.001.into(), &"r".into()));

        let mut line = Vec::new();
        write_common(&mut line, &entry());
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with("192.0.2.1 - - [") && line.ends_with("\"GET /a\\x22b HTTP/1.1\" 200 5\n"), "{line}");
    }

    /// All fields by name make the line that is written without a choice.
    #[test]
    fn the_fields_by_name_are_those_of_a_whole_line() {
        let mut whole = Vec::new();
        write_json(&mut whole, &entry());
        let parsed: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&whole).unwrap();
        let mut line = Vec::new();
        let names: Vec<&'static str> = parsed.keys().map(|name| &*name.clone().leak()).collect();
        write_fields(&mut line, &entry(), &names);
        let chosen: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&line).unwrap();
        assert_eq!((chosen.len(), names.len()), (24, 24));
        for (name, value) in parsed.iter().filter(|(name, _)| *name != "time") {
            assert_eq!(chosen[name], *value, "{name}");
        }
        let mut line = Vec::new();
        write_fields(&mut line, &entry(), &["status", "uri", "connect"]);
        assert_eq!(String::from_utf8(line).unwrap(), "{\"status\":200,\"uri\":\"/a\\\"b\",\"connect\":null}\n");
    }

    #[test]
    fn a_sample_keeps_errors_and_slow_requests() {
        let none = Selection { fields: Vec::new(), left_out: 1.0, slow: 0.5 };
        assert!(!none.wants(&entry()) && Selection::default().wants(&entry()));
        let kept: [fn(&mut Entry<'static>); 4] = [
            |it| it.status = 503,
            |it| it.error = Some("no-route"),
            |it| it.ended_by = "client",
            |it| it.duration = 0.5,
        ];
        for (number, change) in kept.into_iter().enumerate() {
            let mut given = entry();
            change(&mut given);
            assert!(none.wants(&given), "{number}");
        }
        let half = Selection { left_out: 0.5, ..none };
        let written = (0..2000).filter(|_| half.wants(&entry())).count();
        assert!((800..1200).contains(&written), "{written}");
    }
}
