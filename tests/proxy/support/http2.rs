use super::{Client, PATIENCE, Peer};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io::Write;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// A client with one HTTP/2 connection, by prior knowledge.
pub struct Http2 {
    runtime: Runtime,
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<Result<(), hyper::Error>>,
}

/// An answer over HTTP/2.
#[derive(Debug)]
pub struct Answer2 {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer2 {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Http2 {
    pub fn connect(address: SocketAddr) -> Http2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sender, connection) = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            (sender, tokio::spawn(connection))
        });
        Http2 { runtime, sender, connection }
    }

    /// A request by its parts; fields are separated by ` | `.
    pub fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> Result<Answer2, hyper::Error> {
        let mut builder = Request::builder().method(method).uri(format!("http://example.com{path}"));
        for line in fields.split(" | ").filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap();
            builder = builder.header(name, value);
        }
        self.send(builder.body(Full::new(Bytes::from(body.to_owned()))).unwrap())
    }

    pub fn get(&self, path: &str) -> Answer2 {
        self.ask("GET", path, "", "").unwrap()
    }

    pub fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer2, hyper::Error> {
        let mut sender = self.sender.clone();
        self.runtime.block_on(async move { answer(sender.send_request(request).await?).await })
    }

    /// Many GETs at a time.
    pub fn get_all(&self, paths: &[String]) -> Vec<Answer2> {
        self.runtime.block_on(async {
            let asked: Vec<_> = paths
                .iter()
                .map(|path| {
                    let mut sender = self.sender.clone();
                    let request = Request::get(format!("http://example.com{path}")).body(Full::default()).unwrap();
                    tokio::spawn(async move { answer(sender.send_request(request).await?).await })
                })
                .collect();
            let mut answers = Vec::new();
            for answer in asked {
                answers.push(answer.await.unwrap().unwrap());
            }
            answers
        })
    }

    /// Begins a request and gives it up.
    pub fn give_up(&self, method: &str, path: &str, when: impl FnOnce()) {
        let mut sender = self.sender.clone();
        let request = Request::builder().method(method).uri(format!("http://example.com{path}"));
        let request = request.body(Full::default()).unwrap();
        let task = self.runtime.spawn(async move { sender.send_request(request).await.map(drop) });
        self.runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(20)).await });
        when();
        task.abort();
        self.runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(20)).await });
    }

    /// Waits until the other side has ended the connection.
    pub fn ends(self) -> Result<(), hyper::Error> {
        let Http2 { runtime, sender, connection } = self;
        let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, connection).await });
        drop(sender);
        ended.expect("the connection should have ended").unwrap()
    }
}

async fn answer(response: http::Response<hyper::body::Incoming>) -> Result<Answer2, hyper::Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes().to_vec();
    Ok(Answer2 { status: head.status.as_u16(), fields: head.headers, body })
}

/// A connection on which every frame is chosen by the test.
pub struct Frames {
    client: Client,
}

/// Fields as they are, without compression.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The fields of a POST's head, with more of them.
pub fn post_head(fields: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")], fields].concat()
}

/// The status at the beginning of a block of fields, where it is one of HPACK's own table (RFC 7541 A).
pub fn status_of(block: &[u8]) -> &'static str {
    let table =
        [(0x88, "200"), (0x89, "204"), (0x8a, "206"), (0x8b, "304"), (0x8c, "400"), (0x8d, "404"), (0x8e, "500")];
    table.iter().find(|(byte, _)| *byte == block[0]).map_or("another", |(_, status)| status)
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A frame that came.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

impl Frames {
    pub fn connect(address: SocketAddr) -> Frames {
        let mut frames = Frames { client: Client::connect(address) };
        frames.client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frames.send(SETTINGS, 0, 0, &[]);
        frames
    }

    /// The other side of a connection: that of a node.
    pub fn accept(peer: &Peer) -> Frames {
        let mut frames = Frames { client: Client::over(peer.client.stream.try_clone().unwrap()) };
        frames.client.exactly(24);
        frames.send(SETTINGS, 0, 0, &[]);
        frames.send(SETTINGS, 1, 0, &[]);
        frames
    }

    /// The stream of the next request.
    pub fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.next()?;
            if frame.kind == HEADERS && frame.stream > 0 {
                return Some(frame.stream);
            }
        }
    }

    pub fn reset(&mut self, stream: u32, reason: u32) {
        self.send(RST_STREAM, 0, stream, &reason.to_be_bytes());
    }

    pub fn go_away(&mut self, last: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), 0u32.to_be_bytes()].concat());
    }

    /// A whole answer: 204.
    pub fn answer(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &[0x89]);
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        // The other side may have ended the connection, which is for the test to see.
        let _ = self.client.stream.write_all(&frame(kind, flags, stream, payload));
    }

    pub fn clone_stream(&self) -> std::net::TcpStream {
        self.client.stream.try_clone().unwrap()
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.client.stream.write_all(bytes).unwrap();
    }

    /// Sends pieces one after another, as fast as it can, until the other side has ended the connection. Gives the
    /// reason that it told (RFC 9113 7), if it did.
    pub fn flood(&mut self, pieces: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> Option<u32> {
        let mut stream = self.client.stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            let deadline = Instant::now() + PATIENCE;
            (0..).map(pieces).take_while(|piece| Instant::now() < deadline && stream.write_all(piece).is_ok()).count()
        });
        let mut reason = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                reason = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        let _ = self.client.stream.shutdown(std::net::Shutdown::Both);
        writer.join().unwrap();
        reason
    }

    /// Fields as they are, without compression.
    pub fn headers(&mut self, flags: u8, stream: u32, fields: &[(&str, &str)]) {
        self.send(HEADERS, flags | END_HEADERS, stream, &block(fields));
    }

    /// The next frame; `None` where the connection has ended.
    pub fn next(&mut self) -> Option<Frame> {
        if self.client.has_ended() {
            return None;
        }
        if self.client.exactly_or_less(9) < 9 {
            return None;
        }
        let head = self.client.exactly(9);
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload: self.client.exactly(length) })
    }

    /// The next frame of a stream, or one that ends the connection.
    pub fn of_stream(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.stream == stream || frame.kind == GOAWAY {
                return Some(frame);
            }
        }
    }
}

/// A body that is fed piece by piece; it ends when its feeder is dropped.
pub fn pieces() -> (tokio::sync::mpsc::UnboundedSender<Bytes>, Pieces) {
    let (feed, pieces) = tokio::sync::mpsc::unbounded_channel();
    (feed, Pieces(pieces))
}

pub struct Pieces(tokio::sync::mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::convert::Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(http_body::Frame::data(piece))))
    }
}
