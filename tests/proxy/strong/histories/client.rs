//! The clients of histories: each reads and writes registers through any proxy, and logs what it has seen.

use super::checker::{Action, Operation};
use super::registers::representation;
use crate::support::{Random, ask_once};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The registers of a history.
const KEYS: u64 = 6;
/// Those at which clients meet.
const MEETINGS: u64 = 3;
/// The time of a meeting with the rest after it, and of the meeting alone.
const ROUND: Duration = Duration::from_millis(500);
const BUSY: Duration = Duration::from_millis(200);

/// A client, and what it has seen so far.
pub struct Client<'a> {
    number: usize,
    random: Random,
    begun: Instant,
    /// The beginning of the paths of its history.
    prefix: String,
    proxies: &'a [std::sync::Arc<Mutex<SocketAddr>>],
    /// The last value that was seen of a register.
    known: BTreeMap<u64, u64>,
    pub log: Log,
}

/// The operations of the clients, and their answers.
#[derive(Default)]
pub struct Log {
    /// The operations on each register.
    pub operations: BTreeMap<u64, Vec<Operation>>,
    /// Writes that were refused, and may not take effect.
    pub refused: Vec<u64>,
    /// Answers that no client may see, in words.
    pub faulty: Vec<String>,
    /// The number of requests by answer: a status, with the work of the cache.
    pub answers: BTreeMap<String, usize>,
}

/// An answer, as a client of registers reads it.
struct Seen {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value in the validator.
    fn value(&self) -> Option<u64> {
        self.field("etag")?.trim_matches('"').parse().ok()
    }

    /// Returns whether a body is all that the head has announced.
    fn is_whole(&self) -> bool {
        self.field("content-length").is_none_or(|length| length.parse() == Ok(self.body.len()))
    }

    /// The work of the cache, without numbers.
    fn status(&self) -> String {
        let status = self.field("cache-status").unwrap_or_default();
        status.split("; ").filter(|part| !part.starts_with("ttl=")).collect::<Vec<_>>().join("; ")
    }
}

impl<'a> Client<'a> {
    pub fn new(
        number: usize,
        seed: u64,
        prefix: &str,
        begun: Instant,
        proxies: &'a [std::sync::Arc<Mutex<SocketAddr>>],
    ) -> Client<'a> {
        let (random, prefix) = (Random::new(seed), prefix.to_owned());
        Client { number, random, begun, prefix, proxies, known: BTreeMap::new(), log: Log::default() }
    }

    /// Does so many operations.
    pub fn run(mut self, operations: usize) -> Log {
        for _ in 0..operations {
            let key = self.next_key();
            match self.random.below(14) {
                0 => self.write(key),
                _ => self.read(key),
            }
        }
        self.log
    }

    /// Waits for the next operation. All clients meet at one register for a while, as fast as they can, and then rest:
    /// when they meet there again, the marks of then have ended.
    fn next_key(&mut self) -> u64 {
        sleep(self.random.millis(0, 6));
        let elapsed = self.begun.elapsed();
        let into = Duration::from_nanos(u64::try_from(elapsed.as_nanos() % ROUND.as_nanos()).unwrap());
        if into > BUSY {
            sleep(ROUND - into);
        }
        let round = u64::try_from(self.begun.elapsed().as_nanos() / ROUND.as_nanos()).unwrap();
        if self.random.below(6) == 0 { self.random.below(KEYS) } else { round % MEETINGS }
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap()
    }

    /// Sends a request by any proxy. Returns the time of its call, the place, and its answer.
    fn ask(&mut self, method: &str, key: u64, fields: &str, body: &str) -> (u64, String, Option<Seen>) {
        let proxy = usize::try_from(self.random.below(self.proxies.len() as u64)).unwrap();
        let address = *self.proxies[proxy].lock().unwrap();
        // Other resources of the group have the same register.
        let more = ["", "", "/a", "/b"][usize::try_from(self.random.below(4)).unwrap()];
        let path = format!("{}/{key}{more}", self.prefix);
        let request = format!("{method} {path} HTTP/1.1\r\nhost: example.com\r\n{fields}\r\n{body}");
        let call = self.nanos();
        let answer = ask_once(address, &request).and_then(|(head, body)| {
            let status = head.get(9..12)?.parse().ok()?;
            Some(Seen { status, head, body })
        });
        let seen = answer.as_ref().map_or("no answer".to_owned(), |seen| format!("{} {}", seen.status, seen.status()));
        *self.log.answers.entry(format!("{method} {seen}")).or_default() += 1;
        (call, format!("{method} {path} at proxy {proxy}: {seen}"), answer)
    }

    fn add(&mut self, key: u64, call: u64, end: Option<u64>, action: Action, place: String) {
        let operation = Operation { place, ..Operation::new(self.number, call, end, action) };
        self.log.operations.entry(key).or_default().push(operation);
    }

    fn write(&mut self, key: u64) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let value = NEXT.fetch_add(1, Ordering::Relaxed);
        let method = if self.random.below(2) == 0 { "PUT" } else { "POST" };
        let (body, by_key) = (value.to_string(), method == "POST" && self.random.below(2) == 0);
        let more = if by_key { format!("idempotency-key: {value}\r\n") } else { String::new() };
        let fields = format!("{more}content-length: {}\r\n", body.len());
        let (call, place, answer) = self.ask(method, key, &fields, &body);
        let end = self.nanos();
        match answer {
            Some(seen) if matches!(seen.status, 200 | 204) => {
                self.add(key, call, Some(end), Action::Write(value), place);
            }
            Some(seen) if String::from_utf8_lossy(&seen.body).contains("problem:consistency-unavailable") => {
                self.log.refused.push(value);
            }
            _ => self.add(key, call, None, Action::Write(value), place),
        }
    }

    fn read(&mut self, key: u64) {
        let known = self.known.get(&key).copied();
        let (method, fields) = match (self.random.below(10), known) {
            (0, _) => ("HEAD", String::new()),
            (1, Some(known)) => ("GET", format!("if-none-match: \"{known}\"\r\n")),
            (2, _) => ("GET", "range: bytes=0-1\r\n".to_owned()),
            _ => ("GET", String::new()),
        };
        let (call, place, answer) = self.ask(method, key, &fields, "");
        let end = self.nanos();
        let Some(seen) = answer.filter(|seen| matches!(seen.status, 200 | 206 | 304)) else { return };
        let Some(value) = seen.value() else {
            return self.log.faulty.push(format!("an answer without a validator: {place}\n{}", seen.head));
        };
        match seen.status {
            304 if known != Some(value) => self.log.faulty.push(format!("304 to another version: {place}, {known:?}")),
            200 if method == "GET" && !seen.is_whole() => return,
            200 if method == "GET" && seen.body != representation(value).as_bytes() => {
                self.log.faulty.push(format!("a body of another version than its validator: {place}\n{}", seen.head));
            }
            _ => {}
        }
        self.known.insert(key, value);
        self.add(key, call, Some(end), Action::Read(value), place);
    }
}
