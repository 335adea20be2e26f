//! A body that its readers read while it arrives, each at its own pace.

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

/// A body that turns out too large keeps this much for its readers. The slowest of those that cannot go on by
/// themselves sets the pace; the others that are far behind it leave, and fetch the rest on their own.
const WINDOW: u64 = 4 << 20;

/// The same where all bodies together take too much.
pub(crate) const SMALL_WINDOW: u64 = 64 << 10;

/// The memory of a piece beside its bytes.
const PIECE_OVERHEAD: u64 = 64;

/// The part of the store's memory that bodies may take while they arrive.
const SHARE: u64 = 4;

/// A response whose body is arriving.
pub(crate) struct StreamingBody {
    pub(crate) head: SharedResponse,
    /// The length that the node has announced.
    pub(crate) length: Option<u64>,
    largest: u64,
    /// The memory of all arriving bodies.
    all: Arc<AtomicU64>,
    flow: Mutex<Flow>,
}

struct Flow {
    /// The pieces that have arrived; the front is missing where the body has outgrown the store.
    pieces: VecDeque<Bytes>,
    /// The number of missing pieces.
    dropped: usize,
    /// What is held here, as it counts towards the bounds.
    held: u64,
    /// For what is held here, of what the process may hold.
    share: Share,
    received: u64,
    /// What all pieces have cost so far, those that are missing included.
    cost: u64,
    end: Option<BodyEnd>,
    /// It will not be stored.
    outgrown: bool,
    /// It never could be, whatever else arrives.
    too_large: bool,
    readers: Vec<Option<ReaderPosition>>,
    /// Waits for readers that are behind.
    producer: Option<Waker>,
}

enum BodyEnd {
    Whole,
    /// Whole, and joined; the pieces are gone.
    Stored(Body),
    Broken,
}

/// Where a reader is.
struct ReaderPosition {
    piece: usize,
    /// Bytes before that piece.
    read: u64,
    leave: Leave,
    left: Option<Unfinished>,
    /// Waits to hear that it should leave.
    traits: Option<Waker>,
    /// For how long others have waited for it, and the bytes that it has taken since they began to.
    waited: Duration,
    taken: u64,
    waker: Option<Waker>,
}

impl Flow {
    /// Drops what every reader has read. Gives what that frees.
    fn drop_read(&mut self) -> u64 {
        let slowest = self.keeping_up().map(|place| place.piece).min().unwrap_or(usize::MAX);
        let before = self.held;
        while self.dropped < slowest
            && let Some(piece) = self.pieces.pop_front()
        {
            self.dropped += 1;
            self.held -= cost(&piece);
        }
        before - self.held
    }

    fn keeping_up(&self) -> impl Iterator<Item = &ReaderPosition> {
        self.readers.iter().flatten().filter(|place| place.left.is_none())
    }

    /// Asks those to leave who hold up others and can go on by themselves: who are behind by half of what is held, or,
    /// where nothing more may be, by anything.
    fn leave_behind(&mut self, is_spent: bool) {
        let Some(first) = self.keeping_up().map(|place| place.piece).max() else { return };
        let half = if is_spent { first } else { self.dropped + self.pieces.len() / 2 };
        if first <= half && !is_spent {
            return;
        }
        let is_behind =
            |place: &&mut ReaderPosition| place.left.is_none() && place.leave == Leave::Can && place.piece < half;
        for place in self.readers.iter_mut().flatten().filter(is_behind) {
            place.leave = Leave::Asked;
            if let Some(traits) = place.traits.take() {
                traits.wake();
            }
        }
    }

    /// Notes for how long the slowest readers were waited for, and cuts those that are slower than they may be.
    fn waited(&mut self, time: Duration, least: LeastRate) {
        let Some(slowest) = self.keeping_up().map(|place| place.piece).min() else { return };
        // No other reader waits for the only one.
        if self.keeping_up().nth(1).is_none() {
            return;
        }
        let is_slowest = |place: &&mut ReaderPosition| place.left.is_none() && place.piece == slowest;
        for place in self.readers.iter_mut().flatten().filter(is_slowest) {
            if place.waited.is_zero() {
                place.taken = 0;
            }
            place.waited += time;
            let counted = place.waited.saturating_sub(least.grace);
            if u128::from(place.taken) * 1000 < u128::from(least.bytes) * counted.as_millis() {
                place.leave(Unfinished::TooSlow);
            }
        }
    }

