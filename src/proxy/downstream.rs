//! The downstream connection, as the pipeline sees it.

use crate::io;
use crate::tls::Names;
use crate::upstream::InFlight;
use http::{HeaderValue, Version};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Interim answers that may wait until the client reads them; further ones are dropped.
const MAX_INTERIM: usize = 64 << 10;

/// The bytes of nodes' responses that an HTTP/2 connection may hold over all of its streams, before more is read.
const UNSENT: u64 = 256 << 10;

/// The downstream side of a request: a connection of HTTP/1, or one stream of a connection of HTTP/2. The connection's
/// wire and its requests share it.
pub(crate) struct Downstream {
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Arc<str>,
    /// Set when the listener is on its way out: every response then closes its connection.
    pub(crate) leaving: Rc<Cell<bool>>,
    /// The results of the TLS handshake; `None` without TLS.
    pub(crate) secured: Option<Rc<Secured>>,
    /// The peer's address as it stands in `X-Forwarded-For`.
    pub(crate) peer_text: HeaderValue,
    /// The connection has had as many requests as it may have: it ends with this response.
    pub(crate) is_spent: Rc<Cell<bool>>,
    /// The requests on this connection so far.
    requests: Rc<Cell<u32>>,
    pub(crate) had_request: Cell<bool>,
    /// The slot of its session, where it can become a tunnel.
    tunnel: RefCell<Weak<dyn TunnelSlot>>,
    /// Since when the pipeline waits for the next piece of the request's body.
    pub(crate) awaits_body: Cell<Option<Instant>>,
    /// Wakes the task that waits for that piece, which may be another one than the connection's.
    pub(crate) body_waker: RefCell<Option<Waker>>,
    pub(crate) http1: Http1State,
    /// `None` for a connection.
    pub(crate) stream: Option<StreamState>,
}

/// The state of a connection of HTTP/1; of a stream it stays as it begins.
#[derive(Default)]
pub(crate) struct Http1State {
    pub(crate) phase: Cell<Phase>,
    /// Bytes that go out before anything else: interim responses.
    pub(crate) inject: RefCell<Vec<u8>>,
    /// Wakes the connection's task, where another one has something for it.
    pub(crate) task: RefCell<Option<Waker>>,
    /// The last request was HTTP/1.0: its response may end with the connection and nothing else.
    pub(crate) is_http10: Cell<bool>,
    /// The next piece of the request's body has not come in time: the body ends in an error.
    pub(crate) body_expired: Cell<bool>,
    /// A fault in the bytes of the request that hyper does not refuse.
    pub(crate) malformed: Cell<Option<io::Malformed>>,
    /// The body of a request was dropped before its end: hyper may still read a part of it, which is no head.
    pub(crate) drains_body: Cell<bool>,
}

/// The state of one stream of HTTP/2.
pub(crate) struct StreamState {
    /// The time limit between two pieces of the request's body, which no timer of the connection has.
    pub(crate) body_idle: Duration,
    /// Tells a client that waits for it to send the body; see [`Downstream::ask_for_body`].
    on_body: RefCell<Option<Box<dyn FnOnce()>>>,
    /// Since when a piece of the response has been offered to the client; none while the node is waited for.
    offered: Cell<Option<Instant>>,
    /// When a piece of the response was given to the client last.
    gave: Cell<Option<Instant>>,
    open: OpenStream,
}

/// The streams of a connection that are open.
#[derive(Default)]
pub(crate) struct Streams {
    count: Cell<u32>,
    /// Bytes that were read of their bodies.
    read: Cell<u64>,
    /// Requests that made no sense.
    malformed: Cell<u32>,
    /// Bytes of answers that were given to the connection, and those of them that it holds no more.
    given: Cell<u64>,
    gone: Cell<u64>,
    /// The bytes that were given to streams which were reset, and so never sent.
    dropped: Cell<u64>,
    /// When its bodies last waited unread for the process to hold less.
    starved: Cell<Option<Instant>>,
    /// Answers that wait until more of these are sent.
    waiting: RefCell<Vec<Waker>>,
    /// The connection's task, which is told when there are fewer.
    task: RefCell<Option<Waker>>,
}

impl Streams {
    pub(crate) fn are_none(&self) -> bool {
        self.count.get() == 0
    }

    /// Returns how many bytes were read of all bodies so far.
    pub(crate) fn read(&self) -> u64 {
        self.read.get()
    }

    /// Returns how many requests made no sense since this was asked last.
    pub(crate) fn take_malformed(&self) -> u32 {
        self.malformed.take()
    }

    /// Notes that its bodies wait unread, for the process holds as much as it may.
    pub(crate) fn starve(&self, now: Instant) {
        self.starved.set(Some(now));
    }

