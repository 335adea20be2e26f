//! Collapsed forwarding: one fetch for all requests of a group.
//!
//! The first request becomes the leader: a task of its own fetches, so that its client may leave. The
//! others wait for the outcome, and then all go on at once: they read the streaming body, serve the
//! validated response, or, where the response cannot be shared, each goes to a node by itself.

use super::key::Key;
use super::object::{SharedResponse, Stored};
use super::purge::Epoch;
use super::store::FetchToken;
use super::streaming_body::StreamingBody;
use crate::consistency::FetchBase;
use crate::http::budget::Budget;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Poll, Waker};

/// The number of locks by which the table is divided.
const SHARDS: usize = 16;

/// The table of the running fetches.
pub(super) struct Fills {
    shards: [Mutex<HashMap<Key, Arc<Fill>>>; SHARDS],
    /// The memory of all streaming bodies, in bytes.
    arriving: Arc<AtomicU64>,
    /// The budget of the process for buffers.
    budget: Arc<Budget>,
}

impl Fills {
    pub(super) fn new(budget: &Arc<Budget>) -> Fills {
        Fills { shards: Default::default(), arriving: Arc::default(), budget: Arc::clone(budget) }
    }

    /// Returns whether the budget has room for a body of that length.
    pub(super) fn has_room_for(&self, length: u64) -> bool {
        self.budget.share(length).is_some()
    }
}

/// One fetch, as the waiting requests see it.
pub(crate) struct Fill {
    pub(super) uri: String,
    /// The begin of the fetch.
    pub(super) epoch: Epoch,
    /// Set when the resource has changed since the begin.
    pub(super) is_outdated: Arc<AtomicBool>,
    /// The lower bound of its answer, on a route with a guarantee.
    pub(super) base: Option<FetchBase>,
    state: Mutex<FillState>,
}

struct FillState {
    stage: FillStage,
    waiters: HashMap<u64, Waker>,
    /// The number of the next waiter.
    next: u64,
}

enum FillStage {
    Fetching,
    Known(FetchOutcome),
}

/// The result of a fetch, for the waiting requests.
#[derive(Clone)]
pub(crate) enum FetchOutcome {
    /// A response whose body is arriving.
    Streaming(Arc<StreamingBody>),
    /// A stored response; `validated` where a node has confirmed it now.
    Stored { stored: SharedResponse, validated: bool },
    /// A stale response in place of a node's error.
    StandIn(SharedResponse),
    /// A response that cannot be shared.
    Released,
}

/// The role of a request in the fetch of its group.
pub(crate) enum Joined {
    Leader(FetchLeader),
    Wait(Arc<Fill>),
}

/// The leader of a fetch. When it is dropped without an outcome, the waiting requests are released.
pub(crate) struct FetchLeader {
    fills: Arc<Fills>,
    /// The group of the fetch.
    pub(super) key: Key,
    /// The narrower group that the `Vary` of the response has made of it.
    narrowed: Option<Key>,
    pub(super) fill: Arc<Fill>,
    pub(crate) token: FetchToken,
}

impl Fills {
    fn shard(&self, key: Key) -> MutexGuard<'_, HashMap<Key, Arc<Fill>>> {
        self.shards[(key.bits() >> 64) as usize % SHARDS].lock()
    }

    /// Joins the running fetch of a key, unless it is useless; otherwise begins one.
    pub(super) fn join(
        self: &Arc<Self>,
        key: Key,
        uri: &str,
        begin: impl FnOnce() -> (FetchToken, Option<FetchBase>),
        is_useless: impl FnOnce(&Fill) -> bool,
    ) -> Joined {
        let mut shard = self.shard(key);
        if let Some(fill) = shard.get(&key)
            && !is_useless(fill)
        {
            return Joined::Wait(Arc::clone(fill));
        }
        let leader = self.solo(uri, key, begin());
        shard.insert(key, Arc::clone(&leader.fill));
        Joined::Leader(leader)
    }

    /// Returns the leader of a fetch that no request can join.
    pub(super) fn solo(
        self: &Arc<Self>,
        uri: &str,
        key: Key,
        (token, base): (FetchToken, Option<FetchBase>),
    ) -> FetchLeader {
        let state = Mutex::new(FillState { stage: FillStage::Fetching, waiters: HashMap::new(), next: 0 });
        let (epoch, is_outdated) = (token.epoch, token.outdated());
        let fill = Arc::new(Fill { uri: uri.to_owned(), epoch, is_outdated, base, state });
        FetchLeader { fills: Arc::clone(self), key, narrowed: None, fill, token }
    }
}

