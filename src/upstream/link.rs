//! One connection to a node, and one request on it.
//!
//! A link is not a task: its user drives it, first for the answer's head and then, inside
//! [`AnswerBody`](super::AnswerBody), for the body. So a pass-through request wakes no task but that of its
//! own client's connection. An idle link is not driven; before it is used again the
//! socket is asked whether anything has happened.
//!
//! The request stays whole with its owner until the answer's head is here: where a kept connection turns out to be
//! stale, a request without a body goes to another one as it is. The messages are those of [`http1`](super::http1).

use super::connect::Endpoint;
use super::http1::content::{BadContent, Content, Part};
use super::http1::request::Output;
use super::http1::response::{Asked, BadHead, FinalHead, Head, HeadReader, MAX_HEAD};
use super::interim::Interim;
use super::{Outgoing, UpstreamError};
use crate::clock::{poll_again_by, poll_time};
use crate::io::Stream;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body as _, Frame};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::time::Sleep;

/// The least and the most that is read at once. It grows as long as reads fill it.
const MIN_READ: usize = 8 << 10;
const MAX_READ: usize = 64 << 10;

/// The most bytes of interim answers and empty lines before a final answer's head.
const MAX_BEFORE_HEAD: usize = 128 * MAX_HEAD;

/// So many pieces of a request are written before the answer is looked for, which may be there already.
const WRITES_A_TURN: usize = 16;

/// The result of one attempt.
pub(crate) enum SendResult {
    /// No byte of the request left this process: it may be tried elsewhere, whatever it is, if it
    /// has come back whole.
    NotSent(UpstreamError),
    /// The node has declared that it did not begin with the request: it may be tried again, whatever it is, if it is
    /// still all here. A node that refuses a stream is not well; one that says that it goes away may be.
    Unprocessed { is_refusal: bool },
    /// A connection that was kept from an earlier request has ended after the request was written, before any byte of
    /// an answer: the node may have run it.
    Stale(UpstreamError),
    /// Something was sent and no answer began: the node may have run it.
    SentNoAnswer(UpstreamError),
    /// The answer's head is here; its body comes over the link.
    Answer(Response<()>),
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
    stream: Stream,
    /// Bytes of the node that no message has taken yet.
    input: BytesMut,
    heads: HeadReader,
    /// The bytes that have arrived and stood before the final head.
    before_head: usize,
    read_size: usize,
    output: Output,
    /// The content of the request, as long as more of it comes.
    body: Outgoing,
    /// A part of the content was taken out of `body`.
    has_taken: bool,
    /// Bytes were given to the stream that it may still hold.
    must_flush: bool,
    /// A write has failed: the node has closed its side, or all of the connection.
    cannot_write: bool,
    /// The content of the answer that is still to come.
    content: Content,
    /// The node keeps the connection after this answer.
    persists: bool,
    /// No field of the answer's head is about the connection, and a length is told once.
    has_plain_head: bool,
    /// Something has come since the request began.
    has_received: bool,
    /// The number of bytes that the kernel has taken, over all requests.
    sent: u64,
    last_activity: Instant,
    /// Armed lazily: it may fire early, and is then set to the deadline that holds by then.
    timer: Pin<Box<Sleep>>,
}

impl Link {
    /// Connects to a node.
    pub(crate) async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Box<Link>, UpstreamError> {
        let connecting = endpoint.connect();
        let connected = match timeout.is_zero() {
            true => connecting.await,
            false => tokio::time::timeout(timeout, connecting).await.map_err(|_| UpstreamError::ConnectTimeout)?,
        };
        let stream = connected.map_err(|(failure, error)| {
            tracing::debug!(error, address = %endpoint.address, "no connection to a node");
            failure
        })?;
        Ok(Box::new(Link::over(stream)))
    }

    fn over(stream: Stream) -> Link {
        let now = Instant::now();
        Link {
            stream,
            input: BytesMut::new(),
            heads: HeadReader::default(),
            before_head: 0,
            read_size: MIN_READ,
            output: Output::default(),
            body: Outgoing::Empty,
            has_taken: false,
            must_flush: false,
            cannot_write: false,
            content: Content::NONE,
            persists: true,
            has_plain_head: false,
            has_received: false,
            sent: 0,
            last_activity: now,
            timer: Box::pin(tokio::time::sleep_until((now + Duration::from_secs(3600)).into())),
        }
    }