    /// Notes that so many bytes of answers have been sent so far; `is_all` that what clients' windows allow is out.
    pub(crate) fn sent(&self, bytes: u64, is_all: bool) {
        if is_all {
            self.dropped.set(self.given.get().saturating_sub(bytes));
        }
        self.gone.set(bytes + self.dropped.get());
        if self.unsent() < UNSENT {
            self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
        }
    }

    fn unsent(&self) -> u64 {
        self.given.get().saturating_sub(self.gone.get())
    }

    /// Has the connection's task look again.
    pub(crate) fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// Has this task told of every stream that ends.
    pub(crate) fn watch(&self, cx: &std::task::Context<'_>) {
        *self.task.borrow_mut() = Some(cx.waker().clone());
    }
}

struct OpenStream(Rc<Streams>);

impl OpenStream {
    fn new(streams: &Rc<Streams>) -> OpenStream {
        streams.count.set(streams.count.get() + 1);
        OpenStream(Rc::clone(streams))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if let Some(task) = &*self.0.task.borrow() {
            task.wake_by_ref();
        }
    }
}

/// The results of a TLS handshake.
pub(crate) struct Secured {
    /// The names of the certificate that was served, where the client asked for one by name.
    pub(crate) certificate: Option<Arc<Names>>,
    /// The subject of the client's own certificate.
    pub(crate) subject: Option<HeaderValue>,
}

/// The phase of a connection, which decides on its timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    /// Between requests, or in the middle of a head.
    Idle,
    /// From a head to the head of its answer.
    Request,
    /// From the head of the answer to the end of its body.
    Answer,
    /// The answer is whole; the wire may still hold some of it.
    Ending,
}

/// Where a session finds its tunnel after a 101. The session owns the slot, and the client refers to it weakly: a
/// tunnel keeps its exchange, which keeps the client.
pub(crate) trait TunnelSlot {
    /// Hands the session its tunnel.
    fn put(&self, tunnel: Tunnel);
}

impl TunnelSlot for RefCell<Option<Tunnel>> {
    fn put(&self, tunnel: Tunnel) {
        self.replace(Some(tunnel));
    }
}

/// The node's end of a connection that was upgraded.
pub(crate) struct Tunnel {
    pub(crate) node: io::Stream,
    pub(crate) in_flight: InFlight,
    pub(crate) record: Rc<dyn TunnelRecord>,
    /// The time for which no byte may move; zero for no limit.
    pub(crate) idle: Duration,
    /// The same once one side has ended.
    pub(crate) half_closed_idle: Duration,
}

/// The record of a request whose connection became a tunnel.
pub(crate) trait TunnelRecord {
    /// Returns the counter of bytes from the client.
    fn request_bytes(&self) -> &Cell<u64>;
    /// Returns the counter of bytes from the node.
    fn response_bytes(&self) -> &Cell<u64>;
    /// Notes which side has ended the tunnel.
    fn ended(&self, by: &'static str);
}

impl Downstream {
    pub(crate) fn new(
        peer: SocketAddr,
        listener: Arc<str>,
        leaving: Rc<Cell<bool>>,
        secured: Option<Rc<Secured>>,
    ) -> Downstream {
        let text = peer.ip().to_canonical().to_string();
        Downstream {
            peer,
            listener,
            leaving,
            secured,
            peer_text: HeaderValue::try_from(text).expect("an IP address is a field value"),
            is_spent: Rc::default(),
            requests: Rc::default(),
            had_request: Cell::new(false),
            tunnel: RefCell::new(Weak::<RefCell<Option<Tunnel>>>::new()),
            awaits_body: Cell::new(None),
            body_waker: RefCell::default(),
            http1: Http1State::default(),
            stream: None,
        }
    }

    /// Returns the downstream side of one of the connection's streams, which is counted as long as it lives.
    pub(crate) fn for_stream(&self, streams: &Rc<Streams>, body_idle: Duration) -> Downstream {
        Downstream {
            peer: self.peer,
            listener: Arc::clone(&self.listener),
            leaving: Rc::clone(&self.leaving),
            secured: self.secured.clone(),
            peer_text: self.peer_text.clone(),
            is_spent: Rc::clone(&self.is_spent),
            requests: Rc::clone(&self.requests),
            had_request: Cell::new(true),
            tunnel: RefCell::new(Weak::<RefCell<Option<Tunnel>>>::new()),
            awaits_body: Cell::new(None),
            body_waker: RefCell::default(),
            http1: Http1State::default(),
            stream: Some(StreamState {
                body_idle,
                on_body: RefCell::default(),
                offered: Cell::new(None),
                gave: Cell::new(None),
                open: OpenStream::new(streams),
            }),
        }
    }

