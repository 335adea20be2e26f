//! The downstream connection, as the pipeline uses it.

use super::session::Given;
use super::streams::{OpenStream, Streams};
use crate::io;
use crate::tls::Names;
use crate::upstream::InFlight;
use http::{HeaderValue, Version};
use smallvec::SmallVec;
use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Interim answers that may wait until the client reads them; further ones are dropped.
const MAX_INTERIM: usize = 64 << 10;

/// The downstream side of a request: a connection of HTTP/1, or one stream of a connection of HTTP/2. The connection's
/// wire and its requests share it.
pub(crate) struct Downstream {
    pub(crate) connection: Rc<ConnectionState>,
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

/// The part that all streams of a connection share.
pub(crate) struct ConnectionState {
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Arc<str>,
    /// Set when the listener is on its way out: every response then closes its connection.
    pub(crate) leaving: Rc<Cell<bool>>,
    /// The results of the TLS handshake; `None` without TLS.
    pub(crate) secured: Option<Secured>,
    /// The peer's address as text, once a request goes to a node.
    peer_text: OnceCell<HeaderValue>,
    /// The connection has had as many requests as it may have: it ends with this response.
    pub(crate) is_spent: Cell<bool>,
    /// The requests on this connection so far.
    requests: Cell<u32>,
    /// The session token that was handed out last.
    pub(super) session: RefCell<Option<Given>>,
}

impl ConnectionState {
    /// Returns the peer's address in the form of `X-Forwarded-For`.
    pub(crate) fn peer_text(&self) -> &HeaderValue {
        self.peer_text.get_or_init(|| address_text(self.peer.ip().to_canonical()))
    }
}

/// Returns an address as text. Every new connection to a node needs it, and a formatter takes 20 times as long.
fn address_text(address: IpAddr) -> HeaderValue {
    let text = match address {
        IpAddr::V4(address) => {
            let (mut text, mut digits) = (SmallVec::<[u8; 15]>::new(), itoa::Buffer::new());
            for (index, octet) in address.octets().into_iter().enumerate() {
                text.extend((index > 0).then_some(b'.'));
                text.extend_from_slice(digits.format(octet).as_bytes());
            }
            HeaderValue::from_bytes(&text)
        }
        IpAddr::V6(address) => HeaderValue::try_from(address.to_string()),
    };
    text.expect("an IP address is a field value")
}

/// The state of a connection of HTTP/1; of a stream it stays as it begins.
#[derive(Default)]
pub(crate) struct Http1State {
    pub(crate) phase: Cell<Phase>,
    /// Bytes to write before anything else: interim responses.
    pub(crate) inject: RefCell<Vec<u8>>,
    /// Wakes the connection's task, where another one has something for it.
    pub(crate) task: RefCell<Option<Waker>>,
    /// The last request was HTTP/1.0: the end of its response is the end of the connection.
    pub(crate) is_http10: Cell<bool>,
    /// The last request says `Connection: close`.
    pub(crate) says_close: Cell<bool>,
    /// The next piece of the request's body is overdue: the body ends in an error.
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
    /// Asks the client to send the body; see [`Downstream::ask_for_body`].
    on_body: RefCell<Option<Box<dyn FnOnce()>>>,
    /// The time at which the last piece of the response was passed to the connection.
    gave: Cell<Option<Instant>>,
    pub(super) open: OpenStream,
}

/// The results of a TLS handshake.
pub(crate) struct Secured {
    /// The names of the served certificate, where the client sent a server name.
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
    /// The response is complete; some of it may not be written yet.
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
        secured: Option<Secured>,
    ) -> Downstream {
        let connection = ConnectionState {
            peer,
            listener,
            leaving,
            secured,
            peer_text: OnceCell::new(),
            is_spent: Cell::new(false),
            requests: Cell::new(0),
            session: RefCell::default(),
        };
        Downstream::on(Rc::new(connection), None)
    }

    /// Returns the downstream of one stream of the connection, which is counted until it is dropped.
    pub(crate) fn for_stream(&self, streams: &Rc<Streams>, body_idle: Duration) -> Downstream {
        let stream = StreamState {
            body_idle,
            on_body: RefCell::default(),
            gave: Cell::new(None),
            open: OpenStream::new(streams),
        };
        Downstream::on(Rc::clone(&self.connection), Some(stream))
    }

