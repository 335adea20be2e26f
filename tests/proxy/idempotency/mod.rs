//! Requests with an `Idempotency-Key` run once: through real sockets, before nodes that misbehave.

mod answers;
mod callers;
mod crash;
mod faults;
mod leaving;
mod operating;
mod pauses;
mod table;

use crate::support::{Answer, Barrier, Client, Origin, Peer, Proxy};
use std::net::SocketAddr;

/// A proxy whose one route runs requests with a key once, by these settings.
pub fn payments(nodes: &[SocketAddr], settings: &str) -> Proxy {
    Proxy::start(&configuration(nodes, settings, "timeouts: { connect: 1s, first_byte: 10s }"))
}

pub fn configuration(nodes: &[SocketAddr], settings: &str, pool: &str) -> String {
    let rules = format!("hash_on: [path], idempotency: {{ {settings} }} }}");
    Proxy::pool(nodes, &format!("\n    {pool}")).replace("hash_on: [uri] }", &rules)
}

/// A request as a client with a name sends it.
pub fn charge(path: &str, key: &str, body: &str) -> String {
    request("POST", path, &format!("authorization: Bearer alice\r\nidempotency-key: {key}\r\n"), body)
}

/// The same, with these lines.
pub fn request(method: &str, path: &str, lines: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: example.com\r\ncontent-length: {}\r\n{lines}\r\n{body}", body.len())
}

impl Proxy {
    /// One request on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        self.connect().request(request)
    }

    /// The records with a key, as the admin API tells them.
    pub fn records(&self, key: &str) -> Vec<serde_json::Value> {
        let answer = self.admin_get(&format!("/api/idempotency?key={key}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json().as_array().unwrap().clone()
    }

    pub fn idempotency(&self, result: &str) -> f64 {
        self.metric(&format!("ringway_idempotency_requests_total{{result=\"{result}\",route=\"site\"}}"))
    }

    pub fn admin_delete(&self, path: &str) -> Answer {
        let request = format!("DELETE {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        Client::connect(self.admin).request(request)
    }
}

/// A node that answers 201 with the number of the charge.
pub fn charging() -> Origin {
    Origin::start(|ask, peer| peer.reply(201, "content-type: text/plain", &format!("charge {}", ask.number)))
}

/// A node that begins to work on each request, and answers when it is let go: the node, what tells that
/// it has begun, and what lets it go.
pub fn held(answer: impl Fn(&mut Peer) + Send + Sync + 'static) -> (Origin, Barrier, Barrier) {
    let (began, gate) = (Barrier::default(), Barrier::default());
    let (begin, open) = (began.clone(), gate.clone());
    let origin = Origin::start(move |_, peer| {
        begin.open();
        open.wait();
        answer(peer);
    });
    (origin, began, gate)
}

/// What a client sees of an answer, without what says that it is a repetition.
pub fn seen(answer: &Answer) -> (String, Vec<u8>, String) {
    let head: Vec<&str> =
        answer.head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("idempotent-replayed:")).collect();
    (head.join("\n"), answer.body.clone(), answer.trailers.clone())
}

pub fn is_replay(answer: &Answer) -> bool {
    answer.field("idempotent-replayed").as_deref() == Some("true")
}
