//! A body that several readers read while it arrives, each at its own rate.

use super::body::Body;
use super::least_rate::LeastRate;
use super::object::{SharedResponse, Stored};
use crate::http::budget::Share;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The bytes of a body too large for the store that are buffered for its readers. The slowest reader that cannot fetch
/// the rest by itself limits the rate; other readers that are far behind leave, and fetch the rest by a range request.
const WINDOW: u64 = 4 << 20;

/// The window while all streaming bodies together exceed their share of memory.
pub(crate) const SMALL_WINDOW: u64 = 64 << 10;

/// The memory of a piece besides its bytes.
const PIECE_OVERHEAD: u64 = 64;

/// Streaming bodies may take the memory of the store divided by this.
const SHARE: u64 = 4;

/// A response whose body is arriving.
pub(crate) struct StreamingBody {
    pub(crate) head: SharedResponse,
    /// The length that the node has announced.
    pub(crate) length: Option<u64>,
    largest: u64,
    /// The memory of all streaming bodies, in bytes.
    all: Arc<AtomicU64>,
    flow: Mutex<Flow>,
}

struct Flow {
    /// The buffered pieces. Once the body has outgrown the store, pieces that all readers have read are dropped.
    pieces: VecDeque<Bytes>,
    /// The number of dropped pieces.
    dropped: usize,
    /// The memory of the buffered pieces, with their overhead.
    buffered: u64,
    /// The part of the budget of the process that the buffered pieces take.
    share: Share,
    received: u64,
    /// The memory of all pieces so far, including the dropped ones.
    cost: u64,
    end: Option<BodyEnd>,
    /// It will not be stored.
    outgrown: bool,
    /// The body is larger than the largest stored one.
    too_large: bool,
    readers: Vec<Option<ReaderPosition>>,
    /// The waker of the fetch, which waits for readers that are behind.
    producer: Option<Waker>,
}

enum BodyEnd {
    Whole,
    /// Complete, and joined into a stored body.
    Stored(Body),
    Broken,
}

/// The position of a reader, and its waits.
struct ReaderPosition {
    piece: usize,
    /// Bytes before that piece.
    read: u64,
    leave: Leave,
    left: Option<Unfinished>,
    /// The waker of the task that fetches the rest when the reader is to leave.
    leave_waker: Option<Waker>,
    /// The time for which other readers have waited for it, and the bytes that it has read in that time.
    waited: Duration,
    taken: u64,
    waker: Option<Waker>,
}

impl Flow {
    /// Drops the pieces that every reader has read. Returns the freed memory.
    fn drop_read(&mut self) -> u64 {
        let slowest = self.keeping_up().map(|position| position.piece).min().unwrap_or(usize::MAX);
        let before = self.buffered;
        while self.dropped < slowest
            && let Some(piece) = self.pieces.pop_front()
        {
            self.dropped += 1;
            self.buffered -= cost(&piece);
        }
        before - self.buffered
    }

    fn keeping_up(&self) -> impl Iterator<Item = &ReaderPosition> {
        self.readers.iter().flatten().filter(|position| position.left.is_none())
    }

    /// Requests that slow readers leave which can fetch the rest by themselves: those that are behind by half of the
    /// window, or, where the budget is spent, behind the first reader at all.
    fn leave_behind(&mut self, is_spent: bool) {
        let Some(first) = self.keeping_up().map(|position| position.piece).max() else { return };
        let half = if is_spent { first } else { self.dropped + self.pieces.len() / 2 };
        if first <= half && !is_spent {
            return;
        }
        let is_behind = |position: &&mut ReaderPosition| {
            position.left.is_none() && position.leave == Leave::Can && position.piece < half
        };
        for position in self.readers.iter_mut().flatten().filter(is_behind) {
            position.leave = Leave::Requested;
            if let Some(leave_waker) = position.leave_waker.take() {
                leave_waker.wake();
            }
        }
    }

    /// Adds a wait to the slowest readers, and ends those that are slower than the least rate.
    fn waited(&mut self, time: Duration, least: LeastRate) {
        let Some(slowest) = self.keeping_up().map(|position| position.piece).min() else { return };
        // With a single reader no other one waits.
        if self.keeping_up().nth(1).is_none() {
            return;
        }
        let is_slowest = |position: &&mut ReaderPosition| position.left.is_none() && position.piece == slowest;
        for position in self.readers.iter_mut().flatten().filter(is_slowest) {
            if position.waited.is_zero() {
                position.taken = 0;
            }
            position.waited += time;
            let counted = position.waited.saturating_sub(least.grace);
            if u128::from(position.taken) * 1000 < u128::from(least.bytes) * counted.as_millis() {
                position.leave(Unfinished::TooSlow);
            }
        }
    }

    fn wake_readers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().flatten().filter_map(|position| position.waker.take()).collect()
    }
}

