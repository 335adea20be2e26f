//! One connection to a node, and one request on it.
//!
//! A link is not a task: its user drives it, first for the answer's head and then, inside
//! [`AnswerBody`](super::AnswerBody), for the body. So a pass-through request wakes no task but that of its
//! own client's connection. An idle link is not driven; before it is used again the
//! socket is asked whether anything has happened.

use super::connect::Endpoint;
use super::interim::{Interim, Scanner};
use super::retry::is_idempotent;
use super::{Failure, NodeBody, Outgoing};
use crate::io::{Framing, Messages, Stream};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// The largest head of an answer, and the most of a body that is read at once. hyper takes up to 100
/// fields; to allow more would cost an allocation of 16 KiB an answer.
const MAX_BUFFER: usize = 64 << 10;

/// The result of one attempt.
pub(crate) enum SendResult {
    /// No byte of the request left this process: it may be tried elsewhere, whatever it is, if it
    /// has come back whole.
    NotSent(Failure),
    /// The node has declared that it did not begin with the request: it may be tried again, whatever it is, if it is
    /// still all here. A node that refuses a stream is not well; one that says that it goes away may be.
    Unprocessed { is_refusal: bool },
    /// A connection that was kept from an earlier request has ended after the request was written, before any byte of
    /// an answer: the node may have run it.
    Stale(Failure),
    /// Something was sent and no answer began: the node may have run it.
    SentNoAnswer(Failure),
    /// The answer's head is here; its body comes over the link.
    Answer(Response<NodeBody>),
}

/// The time limits of an attempt.
#[derive(Clone, Copy)]
pub(crate) struct AttemptLimits {
    /// When the attempt began.
    pub(crate) started: Instant,
    /// From the last byte sent to the answer's head; zero for ever.
    pub(crate) first_byte: Duration,
    /// The end of the whole request.
    pub(crate) until: Option<Instant>,
}

/// A connection to a node.
pub(crate) struct Link {
    sender: SendRequest<Outgoing>,
    /// Gone only once it has ended and its last request was asked back.
    connection: Option<Connection<TokioIo<Wire>, Outgoing>>,
    /// hyper has ended the connection; it must not be polled again.
    closed: bool,
    socket: Rc<Socket>,
    /// Armed lazily: it may fire early, and is then set to the deadline that holds by then.
    timer: Pin<Box<Sleep>>,
}

/// The state of a connection that hyper's I/O and its owner share.
struct Socket {
    stream: RefCell<Stream>,
    sent: Cell<u64>,
    last_activity: Cell<Instant>,
    interim: RefCell<Scanner>,
    /// Where responses begin and end; what is not framed as it should be is not given to hyper.
    messages: RefCell<Messages>,
    /// A write has failed: the node has closed its side, or all of the connection.
    cannot_write: Cell<bool>,
    /// Something has come since the request began.
    has_received: Cell<bool>,
    /// What was written of a request without a body that may be sent once more, as long as nothing has come back.
    written: RefCell<Written>,
}

/// The memory that a connection keeps for them between two requests.
const KEPT: usize = 4 << 10;

/// The bytes of a request as they went out. hyper takes a request apart as it writes it; to copy its fields before
/// would cost more than to read these again in the rare case.
#[derive(Default)]
struct Written {
    is_kept: bool,
    bytes: Vec<u8>,
}