    /// Has the tunnel that the pipeline may make of this connection be handed to this slot.
    pub(crate) fn switches_at(&self, slot: Weak<dyn TunnelSlot>) {
        *self.tunnel.borrow_mut() = slot;
    }

    /// Hands a tunnel to the session. Returns whether there is one that takes it.
    pub(super) fn switch_to(&self, tunnel: Tunnel) -> bool {
        let slot = self.tunnel.borrow().upgrade();
        slot.map(|slot| slot.put(tunnel)).is_some()
    }

    /// Notes that a request of this version begins.
    pub(super) fn begin_request(&self, version: Version) {
        self.had_request.set(true);
        self.http1.phase.set(Phase::Request);
        self.http1.is_http10.set(version == Version::HTTP_10);
        self.http1.body_expired.set(false);
        self.http1.drains_body.set(false);
    }

    /// Sets the step that tells the stream's client to send its body.
    pub(crate) fn on_body(&self, tell: Box<dyn FnOnce()>) {
        if let Some(stream) = &self.stream {
            *stream.on_body.borrow_mut() = Some(tell);
        }
    }

    /// Tells a client that waits for `100 Continue` to send its body, which is read now. For HTTP/1 hyper does that. Once
    /// the response has begun it is too late.
    pub(super) fn ask_for_body(&self, has_answer: bool) {
        if let Some(stream) = &self.stream
            && let Some(tell) = stream.on_body.take().filter(|_| !has_answer)
        {
            tell();
        }
    }

    /// Wakes the task that waits for the next piece of the request's body.
    pub(crate) fn wake_body(&self) {
        if let Some(waker) = self.body_waker.take() {
            waker.wake();
        }
    }

    /// Notes that a piece of its body was read.
    pub(crate) fn took(&self, bytes: usize) {
        if let Some(stream) = &self.stream {
            let read = &stream.open.0.read;
            read.set(read.get() + bytes as u64);
        }
    }

    /// Returns whether what it sends was left unread at that time or later, by no fault of its own.
    pub(crate) fn was_starved_since(&self, since: Instant) -> bool {
        let starved = self.stream.as_ref().and_then(|stream| stream.open.0.starved.get());
        starved.is_some_and(|starved| starved >= since)
    }

    /// Waits until its connection holds little of what nodes have answered: a client that reads slowly, or not at
    /// all, would have it hold a part of every stream's answer.
    pub(crate) fn poll_room(&self, cx: &std::task::Context<'_>) -> Poll<()> {
        let Some(stream) = &self.stream else { return Poll::Ready(()) };
        let streams = &stream.open.0;
        if streams.unsent() < UNSENT {
            return Poll::Ready(());
        }
        let mut waiting = streams.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Notes that so much of an answer was given to the connection.
    pub(crate) fn gave(&self, bytes: u64) {
        if let Some(stream) = &self.stream {
            let given = &stream.open.0.given;
            given.set(given.get() + bytes);
        }
    }

    /// When a piece of its answer was given to a stream last.
    pub(super) fn gave_last(&self) -> Option<Instant> {
        self.stream.as_ref().and_then(|stream| stream.gave.get())
    }

    /// Notes that its request made no sense.
    pub(crate) fn note_malformed(&self) {
        if let Some(stream) = &self.stream {
            stream.open.0.malformed.set(stream.open.0.malformed.get() + 1);
        }
    }

    /// Notes whether a piece of the answer is with the client now, or still to come from the node.
    pub(crate) fn offer(&self, is_offered: bool) {
        if let Some(stream) = &self.stream {
            stream.offered.set(is_offered.then(Instant::now));
            if is_offered {
                stream.gave.set(stream.offered.get());
            }
        }
    }

    /// Since when it has not asked for the next piece of its answer.
    pub(crate) fn offered_since(&self) -> Option<Instant> {
        self.stream.as_ref().and_then(|stream| stream.offered.get())
    }

    /// Counts a request; the last one that is allowed ends its connection.
    pub(crate) fn count_request(&self, limit: u32) {
        let requests = self.requests.get().saturating_add(1);
        self.requests.set(requests);
        if limit > 0 && requests >= limit {
            self.is_spent.set(true);
        }
    }

    /// Sends an interim answer, unless the client does not take them: they are only hints.
    pub(crate) fn interim(&self, answer: &[u8]) {
        let mut inject = self.http1.inject.borrow_mut();
        if inject.len() + answer.len() <= MAX_INTERIM {
            inject.extend_from_slice(answer);
            if let Some(task) = &*self.http1.task.borrow() {
                task.wake_by_ref();
            }
        }
    }

    /// Returns whether the client speaks TLS with this proxy.
    pub(crate) fn is_secure(&self) -> bool {
        self.secured.is_some()
    }
}