    /// Sends a request and waits for the head of its answer. The request is taken once that is here; where there is
    /// none, it stays only if all of it is still there and it may go out again. Interim answers are told as they come,
    /// if anybody wants them. `waits_for_client` tells whether the request's body is what holds things up.
    pub(crate) async fn send(
        &mut self,
        request: &mut Option<Request<Outgoing>>,
        limits: AttemptLimits,
        on_interim: Option<impl Fn(Interim)>,
        waits_for_client: impl Fn() -> bool,
    ) -> SendResult {
        let Some(asked) = request.as_mut() else { return SendResult::NotSent(UpstreamError::RequestBody) };
        // A node that speaks before it is asked does not answer.
        if self.sent == 0 && !self.is_quiet() {
            return SendResult::NotSent(UpstreamError::Terminated);
        }
        let sent_before = self.sent;
        self.begin(asked, limits.started);
        let is_bare = self.output.is_whole();
        let wanted = Asked { is_head: asked.method() == Method::HEAD, wants_interim: on_interim.is_some() };
        let fields = asked.headers_mut();
        let result = poll_fn(|cx| {
            loop {
                match self.poll_head(cx, wanted, fields) {
                    Poll::Ready(Ok(Head::Final(head))) => return Poll::Ready(Ok(head)),
                    Poll::Ready(Ok(Head::Interim(interim))) => {
                        if let (Some(tell), Some(interim)) = (&on_interim, interim) {
                            tell(interim);
                        }
                    }
                    Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                    Poll::Pending => {
                        // A node is not slow as long as the client is.
                        let first_byte = if waits_for_client() { Duration::ZERO } else { limits.first_byte };
                        return match self.is_late(cx, first_byte, limits.until) {
                            true => Poll::Ready(Err(UpstreamError::Timeout)),
                            false => Poll::Pending,
                        };
                    }
                }
            }
        })
        .await;
        let failure = match result {
            Ok(head) => return SendResult::Answer(self.answer(head, std::mem::take(fields), request)),
            Err(failure) => failure,
        };
        if self.sent == sent_before {
            self.give_back(request, is_bare);
            return SendResult::NotSent(failure);
        }
        if sent_before > 0 && failure == UpstreamError::Terminated && !self.has_received {
            request.take_if(|_| !is_bare);
            return SendResult::Stale(failure);
        }
        *request = None;
        SendResult::SentNoAnswer(failure)
    }

    /// Writes the head of a request to the output, and takes its content over.
    fn begin(&mut self, request: &mut Request<Outgoing>, started: Instant) {
        let body = std::mem::replace(request.body_mut(), Outgoing::Empty);
        let content = (!body.is_end_stream()).then(|| body.size_hint().exact());
        self.output.begin(request.method(), request.uri(), request.headers(), content);
        self.body = if content.is_some() { body } else { Outgoing::Empty };
        (self.has_taken, self.has_received, self.last_activity) = (false, false, started);
        self.before_head = 0;
    }

    /// Gives the content of a request back of which nothing was sent; none of the request where a part of it is gone.
    fn give_back(&mut self, request: &mut Option<Request<Outgoing>>, is_bare: bool) {
        if self.has_received || (!is_bare && self.has_taken) {
            *request = None;
        }
        if let Some(request) = request {
            *request.body_mut() = std::mem::replace(&mut self.body, Outgoing::Empty);
        }
    }

    /// Returns an answer whose head is here.
    fn answer(&mut self, head: FinalHead, fields: HeaderMap, request: &mut Option<Request<Outgoing>>) -> Response<()> {
        *request = None;
        (self.content, self.persists, self.has_plain_head) = (head.content, head.persists, head.is_plain);
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = fields;
        if let Some(reason) = head.reason {
            response.extensions_mut().insert(reason);
        }
        response
    }