impl Fill {
    /// Returns a future of the outcome.
    pub(crate) fn outcome(self: Arc<Self>) -> FillWaiter {
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            state.next
        };
        FillWaiter { fill: self, number }
    }

    /// Returns the head of the streaming response.
    pub(super) fn head(&self) -> Option<SharedResponse> {
        match &self.state.lock().stage {
            FillStage::Known(FetchOutcome::Streaming(streaming)) => Some(Arc::clone(&streaming.head)),
            _ => None,
        }
    }

    fn set_outcome(&self, outcome: FetchOutcome) {
        let waiters = {
            let mut state = self.state.lock();
            if matches!(state.stage, FillStage::Known(_)) {
                return;
            }
            state.stage = FillStage::Known(outcome);
            std::mem::take(&mut state.waiters)
        };
        waiters.into_values().for_each(Waker::wake);
    }
}

/// The future of an outcome; dropping it removes its waker.
pub(crate) struct FillWaiter {
    fill: Arc<Fill>,
    number: u64,
}

impl Future for FillWaiter {
    type Output = FetchOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<FetchOutcome> {
        let mut state = self.fill.state.lock();
        match &state.stage {
            FillStage::Known(outcome) => Poll::Ready(outcome.clone()),
            FillStage::Fetching => {
                state.waiters.insert(self.number, cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for FillWaiter {
    fn drop(&mut self) {
        self.fill.state.lock().waiters.remove(&self.number);
    }
}

impl FetchLeader {
    /// Ends the fetch and wakes all waiting requests.
    pub(crate) fn finish(self, outcome: FetchOutcome) {
        self.leave();
        self.fill.set_outcome(outcome);
    }

    /// Returns the streaming body, which waiting and later requests read while it arrives. Where the response cannot
    /// be shared, the waiting requests are released instead.
    pub(super) fn stream(
        &self,
        head: Stored,
        length: Option<u64>,
        largest: u64,
        is_shared: bool,
    ) -> Arc<StreamingBody> {
        let streaming =
            Arc::new(StreamingBody::new(head, length, largest, (&self.fills.arriving, self.fills.budget.nothing())));
        match is_shared {
            true => self.fill.set_outcome(FetchOutcome::Streaming(Arc::clone(&streaming))),
            false => {
                self.leave();
                self.fill.set_outcome(FetchOutcome::Released);
            }
        }
        streaming
    }

    /// Returns the narrowest group that is known.
    pub(super) fn narrowest(&self) -> Key {
        self.narrowed.unwrap_or(self.key)
    }

    /// Lets only requests of a narrower group join from now on.
    pub(super) fn narrow(&mut self, narrowed: Key) {
        if narrowed != self.key {
            self.leave();
            self.fills.shard(narrowed).entry(narrowed).or_insert_with(|| Arc::clone(&self.fill));
            self.narrowed = Some(narrowed);
        }
    }

    /// Removes the fetch from the table, so that no further request joins it.
    pub(super) fn leave(&self) {
        for key in std::iter::once(self.key).chain(self.narrowed) {
            let mut shard = self.fills.shard(key);
            if shard.get(&key).is_some_and(|fill| Arc::ptr_eq(fill, &self.fill)) {
                shard.remove(&key);
            }
        }
    }
}

impl Drop for FetchLeader {
    fn drop(&mut self) {
        self.leave();
        self.fill.set_outcome(FetchOutcome::Released);
    }
}
