use super::{Proxy, Random};
use crate::engines::Link;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A proxy in a history, which crashes and comes back, and its links, which fail.
pub struct Member {
    text: String,
    pub links: Arc<Vec<Link>>,
    proxy: Option<Proxy>,
    address: Arc<Mutex<SocketAddr>>,
}

impl Member {
    pub fn start(text: String, links: Vec<Link>) -> Member {
        let proxy = Proxy::start(&text);
        let address = Arc::new(Mutex::new(proxy.address));
        Member { text, links: Arc::new(links), proxy: Some(proxy), address }
    }

    /// Where clients reach the proxy; another one after a crash.
    pub fn address(&self) -> Arc<Mutex<SocketAddr>> {
        Arc::clone(&self.address)
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    /// Kills the proxy, and starts another one in its place.
    pub fn crash(&mut self) {
        self.proxy().signal("KILL");
        self.proxy = None;
        let proxy = Proxy::start(&self.text);
        *self.address.lock().unwrap() = proxy.address;
        self.proxy = Some(proxy);
    }

    /// Gives the proxy another configuration, by a reload or by a crash.
    pub fn reconfigure(&mut self, text: &str, by_reload: bool) {
        text.clone_into(&mut self.text);
        match by_reload {
            true => self.proxy().reconfigure(text),
            false => self.crash(),
        }
    }

    /// Suspends the proxy.
    pub fn stop(&self, time: Duration) {
        self.proxy().signal("STOP");
        sleep(time);
        self.proxy().signal("CONT");
    }
}

/// Ends the faults of links that outlast their cause.
pub fn heal(links: &[Link]) {
    links.iter().for_each(|link| link.cut_after(usize::MAX));
}

/// Has a link fail in one of its ways, and ends that. What is held back is held for less than `longest` milliseconds.
/// Returns how long it was.
pub fn disturb(link: &Link, random: &mut Random, longest: u64) -> Duration {
    let begun = Instant::now();
    match random.below(7) {
        0 => {
            link.cut(true);
            sleep(random.millis(1, 500));
            link.cut(false);
        }
        1 => {
            link.delay(random.millis(5, 120));
            sleep(random.millis(50, 500));
            link.delay(Duration::ZERO);
        }
        // What was sent arrives late, after it was given up.
        2 => {
            link.hold_requests(true);
            sleep(random.millis(50, longest));
            link.hold_requests(false);
        }
        3 => {
            link.hold_replies(true);
            sleep(random.millis(50, longest));
            link.hold_replies(false);
        }
        // The reply is lost, and the connection with it.
        4 => {
            link.hold_replies(true);
            sleep(random.millis(5, 100));
            link.cut(true);
            link.hold_replies(false);
            link.cut(false);
        }
        // The other side is gone, and does not say so.
        5 => {
            link.hold_requests(true);
            link.hold_replies(true);
            sleep(random.millis(50, longest));
            link.cut(true);
            link.hold_requests(false);
            link.hold_replies(false);
            link.cut(false);
        }
        _ => link.cut_after(random.below(400) as usize),
    }
    begun.elapsed()
}
