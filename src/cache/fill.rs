//! One fetch for all who want the same thing (collapsed forwarding).
//!
//! Who comes first leads: a task of its own fetches, and readers may leave. The
//! others wait until the lead knows what it has, and then all go on at once: to read the growing
//! body, to take what a validation has confirmed, or, where the response is for one only, each to
//! the node by itself.

use super::key::Key;
use super::object::{SharedResponse, Stored};
use super::purge::Epoch;
use super::store::FetchToken;
use super::streaming_body::StreamingBody;
use crate::http::budget::Budget;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Poll, Waker};

/// Locks that fetches of different keys rarely share.
const SHARDS: usize = 16;

/// The fetches that run.
pub(super) struct Fills {
    shards: [Mutex<HashMap<Key, Arc<Fill>>>; SHARDS],
    /// The memory of all arriving bodies.
    growing: Arc<AtomicU64>,
    /// The budget for buffers of the process.
    budget: Arc<Budget>,
}

impl Fills {
    pub(super) fn new(budget: &Arc<Budget>) -> Fills {
        Fills { shards: Default::default(), growing: Arc::default(), budget: Arc::clone(budget) }
    }

    /// Returns whether the process may hold so much more.
    pub(super) fn has_room_for(&self, length: u64) -> bool {
        self.budget.share(length).is_some()
    }
}

/// One fetch, as those who wait for it see it.
pub(crate) struct Fill {
    pub(super) uri: String,
    /// When the fetch began.
    pub(super) epoch: Epoch,
    /// Set when what it asks for has changed since then.
    pub(super) is_outdated: Arc<AtomicBool>,
    state: Mutex<FillState>,
}

struct FillState {
    stage: FillStage,
    waiting: HashMap<u64, Waker>,
    /// The number of the next who waits.
    next: u64,
}

enum FillStage {
    Fetching,
    Known(FetchOutcome),
}

/// The result of a fetch, for the requests that waited.
#[derive(Clone)]
pub(crate) enum FetchOutcome {
    /// A response whose body is arriving.
    Streaming(Arc<StreamingBody>),
    /// A stored response: confirmed by the node, or there already.
    Stored { stored: SharedResponse, asked: bool },
    /// A stale response that stands in for a node that failed.
    StandIn(SharedResponse),
    /// Nothing that could be shared.
    Released,
}

/// What becomes of a request that comes while a key is, or is not, being fetched.
pub(crate) enum Joined {
    Leader(FetchLeader),
    Wait(Arc<Fill>),
}

/// The right and the duty to fetch. Dropped without an outcome, it releases those who wait.
pub(crate) struct FetchLeader {
    fills: Arc<Fills>,
    /// The group that it leads.
    pub(super) key: Key,
    /// The group that its response turned out to be for.
    narrower: Option<Key>,
    pub(super) fill: Arc<Fill>,
    pub(crate) token: FetchToken,
}

impl Fills {
    fn shard(&self, key: Key) -> MutexGuard<'_, HashMap<Key, Arc<Fill>>> {
        self.shards[(key.bits() >> 64) as usize % SHARDS].lock()
    }

    /// Waits with the fetch that runs, unless it has become useless; leads otherwise.
    pub(super) fn join(
        self: &Arc<Self>,
        key: Key,
        uri: &str,
        begin: impl FnOnce() -> FetchToken,
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
        Joined::Leader(lead)
    }

    /// Returns a leader for whom no request can wait.
    pub(super) fn solo(self: &Arc<Self>, uri: &str, key: Key, token: FetchToken) -> FetchLeader {
        let state = Mutex::new(FillState { stage: FillStage::Fetching, waiting: HashMap::new(), next: 0 });
        let (epoch, is_outdated) = (token.epoch, token.outdated());
        let fill = Arc::new(Fill { uri: uri.to_owned(), epoch, is_outdated, state });
        FetchLeader { fills: Arc::clone(self), key, narrower: None, fill, token }
    }
}

impl Fill {
    /// Waits until the lead knows what it has.
    pub(crate) fn outcome(self: Arc<Self>) -> FillWaiter {
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            state.next
        };
        FillWaiter { fill: self, number }
    }

    /// The head of what is arriving.
    pub(super) fn head(&self) -> Option<SharedResponse> {
        match &self.state.lock().stage {
            FillStage::Known(FetchOutcome::Streaming(growing)) => Some(Arc::clone(&growing.head)),
            _ => None,
        }
    }

    fn tell(&self, outcome: FetchOutcome) {
        let waiting = {
            let mut state = self.state.lock();
            if matches!(state.stage, FillStage::Known(_)) {
                return;
            }
            state.stage = FillStage::Known(outcome);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }
}

/// One who waits for a fetch; forgotten when dropped.
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
                state.waiting.insert(self.number, cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for FillWaiter {
    fn drop(&mut self) {
        self.fill.state.lock().waiting.remove(&self.number);
    }
}

impl FetchLeader {
    /// Lets go all who wait, at once.
    pub(crate) fn settle(self, outcome: FetchOutcome) {
        self.leave();
        self.fill.tell(outcome);
    }

    /// Lets all read the body as it arrives. Later requests join them. Where the response
    /// cannot be shared as it is, those who wait are released instead.
    pub(super) fn grow(&self, head: Stored, length: Option<u64>, largest: u64, is_shared: bool) -> Arc<StreamingBody> {
        let growing =
            Arc::new(StreamingBody::new(head, length, largest, (&self.fills.growing, self.fills.budget.nothing())));
        match is_shared {
            true => self.fill.tell(FetchOutcome::Streaming(Arc::clone(&growing))),
            false => {
                self.leave();
                self.fill.tell(FetchOutcome::Released);
            }
        }
        growing
    }

    /// Returns the key of the group that it answers, as far as that is known.
    pub(super) fn narrowest(&self) -> Key {
        self.narrower.unwrap_or(self.key)
    }

    /// From now on only those of a narrower group join it.
    pub(super) fn answer_to(&mut self, narrower: Key) {
        if narrower != self.key {
            self.leave();
            self.fills.shard(narrower).entry(narrower).or_insert_with(|| Arc::clone(&self.fill));
            self.narrower = Some(narrower);
        }
    }

    /// Takes the fetch out of the table; no request joins it any more.
    pub(super) fn leave(&self) {
        for key in std::iter::once(self.key).chain(self.narrower) {
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
        self.fill.tell(FetchOutcome::Released);
    }
}
