use super::{Client, PATIENCE, Proxy};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Instant;

/// A reader of a stream of server-sent events of the admin listener.
pub struct EventReader {
    lines: BufReader<TcpStream>,
    /// The fields of the last event.
    pub id: Option<String>,
    pub name: String,
}

impl EventReader {
    pub fn open(proxy: &Proxy, path: &str, last: Option<&str>) -> EventReader {
        let mut client = Client::connect(proxy.admin);
        let last = last.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{last}\r\n", proxy.admin));
        let stream = client.stream.try_clone().unwrap();
        let mut reader = EventReader { lines: BufReader::new(stream), id: None, name: String::new() };
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.lines.read_line(&mut head).unwrap() > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/event-stream\r\n"), "{head}");
        reader
    }

    /// Reads up to the first comment.
    pub fn comment(&mut self) {
        let mut line = String::new();
        while !line.starts_with(':') {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the stream ended");
        }
    }

    /// Returns the data of the next event; `None` at the end of the stream.
    pub fn next(&mut self) -> Option<Value> {
        let (mut data, began) = (None, Instant::now());
        self.id = None;
        loop {
            assert!(began.elapsed() < PATIENCE, "no event came but signs of life");
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end_matches(['\r', '\n']).split_once(": ") {
                Some(("id", id)) => self.id = Some(id.to_owned()),
                Some(("event", name)) => self.name = name.to_owned(),
                Some(("data", json)) => data = Some(serde_json::from_str(json).unwrap()),
                // Sizes of chunks, comments and `retry` stand between events.
                _ if data.is_some() => return data,
                _ => {}
            }
        }
    }

    /// Returns the next event of a kind.
    pub fn find(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended without `{kind}`"));
            if self.name == kind {
                return event;
            }
        }
    }
}
