//! HTTP/2 to nodes: connections that many requests share, and one request on one of them.
//!
//! A connection is a task of its own worker, which ends when no request uses it any more. A request that hyper returns
//! was not sent; a request that failed in any other way may have reached the node.

use super::connect::Endpoint;
use super::link::{AttemptLimits, SendResult};
use super::node::NodeRuntime;
use super::{BodyError, Outgoing, UpstreamError};
use crate::io::{OnThisThread, Stream};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Sleep;

/// Requests on one connection at a time, if the node allows as many; over that another one is made.
const MAX_STREAMS: u32 = 64;
/// The bytes of one response that a node may send before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// The window of a whole connection: an unread stream blocks no other.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
const MAX_HEADER_LIST: u32 = 256 << 10;
/// Stands for the streams that a node allows before it has said so; more than SETTINGS can say.
const UNKNOWN: usize = usize::MAX - 1;
/// The interval of pings on a connection with requests that receives nothing.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// One worker's connections.
#[derive(Default)]
pub(crate) struct SharedLinks {
    by_node: RefCell<HashMap<u64, Vec<Rc<SharedConnection>>, foldhash::fast::RandomState>>,
    /// The nodes to which a request connects just now; other requests wait for the result.
    connecting: RefCell<HashMap<u64, Rc<Notify>, foldhash::fast::RandomState>>,
}

/// A connection that is being made; at its end, well or not, the requests that wait for it are woken.
struct Connecting<'a> {
    links: &'a SharedLinks,
    serial: u64,
    told: Rc<Notify>,
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.told.notify_waiters();
        let mut connecting = self.links.connecting.borrow_mut();
        // Another request may have begun meanwhile, which has waiters of its own.
        if connecting.get(&self.serial).is_some_and(|told| Rc::ptr_eq(told, &self.told)) {
            connecting.remove(&self.serial);
        }
    }
}

/// The number of streams that a node allows at a time.
#[derive(Default)]
struct Allowance {
    /// None before the node's first SETTINGS have arrived.
    most: Cell<Option<u32>>,
    told: Notify,
}

impl Allowance {
    /// Takes the number that the connection goes by.
    fn note(&self, most: usize) {
        let most = (most != UNKNOWN).then(|| u32::try_from(most).unwrap_or(MAX_STREAMS).min(MAX_STREAMS));
        if self.most.replace(most) != most {
            self.told.notify_waiters();
        }
    }

    /// Returns how many requests share the connection. One that no stream is allowed for waits in it.
    fn get(&self) -> u32 {
        self.most.get().unwrap_or(MAX_STREAMS).max(1)
    }
}

/// The readiness of a connection for a request: it is sent at once, or waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// The node allows fewer streams than requests hold the connection.
    Full,
    /// The node has not said in time how many it allows, or allows none.
    Unknown,
}

