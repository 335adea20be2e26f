use super::conduct::{Conduct, Does};
use super::{Peer, Proxy, eventually, http2_origin};
use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// An origin that follows a script, and that can die and come back; one thread a connection.
pub struct Origin {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    accepting: Option<JoinHandle<()>>,
    conduct: Arc<Conduct>,
}

struct Inner {
    /// Gets every connection; when it returns, the connection closes.
    script: Box<dyn Fn(&mut Peer) + Send + Sync>,
    log: Arc<Log>,
    connections: AtomicUsize,
    /// The connections, by a number of their own.
    open: Mutex<HashMap<usize, TcpStream>>,
    is_dead: AtomicBool,
}

/// A request as the origin sees it.
#[derive(Clone)]
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

/// The requests that have arrived, in order, and apart from them the heads of health checks.
#[derive(Default)]
pub struct Log {
    asks: Mutex<Vec<Ask>>,
    checks: Mutex<Vec<String>>,
}

/// Returns `true` for the head of a health check.
pub(super) fn is_check(head: &str) -> bool {
    head.contains("(health check)")
}

impl Log {
    /// Adds a head; returns its place, which health checks have not.
    pub(super) fn add(&self, head: &str) -> Option<usize> {
        if is_check(head) {
            self.checks.lock().unwrap().push(head.to_owned());
            return None;
        }
        let mut asks = self.asks.lock().unwrap();
        let number = asks.len();
        asks.push(Ask { number, head: head.to_owned(), body: Vec::new() });
        Some(number)
    }

    /// Gives the body to a request that was added without.
    pub(super) fn fill(&self, place: usize, body: &[u8]) {
        self.asks.lock().unwrap()[place].body = body.to_vec();
    }
}

impl Origin {
    /// The script gets every request, whole; it may answer at once, later, or in pieces.
    pub fn start(script: impl Fn(&Ask, &mut Peer) + Send + Sync + 'static) -> Origin {
        let count = AtomicUsize::new(0);
        Origin::by_connection(move |peer| {
            while let Some(head) = peer.request() {
                let body = peer.body_of(&head);
                let number = count.fetch_add(1, Ordering::SeqCst);
                script(&Ask { number, head, body }, peer);
            }
        })
    }

    /// The script gets every connection; when it returns, the connection closes.
    pub fn by_connection(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
        Origin::behaving(Arc::default(), script)
    }

    /// Answers every request with 200 and its name, until it is told another conduct.
    pub fn named(name: &str) -> Origin {
        let conduct = Arc::new(Conduct::of(name));
        let own = Arc::clone(&conduct);
        Origin::behaving(conduct, move |peer| own.serve(peer))
    }

    /// Several, named `n0` and so on, as `Proxy::pool` has them.
    pub fn several(count: usize) -> Vec<Origin> {
        (0..count).map(|number| Origin::named(&format!("n{number}"))).collect()
    }

    /// Speaks HTTP/2 in the clear: echoes bodies and trailers as they come, or does what the path says.
    pub fn http2() -> Origin {
        Origin::by_connection(http2_origin::serve)
    }

    /// Answers every request with 200 and what it was asked.
    pub fn echo() -> Origin {
        Origin::by_connection(|peer| {
            while let Some(head) = peer.request() {
                let body = peer.body_of(&head);
                peer.answer(&format!("{head}\n\n{}", String::from_utf8_lossy(&body)));
            }
        })
    }

    /// Answers every request with these bytes.
    pub fn saying(answer: impl Into<Vec<u8>>) -> Origin {
        let answer = answer.into();
        Origin::by_connection(move |peer| {
            while let Some(head) = peer.request() {
                peer.body_of(&head);
                peer.send(&answer);
            }
        })
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

    fn behaving(conduct: Arc<Conduct>, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
        let inner = Arc::new(Inner {
            script: Box::new(script),
            log: Arc::default(),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            is_dead: AtomicBool::new(true),
        });
        let mut origin = Origin { address: ([127, 0, 0, 1], 0).into(), inner, accepting: None, conduct };
        origin.revive();
        origin
    }

    pub fn addresses(origins: &[Origin]) -> Vec<SocketAddr> {
        origins.iter().map(|origin| origin.address).collect()
    }

    /// What a named origin does with requests from now on.
    pub fn does(&self, what: Does) {
        self.conduct.set(what);
    }

    /// What a named origin does with health checks from now on.
    pub fn answers_checks(&self, what: Does) {
        self.conduct.set_for_checks(what);
    }

    /// The most requests that a named origin had at the same time.
    pub fn most_at_once(&self) -> usize {
        self.conduct.most_at_once()
    }

    pub fn at_once(&self) -> usize {
        self.conduct.at_once()
    }

    pub fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    /// How many requests have arrived, beside health checks.
    pub fn asked(&self) -> usize {
        self.inner.log.asks.lock().unwrap().len()
    }

    /// Those requests; their bodies too where the origin is a named one.
    pub fn asks(&self) -> Vec<Ask> {
        self.inner.log.asks.lock().unwrap().clone()
    }

    /// Their heads.
    pub fn requests(&self) -> Vec<String> {
        self.asks().into_iter().map(|ask| ask.head).collect()
    }

    /// The last of those requests.
    pub fn last(&self) -> Ask {
        self.inner.log.asks.lock().unwrap().last().cloned().unwrap()
    }

    /// How many health checks have arrived.
    pub fn checked(&self) -> usize {
        self.inner.log.checks.lock().unwrap().len()
    }

    /// The heads of those checks.
    pub fn checks(&self) -> Vec<String> {
        self.inner.log.checks.lock().unwrap().clone()
    }

    pub fn wait_for(&self, count: usize) {
        eventually(&format!("request {count}"), || self.asked() >= count);
    }

    /// A proxy whose one route caches, by these settings.
    pub fn cached(&self, settings: &str) -> Proxy {
        Proxy::start(&self.configuration(settings))
    }

    pub fn configuration(&self, settings: &str) -> String {
        let cache = format!("hash_on: [uri], cache: {{ {settings} }} }}");
        Proxy::pool(&[self.address], "").replace("hash_on: [uri] }", &cache)
    }

    /// Dies: nothing listens any more, and every connection is gone.
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
            for stream in listener.incoming().map_while(Result::ok) {
                if inner.is_dead.load(Ordering::SeqCst) {
                    return;
                }
                let number = inner.connections.fetch_add(1, Ordering::SeqCst);
                inner.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
                let inner = Arc::clone(&inner);
                std::thread::spawn(move || {
                    let _closed_at_the_end = Open { inner: &inner, number };
                    (inner.script)(&mut Peer::over(stream, Arc::clone(&inner.log)));
                });
            }
        }));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The place of an open connection, without whose end the connection would not end with its script.
struct Open<'a> {
    inner: &'a Inner,
    number: usize,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.inner.open.lock().unwrap().remove(&self.number);
    }
}
