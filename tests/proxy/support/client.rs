use super::PATIENCE;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A client's connection, on which every byte is chosen by the test.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, read as its own framing says.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
    /// The body ended before its framing said so.
    pub truncated: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.text().chars().take(500).collect();
        write!(f, "{}\n\n{body}\n[{} bytes, truncated: {}]", self.head, self.body.len(), self.truncated)
    }
}

impl Answer {
    /// The values of a field, joined by `|`.
    pub fn field(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect();
        (!values.is_empty()).then(|| values.join("|"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The problem's name, from its type.
    pub fn problem(&self) -> String {
        assert_eq!(self.field("content-type").as_deref(), Some("application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status);
        json["type"].as_str().unwrap().trim_start_matches("urn:ringway:problem:").to_owned()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends bytes and reads one answer.
    pub fn request(&mut self, bytes: impl AsRef<[u8]>) -> Answer {
        let is_head = bytes.as_ref().starts_with(b"HEAD ");
        self.send(bytes);
        if is_head { self.answer_to_head() } else { self.answer() }
    }

    /// Reads one final answer.
    pub fn answer(&mut self) -> Answer {
        self.read_answer(false)
    }

    pub fn answer_to_head(&mut self) -> Answer {
        self.read_answer(true)
    }

    fn read_answer(&mut self, no_body: bool) -> Answer {
        let head = self.head();
        let status =
            head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {head:?}"));
        let mut answer = Answer { status, head, body: Vec::new(), trailers: String::new(), truncated: false };
        if no_body || status < 200 || status == 204 || status == 304 {
            return answer;
        }
        if answer.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            self.read_chunks(&mut answer);
        } else if let Some(length) = answer.field("content-length") {
            let length = length.parse().unwrap();
            answer.truncated = !self.fill(length);
            let length = length.min(self.buffer.len());
            answer.body = self.buffer.drain(..length).collect();
        } else {
            while self.read_more() {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        answer
    }

    fn read_chunks(&mut self, answer: &mut Answer) {
        loop {
            let Some(line) = self.line() else {
                answer.truncated = true;
                return;
            };
            let size = usize::from_str_radix(line.split(';').next().unwrap(), 16)
                .unwrap_or_else(|_| panic!("chunk size {line:?}"));
            if size == 0 {
                while let Some(line) = self.line().filter(|line| !line.is_empty()) {
                    answer.trailers += &format!("{line}\n");
                }
                return;
            }
            if !self.fill(size + 2) {
                answer.truncated = true;
                answer.body.append(&mut self.buffer);
                return;
            }
            answer.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
        }
    }

    /// Reads a head up to the empty line, which is not given.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).take(end).collect();
                return String::from_utf8_lossy(&head).into_owned();
            }
            assert!(self.read_more(), "the connection ended in a head: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Reads exactly that many bytes.
    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        assert!(self.fill(length), "the connection ended after {} of {length} bytes", self.buffer.len());
        self.buffer.drain(..length).collect()
    }

    /// How many bytes come, of so many.
    pub fn exactly_or_less(&mut self, length: usize) -> usize {
        self.fill(length);
        self.buffer.len().min(length)
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    fn fill(&mut self, length: usize) -> bool {
        while self.buffer.len() < length {
            if !self.read_more() {
                return false;
            }
        }
        true
    }

    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.buffer.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.read_more(),
            Err(error) => panic!("nothing more came: {error}; so far {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// Whether the proxy closes the connection, sending nothing more.
    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.read_more()
    }

    /// Whether the connection still takes requests.
    pub fn is_open(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let quiet = matches!(self.stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        quiet
    }

    /// Whether the other side has closed; waits for it or for bytes.
    pub fn has_ended(&mut self) -> bool {
        self.buffer.is_empty() && !self.read_more()
    }

    /// A chunked body, its chunks joined.
    pub fn chunked_body(&mut self) -> Vec<u8> {
        let mut answer =
            Answer { status: 0, head: String::new(), body: Vec::new(), trailers: String::new(), truncated: false };
        self.read_chunks(&mut answer);
        answer.body.extend(answer.trailers.into_bytes());
        answer.body
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
