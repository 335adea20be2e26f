use super::node::{Node, Peer};
use super::{Proxy, eventually};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// What an origin does with a request, by its head; it may answer at once, later, or in pieces.
type Script = Box<dyn Fn(&Ask, &mut Peer) + Send + Sync>;

/// A request as the origin sees it.
pub struct Ask {
    /// How many came before it.
    pub number: usize,
    pub head: String,
    pub body: Vec<u8>,
}

impl Ask {
    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }
}

/// An origin that counts, before a proxy that caches.
pub struct Origin {
    node: Node,
}

impl Origin {
    pub fn start(script: impl Fn(&Ask, &mut Peer) + Send + Sync + 'static) -> Origin {
        let script: Script = Box::new(script);
        let count = AtomicUsize::new(0);
        let node = Node::start(move |peer| {
            while let Some(head) = peer.request() {
                let body = peer.body_of(&head);
                let number = count.fetch_add(1, Ordering::SeqCst);
                script(&Ask { number, head, body }, peer);
            }
        });
        Origin { node }
    }

    /// Answers every request with these fields, and its number as the body.
    pub fn numbering(fields: &'static str) -> Origin {
        Origin::start(move |ask, peer| peer.reply(200, fields, &format!("#{}", ask.number)))
    }

    /// Gives the answers in turn, the last one for ever: status, fields, body.
    pub fn telling(answers: &[(u16, &str, &str)]) -> Origin {
        let answers: Vec<(u16, String, String)> =
            answers.iter().map(|(status, fields, body)| (*status, (*fields).to_owned(), (*body).to_owned())).collect();
        Origin::start(move |ask, peer| {
            let (status, fields, body) = &answers[ask.number.min(answers.len() - 1)];
            peer.reply(*status, fields, body);
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.node.address
    }

    /// How many requests have arrived.
    pub fn asked(&self) -> usize {
        self.node.requests().len()
    }

    /// The head of the last request.
    pub fn last(&self) -> Ask {
        let mut heads = self.node.requests();
        Ask { number: heads.len() - 1, head: heads.pop().unwrap(), body: Vec::new() }
    }

    /// A proxy whose one route caches, by these settings.
    pub fn cached(&self, settings: &str) -> Proxy {
        Proxy::start(&self.configuration(settings))
    }

    pub fn configuration(&self, settings: &str) -> String {
        let cache = format!("hash_on: [uri], cache: {{ {settings} }} }}");
        Proxy::pool(&[self.address()], "").replace("hash_on: [uri] }", &cache)
    }

    pub fn wait_for(&self, count: usize) {
        eventually(&format!("request {count}"), || self.asked() >= count);
    }
}

/// Holds threads back until somebody lets them go.
#[derive(Clone, Default)]
pub struct Barrier(Arc<(Mutex<bool>, Condvar)>);

impl Barrier {
    pub fn wait(&self) {
        let (open, changed) = &*self.0;
        let guard = open.lock().unwrap();
        let (guard, late) = changed.wait_timeout_while(guard, super::PATIENCE, |open| !*open).unwrap();
        drop(guard);
        assert!(!late.timed_out(), "nobody let go");
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

impl Peer {
    /// Closes the connection, whatever has been said on it.
    pub fn hang_up(&mut self) {
        // It may be closed from the other side already.
        let _ = self.client.stream.shutdown(std::net::Shutdown::Both);
    }

    /// A whole answer; fields are separated by ` | `.
    pub fn reply(&mut self, status: u16, fields: &str, body: &str) {
        let lines: String =
            fields.split(" | ").filter(|line| !line.is_empty()).map(|line| format!("{line}\r\n")).collect();
        let length = match status {
            204 | 304 => String::new(),
            _ => format!("content-length: {}\r\n", body.len()),
        };
        self.send(format!("HTTP/1.1 {status} X\r\n{lines}{length}\r\n{body}"));
    }
}
