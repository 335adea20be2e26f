//! One fetch for all who want the same thing (collapsed forwarding), and the body that grows while
//! they read it.
//!
//! Who comes first leads: a task of its own fetches, whoever of the readers stays or leaves. The
//! others wait until the lead knows what it has, and then all go on at once: to read the growing
//! body, to take what a validation has confirmed, or, where the response is for one only, each to
//! the node by itself.

use super::body::Body;
use super::key::Key;
use super::object::{Shared, Stored};
use super::store::Begun;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Locks that fetches of different keys rarely share.
const SHARDS: usize = 16;

/// A body that turns out too large keeps this much for its readers; the slowest then sets the pace.
const WINDOW: u64 = 1 << 20;

/// The fetches that run.
#[derive(Default)]
pub(super) struct Fills {
    shards: [Mutex<HashMap<Key, Arc<Fill>>>; SHARDS],
    /// Bytes of bodies that are growing.
    growing: AtomicU64,
}

/// One fetch, as those who wait for it see it.
pub(crate) struct Fill {
    pub(super) uri: String,
    pub(super) epoch: u64,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    waiting: Vec<Waker>,
}

#[derive(Clone)]
enum Stage {
    Fetching,
    Known(Outcome),
}

/// What a fetch has come to, for those who waited.
#[derive(Clone)]
pub(crate) enum Outcome {
    /// A response whose body is arriving.
    Growing(Arc<Growing>),
    /// A stored response that the node has confirmed.
    Confirmed(Shared),
    /// A stale response that stands in for a node that failed.
    StandIn(Shared),
    /// Nothing that could be shared.
    Released,
}

/// What becomes of a request that comes while a key is, or is not, being fetched.
pub(crate) enum Joined {
    Lead(Lead),
    Wait(Arc<Fill>),
}

/// The right and the duty to fetch. Dropped without an outcome, it releases those who wait.
pub(crate) struct Lead {
    fills: Arc<Fills>,
    /// The group that it leads.
    pub(super) key: Key,
    /// The group that its response turned out to be for.
    narrower: Option<Key>,
    pub(super) fill: Arc<Fill>,
    pub(crate) begun: Begun,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fills {
    fn shard(&self, key: Key) -> MutexGuard<'_, HashMap<Key, Arc<Fill>>> {
        lock(&self.shards[(key.bits() >> 64) as usize % SHARDS])
    }

    /// Waits with the fetch that runs, unless it has become useless; leads otherwise.
    pub(super) fn join(
        self: &Arc<Self>,
        key: Key,
        uri: &str,
        begin: impl FnOnce() -> Begun,
        is_useless: impl FnOnce(&Fill) -> bool,
    ) -> Joined {
        let mut shard = self.shard(key);
        if let Some(fill) = shard.get(&key)
            && !is_useless(fill)
        {
            return Joined::Wait(Arc::clone(fill));
        }
        let lead = self.solo(uri, key, begin());
        shard.insert(key, Arc::clone(&lead.fill));
        Joined::Lead(lead)
    }

    /// Leads without anybody who could wait.
    pub(super) fn solo(self: &Arc<Self>, uri: &str, key: Key, begun: Begun) -> Lead {
        let state = Mutex::new(State { stage: Stage::Fetching, waiting: Vec::new() });
        let fill = Arc::new(Fill { uri: uri.to_owned(), epoch: begun.epoch, state });
        Lead { fills: Arc::clone(self), key, narrower: None, fill, begun }
    }

    /// Whether a key is being fetched.
    pub(super) fn is_running(&self, key: Key) -> bool {
        self.shard(key).contains_key(&key)
    }
}