/// A connection that wakes a task after what is read next.
struct Heard {
    stream: Stream,
    listener: Rc<Cell<Option<Waker>>>,
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready()
            && let Some(waker) = self.listener.take()
        {
            waker.wake();
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection that requests share.
struct SharedConnection {
    sender: SendRequest<Outgoing>,
    streams: Cell<u32>,
    allowance: Rc<Allowance>,
    /// When it last had a request.
    used: Cell<Instant>,
    idle: Cell<bool>,
    node: Arc<NodeRuntime>,
}

/// One request on such a connection.
pub(crate) struct SharedLink {
    shared: Rc<SharedConnection>,
    /// Where the request has a body, which may stay on the connection for longer than the answer.
    permit: Option<Rc<StreamPermit>>,
    /// The body of the answer, once that has begun.
    incoming: Option<Incoming>,
    last_activity: Instant,
    timer: Pin<Box<Sleep>>,
}

impl SharedLinks {
    /// Returns a stream on a connection that has room; with `within`, on one that was in use so short a time ago. While
    /// another one is being made, those that are full have to do; but not for a request that must not wait in a
    /// connection, where its claim would grow old unseen.
    pub(crate) fn take(&self, node: &NodeRuntime, within: Option<Duration>) -> Option<Box<SharedLink>> {
        let by_node = self.by_node.borrow();
        let may_be_full = within.is_none() && self.connecting.borrow().contains_key(&node.serial);
        let is_fresh = |shared: &&Rc<SharedConnection>| {
            within.is_none_or(|within| shared.streams.get() > 0 || shared.used.get().elapsed() < within)
        };
        let open = by_node.get(&node.serial)?.iter().filter(|shared| shared.sender.is_ready()).filter(is_fresh);
        let least = open.min_by_key(|shared| shared.streams.get())?;
        (may_be_full || least.streams.get() < least.allowance.get()).then(|| SharedLink::on(least))
    }

    /// Waits for the connection that another request makes to the node just now, within the connect timeout; `false`
    /// where there is none.
    pub(crate) async fn wait(&self, node: &NodeRuntime, timeout: Duration) -> bool {
        let told = self.connecting.borrow().get(&node.serial).cloned();
        let Some(told) = told else { return false };
        match timeout.is_zero() {
            true => told.notified().await,
            // It is looked for all the same.
            false => drop(tokio::time::timeout(timeout, told.notified()).await),
        }
        true
    }

    /// Returns a stream on a new connection.
    pub(crate) async fn connect(
        &self,
        node: &Arc<NodeRuntime>,
        endpoint: &Endpoint,
        timeout: Duration,
    ) -> Result<Box<SharedLink>, UpstreamError> {
        let told: Rc<Notify> = Rc::default();
        self.connecting.borrow_mut().insert(node.serial, Rc::clone(&told));
        let _connecting = Connecting { links: self, serial: node.serial, told };
        let listener: Rc<Cell<Option<Waker>>> = Rc::default();
        let connecting = async {
            let stream = endpoint.connect().await.map_err(|(failure, _)| failure)?;
            if stream.is_tls() && stream.alpn_protocol() != Some(b"h2") {
                return Err(UpstreamError::TlsProtocol);
            }
            let mut builder = Builder::new(OnThisThread);
            builder
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEADER_LIST)
                .initial_max_send_streams(UNKNOWN)
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_TIMEOUT);
            let stream = Heard { stream, listener: Rc::clone(&listener) };
            builder.handshake(TokioIo::new(stream)).await.map_err(|_| UpstreamError::Terminated)
        };
        let (sender, connection) = match timeout.is_zero() {
            true => connecting.await?,
            false => tokio::time::timeout(timeout, connecting).await.map_err(|_| UpstreamError::ConnectTimeout)??,
        };
        let allowance: Rc<Allowance> = Rc::default();
        let allowed = Rc::clone(&allowance);
        tokio::task::spawn_local(async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|cx| {
                let ended = connection.as_mut().poll(cx);
                allowed.note(connection.as_ref().get_ref().current_max_send_streams());
                // Another task reads the connection, and tells this one nothing of SETTINGS.
                if allowed.most.get().is_none() {
                    listener.set(Some(cx.waker().clone()));
                }
                ended
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a connection to a node ended");
            }
            allowed.told.notify_waiters();
        });
        let shared = Rc::new(SharedConnection {
            sender,
            streams: Cell::new(0),
            allowance,
            used: Cell::new(Instant::now()),
            idle: Cell::new(false),
            node: Arc::clone(node),
        });
        self.by_node.borrow_mut().entry(node.serial).or_default().push(Rc::clone(&shared));
        Ok(SharedLink::on(&shared))
    }

    /// Closes connections without requests that were unused for their pool's idle timeout, and those to removed nodes.
    /// Called about once a second.
    pub(crate) fn sweep(&self, now: Instant, idle_timeout: impl Fn(u64) -> Option<Duration>) {
        self.by_node.borrow_mut().retain(|&serial, all| {
            let limit = idle_timeout(serial);
            all.retain(|shared| {
                let is_used = shared.streams.get() > 0 || limit.is_some_and(|limit| now < shared.used.get() + limit);
                !shared.sender.is_closed() && limit.is_some() && is_used
            });
            !all.is_empty()
        });
    }
}