/// The ability of a reader to leave and fetch the rest by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// It cannot leave: other readers wait for it.
    Cannot,
    Can,
    /// It is to leave, and keeps its position until a node has agreed to send the rest.
    Requested,
}

impl ReaderPosition {
    fn leave(&mut self, why: Unfinished) {
        self.left = Some(why);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Returns the bytes that a piece takes in memory.
fn cost(piece: &[u8]) -> u64 {
    piece.len() as u64 + PIECE_OVERHEAD
}

/// The demand of readers and the store for more of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    More,
    /// None: the body has no reader and is not stored.
    Stop,
}

impl StreamingBody {
    /// `all` counts the memory of all streaming bodies; `share` is this body's part of the process's budget.
    pub(super) fn new(
        head: Stored,
        length: Option<u64>,
        largest: u64,
        (all, share): (&Arc<AtomicU64>, Share),
    ) -> StreamingBody {
        let flow = Flow {
            pieces: VecDeque::new(),
            dropped: 0,
            buffered: 0,
            share,
            received: 0,
            cost: 0,
            end: None,
            outgrown: false,
            too_large: false,
            readers: Vec::new(),
            producer: None,
        };
        StreamingBody { head: Arc::new(head), length, largest, all: Arc::clone(all), flow: Mutex::new(flow) }
    }

