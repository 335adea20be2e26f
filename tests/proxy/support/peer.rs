use super::Client;
use super::origin::Log;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// A connection as the origin sees it.
pub struct Peer {
    pub client: Client,
    log: Arc<Log>,
    /// The place of the last request in the log.
    current: Option<usize>,
}

impl Peer {
    pub(super) fn over(stream: TcpStream, log: Arc<Log>) -> Peer {
        Peer { client: Client::over(stream), log, current: None }
    }

    /// Reads the head of the next request; `None` where the proxy has closed.
    pub fn request(&mut self) -> Option<String> {
        if self.client.has_ended() {
            return None;
        }
        let head = self.client.head();
        self.current = self.log.add(&head);
        Some(head)
    }

    /// Has a line stand among the requests that have come, for origins that read them in another way.
    pub fn note(&self, line: &str) {
        self.log.add(line);
    }

    /// Reads the body that a head announces, and gives it with its trailers as they came.
    pub fn body_of(&mut self, head: &str) -> Vec<u8> {
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        match field("transfer-encoding") {
            Some(_) => self.client.chunked_body(),
            None => self.client.exactly(field("content-length").map_or(0, |length| length.parse().unwrap())),
        }
    }

    /// Has the body of the last request stand beside its head.
    pub(super) fn keep(&self, body: &[u8]) {
        if let Some(place) = self.current {
            self.log.fill(place, body);
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The proxy may have gone away, which is for the test to judge.
        let _ = self.client.stream.write_all(bytes.as_ref());
    }

    /// Answers 200 with this body.
    pub fn answer(&mut self, body: &str) {
        self.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    }

    /// Sends a whole answer; fields are separated by ` | `.
    pub fn reply(&mut self, status: u16, fields: &str, body: &str) {
        let lines: String =
            fields.split(" | ").filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
        let length = match status {
            204 | 304 => String::new(),
            _ => format!("content-length: {}\r\n", body.len()),
        };
        self.send(format!("HTTP/1.1 {status} X\r\n{lines}{length}\r\n{body}"));
    }

    /// Closes the connection, whatever has been said on it.
    pub fn hang_up(&mut self) {
        // It may be closed from the other side already.
        let _ = self.client.stream.shutdown(Shutdown::Both);
    }

    /// Has the connection close with a reset.
    pub fn reset(&mut self) {
        let socket = socket2::SockRef::from(&self.client.stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}