impl SharedConnection {
    /// A request has ended.
    fn leave(&self) {
        let streams = self.streams.get() - 1;
        self.streams.set(streams);
        self.used.set(Instant::now());
        self.rest(streams == 0);
    }

    fn rest(&self, rests: bool) {
        if self.idle.replace(rests) != rests {
            match rests {
                true => self.node.idle.fetch_add(1, Ordering::Relaxed),
                false => self.node.idle.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }
}

impl Drop for SharedConnection {
    fn drop(&mut self) {
        self.rest(false);
    }
}

impl SharedLink {
    fn on(shared: &Rc<SharedConnection>) -> Box<SharedLink> {
        shared.streams.set(shared.streams.get() + 1);
        shared.rest(false);
        let timer = Box::pin(tokio::time::sleep(Duration::from_secs(3600)));
        Box::new(SharedLink {
            shared: Rc::clone(shared),
            permit: None,
            incoming: None,
            last_activity: Instant::now(),
            timer,
        })
    }

    /// Returns whether the request is sent at once, after the node has said how many streams it allows; waited for as
    /// long as `timeout`, or without end where that is zero. hyper holds back what is beyond them: a claim would grow
    /// old there unseen.
    pub(super) async fn admission(&self, timeout: Duration) -> Admission {
        let Allowance { most, told } = &*self.shared.allowance;
        let timeout = if timeout.is_zero() { Duration::MAX } else { timeout };
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let next = told.notified();
            match most.get() {
                Some(most) if most >= self.shared.streams.get() => return Admission::Admitted,
                Some(1..) => return Admission::Full,
                // What is sent on it comes back unsent.
                _ if self.shared.sender.is_closed() => return Admission::Admitted,
                _ => {}
            }
            match deadline {
                None => next.await,
                Some(deadline) if tokio::time::timeout_at(deadline.into(), next).await.is_err() => {
                    return Admission::Unknown;
                }
                Some(_) => {}
            }
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        &mut self,
        endpoint: &Endpoint,
        request: &mut Option<Request<Outgoing>>,
        limits: AttemptLimits,
        is_new: bool,
        waits_for_client: impl Fn() -> bool,
    ) -> SendResult {
        let Some(mut taken) = request.take() else { return SendResult::NotSent(UpstreamError::RequestBody) };
        let plain = (taken.uri().clone(), taken.headers().clone());
        let (method, is_bare) = (taken.method().clone(), matches!(taken.body(), Outgoing::Empty));
        if dress(&mut taken, endpoint).is_none() {
            return SendResult::NotSent(UpstreamError::RequestBody);
        }
        if !is_bare {
            let permit = self.permit.get_or_insert_with(|| Rc::new(StreamPermit(Rc::clone(&self.shared))));
            let body = std::mem::replace(taken.body_mut(), Outgoing::Empty);
            *taken.body_mut() = Outgoing::Stream(Box::pin(PermittedBody { body, _permit: Rc::clone(permit) }));
        }
        self.last_activity = limits.started;
        let mut sender = self.shared.sender.clone();
        let mut answer = pin!(sender.try_send_request(taken));
        let result = poll_fn(|cx| {
            if let Poll::Ready(result) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            if waits_for_client() {
                self.last_activity = Instant::now();
            }
            match self.is_late(cx, limits.first_byte, limits.until) {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        })
        .await;
        self.last_activity = if result.is_some() { Instant::now() } else { self.last_activity };
        match result {
            Some(Ok(answer)) => {
                let (head, incoming) = answer.into_parts();
                self.incoming = Some(incoming);
                SendResult::Answer(Response::from_parts(head, ()))
            }
            Some(Err(mut error)) => {
                if let Some(mut unsent) = error.take_message() {
                    (*unsent.uri_mut(), *unsent.headers_mut()) = plain;
                    *request = Some(unsent);
                    return SendResult::NotSent(UpstreamError::Terminated);
                }
                if is_bare {
                    // All of it is still here.
                    let mut again = Request::new(Outgoing::Empty);
                    *again.method_mut() = method;
                    (*again.uri_mut(), *again.headers_mut()) = plain;
                    *request = Some(again);
                }
                match ended(error.error()) {
                    Ended::Refused => SendResult::Unprocessed { is_refusal: true },
                    Ended::BeyondGoaway => SendResult::Unprocessed { is_refusal: false },
                    Ended::Connection if !is_new => SendResult::Stale(UpstreamError::Terminated),
                    Ended::Connection | Ended::Stream => SendResult::SentNoAnswer(UpstreamError::Terminated),
                }
            }
            None => SendResult::SentNoAnswer(UpstreamError::Timeout),
        }
    }

    /// Returns the time of the node's last activity on this request.
    pub(crate) fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// Returns the next part of the answer's body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.incoming.as_mut().map_or(Poll::Ready(None), |incoming| Pin::new(incoming).poll_frame(cx))
    }

    /// Returns whether all of the answer's body was read.
    pub(super) fn is_over(&self) -> bool {
        self.incoming.as_ref().is_some_and(Incoming::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }

    /// Notes an activity of the node.
    pub(super) fn note_activity(&mut self) {
        self.last_activity = Instant::now();
    }

    /// Returns whether nothing arrived for `limit`, or `until` has passed. The task is woken at that time.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, limit: Duration, until: Option<Instant>) -> bool {
        super::link::is_late(&mut self.timer, cx, self.last_activity, limit, until)
    }
}

impl Drop for SharedLink {
    fn drop(&mut self) {
        if self.permit.is_none() {
            self.shared.leave();
        }
    }
}

/// A permit for a stream of a connection, returned when the response and the request's body are both dropped.
struct StreamPermit(Rc<SharedConnection>);

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A request's body with its permit.
struct PermittedBody {
    body: Outgoing,
    _permit: Rc<StreamPermit>,
}

impl Body for PermittedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The end of a stream without a response.
enum Ended {
    /// The node has refused it: it did not begin with the request (RFC 9113 8.7).
    Refused,
    /// It is beyond the last stream of the node's GOAWAY, which means the same.
    BeyondGoaway,
    /// Its connection has ended.
    Connection,
    Stream,
}

fn ended(error: &hyper::Error) -> Ended {
    let cause = std::error::Error::source(error);
    // hyper takes an error of the connection's socket out of that of h2.
    if cause.is_some_and(<dyn std::error::Error>::is::<std::io::Error>) {
        return Ended::Connection;
    }
    match cause.and_then(|cause| cause.downcast_ref::<h2::Error>()) {
        Some(cause) if cause.is_remote() && cause.reason() == Some(h2::Reason::REFUSED_STREAM) => Ended::Refused,
        Some(cause) if cause.is_go_away() && cause.is_remote() => Ended::BeyondGoaway,
        _ => Ended::Stream,
    }
}

/// Rewrites a request for HTTP/2: the host in the target, and no connection-specific field (RFC 9113 8.2.2).
fn dress(request: &mut Request<Outgoing>, endpoint: &Endpoint) -> Option<()> {
    let host = request.headers_mut().remove(HOST);
    let authority = match host.as_ref().map(HeaderValue::as_bytes) {
        Some(host) => Authority::try_from(host).ok()?,
        None => Authority::try_from(endpoint.address.to_string()).ok()?,
    };
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let scheme = if endpoint.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    *request.uri_mut() = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()?;
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().remove(TRANSFER_ENCODING);
    *request.version_mut() = Version::HTTP_2;
    Some(())
}
