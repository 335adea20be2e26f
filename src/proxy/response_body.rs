//! The body of a response, as the downstream connection reads it.

use super::exchange::Exchange;
use crate::cache::{Body, Reader, Run, StreamingReader, Unfinished};
use crate::http::budget::Share;
use crate::http::buffered_body::BufferedBody;
use crate::upstream::{AnswerBody, Broken};
use bytes::{Buf as _, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::task::AbortHandle;

/// The most of a stored body that HTTP/1 gets at once.
const RUN: usize = 1 << 20;

/// The same for a stream of HTTP/2, whose window lets it through piece by piece.
const STREAM_RUN: usize = 256 << 10;

/// The body of a response. Its end is the end of the exchange.
pub(crate) struct ResponseBody {
    kind: BodyKind,
    /// The share of the budget for buffers that this response takes.
    _held: Option<Share>,
    /// The error that ended the body. It is returned one poll later, as hyper drops unflushed bytes when a body fails.
    broken: Option<Broken>,
    exchange: Rc<Exchange>,
}

enum BodyKind {
    Empty,
    Full(Run),
    Stored(Box<Reader>),
    Arriving(Box<Passage>),
    Answer(Box<AnswerBody>),
    Whole(Box<BufferedBody>),
    /// The beginning, which was read already, and the rest.
    Rest(Box<(BufferedBody, AnswerBody)>),
}

/// The part of a streaming body that one client gets.
pub(crate) struct Passage {
    source: PassageSource,
    /// The means to fetch the rest, for a reader that leaves the streaming body.
    rest: Option<Rest>,
    /// The number of bytes before the requested part.
    skip: u64,
    /// The number of bytes of the part that are left, where it is known.
    left: Option<u64>,
}

enum PassageSource {
    Shared(StreamingReader),
    Own(Box<OwnRest>),
}

/// The rest of a response from a position on, which one reader has fetched for itself.
pub(super) struct OwnRest {
    pub(super) body: AnswerBody,
    /// The position of the next byte.
    pub(super) at: u64,
    /// The end of the body and the length of the complete response, where they are known.
    pub(super) end: Option<u64>,
    pub(super) whole: Option<u64>,
}

/// The rest for one reader, which a task of its own fetches, independent of the rate of its client.
pub(super) struct Rest {
    pub(super) fetched: Rc<RefCell<Option<OwnRest>>>,
    /// Fetches the bytes that are missing after it.
    pub(super) more: MoreRest,
    pub(super) pending: Option<RestFuture>,
    pub(super) task: AbortHandle,
}

/// A function that fetches a response from a position on; `None` where that is not possible any more.
pub(super) type MoreRest = Box<dyn Fn(u64) -> RestFuture>;
pub(super) type RestFuture = Pin<Box<dyn Future<Output = Option<OwnRest>>>>;

impl Drop for Rest {
    fn drop(&mut self) {
        // The reader is gone, so the rest is not needed.
        self.task.abort();
    }
}

/// The reasons for which a body ends early.
enum Interrupted {
    ByNode(Broken),
    /// The client was slower than the least rate while other readers waited for it.
    TooSlow,
}

impl Passage {
    /// Returns the passage of a complete body.
    pub(super) fn whole(reader: StreamingReader, rest: Option<Rest>) -> Passage {
        let left = reader.body().length;
        Passage { source: PassageSource::Shared(reader), rest, skip: 0, left }
    }

    /// Returns the passage of a part, from one position up to another.
    pub(super) fn part(reader: StreamingReader, rest: Option<Rest>, (from, end): (u64, u64)) -> Passage {
        Passage { source: PassageSource::Shared(reader), rest, skip: from, left: Some(end - from) }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        while self.left != Some(0) {
            let mut piece = match ready!(self.poll_piece(cx)) {
                Some(Ok(piece)) => piece,
                Some(Err(interrupted)) => return Poll::Ready(Some(Err(interrupted))),
                None => return Poll::Ready(None),
            };
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            piece = piece.split_off(skipped as usize);
            if let Some(left) = &mut self.left {
                piece.truncate((*left).min(piece.len() as u64) as usize);
                *left -= piece.len() as u64;
            }
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    /// Returns the next piece, from either source.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Interrupted>>> {
        let broken = |broken| Poll::Ready(Some(Err(Interrupted::ByNode(broken))));
        loop {
            match &mut self.source {
                PassageSource::Shared(reader) => match ready!(reader.poll_piece(cx)) {
                    Some(Ok(piece)) => return Poll::Ready(Some(Ok(piece))),
                    None => return Poll::Ready(None),
                    Some(Err(Unfinished::TooSlow)) => return Poll::Ready(Some(Err(Interrupted::TooSlow))),
                    Some(Err(Unfinished::Truncated)) => return broken(Broken::Incomplete),
                    Some(Err(Unfinished::Behind)) => {
                        let (rest, at) = (self.rest.as_ref(), reader.position());
                        let Some(own) = rest.and_then(|rest| rest.fetched.borrow_mut().take()) else {
                            return broken(Broken::Incomplete);
                        };
                        // The reader continued while the rest was fetched.
                        self.skip += at - own.at;
                        self.source = PassageSource::Own(Box::new(own));
                    }
                },
                PassageSource::Own(own) => {
                    if let Some(pending) = self.rest.as_mut().and_then(|rest| rest.pending.as_mut()) {
                        let found = ready!(pending.as_mut().poll(cx));
                        if let Some(rest) = &mut self.rest {
                            rest.pending = None;
                        }
                        let Some(next) = found.filter(|next| next.at <= own.at) else {
                            return broken(Broken::Incomplete);
                        };
                        self.skip += own.at - next.at;
                        **own = next;
                    }
                    match ready!(Pin::new(&mut own.body).poll_frame(cx)) {
                        Some(Ok(frame)) => {
                            // Trailers are not passed, as they are not stored.
                            let Ok(data) = frame.into_data() else { continue };
                            own.at += data.len() as u64;
                            return Poll::Ready(Some(Ok(data)));
                        }
                        Some(Err(error)) => return broken(error),
                        None if own.end.is_some_and(|end| end != own.at) => return broken(Broken::Incomplete),
                        None if own.whole.is_none_or(|whole| whole == own.at) => return Poll::Ready(None),
                        // A node may send less than the requested range (RFC 9110 15.3.7).
                        None => match &mut self.rest {
                            Some(rest) => rest.pending = Some((rest.more)(own.at)),
                            None => return broken(Broken::Incomplete),
                        },
                    }
                }
            }
        }
    }
}

impl ResponseBody {
    /// Returns the body of a node's response.
    pub(crate) fn answer(body: AnswerBody, exchange: &Rc<Exchange>) -> ResponseBody {
        let kind = if body.is_end_stream() { BodyKind::Empty } else { BodyKind::Answer(Box::new(body)) };
        ResponseBody::new(kind, exchange)
    }

    /// Returns a stored body: what is written at once, or one that is longer.
    pub(super) fn stored(body: Result<Run, Body>, exchange: &Rc<Exchange>) -> ResponseBody {
        match body {
            Ok(run) => ResponseBody::run(run, exchange),
            Err(long) => ResponseBody::parts(Reader::whole(long), exchange),
        }
    }

    /// Returns parts of a stored body.
    pub(super) fn parts(reader: Reader, exchange: &Rc<Exchange>) -> ResponseBody {
        ResponseBody::new(BodyKind::Stored(Box::new(reader)), exchange)
    }

    /// Returns the body of a passage.
    pub(super) fn arriving(passage: Passage, exchange: &Rc<Exchange>) -> ResponseBody {
        ResponseBody::new(BodyKind::Arriving(Box::new(passage)), exchange)
    }

    /// Returns a body in memory, with its share of the budget for buffers.
    pub(super) fn whole(whole: BufferedBody, share: Option<Share>, exchange: &Rc<Exchange>) -> ResponseBody {
        let kind = if whole.is_over() { BodyKind::Empty } else { BodyKind::Whole(Box::new(whole)) };
        ResponseBody::new(kind, exchange).holding(share)
    }

    /// Returns the beginning of a node's response, which was read already, and the rest of it.
    pub(super) fn rest(beginning: Bytes, rest: AnswerBody, share: Share, exchange: &Rc<Exchange>) -> ResponseBody {
        let beginning = BufferedBody::new(beginning, None);
        ResponseBody::new(BodyKind::Rest(Box::new((beginning, rest))), exchange).holding(Some(share))
    }

    fn holding(mut self, share: Option<Share>) -> ResponseBody {
        self._held = share;
        self
    }

    /// Drops the body, as for a HEAD: over HTTP/2 hyper would send it.
    pub(super) fn leave_out(&mut self) {
        self.kind = BodyKind::Empty;
        self.exchange.ended("completed");
    }

    pub(crate) fn empty(exchange: &Rc<Exchange>) -> ResponseBody {
        ResponseBody::new(BodyKind::Empty, exchange)
    }

    pub(super) fn full(bytes: Bytes, exchange: &Rc<Exchange>) -> ResponseBody {
        ResponseBody::run(Run::One(bytes), exchange)
    }

    fn run(run: Run, exchange: &Rc<Exchange>) -> ResponseBody {
        ResponseBody::new(if run.has_remaining() { BodyKind::Full(run) } else { BodyKind::Empty }, exchange)
    }

    fn new(kind: BodyKind, exchange: &Rc<Exchange>) -> ResponseBody {
        if matches!(kind, BodyKind::Empty) {
            exchange.ended("completed");
        }
        ResponseBody { kind, _held: None, broken: None, exchange: Rc::clone(exchange) }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.exchange.left();
    }
}

impl http_body::Body for ResponseBody {
    type Data = Run;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Run>, Broken>>> {
        let this = &mut *self;
        if let Some(broken) = this.broken {
            return Poll::Ready(Some(Err(broken)));
        }
        this.exchange.offer(false);
        let is_from_node = match &this.kind {
            BodyKind::Answer(_) | BodyKind::Rest(_) => true,
            BodyKind::Arriving(passage) => matches!(passage.source, PassageSource::Own(_)),
            BodyKind::Empty | BodyKind::Full(_) | BodyKind::Stored(_) | BodyKind::Whole(_) => false,
        };
        if is_from_node {
            ready!(this.exchange.poll_room(cx));
        }
        let from_node = |frame: Option<Result<Frame<Bytes>, Broken>>| {
            frame.map(|frame| frame.map(|frame| frame.map_data(Run::One)))
        };
        let frame = match &mut this.kind {
            BodyKind::Empty => None,
            BodyKind::Full(run) => Some(Ok(Frame::data(std::mem::take(run)))),
            BodyKind::Stored(reader) => {
                let most = if this.exchange.is_on_stream() { STREAM_RUN } else { RUN };
                reader.next_run(most).map(|run| Ok(Frame::data(run)))
            }
            BodyKind::Arriving(passage) => match ready!(passage.poll_frame(cx)) {
                None => None,
                Some(Ok(frame)) => Some(Ok(frame.map_data(Run::One))),
                Some(Err(Interrupted::ByNode(broken))) => Some(Err(broken)),
                Some(Err(Interrupted::TooSlow)) => {
                    this.exchange.too_slow();
                    Some(Err(Broken::Stalled))
                }
            },
            BodyKind::Answer(body) => from_node(ready!(Pin::new(&mut **body).poll_frame(cx))),
            BodyKind::Whole(whole) => from_node(whole.next()),
            BodyKind::Rest(parts) => match parts.0.next() {
                None => from_node(ready!(Pin::new(&mut parts.1).poll_frame(cx))),
                piece => from_node(piece),
            },
        };
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.remaining() as u64);
                this.exchange.response_bytes.set(this.exchange.response_bytes.get() + length);
                this.exchange.gave(length);
            }
            Some(Err(broken)) => {
                this.exchange.broke_off();
                tracing::debug!(%broken, "an answer was cut short");
                this.broken = Some(*broken);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            None => this.exchange.ended("completed"),
        }
        if this.is_end_stream() {
            this.exchange.ended("completed");
        }
        this.exchange.offer(matches!(frame, Some(Ok(_))));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Empty => true,
            BodyKind::Full(run) => !run.has_remaining(),
            BodyKind::Stored(reader) => reader.left() == 0,
            BodyKind::Arriving(passage) => passage.left == Some(0),
            BodyKind::Answer(body) => body.is_end_stream(),
            BodyKind::Whole(whole) => whole.is_over(),
            BodyKind::Rest(parts) => parts.0.is_over() && parts.1.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Full(run) => SizeHint::with_exact(run.remaining() as u64),
            BodyKind::Stored(reader) => SizeHint::with_exact(reader.left()),
            BodyKind::Arriving(passage) => passage.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            BodyKind::Answer(body) => body.size_hint(),
            BodyKind::Whole(whole) => whole.length().map_or_else(SizeHint::default, SizeHint::with_exact),
            BodyKind::Rest(parts) => match parts.1.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(rest + parts.0.data.len() as u64),
                None => SizeHint::default(),
            },
        }
    }
}
