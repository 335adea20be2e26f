//! The context that the connections of one listener share on one worker, and operations on the socket of any
//! connection.

use super::address_limit::Addresses;
use crate::config::ProxyProtocol;
use crate::http::problem::Problem;
use crate::io::Stream;
use crate::proxy::{self, Downstream, WorkerContext};
use crate::tls::ServerTls;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};

/// A connection that a drain finds idle may send one more request within this time: the client
/// may have sent it already.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// The time for which a closing connection is read from, so that a reset does not overtake its last response.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// The context that the connections of one listener share on one worker.
pub(in crate::server) struct Context {
    pub(super) worker: Rc<WorkerContext>,
    pub(in crate::server) name: Arc<str>,
    /// The listener, or the process, is about to end.
    pub(super) leaving: Rc<Cell<bool>>,
    drain: Notify,
    pub(super) addresses: Arc<Addresses>,
    /// The permit to compute a handshake: one connection at a time has it.
    pub(super) handshakes: Semaphore,
    /// The decision to read from a new connection at once.
    pub(super) eager_reads: EagerReads,
    /// The handshake by the last configuration that had this listener.
    pub(super) handshake: RefCell<Option<Handshake>>,
}

impl Context {
    pub(in crate::server) fn new(worker: &Rc<WorkerContext>, name: &Arc<str>, addresses: &Arc<Addresses>) -> Context {
        let (worker, name, addresses) = (Rc::clone(worker), Arc::clone(name), Arc::clone(addresses));
        Context {
            worker,
            name,
            leaving: Rc::default(),
            drain: Notify::new(),
            addresses,
            handshakes: Semaphore::new(1),
            eager_reads: EagerReads::default(),
            handshake: RefCell::default(),
        }
    }

    /// Returns the context of a listener that the configuration in force has no more: its connections begin with this
    /// handshake, and end with their next answer.
    pub(in crate::server) fn of_removed(
        worker: &Rc<WorkerContext>,
        name: &Arc<str>,
        addresses: &Arc<Addresses>,
        handshake: Handshake,
    ) -> Context {
        let context = Context::new(worker, name, addresses);
        context.handshake.replace(Some(handshake));
        context.leave();
        context
    }

    /// Waits until the listener is on its way out.
    pub(in crate::server) async fn left(&self) {
        let mut drain = pin!(self.drain.notified());
        drain.as_mut().enable();
        if !self.leaving.get() {
            drain.await;
        }
    }

    /// Lets every connection end with its next answer.
    pub(in crate::server) fn leave(&self) {
        self.leaving.set(true);
        self.drain.notify_waiters();
    }
}

/// Decides whether to read from a new connection before it joins the reactor. On a busy worker its first bytes are often
/// there when it is accepted, and it need not join; on an idle one they come later, and the read would find nothing.
#[derive(Default)]
pub(super) struct EagerReads {
    /// The connections since the last such read that found something.
    without: Cell<u32>,
}

/// After so many reads without a byte, connections join the reactor first.
const MAX_WITHOUT: u32 = 4;
/// Of those connections, one in so many is read from at once all the same.
const PROBE_EVERY: u32 = 16;

impl EagerReads {
    /// Returns whether to read from the next connection at once.
    pub(super) fn take_next(&self) -> bool {
        let without = self.without.get();
        let is_next = without < MAX_WITHOUT || without.is_multiple_of(PROBE_EVERY);
        if !is_next {
            self.note(false);
        }
        is_next
    }

    /// Notes whether a connection was read from with success.
    pub(super) fn note(&self, has_read: bool) {
        self.without.set(if has_read { 0 } else { self.without.get().wrapping_add(1) });
    }
}

/// The beginning of a listener's connections: a PROXY protocol header, and TLS.
#[derive(Clone, Default)]
pub(in crate::server) struct Handshake {
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    pub(super) tls: Option<Arc<ServerTls>>,
}

impl Handshake {
    /// Returns the handshake of the configuration in force, or of the last one that had this listener.
    pub(in crate::server) fn of(context: &Context) -> Handshake {
        let snapshot = context.worker.snapshot();
        let mut listeners = snapshot.config.settings.listeners.iter();
        let mut last = context.handshake.borrow_mut();
        if let Some(listener) = listeners.find(|listener| listener.name.as_str() == &*context.name) {
            let proxy_protocol = listener.proxy_protocol.clone();
            let tls = snapshot.config.secrets.tls.get(listener.name.as_str()).cloned();
            *last = Some(Handshake { proxy_protocol, tls });
        }
        last.clone().unwrap_or_default()
    }
}

/// Waits for bytes. Returns `false` where the connection ends or the deadline passes before. A drain shortens the wait.
pub(super) async fn is_readable(context: &Context, stream: &mut Stream, deadline: Instant) -> bool {
    // What is here already needs no timer.
    let is_apart = stream.is_apart();
    let arrived = poll_fn(|cx| Poll::Ready(stream.poll_readable(cx))).await;
    if is_apart {
        context.eager_reads.note(arrived.is_ready());
    }
    if let Poll::Ready(is_readable) = arrived {
        return is_readable;
    }
    let readable = poll_fn(|cx| stream.poll_readable(cx).map(|is_readable| is_readable.then_some(())));
    wait(context, deadline, readable).await.is_some()
}

/// Waits for something of the client. Returns `None` where the deadline passes before. A drain shortens the wait.
pub(super) async fn wait<T>(
    context: &Context,
    deadline: Instant,
    arrival: impl Future<Output = Option<T>>,
) -> Option<T> {
    let mut arrival = pin!(arrival);
    let mut drain = pin!(context.drain.notified());
    drain.as_mut().enable();
    let deadline = match context.leaving.get() {
        true => deadline.min(Instant::now() + LAST_REQUEST),
        false => deadline,
    };
    tokio::select! {
        biased;
        arrived = &mut arrival => return arrived,
        () = tokio::time::sleep_until(deadline.into()) => return None,
        () = drain => {}
    }
    tokio::time::timeout(LAST_REQUEST, arrival).await.ok()?
}

/// Sends an error answer to a request that never reached the pipeline.
pub(super) async fn refuse(context: &Context, mut stream: Stream, downstream: &Downstream, problem: &Problem) {
    let bytes = proxy::unreadable(&context.worker, downstream, problem);
    let sent = tokio::time::timeout(LINGER, async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    });
    if let Ok(Ok(())) = sent.await {
        linger(&mut stream).await;
    }
}

/// Reads what the client still sends, for a while: closing a socket with unread bytes would reset the connection, and
/// the client would lose the last response (RFC 9112 9.6).
pub(super) async fn linger(stream: &mut Stream) {
    let mut discarded = vec![0; 4096];
    let until_the_end = async { while matches!(stream.read(&mut discarded).await, Ok(1..)) {} };
    // Bytes that arrive later than that are not read: the client may get a reset.
    let _ = tokio::time::timeout(LINGER, until_the_end).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_connections_are_read_from_at_once_where_that_pays() {
        let eager_reads = EagerReads::default();
        // Returns the number of reads among so many connections.
        let reads = |connections: u32, has_read: bool| {
            let is_read = |_: &u32| eager_reads.take_next().then(|| eager_reads.note(has_read)).is_some();
            (0..connections).filter(is_read).count()
        };
        assert_eq!(reads(100, true), 100);
        assert_eq!(reads(4, false), 4);
        assert_eq!(reads(160, false), 10, "one in sixteen");
        assert!((1..=16).contains(&(0..16).filter(|_| reads(1, true) == 1).count()), "the next one that is tried");
        assert_eq!(reads(100, true), 100, "has all of them read again");
    }
}