impl Written {
    fn begin(&mut self, is_kept: bool) {
        self.is_kept = is_kept;
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.is_kept {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The request that these bytes are, where they are a whole one.
    fn request(&self) -> Option<Request<Outgoing>> {
        let head = self.bytes.strip_suffix(b"\r\n\r\n")?;
        let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let mut words = lines.next()?.split(|&byte| byte == b' ');
        let mut request = Request::new(Outgoing::Empty);
        *request.method_mut() = Method::from_bytes(words.next()?).ok()?;
        *request.uri_mut() = Uri::try_from(words.next()?).ok()?;
        for line in lines {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            request.headers_mut().append(name, value);
        }
        Some(request)
    }
}

impl Link {
    /// Connects to a node.
    pub(crate) async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Box<Link>, Failure> {
        let connecting = endpoint.connect();
        let connected = match timeout.is_zero() {
            true => connecting.await,
            false => tokio::time::timeout(timeout, connecting).await.map_err(|_| Failure::ConnectTimeout)?,
        };
        let stream = connected.map_err(|(failure, error)| {
            tracing::debug!(error, address = %endpoint.address, "no connection to a node");
            failure
        })?;
        let now = Instant::now();
        let socket = Rc::new(Socket {
            stream: RefCell::new(stream),
            sent: Cell::new(0),
            last_activity: Cell::new(now),
            interim: RefCell::default(),
            messages: RefCell::new(Messages::responses()),
            cannot_write: Cell::new(false),
            has_received: Cell::new(false),
            written: RefCell::default(),
        });
        let io = TokioIo::new(Wire(Rc::clone(&socket)));
        let (sender, connection) =
            Builder::new().max_buf_size(MAX_BUFFER).handshake(io).await.map_err(|_| Failure::Terminated)?;
        let timer = Box::pin(tokio::time::sleep_until((now + Duration::from_secs(3600)).into()));
        Ok(Box::new(Link { sender, connection: Some(connection), closed: false, socket, timer }))
    }

    /// Sends a request and waits for the head of its answer, driving the connection meanwhile. The
    /// request is taken, and put back where hyper did not take it apart. Interim answers are told
    /// as they come, if anybody wants them. `waits_for_client` tells whether the request's body is
    /// what holds things up.
    pub(crate) async fn send(
        &mut self,
        request: &mut Option<Request<Outgoing>>,
        limits: AttemptLimits,
        on_interim: Option<impl Fn(Interim)>,
        waits_for_client: impl Fn() -> bool,
    ) -> SendResult {
        let Some(taken) = request.take() else { return SendResult::NotSent(Failure::RequestBody) };
        let sent_before = self.socket.sent.get();
        // Sent before, it is kept from an earlier request.
        let may_repeat = sent_before > 0 && is_idempotent(taken.method()) && matches!(taken.body(), Outgoing::Empty);
        self.socket.written.borrow_mut().begin(may_repeat);
        self.socket.has_received.set(false);
        self.socket.last_activity.set(limits.started);
        if on_interim.is_some() {
            self.socket.interim.borrow_mut().begin();
        }
        let mut answer = pin!(self.sender.try_send_request(taken));
        let result = poll_fn(|cx| {
            self.drive(cx);
            if let Some(tell) = &on_interim {
                let found = self.socket.interim.borrow_mut().take();
                found.into_iter().for_each(tell);
            }
            match answer.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending if self.closed => Poll::Ready(None),
                Poll::Pending => {
                    // A node is not slow as long as the client is.
                    let first_byte = if waits_for_client() { Duration::ZERO } else { limits.first_byte };
                    match self.is_late(cx, first_byte, limits.until) {
                        true => Poll::Ready(None),
                        false => Poll::Pending,
                    }
                }
            }
        })
        .await;

        let failure = match result {
            Some(Ok(head)) => {
                let framing = Framing::of(head.headers(), head.body());
                return match self.socket.messages.borrow_mut().framed(framing) {
                    Ok(()) => SendResult::Answer(head),
                    Err(_) => SendResult::SentNoAnswer(Failure::Malformed),
                };
            }
            Some(Err(mut error)) => {
                *request = error.take_message();
                failure_of(error.error())
            }
            None if self.closed => {
                // Dropping the connection hands back a request that it never looked at.
                self.connection = None;
                if let Err(mut error) = answer.await {
                    *request = error.take_message();
                }
                Failure::Terminated
            }
            None => Failure::Timeout,
        };
        match () {
            () if self.socket.sent.get() == sent_before => SendResult::NotSent(failure),
            () if sent_before > 0 && failure == Failure::Terminated && !self.socket.has_received.get() => {
                if request.is_none() {
                    *request = self.socket.written.borrow().request();
                }
                SendResult::Stale(failure)
            }
            () => SendResult::SentNoAnswer(failure),
        }
    }

    /// Lets hyper read and write what it can.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.closed
            && let Some(connection) = &mut self.connection
        {
            self.closed = connection.poll_without_shutdown(cx).is_ready();
        }
    }