    fn wake_readers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().flatten().filter_map(|place| place.waker.take()).collect()
    }
}

/// The ways in which a reader that is left behind gets the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// It cannot: others wait for it.
    Cannot,
    Can,
    /// It has been asked to, and keeps its place until it has what it needs.
    Asked,
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

/// Whether the source of a body should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    GoOn,
    /// No client reads, and nothing is stored.
    Stop,
}

impl StreamingBody {
    /// `all` counts what all bodies take that arrive in the store, `share` this one's part of what the process may
    /// hold.
    pub(super) fn new(
        head: Stored,
        length: Option<u64>,
        largest: u64,
        (all, share): (&Arc<AtomicU64>, Share),
    ) -> StreamingBody {
        let flow = Flow {
            pieces: VecDeque::new(),
            dropped: 0,
            held: 0,
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

    /// Adds what has arrived. It is copied once, so that no large buffer is kept for a small piece.
    pub(super) fn push(&self, piece: &[u8], memory: u64) {
        let wakers = {
            let mut flow = self.flow.lock();
            let cost = cost(piece);
            flow.received += piece.len() as u64;
            flow.cost += cost;
            flow.held += cost;
            let growing = self.all.fetch_add(cost, Ordering::Relaxed) + cost;
            flow.pieces.push_back(Bytes::copy_from_slice(piece));
            let is_too_much = growing > memory / SHARE + self.largest;
            let held = flow.held;
            let fits = flow.share.cover(held);
            flow.too_large = flow.received > self.largest || flow.cost > 2 * self.largest + WINDOW;
            if flow.too_large || is_too_much || !fits {
                flow.outgrown = true;
            }
            flow.wake_readers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until there is room for more.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>, memory: u64) -> Poll<Pace> {
        let mut flow = self.flow.lock();
        if !flow.outgrown {
            return Poll::Ready(Pace::GoOn);
        }
        let is_crowded = self.all.load(Ordering::Relaxed) > memory / SHARE;
        let freed = flow.drop_read();
        let held = flow.held;
        flow.share.shrink(held);
        let is_spent = !flow.share.cover(held);
        let window = match !is_spent {
            // Over what the process may hold, one piece at a time passes.
            false => 1,
            true if is_crowded => SMALL_WINDOW,
            true => WINDOW,
        };
        if flow.held >= window {
            flow.leave_behind(is_spent);
        }
        self.all.fetch_sub(freed, Ordering::Relaxed);
        if flow.keeping_up().next().is_none() {
            return Poll::Ready(Pace::Stop);
        }
        if flow.held < window {
            return Poll::Ready(Pace::GoOn);
        }
        flow.producer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Notes for how long its slowest readers were waited for; see [`LeastRate`].
    pub(super) fn waited(&self, time: Duration, least: LeastRate) {
        self.flow.lock().waited(time, least);
    }

    /// Returns whether the body will not be stored.
    pub(super) fn is_outgrown(&self) -> bool {
        self.flow.lock().outgrown
    }

    /// Returns whether that is so because of its size alone.
    pub(super) fn is_too_large(&self) -> bool {
        self.flow.lock().too_large
    }

    /// The body is whole, or it never will be. Gives the body, where it can be stored.
    pub(super) fn end(&self, whole: bool) -> Option<Body> {
        let pieces = {
            let flow = self.flow.lock();
            if flow.end.is_some() {
                return None;
            }
            let whole = whole && self.length.is_none_or(|length| length == flow.received);
            (whole && !flow.outgrown).then(|| flow.pieces.clone())
        };
        // Joined outside the lock; readers go on meanwhile.
        let body = pieces.map(|pieces| Body::of(pieces.into_iter()));
        let wakers = {
            let mut flow = self.flow.lock();
            let whole = whole && self.length.is_none_or(|length| length == flow.received);
            flow.end = Some(match &body {
                Some(body) => {
                    self.all.fetch_sub(std::mem::take(&mut flow.held), Ordering::Relaxed);
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

    /// Begins to read, from the start. `None` where the start is gone already.
    pub(crate) fn read(self: &Arc<Self>) -> Option<StreamingReader> {
        let mut flow = self.flow.lock();
        if flow.outgrown {
            return None;
        }
        let place = ReaderPosition {
            piece: 0,
            read: 0,
            leave: Leave::Cannot,
            left: None,
            traits: None,
            waited: Duration::ZERO,
            taken: 0,
            waker: None,
        };
        let index = match flow.readers.iter().position(Option::is_none) {
            Some(free) => {
                flow.readers[free] = Some(place);
                free
            }
            None => {
                flow.readers.push(Some(place));
                flow.readers.len() - 1
            }
        };
        drop(flow);
        Some(StreamingReader { growing: Arc::clone(self), index, read: 0 })
    }
}

impl Drop for StreamingBody {
    fn drop(&mut self) {
        let flow = self.flow.lock();
        self.all.fetch_sub(flow.held, Ordering::Relaxed);
    }
}

/// Reads a growing body at its own pace.
pub(crate) struct StreamingReader {
    growing: Arc<StreamingBody>,
    index: usize,
    /// Bytes that were read.
    read: u64,
}

/// Why a reader gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// The body ended before its time.
    Truncated,
    /// Others are far ahead, and it has said that it can fetch the rest by itself.
    Behind,
    /// It was slower than it may be, and others waited for it.
    TooSlow,
}

impl StreamingReader {
    /// Returns the next piece; `None` at the end.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Unfinished>>> {
        let mut flow = self.growing.flow.lock();
        if let Some(BodyEnd::Stored(body)) = &flow.end {
            let piece = body.piece(self.read, body.len());
            self.read += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            return Poll::Ready(piece.map(Ok));
        }
        let Some(place) = &flow.readers[self.index] else { return Poll::Ready(None) };
        if let Some(why) = place.left {
            return Poll::Ready(Some(Err(why)));
        }
        let at = place.piece - flow.dropped;
        let Some(piece) = flow.pieces.get(at).cloned() else {
            return match flow.end {
                Some(BodyEnd::Whole | BodyEnd::Stored(_)) => Poll::Ready(None),
                Some(BodyEnd::Broken) => Poll::Ready(Some(Err(Unfinished::Truncated))),
                None => {
                    if let Some(place) = &mut flow.readers[self.index] {
                        place.waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            };
        };
        self.read += piece.len() as u64;
        if let Some(place) = &mut flow.readers[self.index] {
            place.piece += 1;
            place.read += piece.len() as u64;
            place.taken += piece.len() as u64;
        }
        let producer = flow.producer.take();
        drop(flow);
        if let Some(producer) = producer {
            producer.wake();
        }
        Poll::Ready(Some(Ok(piece)))
    }

    pub(crate) fn growing(&self) -> &Arc<StreamingBody> {
        &self.growing
    }

    /// The way of this reader to leave the others, where it can fetch the rest by itself.
    pub(crate) fn departure(&self) -> Departure {
        if let Some(place) = &mut self.growing.flow.lock().readers[self.index] {
            place.leave = Leave::Can;
        }
        Departure { growing: Arc::clone(&self.growing), index: self.index }
    }

    /// Bytes that were read so far.
    pub(crate) fn position(&self) -> u64 {
        self.read
    }
}

/// A handle by which a reader leaves others that are far ahead of it. Must not be used once the reader is gone.
pub(crate) struct Departure {
    growing: Arc<StreamingBody>,
    index: usize,
}

impl Departure {
    /// Waits until the reader is asked to leave.
    pub(crate) fn poll_asked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.growing.flow.lock().readers[self.index] {
            Some(place) if place.leave == Leave::Asked => Poll::Ready(()),
            Some(place) => {
                place.traits = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    /// The position of the next byte that the reader takes.
    pub(crate) fn position(&self) -> u64 {
        match &self.growing.flow.lock().readers[self.index] {
            Some(place) => place.read,
            None => 0,
        }
    }

    /// Gives up the reader's place: it has what it needs.
    pub(crate) fn leave(self) {
        self.end(|place| place.leave(Unfinished::Behind));
    }

    /// Keeps the reader's place: others wait for it from now on.
    pub(crate) fn stay(self) {
        self.end(|place| place.leave = Leave::Cannot);
    }

    fn end(self, change: impl FnOnce(&mut ReaderPosition)) {
        let producer = {
            let mut flow = self.growing.flow.lock();
            if let Some(place) = &mut flow.readers[self.index] {
                change(place);
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
            let mut flow = self.growing.flow.lock();
            flow.readers[self.index] = None;
            flow.producer.take()
        };
        if let Some(producer) = producer {
            producer.wake();
        }
    }
}
