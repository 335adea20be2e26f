use super::origin::is_check;
use super::{Barrier, Peer};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a named origin does with a request.
#[derive(Clone)]
pub enum Does {
    /// Answers with this status, and its own name as the body.
    Answer(u16),
    /// Reads the request and resets the connection.
    Reset,
    /// Reads the request and says nothing.
    Hang,
    /// Answers 200 after this time.
    Late(Duration),
    /// Answers 200 when it is let go.
    Wait(Barrier),
    /// Begins an answer and resets the connection.
    Half,
}

/// The conduct of a named origin, which changes, for requests and health checks apart.
pub(super) struct Conduct {
    name: String,
    requests: Mutex<Does>,
    checks: Mutex<Does>,
    most_at_once: AtomicUsize,
    at_once: AtomicUsize,
}

impl Default for Conduct {
    fn default() -> Conduct {
        Conduct::of("")
    }
}

impl Conduct {
    pub(super) fn of(name: &str) -> Conduct {
        Conduct {
            name: name.to_owned(),
            requests: Mutex::new(Does::Answer(200)),
            checks: Mutex::new(Does::Answer(200)),
            most_at_once: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
        }
    }

    pub(super) fn set(&self, what: Does) {
        *self.requests.lock().unwrap() = what;
    }

    pub(super) fn set_for_checks(&self, what: Does) {
        *self.checks.lock().unwrap() = what;
    }

    pub(super) fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }

    pub(super) fn at_once(&self) -> usize {
        self.at_once.load(Ordering::SeqCst)
    }

    pub(super) fn serve(&self, peer: &mut Peer) {
        while let Some(head) = peer.request() {
            let body = peer.body_of(&head);
            peer.keep(&body);
            let is_check = is_check(&head);
            let what = if is_check { &self.checks } else { &self.requests }.lock().unwrap().clone();
            let now = self.at_once.fetch_add(usize::from(!is_check), Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            let waits = self.waits(&what, peer);
            // Before the answer: what comes after it is another request.
            self.at_once.fetch_sub(usize::from(!is_check), Ordering::SeqCst);
            if waits || !self.carry_out(what, peer) {
                return;
            }
        }
    }

    /// What comes before an answer; `true` where none comes at all.
    fn waits(&self, what: &Does, peer: &mut Peer) -> bool {
        match what {
            Does::Late(time) => std::thread::sleep(*time),
            Does::Wait(barrier) => barrier.wait(),
            Does::Hang => {
                peer.client.has_ended();
                return true;
            }
            Does::Answer(_) | Does::Reset | Does::Half => {}
        }
        false
    }

    /// The answer; `false` where the connection ends with it.
    fn carry_out(&self, what: Does, peer: &mut Peer) -> bool {
        match what {
            Does::Answer(status) => self.reply(peer, status),
            Does::Late(_) | Does::Wait(_) => self.reply(peer, 200),
            Does::Reset => {
                peer.reset();
                return false;
            }
            Does::Half => {
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
                peer.hang_up();
                return false;
            }
            Does::Hang => return false,
        }
        true
    }

    fn reply(&self, peer: &mut Peer, status: u16) {
        peer.reply(status, &format!("x-node: {}", self.name), &self.name);
    }
}
