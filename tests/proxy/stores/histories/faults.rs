//! The faults of a history: one after the other, each at a random proxy and for a random time.

use super::Random;
use crate::engines::Link;
use crate::support::Proxy;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A proxy, and its link to the engine.
pub struct Member {
    text: String,
    link: Link,
    proxy: Option<Proxy>,
    address: Arc<Mutex<SocketAddr>>,
}

impl Member {
    pub fn start(text: String, link: Link) -> Member {
        let proxy = Proxy::start(&text);
        let address = Arc::new(Mutex::new(proxy.address));
        Member { text, link, proxy: Some(proxy), address }
    }

    /// Where clients reach the proxy; another one after a crash.
    pub fn address(&self) -> Arc<Mutex<SocketAddr>> {
        Arc::clone(&self.address)
    }

    fn signal(&self, name: &str) {
        if let Some(proxy) = &self.proxy {
            proxy.signal(name);
        }
    }

    /// Kills the proxy, and starts another one in its place.
    fn crash(&mut self) {
        self.signal("KILL");
        self.proxy = None;
        let proxy = Proxy::start(&self.text);
        *self.address.lock().unwrap() = proxy.address;
        self.proxy = Some(proxy);
    }

    /// One fault, and its end.
    fn suffer(&mut self, random: &mut Random) {
        let hold = |time: Duration| std::thread::sleep(time);
        match random.below(8) {
            0 => self.crash(),
            // Longer than half the lease, and longer than the lease.
            1 => {
                self.signal("STOP");
                hold(random.millis(100, 800));
                self.signal("CONT");
            }
            2 => {
                self.link.cut(true);
                hold(random.millis(1, 500));
                self.link.cut(false);
            }
            3 => {
                self.link.delay(random.millis(5, 120));
                hold(random.millis(50, 500));
                self.link.delay(Duration::ZERO);
            }
            // What was sent arrives late, after it was given up and released by another connection.
            4 => {
                self.link.hold_requests(true);
                hold(random.millis(50, 1500));
                self.link.hold_requests(false);
            }
            5 => {
                self.link.hold_replies(true);
                hold(random.millis(50, 1500));
                self.link.hold_replies(false);
            }
            // The reply is lost, and the connection with it.
            6 => {
                self.link.hold_replies(true);
                hold(random.millis(5, 100));
                self.link.cut(true);
                self.link.hold_replies(false);
                self.link.cut(false);
            }
            _ => self.link.cut_after(random.below(400) as usize),
        }
    }
}

/// Lets faults happen until a history is over.
pub fn happen(members: &mut [Member], random: &mut Random, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(random.millis(5, 80));
        let at = random.below(members.len() as u64) as usize;
        members[at].suffer(random);
    }
    for member in members {
        member.link.cut_after(usize::MAX);
    }
}