    /// Writes as much of the request as it can, and reads the answer to the end of a head. The fields of a final one
    /// are put into `fields`.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
        fields: &mut HeaderMap,
    ) -> Poll<Result<Head, UpstreamError>> {
        if self.poll_request(cx).is_err() {
            return Poll::Ready(Err(UpstreamError::RequestBody));
        }
        loop {
            let before = self.input.len();
            let taken = self.heads.take(&mut self.input, asked, fields);
            self.before_head += before - self.input.len();
            match taken {
                Ok(None | Some(Head::Interim(_))) if self.before_head > MAX_BEFORE_HEAD => {
                    return Poll::Ready(Err(UpstreamError::HeadTooLarge));
                }
                Ok(None) => {}
                Ok(Some(head)) => {
                    // What has come with the head is refused with it, and not in the middle of the answer.
                    if let Head::Final(head) = &head
                        && head.content.check(&self.input).is_err()
                    {
                        return Poll::Ready(Err(UpstreamError::Malformed));
                    }
                    return Poll::Ready(Ok(head));
                }
                Err(BadHead::Malformed) => return Poll::Ready(Err(UpstreamError::Malformed)),
                Err(BadHead::TooLarge) => return Poll::Ready(Err(UpstreamError::HeadTooLarge)),
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(UpstreamError::Terminated)),
                Ok(_) => {}
            }
        }
    }

    /// Returns the next part of the answer's content, writing the rest of the request meanwhile.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BadContent>>> {
        loop {
            match self.content.take(&mut self.input) {
                Ok(Part::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Part::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Part::End) => return Poll::Ready(None),
                Ok(Part::Missing) => {}
                Err(bad) => return Poll::Ready(Some(Err(bad))),
            }
            if self.poll_request(cx).is_err() {
                return Poll::Ready(Some(Err(BadContent)));
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) => {
                    if let Err(bad) = self.content.end() {
                        return Poll::Ready(Some(Err(bad)));
                    }
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(Some(Err(BadContent))),
            }
        }
    }

    /// Returns whether no field of the answer's head is about the connection, and a length is told once at most.
    pub(super) fn has_plain_head(&self) -> bool {
        self.has_plain_head
    }

    /// Returns whether the answer's content is over.
    pub(super) fn is_over(&self) -> bool {
        self.content.is_over()
    }

    /// Returns the number of bytes of the answer's content that are still to come, where it is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.content.left()
    }

    /// Writes what it can of the request. An error where its content has failed.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), BadBody> {
        if self.cannot_write || (self.output.is_empty() && self.output.is_whole() && !self.must_flush) {
            return Ok(());
        }
        for _ in 0..WRITES_A_TURN {
            self.poll_body(cx)?;
            let result = match self.output.is_empty() {
                false => self.poll_write(cx),
                true if self.must_flush => {
                    Pin::new(&mut self.stream).poll_flush(cx).map_ok(|()| self.must_flush = false)
                }
                true => return Ok(()),
            };
            match result {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                // What the node has said before it closed is its answer: a 413, for one (RFC 9112 9.5). What is read
                // from now on says how the exchange ends.
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "a node takes no more of a request");
                    self.cannot_write = true;
                    return Ok(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Frames what there is of the request's content, as far as there is room for it.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<(), BadBody> {
        while !self.output.is_whole() && self.output.has_room() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Ok(()) };
            self.has_taken = true;
            match frame {
                None => self.output.finish(None).map_err(|_| BadBody)?,
                Some(Err(_)) => return Err(BadBody),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.output.add(data, self.body.is_end_stream()).map_err(|_| BadBody)?,
                    Err(frame) => self.output.finish(frame.trailers_ref()).map_err(|_| BadBody)?,
                },
            }
            if self.output.is_whole() {
                self.body = Outgoing::Empty;
            }
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (pieces, count) = self.output.pieces();
        let length = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &pieces[..count]))?;
        if length == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.output.wrote(length);
        self.must_flush = self.stream.is_tls();
        self.sent += length as u64;
        self.last_activity = poll_time();
        Poll::Ready(Ok(()))
    }

    /// Reads what there is. Returns how much, 0 at the end of the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(self.read_size);
        let result = ready!(pin!(self.stream.read_buf(&mut self.input)).poll(cx));
        self.last_activity = poll_time();
        if let Ok(length) = result {
            self.has_received |= length > 0;
            self.read_size = match length {
                _ if length >= self.read_size => (2 * self.read_size).min(MAX_READ),
                _ if length < self.read_size / 4 => (self.read_size / 2).max(MIN_READ),
                _ => self.read_size,
            };
        }
        Poll::Ready(result)
    }

    /// Returns whether the link could take another request at once.
    pub(super) fn is_reusable(&self) -> bool {
        let is_sent = self.output.is_whole() && self.output.is_empty() && !self.must_flush && !self.cannot_write;
        self.persists && is_sent && self.content.is_over() && self.input.is_empty()
    }

    /// Gives memory back that large answers have taken.
    pub(super) fn rest(&mut self) {
        if self.read_size > MIN_READ || self.input.capacity() > 2 * MIN_READ {
            (self.input, self.read_size) = (BytesMut::new(), MIN_READ);
        }
    }

    /// Returns whether nothing has arrived on an idle link: no end, no error, no byte out of turn.
    ///
    /// What the reactor has not heard of by now came after the request that wants the link; only
    /// where it has heard of something, or does not know, is the kernel asked. What TLS says to itself,
    /// a session ticket for one, is no answer.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.stream.is_quiet()
    }

    /// Returns how many bytes the kernel has taken, over all requests.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// When bytes last moved on the link.
    pub(crate) fn last_activity(&self) -> Instant {
        self.last_activity
    }

    /// Returns whether nothing moved for `limit`, or `until` has passed. The task is woken when it is so.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>, limit: Duration, until: Option<Instant>) -> bool {
        is_late(&mut self.timer, cx, self.last_activity, limit, until)
    }

    /// Takes the socket out of a link whose node has answered 101; `None` where the request is not all sent.
    pub(crate) fn into_switched(mut self) -> Option<Stream> {
        if !self.output.is_whole() || !self.output.is_empty() || self.must_flush || self.cannot_write {
            return None;
        }
        self.stream.unread(&self.input);
        Some(self.stream)
    }
}

/// The content of a request has failed, or does not have the length that was announced.
struct BadBody;

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
    if poll_again_by(deadline) {
        return poll_time() >= deadline;
    }
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

#[cfg(test)]
mod tests;