impl Fill {
    /// Waits until the lead knows what it has.
    pub(crate) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = lock(&self.state);
        match &state.stage {
            Stage::Known(outcome) => Poll::Ready(outcome.clone()),
            Stage::Fetching => {
                if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    state.waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// The tags of what is arriving, for purges.
    pub(super) fn with_tags<T>(&self, read: impl FnOnce(&[u64]) -> T) -> T {
        let stage = lock(&self.state).stage.clone();
        match stage {
            Stage::Known(Outcome::Growing(growing)) => read(&growing.head.tags),
            _ => read(&[]),
        }
    }

    fn tell(&self, outcome: Outcome) {
        let waiting = {
            let mut state = lock(&self.state);
            if matches!(state.stage, Stage::Known(_)) {
                return;
            }
            state.stage = Stage::Known(outcome);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Lead {
    /// Lets go all who wait, at once.
    pub(crate) fn settle(self, outcome: Outcome) {
        self.leave();
        self.fill.tell(outcome);
    }

    /// Lets all read the body as it arrives. Whoever comes later joins them. Where the response
    /// cannot be shared as it is, those who wait are released instead.
    pub(super) fn grow(&self, head: Stored, length: Option<u64>, largest: u64, is_shared: bool) -> Arc<Growing> {
        let growing = Arc::new(Growing {
            head: Arc::new(head),
            length,
            largest,
            fills: Arc::clone(&self.fills),
            flow: Mutex::default(),
        });
        match is_shared {
            true => self.fill.tell(Outcome::Growing(Arc::clone(&growing))),
            false => {
                self.leave();
                self.fill.tell(Outcome::Released);
            }
        }
        growing
    }

    /// Lets those of a narrower group join it too.
    pub(super) fn answer_to(&mut self, narrower: Key) {
        if narrower != self.key {
            self.fills.shard(narrower).entry(narrower).or_insert_with(|| Arc::clone(&self.fill));
            self.narrower = Some(narrower);
        }
    }

    /// Takes the fetch out of the table; nobody joins any more.
    pub(super) fn leave(&self) {
        for key in std::iter::once(self.key).chain(self.narrower) {
            let mut shard = self.fills.shard(key);
            if shard.get(&key).is_some_and(|fill| Arc::ptr_eq(fill, &self.fill)) {
                shard.remove(&key);
            }
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.leave();
        self.fill.tell(Outcome::Released);
    }
}

/// A response whose body is arriving.
pub(crate) struct Growing {
    pub(crate) head: Shared,
    /// The length that the node has announced.
    pub(crate) length: Option<u64>,
    largest: u64,
    fills: Arc<Fills>,
    flow: Mutex<Flow>,
}

#[derive(Default)]
struct Flow {
    /// What has arrived; the front is missing where the body has outgrown the store.
    pieces: VecDeque<Bytes>,
    /// How many pieces are missing, and how many bytes.
    dropped: (usize, u64),
    received: u64,
    end: Option<End>,
    /// It will not be stored.
    outgrown: bool,
    readers: Vec<Option<Place>>,
    /// Waits for readers that are behind.
    producer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// Where a reader is.
struct Place {
    piece: usize,
    waker: Option<Waker>,
}

impl Flow {
    /// Drops what every reader has read.
    fn drop_read(&mut self) {
        let slowest = self.readers.iter().flatten().map(|place| place.piece).min().unwrap_or(usize::MAX);
        while self.dropped.0 < slowest
            && let Some(piece) = self.pieces.pop_front()
        {
            self.dropped = (self.dropped.0 + 1, self.dropped.1 + piece.len() as u64);
        }
    }

    fn wake_readers(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().flatten().filter_map(|place| place.waker.take()).collect()
    }
}

/// Whether the source of a body should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    GoOn,
    /// Nobody reads and nothing is stored.
    Stop,
}

impl Growing {
    /// Adds what has arrived. It is copied once, so that no large buffer is kept for a small piece.
    pub(crate) fn push(&self, piece: &[u8], memory: u64) {
        let wakers = {
            let mut flow = lock(&self.flow);
            flow.received += piece.len() as u64;
            let growing = self.fills.growing.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
            flow.pieces.push_back(Bytes::copy_from_slice(piece));
            if flow.received > self.largest || growing > memory {
                flow.outgrown = true;
            }
            flow.wake_readers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until there is room for more.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Pace> {
        let mut flow = lock(&self.flow);
        if !flow.outgrown {
            return Poll::Ready(Pace::GoOn);
        }
        let before = flow.dropped.1;
        flow.drop_read();
        self.fills.growing.fetch_sub(flow.dropped.1 - before, Ordering::Relaxed);
        if flow.readers.iter().flatten().next().is_none() {
            return Poll::Ready(Pace::Stop);
        }
        if flow.received - flow.dropped.1 < WINDOW {
            return Poll::Ready(Pace::GoOn);
        }
        flow.producer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether the body is too large for the store.
    pub(super) fn is_outgrown(&self) -> bool {
        lock(&self.flow).outgrown
    }

    /// The body is whole, or it never will be. Gives the body, where it can be stored.
    pub(crate) fn end(&self, whole: bool) -> Option<Body> {
        let (wakers, pieces) = {
            let mut flow = lock(&self.flow);
            let whole = whole && self.length.is_none_or(|length| length == flow.received);
            flow.end = Some(if whole { End::Whole } else { End::Broken });
            let keep = whole && !flow.outgrown;
            (flow.wake_readers(), keep.then(|| flow.pieces.clone()))
        };
        wakers.into_iter().for_each(Waker::wake);
        pieces.map(|pieces| Body::of(pieces.into_iter()))
    }

    /// Begins to read, from the start. `None` where the start is gone already.
    pub(crate) fn read(self: &Arc<Self>) -> Option<GrowingReader> {
        let mut flow = lock(&self.flow);
        if flow.outgrown {
            return None;
        }
        let place = Place { piece: 0, waker: None };
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
        Some(GrowingReader { growing: Arc::clone(self), index })
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let flow = lock(&self.flow);
        self.fills.growing.fetch_sub(flow.received - flow.dropped.1, Ordering::Relaxed);
    }
}

/// Reads a growing body at its own pace.
pub(crate) struct GrowingReader {
    growing: Arc<Growing>,
    index: usize,
}

/// The body ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncated;

impl GrowingReader {
    /// The next piece; `None` at the end.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Truncated>>> {
        let mut flow = lock(&self.growing.flow);
        let Some(place) = &flow.readers[self.index] else { return Poll::Ready(None) };
        let at = place.piece - flow.dropped.0;
        match flow.pieces.get(at).cloned() {
            Some(piece) => {
                let producer = flow.outgrown.then(|| flow.producer.take()).flatten();
                if let Some(place) = &mut flow.readers[self.index] {
                    place.piece += 1;
                }
                drop(flow);
                if let Some(producer) = producer {
                    producer.wake();
                }
                Poll::Ready(Some(Ok(piece)))
            }
            None => match flow.end {
                Some(End::Whole) => Poll::Ready(None),
                Some(End::Broken) => Poll::Ready(Some(Err(Truncated))),
                None => {
                    if let Some(place) = &mut flow.readers[self.index] {
                        place.waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            },
        }
    }

    pub(crate) fn growing(&self) -> &Arc<Growing> {
        &self.growing
    }
}

impl Drop for GrowingReader {
    fn drop(&mut self) {
        let producer = {
            let mut flow = lock(&self.growing.flow);
            flow.readers[self.index] = None;
            flow.producer.take()
        };
        if let Some(producer) = producer {
            producer.wake();
        }
    }
}