    /// Returns whether the link could take another request at once.
    pub(super) fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.closed && !self.sender.is_ready() {
            self.drive(cx);
        }
        !self.closed && self.sender.is_ready()
    }

    /// Returns whether nothing has arrived on an idle link: no end, no error, no byte out of turn.
    ///
    /// What the reactor has not heard of by now came after the request that wants the link; only
    /// where it has heard of something, or does not know, is the kernel asked. What TLS says to itself,
    /// a session ticket for one, is no answer.
    pub(super) fn is_quiet(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.socket.stream.borrow_mut().poll_peek(&mut cx).is_pending()
    }

    /// Returns how many bytes the kernel has taken, over all requests.
    pub(crate) fn sent(&self) -> u64 {
        self.socket.sent.get()
    }

    /// When bytes last moved on the link.
    pub(crate) fn last_activity(&self) -> Instant {
        self.socket.last_activity.get()
    }

    /// Returns whether nothing moved for `limit`, or `until` has passed. The task is woken when it is so.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, limit: Duration, until: Option<Instant>) -> bool {
        let last = self.last_activity();
        is_late(&mut self.timer, cx, last, limit, until)
    }

    /// Takes the socket out of a link whose node has answered 101.
    pub(crate) async fn into_switched(mut self: Box<Self>) -> Option<Stream> {
        poll_fn(|cx| {
            self.drive(cx);
            if self.closed { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let Link { sender, connection, socket, .. } = *self;
        drop(sender);
        let parts = connection?.into_parts();
        drop(parts.io);
        let mut stream = Rc::into_inner(socket)?.stream.into_inner();
        stream.unread(&parts.read_buf);
        Some(stream)
    }
}

/// Returns whether nothing moved for `limit` since `last`, or `until` has passed. The task is woken when it is so.
pub(super) fn is_late(
    timer: &mut Pin<Box<Sleep>>,
    cx: &mut Context<'_>,
    last: Instant,
    limit: Duration,
    until: Option<Instant>,
) -> bool {
    let stalled = (!limit.is_zero()).then(|| last + limit);
    let Some(deadline) = stalled.into_iter().chain(until).min() else { return false };
    loop {
        if timer.deadline().into_std() > deadline {
            timer.as_mut().reset(deadline.into());
        }
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        if Instant::now() >= deadline {
            return true;
        }
        timer.as_mut().reset(deadline.into());
    }
}

fn failure_of(error: &hyper::Error) -> Failure {
    match () {
        () if error.is_user() => Failure::RequestBody,
        () if error.is_parse_too_large() => Failure::HeadTooLarge,
        () if error.is_parse() => Failure::Malformed,
        () => Failure::Terminated,
    }
}

/// The socket beneath hyper: it counts what the kernel took, for that is what may have been read.
///
/// A write that fails is not told to hyper, which would forget what the node has said before it closed: a 413, for one
/// (RFC 9112 9.5). Writes wait from then on, and what hyper reads says how the exchange ends.
struct Wire(Rc<Socket>);

impl Wire {
    /// Has a write that has failed wait.
    fn survive<T>(&self, result: Poll<io::Result<T>>, cx: &Context<'_>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a node takes no more of a request");
                // hyper reads before it writes.
                if !self.0.cannot_write.replace(true) {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            result => result,
        }
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>, bufs: &[io::IoSlice<'_>]) {
        if let Poll::Ready(Ok(bytes)) = result {
            let mut left = *bytes;
            let mut written = self.0.written.borrow_mut();
            for buf in bufs {
                let taken = left.min(buf.len());
                written.add(&buf[..taken]);
                left -= taken;
            }
            self.0.sent.set(self.0.sent.get() + *bytes as u64);
            self.0.last_activity.set(Instant::now());
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buf);
        if result.is_ready() {
            self.0.last_activity.set(Instant::now());
            if buf.filled().len() > before {
                self.0.has_received.set(true);
                if self.0.messages.borrow_mut().read(&buf.filled()[before..]).is_err() {
                    buf.set_filled(before);
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::InvalidData)));
                }
            }
            self.0.interim.borrow_mut().see(&buf.filled()[before..]);
        }
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.cannot_write.get() {
            return Poll::Pending;
        }
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, buf);
        self.wrote(&result, &[io::IoSlice::new(buf)]);
        self.survive(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.0.cannot_write.get() {
            return Poll::Pending;
        }
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, bufs);
        self.wrote(&result, bufs);
        self.survive(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.cannot_write.get() {
            return Poll::Pending;
        }
        let result = Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx);
        self.survive(result, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}