    fn on(connection: Rc<ConnectionState>, stream: Option<StreamState>) -> Downstream {
        Downstream {
            connection,
            had_request: Cell::new(stream.is_some()),
            tunnel: RefCell::new(Weak::<RefCell<Option<Tunnel>>>::new()),
            awaits_body: Cell::new(None),
            body_waker: RefCell::default(),
            http1: Http1State::default(),
            stream,
        }
    }

    /// Has the tunnel that the pipeline may make of this connection be handed to this slot.
    pub(crate) fn switches_at(&self, slot: Weak<dyn TunnelSlot>) {
        *self.tunnel.borrow_mut() = slot;
    }

    /// Passes a tunnel to the session. Returns whether there is one that takes it.
    pub(super) fn switch_to(&self, tunnel: Tunnel) -> bool {
        let slot = self.tunnel.borrow().upgrade();
        slot.map(|slot| slot.put(tunnel)).is_some()
    }

    /// Returns whether the request is the CONNECT of a tunnel on a stream: a 2xx would tell its client that it is open.
    pub(super) fn is_connect(&self) -> bool {
        self.stream.is_some() && self.tunnel.borrow().strong_count() > 0
    }

    /// Notes that a request of this version begins.
    pub(super) fn begin_request(&self, version: Version) {
        self.had_request.set(true);
        self.http1.phase.set(Phase::Request);
        self.http1.is_http10.set(version == Version::HTTP_10);
        self.http1.says_close.set(false);
        self.http1.body_expired.set(false);
        self.http1.drains_body.set(false);
    }

    /// Sets the function that asks the stream's client for its body.
    pub(crate) fn on_body(&self, tell: Box<dyn FnOnce()>) {
        if let Some(stream) = &self.stream {
            *stream.on_body.borrow_mut() = Some(tell);
        }
    }

    /// Tells a client that waits for `100 Continue` to send its body, which is read now. For HTTP/1 hyper does that.
    /// Once the response has begun it is too late.
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
            stream.open.streams.took(bytes as u64);
        }
    }

    /// Returns whether its bodies were unread at that time or later because the budget was spent.
    pub(crate) fn was_starved_since(&self, since: Instant) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.open.streams.was_starved_since(since))
    }

    /// Waits until the connection has few unsent bytes of nodes' responses: otherwise a client that reads slowly would
    /// have a part of every stream's response buffered.
    pub(crate) fn poll_room(&self, cx: &std::task::Context<'_>) -> Poll<()> {
        let Some(stream) = &self.stream else { return Poll::Ready(()) };
        stream.open.poll_room(cx)
    }

    /// Notes bytes of a response that were passed to the connection.
    pub(crate) fn gave(&self, bytes: u64) {
        if let Some(stream) = &self.stream {
            stream.open.streams.gave(bytes);
        }
    }

    /// Returns the time at which the last piece of a stream's response was passed to the connection.
    pub(super) fn gave_last(&self) -> Option<Instant> {
        self.stream.as_ref().and_then(|stream| stream.gave.get())
    }

    /// Notes that its request made no sense.
    pub(crate) fn note_malformed(&self) {
        if let Some(stream) = &self.stream {
            stream.open.streams.note_malformed();
        }
    }

    /// Notes whether a piece of the response is with the connection now, or still has to come from the node.
    pub(crate) fn offer(&self, is_offered: bool) {
        if let Some(stream) = &self.stream {
            let since = is_offered.then(Instant::now);
            stream.open.offer(since);
            stream.gave.set(since.or(stream.gave.get()));
        }
    }

    /// Counts a request; the last one that is allowed ends its connection.
    pub(crate) fn count_request(&self, limit: u32) {
        let ConnectionState { requests, is_spent, .. } = &*self.connection;
        requests.set(requests.get().saturating_add(1));
        if limit > 0 && requests.get() >= limit {
            is_spent.set(true);
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

    /// Returns whether the client uses TLS to this proxy.
    pub(crate) fn is_secure(&self) -> bool {
        self.connection.secured.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_the_standard_library_writes_it() {
        for text in ["127.0.0.1", "0.0.0.0", "255.255.255.255", "10.9.100.42", "::1", "2001:db8::ff00:42:8329"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_text(address), text);
        }
    }
}
