use super::node::{Node, Peer};
use super::{Barrier, PATIENCE};
use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a service does with a request.
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

/// A node whose conduct changes, for requests and health checks apart, and that can die and come back.
pub struct Service {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    accepting: Option<JoinHandle<()>>,
}

struct Inner {
    name: String,
    requests: Mutex<Does>,
    checks: Mutex<Does>,
    /// The heads of requests, beside checks.
    heads: Mutex<Vec<String>>,
    checked: AtomicUsize,
    most_at_once: AtomicUsize,
    at_once: AtomicUsize,
    /// The connections, by a number of their own.
    open: Mutex<HashMap<usize, TcpStream>>,
    is_dead: AtomicBool,
}

impl Service {
    /// One that answers everything with 200.
    pub fn start(name: &str) -> Service {
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            requests: Mutex::new(Does::Answer(200)),
            checks: Mutex::new(Does::Answer(200)),
            heads: Mutex::default(),
            checked: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            open: Mutex::default(),
            is_dead: AtomicBool::new(true),
        });
        let mut service = Service { address: ([127, 0, 0, 1], 0).into(), inner, accepting: None };
        service.revive();
        service
    }

    /// Several, named `n0` and so on, as `Proxy::pool` has them.
    pub fn several(count: usize) -> Vec<Service> {
        (0..count).map(|number| Service::start(&format!("n{number}"))).collect()
    }

    pub fn addresses(services: &[Service]) -> Vec<SocketAddr> {
        services.iter().map(|service| service.address).collect()
    }

    /// What it does with requests from now on.
    pub fn does(&self, what: Does) {
        *self.inner.requests.lock().unwrap() = what;
    }

    /// What it does with health checks from now on.
    pub fn answers_checks(&self, what: Does) {
        *self.inner.checks.lock().unwrap() = what;
    }

    /// How many requests have reached it, beside checks.
    pub fn served(&self) -> usize {
        self.inner.heads.lock().unwrap().len()
    }

    /// The heads of those requests.
    pub fn heads(&self) -> Vec<String> {
        self.inner.heads.lock().unwrap().clone()
    }

    pub fn checked(&self) -> usize {
        self.inner.checked.load(Ordering::SeqCst)
    }

    /// The most requests that it had at the same time.
    pub fn most_at_once(&self) -> usize {
        self.inner.most_at_once.load(Ordering::SeqCst)
    }

    pub fn at_once(&self) -> usize {
        self.inner.at_once.load(Ordering::SeqCst)
    }

    /// Dies: nobody listens any more, and every connection is gone.
    pub fn kill(&mut self) {
        self.inner.is_dead.store(true, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            // Wakes the accepting thread, which closes its socket.
            let _ = TcpStream::connect(self.address);
            accepting.join().unwrap();
        }
        for (_, stream) in self.inner.open.lock().unwrap().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Comes back at its old address.
    pub fn revive(&mut self) {
        assert!(self.inner.is_dead.swap(false, Ordering::SeqCst));
        let listener = TcpListener::bind(self.address).unwrap();
        self.address = listener.local_addr().unwrap();
        let inner = Arc::clone(&self.inner);
        self.accepting = Some(std::thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                if inner.is_dead.load(Ordering::SeqCst) {
                    return;
                }
                inner.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
                let inner = Arc::clone(&inner);
                std::thread::spawn(move || {
                    let mut peer = Peer::over(stream);
                    inner.serve(&mut peer);
                    // Else the connection would not end with its script.
                    inner.open.lock().unwrap().remove(&number);
                });
            }
        }));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Inner {
    fn serve(&self, peer: &mut Peer) {
        while let Some(head) = peer.request() {
            let body = peer.body_of(&head);
            let is_check = head.contains("(health check)");
            let what = if is_check { &self.checks } else { &self.requests }.lock().unwrap().clone();
            match is_check {
                true => {
                    self.checked.fetch_add(1, Ordering::SeqCst);
                }
                false => self.heads.lock().unwrap().push(format!("{head}\n\n{}", String::from_utf8_lossy(&body))),
            }
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

/// A link between the proxy and a node, as a network that fails would be.
pub struct Wire {
    pub address: SocketAddr,
    state: Arc<WireState>,
    _node: Node,
}

#[derive(Default)]
struct WireState {
    /// Nothing passes, in either direction; nothing is said about it.
    is_cut: AtomicBool,
    /// Each connection is cut after so many bytes from the node; 0 lets all pass.
    limit: AtomicUsize,
}

impl Wire {
    /// A link to this address.
    pub fn to(target: SocketAddr) -> Wire {
        let state: Arc<WireState> = Arc::default();
        let shared = Arc::clone(&state);
        let node = Node::start(move |peer| {
            // A connection during the partition is established by the kernel; nothing comes back on it.
            if let Ok(there) = TcpStream::connect(target) {
                let here = peer.client.stream.try_clone().unwrap();
                let (back, forth) = (there.try_clone().unwrap(), here.try_clone().unwrap());
                let towards = Arc::clone(&shared);
                std::thread::spawn(move || towards.pump(here, there, 0));
                shared.pump(back, forth, shared.limit.load(Ordering::SeqCst));
            }
        });
        Wire { address: node.address, state, _node: node }
    }

    /// The network is parted: packets vanish.
    pub fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
    }

    pub fn heal(&self) {
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// Cuts new connections after so many bytes of answers.
    pub fn cut_after(&self, bytes: usize) {
        self.state.limit.store(bytes, Ordering::SeqCst);
    }
}

impl WireState {
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, limit: usize) {
        use std::io::{Read, Write};
        from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = [0; 16384];
        let mut passed = 0;
        let deadline = std::time::Instant::now() + 10 * PATIENCE;
        while std::time::Instant::now() < deadline {
            if self.is_cut.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    // What was read as the cut came waits, as a packet that is sent again does.
                    while self.is_cut.load(Ordering::SeqCst) && std::time::Instant::now() < deadline {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    let length = if limit > 0 { length.min(limit - passed) } else { length };
                    passed += length;
                    if to.write_all(&buffer[..length]).is_err() || (limit > 0 && passed >= limit) {
                        break;
                    }
                }
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(_) => break,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
