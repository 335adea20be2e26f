//! The origin of histories: a register for each resource, whose operations take effect one after the other. It answers
//! late at times, and does not always answer what it has done.

use super::checker::INITIAL;
use crate::support::{Origin, Random};
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Registers by the first two segments of paths: `/history/key/a` reads and writes that of `/history/key`. A method that
/// is not safe writes the number in its body.
pub struct Registers {
    origin: Origin,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    values: HashMap<String, u64>,
    /// The values that were written. A request that arrives again writes nothing.
    written: HashSet<u64>,
    /// The longest time between the arrival of a request and its effect.
    slowest: Duration,
}

impl State {
    /// Writes a value, unless it was written before. Returns whether it was not.
    fn write(&mut self, register: String, value: u64, arrived: Instant) -> bool {
        self.slowest = self.slowest.max(arrived.elapsed());
        let is_new = self.written.insert(value);
        if is_new {
            self.values.insert(register, value);
        }
        is_new
    }
}

struct Request {
    method: String,
    path: String,
    /// The value of `If-None-Match`.
    known: Option<String>,
    body: Vec<u8>,
}

impl Registers {
    pub fn start() -> Registers {
        let state: Arc<Mutex<State>> = Arc::default();
        let own = Arc::clone(&state);
        let origin = Origin::by_connection(move |peer| {
            let mut random = Random::new(getrandom::u64().unwrap());
            while let Some(request) = Request::read(&mut peer.client.stream) {
                if answer(&own, &request, &mut peer.client.stream, &mut random).is_none() {
                    return;
                }
            }
        });
        Registers { origin, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.origin.address
    }

    pub fn has_written(&self, value: u64) -> bool {
        self.state.lock().unwrap().written.contains(&value)
    }

    /// Returns the longest time that a request has waited for its effect since it was asked last.
    pub fn slowest(&self) -> Duration {
        std::mem::take(&mut self.state.lock().unwrap().slowest)
    }
}

/// Returns the body of a register with this value: its length tells it, too.
pub fn representation(value: u64) -> String {
    let length = usize::try_from(value * 37 % 3000).unwrap();
    format!("{value}:{}", "x".repeat(length))
}

/// Carries a request out, and answers; `None` where the connection ends.
fn answer(state: &Arc<Mutex<State>>, request: &Request, stream: &mut TcpStream, random: &mut Random) -> Option<()> {
    let arrived = Instant::now();
    let register = request.path.split('/').take(3).collect::<Vec<_>>().join("/");
    let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
    let written = if is_read { None } else { Some(String::from_utf8_lossy(&request.body).parse().ok()?) };
    if let (Some(value), 0) = (written, random.below(25)) {
        // The connection ends, and the work is done later.
        let (state, late) = (Arc::clone(state), random.millis(20, 250));
        std::thread::spawn(move || {
            sleep(late);
            state.lock().unwrap().write(register, value, arrived);
        });
        return None;
    }
    linger(is_read, random);
    let (value, is_new) = {
        let mut state = state.lock().unwrap();
        match written {
            None => (state.values.get(&register).copied().unwrap_or(INITIAL), false),
            Some(value) => (value, state.write(register, value, arrived)),
        }
    };
    linger(is_read, random);
    let tag = format!("\"{value}\"");
    let about = format!("cache-control: public, max-age=600\r\netag: {tag}\r\n");
    match (is_read, random.below(40)) {
        // It has done the work, and does not say so.
        (false, 0) => return None,
        (_, 1) => return write(stream, "HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"),
        (true, _) if request.known.as_ref() == Some(&tag) => {
            return write(stream, &format!("HTTP/1.1 304 X\r\n{about}\r\n"));
        }
        // The answer to a POST may be what GETs get from then on (RFC 9110 9.3.3).
        (false, 2..20) if is_new && request.method == "POST" => {
            return reply(stream, &format!("{about}content-location: {}\r\n", request.path), value, random);
        }
        (false, _) => return write(stream, "HTTP/1.1 204 X\r\n\r\n"),
        (true, _) => {}
    }
    if request.method == "HEAD" {
        let length = representation(value).len();
        return write(stream, &format!("HTTP/1.1 200 OK\r\n{about}content-length: {length}\r\n\r\n"));
    }
    reply(stream, &about, value, random)
}

/// Answers with the representation of a value, at times in pieces.
fn reply(stream: &mut TcpStream, fields: &str, value: u64, random: &mut Random) -> Option<()> {
    let body = representation(value);
    let head = format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n", body.len());
    if random.below(5) > 0 {
        return write(stream, &(head + &body));
    }
    let (begin, end) = body.split_at(usize::try_from(random.below(body.len() as u64)).unwrap());
    write(stream, &(head + begin))?;
    sleep(random.millis(1, 60));
    write(stream, end)
}

/// Waits for a time, mostly a short one; before and after the work of a write a longer one more often.
fn linger(is_read: bool, random: &mut Random) {
    match random.below(12) {
        0 => sleep(random.millis(5, 60)),
        1..4 if !is_read => sleep(random.millis(20, 100)),
        4..8 => sleep(random.millis(0, 4)),
        _ => {}
    }
}

fn write(stream: &mut TcpStream, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).ok()
}

impl Request {
    /// Reads a request; `None` where the connection ends before it is whole.
    fn read(stream: &mut TcpStream) -> Option<Request> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.extend(byte);
        }
        let head = String::from_utf8(head).ok()?;
        let mut words = head.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let mut body = vec![0; field("content-length").map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).ok()?;
        Some(Request { method, path, known: field("if-none-match"), body })
    }
}