    /// Appends a piece. It is copied, so that a small piece does not keep a large read buffer alive.
    pub(super) fn push(&self, piece: &[u8], memory: u64) {
        let wakers = {
            let mut flow = self.flow.lock();
            let cost = cost(piece);
            flow.received += piece.len() as u64;
            flow.cost += cost;
            flow.buffered += cost;
            let arriving = self.all.fetch_add(cost, Ordering::Relaxed) + cost;
            flow.pieces.push_back(Bytes::copy_from_slice(piece));
            let is_too_much = arriving > memory / SHARE + self.largest;
            let buffered = flow.buffered;
            let fits = flow.share.cover(buffered);
            flow.too_large = flow.received > self.largest || flow.cost > 2 * self.largest + WINDOW;
            if flow.too_large || is_too_much || !fits {
                flow.outgrown = true;
            }
            flow.wake_readers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until there is room for more.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>, memory: u64) -> Poll<Demand> {
        let mut flow = self.flow.lock();
        if !flow.outgrown {
            return Poll::Ready(Demand::More);
        }
        let is_crowded = self.all.load(Ordering::Relaxed) > memory / SHARE;
        let freed = flow.drop_read();
        let buffered = flow.buffered;
        flow.share.shrink(buffered);
        let is_spent = !flow.share.cover(buffered);
        let window = match !is_spent {
            // With the budget of the process spent, one piece at a time is buffered.
            false => 1,
            true if is_crowded => SMALL_WINDOW,
            true => WINDOW,
        };
        if flow.buffered >= window {
            flow.leave_behind(is_spent);
        }
        self.all.fetch_sub(freed, Ordering::Relaxed);
        if flow.keeping_up().next().is_none() {
            return Poll::Ready(Demand::Stop);
        }
        if flow.buffered < window {
            return Poll::Ready(Demand::More);
        }
        flow.producer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Adds a wait to the slowest readers; see [`LeastRate`].
    pub(super) fn waited(&self, time: Duration, least: LeastRate) {
        self.flow.lock().waited(time, least);
    }

    /// Returns whether the body will not be stored.
    pub(super) fn is_outgrown(&self) -> bool {
        self.flow.lock().outgrown
    }

    /// Returns whether the body is larger than the largest stored one.
    pub(super) fn is_too_large(&self) -> bool {
        self.flow.lock().too_large
    }

    /// Ends the body: `whole` tells whether it is complete. Returns it where it can be stored.
    pub(super) fn end(&self, whole: bool) -> Option<Body> {
        let pieces = {
            let flow = self.flow.lock();
            if flow.end.is_some() {
                return None;
            }
            let whole = whole && self.length.is_none_or(|length| length == flow.received);
            (whole && !flow.outgrown).then(|| flow.pieces.clone())
        };
        // Joined outside the lock, so that readers continue meanwhile.
        let body = pieces.map(|pieces| Body::of(pieces.iter()));
        let wakers = {
            let mut flow = self.flow.lock();
            let whole = whole && self.length.is_none_or(|length| length == flow.received);
            flow.end = Some(match &body {
                Some(body) => {
                    self.all.fetch_sub(std::mem::take(&mut flow.buffered), Ordering::Relaxed);
                    flow.share.shrink(0);
                    flow.pieces.clear();
                    BodyEnd::Stored(body.clone())
                }
                None if whole => BodyEnd::Whole,
                None => BodyEnd::Broken,
            });
            flow.wake_readers()
        };
        wakers.into_iter().for_each(Waker::wake);
        body
    }

    /// Returns a reader from the start of the body; `None` where its start is dropped already.
    pub(crate) fn read(self: &Arc<Self>) -> Option<StreamingReader> {
        let mut flow = self.flow.lock();
        if flow.outgrown {
            return None;
        }
        let position = ReaderPosition {
            piece: 0,
            read: 0,
            leave: Leave::Cannot,
            left: None,
            leave_waker: None,
            waited: Duration::ZERO,
            taken: 0,
            waker: None,
        };
        let index = match flow.readers.iter().position(Option::is_none) {
            Some(free) => {
                flow.readers[free] = Some(position);
                free
            }
            None => {
                flow.readers.push(Some(position));
                flow.readers.len() - 1
            }
        };
        drop(flow);
        Some(StreamingReader { body: Arc::clone(self), index, read: 0 })
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        let flow = self.flow.lock();
        self.all.fetch_sub(flow.buffered, Ordering::Relaxed);
    }
}

/// A reader of a streaming body.
pub(crate) struct StreamingReader {
    body: Arc<StreamingBody>,
    index: usize,
    /// The number of bytes read.
    read: u64,
}

/// The reasons for which a reader ends before the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// The body ended before its announced length.
    Truncated,
    /// Other readers are far ahead, and this one fetches the rest by itself.
    Behind,
    /// It was slower than the least rate while other readers waited for it.
    TooSlow,
}

impl StreamingReader {
    /// Returns the next piece; `None` at the end.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Unfinished>>> {
        let mut flow = self.body.flow.lock();
        if let Some(BodyEnd::Stored(body)) = &flow.end {
            let piece = body.piece(self.read, body.len());
            self.read += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            return Poll::Ready(piece.map(Ok));
        }
        let Some(position) = &flow.readers[self.index] else { return Poll::Ready(None) };
        if let Some(why) = position.left {
            return Poll::Ready(Some(Err(why)));
        }
        let at = position.piece - flow.dropped;
        let Some(piece) = flow.pieces.get(at).cloned() else {
            return match flow.end {
                Some(BodyEnd::Whole | BodyEnd::Stored(_)) => Poll::Ready(None),
                Some(BodyEnd::Broken) => Poll::Ready(Some(Err(Unfinished::Truncated))),
                None => {
                    if let Some(position) = &mut flow.readers[self.index] {
                        position.waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            };
        };
        self.read += piece.len() as u64;
        if let Some(position) = &mut flow.readers[self.index] {
            position.piece += 1;
            position.read += piece.len() as u64;
            position.taken += piece.len() as u64;
        }
        let producer = flow.producer.take();
        drop(flow);
        if let Some(producer) = producer {
            producer.wake();
        }
        Poll::Ready(Some(Ok(piece)))
    }

    pub(crate) fn body(&self) -> &Arc<StreamingBody> {
        &self.body
    }

    /// Returns the handle by which this reader can leave and fetch the rest by itself.
    pub(crate) fn departure(&self) -> Departure {
        if let Some(position) = &mut self.body.flow.lock().readers[self.index] {
            position.leave = Leave::Can;
        }
        Departure { body: Arc::clone(&self.body), index: self.index }
    }

    /// Returns the number of bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.read
    }
}

/// A handle by which a reader leaves a body whose other readers are far ahead. It must not be used once the reader is
/// dropped.
pub(crate) struct Departure {
    body: Arc<StreamingBody>,
    index: usize,
}

impl Departure {
    /// Waits until the reader is to leave.
    pub(crate) fn poll_leave_request(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.body.flow.lock().readers[self.index] {
            Some(position) if position.leave == Leave::Requested => Poll::Ready(()),
            Some(position) => {
                position.leave_waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    /// Returns the position of the next byte that the reader takes.
    pub(crate) fn position(&self) -> u64 {
        match &self.body.flow.lock().readers[self.index] {
            Some(position) => position.read,
            None => 0,
        }
    }

    /// Ends the reader: the rest comes from its own range request.
    pub(crate) fn leave(self) {
        self.end(|position| position.leave(Unfinished::Behind));
    }

    /// Keeps the reader: other readers wait for it from now on.
    pub(crate) fn stay(self) {
        self.end(|position| position.leave = Leave::Cannot);
    }

    fn end(self, change: impl FnOnce(&mut ReaderPosition)) {
        let producer = {
            let mut flow = self.body.flow.lock();
            if let Some(position) = &mut flow.readers[self.index] {
                change(position);
            }
            flow.producer.take()
        };
        if let Some(producer) = producer {
            producer.wake();
        }
    }
}

impl Drop for StreamingReader {
    fn drop(&mut self) {
        let producer = {
            let mut flow = self.body.flow.lock();
            flow.readers[self.index] = None;
            flow.producer.take()
        };
        if let Some(producer) = producer {
            producer.wake();
        }
    }
}
