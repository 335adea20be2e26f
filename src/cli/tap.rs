//! `ringway tap`: the requests of a running proxy, as they end.

use super::Outcome;
use super::api::Target;
use super::http_client::StreamEnd;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::io::{self, Write, stdout};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// Requests of this route
    #[arg(long)]
    route: Option<String>,
    /// Requests with this status, or a class of them: `404`, `5xx`, `404,5xx`
    #[arg(long)]
    status: Option<String>,
    /// Requests that went to this pool
    #[arg(long)]
    pool: Option<String>,
    /// Requests that went to this node
    #[arg(long)]
    node: Option<String>,
    /// Requests with this method
    #[arg(long)]
    method: Option<String>,
    /// Requests to this host
    #[arg(long)]
    host: Option<String>,
    /// Requests whose path begins so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Requests from this address or network
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// Requests that took at least so long: `250ms`
    #[arg(long, value_name = "DURATION")]
    min: Option<String>,
    /// Requests with this result of the cache: `hit`, `stale`, `revalidated`, `miss`, `collapsed`, `pass`, `bypass`
    #[arg(long, value_name = "RESULT")]
    cache: Option<String>,
    /// Requests with this result for their `Idempotency-Key`: `first`, `replayed`, `unknown` and the others
    #[arg(long, value_name = "RESULT")]
    idempotency: Option<String>,
    /// Requests with this hash key that went to a node
    #[arg(long)]
    key: Option<String>,
    /// Only this share of them, from 0 to 1
    #[arg(long, value_name = "SHARE")]
    sample: Option<String>,
    /// At most so many per second [default: 200]
    #[arg(long)]
    rate: Option<String>,
    /// End after so many
    #[arg(long)]
    count: Option<u64>,
    /// Print the records as JSON, one a line
    #[arg(long)]
    json: bool,
}

/// The fields of a record that a line shows.
#[derive(Deserialize)]
struct Record {
    time: String,
    client: String,
    method: String,
    host: String,
    uri: String,
    status: u16,
    response_bytes: u64,
    duration: f64,
    connect: Option<f64>,
    first_byte: Option<f64>,
    route: String,
    pool: Option<String>,
    node: Option<String>,
    attempts: u32,
    error: Option<String>,
    cache: Option<String>,
    idempotency: Option<String>,
    consistency: Option<String>,
    ended_by: String,
    key_hash: Option<String>,
}

#[derive(Deserialize)]
struct LeftOut {
    requests: u64,
}

pub(super) fn run(options: &Options) -> Outcome {
    let mut left = options.count.unwrap_or(u64::MAX);
    let mut name = String::new();
    let mut out = stdout().lock();
    let mut print = |line: &str| -> io::Result<bool> {
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        }
        let Some(data) = line.strip_prefix("data: ") else { return Ok(left > 0) };
        match name.as_str() {
            "request" if left > 0 => {
                left -= 1;
                match options.json {
                    true => writeln!(out, "{data}")?,
                    false => writeln!(out, "{}", serde_json::from_str::<Record>(data)?.line())?,
                }
                out.flush()?;
            }
            // Not among the records: a program reads those.
            "left_out" => eprintln!("({} more were left out)", serde_json::from_str::<LeftOut>(data)?.requests),
            _ => {}
        }
        Ok(left > 0)
    };
    match options.target.stream(&format!("/api/tap{}", query(options)), &mut print)? {
        StreamEnd::Reader => Ok(ExitCode::SUCCESS),
        StreamEnd::Peer => Err("the proxy has ended the stream: it stops, or another process takes over".into()),
    }
}

fn query(options: &Options) -> String {
    let pairs = [
        ("route", &options.route),
        ("status", &options.status),
        ("pool", &options.pool),
        ("node", &options.node),
        ("method", &options.method),
        ("host", &options.host),
        ("path", &options.path),
        ("client", &options.client),
        ("min", &options.min),
        ("cache", &options.cache),
        ("idempotency", &options.idempotency),
        ("key", &options.key),
        ("sample", &options.sample),
        ("rate", &options.rate),
    ];
    let given = pairs.into_iter().filter_map(|(name, value)| {
        Some(format!("{name}={}", utf8_percent_encode(value.as_deref()?, NON_ALPHANUMERIC)))
    });
    let given: Vec<String> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

impl Record {
    fn line(&self) -> String {
        let time = self.time.get(11..23).unwrap_or(&self.time);
        let node = match (&self.pool, &self.node) {
            (Some(pool), Some(node)) => format!("{pool}/{node}"),
            _ => "-".to_owned(),
        };
        let mut notes = Vec::new();
        notes.extend(self.cache.as_ref().map(|result| format!("cache {result}")));
        notes.extend(self.idempotency.as_ref().map(|result| format!("key {result}")));
        notes.extend(self.consistency.as_ref().map(|result| format!("consistency {result}")));
        notes.extend(self.error.clone());
        if self.attempts > 1 {
            notes.push(format!("{} attempts", self.attempts));
        }
        if self.ended_by != "completed" {
            notes.push(format!("ended by {}", self.ended_by));
        }
        notes.extend(self.key_hash.as_ref().map(|hash| format!("hash {hash}")));
        let timer = |name: &str, time: Option<f64>| time.map(|time| format!(", {name} {}", milliseconds(time)));
        let timers = [timer("connect", self.connect), timer("first byte", self.first_byte)].into_iter().flatten();
        format!(
            "{time}  {}  {:>9}{}  {}  {} {}{}  {} -> {node}  {} B  {}",
            self.status,
            milliseconds(self.duration),
            timers.collect::<String>(),
            self.client,
            printable(&self.method),
            printable(&self.host),
            printable(&self.uri),
            self.route,
            self.response_bytes,
            notes.join(", ")
        )
        .trim_end()
        .to_owned()
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
}

/// Returns a text of a client without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_where_a_request_went_and_what_it_took() {
        let record: Record = serde_json::from_str(
            r#"{"time":"2026-11-27T10:11:12.131Z","listener":"http","client":"192.0.2.1","method":"GET","host":"example.com","uri":"/a\u001b[1m","protocol":"HTTP/1.1","status":502,"request_bytes":0,"response_bytes":120,"duration":0.0123,"connect":0.0002,"first_byte":null,"route":"site","pool":"app","node":"n1","attempts":2,"request_id":"r","user_agent":null,"error":"upstream","cache":"miss","idempotency":null,"ended_by":"completed","key_hash":"00000000000000ab"}"#,
        )
        .unwrap();
        assert_eq!(
            record.line(),
            "10:11:12.131  502    12.3 ms, connect 0.2 ms  192.0.2.1  GET example.com/a\u{fffd}[1m  site -> app/n1  120 B  cache miss, upstream, 2 attempts, hash 00000000000000ab"
        );
    }
}
