//! The cache: a shared one in the sense of RFC 9111.
//!
//! - `directives`, `policy`, `vary`, `conditional`, `range`: what the RFCs say, as pure functions.
//! - `key`: what makes two requests one. `object`, `packed_headers`, `body`: what is kept of a response.
//! - `store`: the table, bounded by memory. `uris`: the keys of each URI. `purge`: the rules that strike what it holds.
//! - `fill`: one fetch for all who want the same. `streaming_body`: the body that they read while it
//!   arrives. `fetch`: what a fetch comes to.
//! - `status`: what is told of it all.
//!
//! The room is handed an [`FetchOrigin`] and knows nothing of pools or clients.

mod body;
mod conditional;
pub(crate) mod directives;
mod fetch;
mod fill;
mod key;
mod least_rate;
mod object;
mod packed_headers;
pub(crate) mod policy;
mod purge;
mod range;
mod status;
mod store;
mod streaming_body;
mod uris;
mod vary;

pub(crate) use body::{Body, Part, Reader};
pub(crate) use conditional::{CONDITIONS, NOT_IN_304, is_same_for_range, is_unmodified};
pub(crate) use directives::RequestDirectives;
pub(crate) use fetch::{Arriving, FetchOrigin, LeaderResult, Order, is_failure};
pub(crate) use fill::{FetchLeader, FetchOutcome, Fill, Joined};
pub(crate) use key::{BypassCookies, Key, KeyRules, TargetUri};
pub(crate) use object::Stored;
pub(crate) use policy::{CachePolicy, Milliseconds, RequestTraits, Reuse, milliseconds};
pub(crate) use purge::Purge;
pub(crate) use range::{Ranges, content_range, multipart, ranges};
pub(crate) use status::{CacheStatus, ForwardReason};
pub(crate) use store::{CacheHit, FetchToken};
pub(crate) use streaming_body::{SMALL_WINDOW, StreamingReader, Unfinished};

use crate::http::budget::Budget;
use crate::http::head::RequestFields;
use fill::Fills;
use http::HeaderMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use store::{EntryStore, Found};
use tokio::sync::Notify;

/// How long a key whose response cannot be shared is passed without waiting for a fetch.
const PASS: Milliseconds = 10_000;

/// Between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The cache of the whole process; it outlives configurations.
pub(crate) struct Cache {
    store: Arc<EntryStore>,
    fills: Arc<Fills>,
    memory: u64,
    started: Instant,
    /// The time by which a test has advanced the clock.
    #[cfg(test)]
    turned: std::sync::atomic::AtomicI64,
    struck: Notify,
}

/// Wakes the sweeper when it is dropped.
struct Sweep(Arc<Cache>);

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.struck.notify_one();
    }
}

/// The result of a look-up.
#[derive(Debug)]
pub(crate) enum Known {
    Response(CacheHit),
    /// Something for other requests to the same URI.
    Others,
    Nothing,
}

/// The requests that may wait for one another: those to one URI that choose the same response, and
/// that are alike in what decides whether a response may be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    key: Key,
    /// Equal for all requests that choose the same response, of any client.
    variant: Key,
    /// Their responses were not shareable a moment ago: no request waits.
    pub(crate) passes: bool,
}

impl Cache {
    /// `memory` is for what is stored, the budget for what is arriving; `evicted` is told of every entry that makes
    /// room for another.
    pub(crate) fn new(memory: u64, budget: &Arc<Budget>, evicted: impl Fn() + Send + Sync + 'static) -> Cache {
        Cache {
            store: Arc::new(EntryStore::new(memory, evicted)),
            fills: Arc::new(Fills::new(budget)),
            memory,
            started: Instant::now(),
            #[cfg(test)]
            turned: Default::default(),
            struck: Notify::new(),
        }
    }

    /// Returns the time on the clock that all ages go by.
    pub(crate) fn at(&self, time: Instant) -> Milliseconds {
        let elapsed = milliseconds(time.saturating_duration_since(self.started));
        #[cfg(test)]
        let elapsed = elapsed + self.turned.load(Ordering::Relaxed);
        elapsed
    }

    pub(crate) fn now(&self) -> Milliseconds {
        self.at(Instant::now())
    }

    /// Looks for a response. Takes no lock that waits, and makes no text.
    pub(crate) fn look_up(&self, key: Key, request: &RequestFields) -> Known {
        match self.store.look_up(key, request) {
            Found::Response(held) => Known::Response(held),
            Found::OtherVariants(_) => Known::Others,
            Found::Nothing => Known::Nothing,
        }
    }

    /// Returns the group that a request belongs to.
    pub(crate) fn group(&self, order: &Order) -> Group {
        let base = order.base_group();
        let marked = self.store.marker(base, |marker| (marker.pass_until, marker.varies.clone()));
        let (pass_until, hint) = marked.unwrap_or((Milliseconds::MIN, None));
        // What was seen last counts, stored or not.
        let selecting = match hint {
            Some(selecting) => Some(selecting.for_request(&order.request)),
            None => match self.store.look_up(order.key, &order.request) {
                Found::Response(held) => held.varies.as_ref().map(|selecting| selecting.for_request(&order.request)),
                Found::OtherVariants(selecting) => Some(selecting),
                Found::Nothing => None,
            },
        };
        let now = self.now();
        let Some(selecting) = selecting else {
            return Group { key: base, variant: order.key, passes: now < pass_until };
        };
        let variant = fetch::variant_group(order.key, &selecting);
        let key = fetch::variant_group(base, &selecting);
        let variant_until = self.store.marker(key, |marker| marker.pass_until);
        Group { key, variant, passes: now < pass_until.max(variant_until.unwrap_or(Milliseconds::MIN)) }
    }

    /// Waits with the fetch that runs for a group, or begins to lead one.
    pub(crate) fn join(&self, group: Group, order: &Order) -> Joined {
        self.fills.join(
            group.key,
            &order.uri,
            || self.store.begin(&order.uri, order.key, group.variant),
            |fill| self.is_useless(fill),
        )
    }

    /// Leads a fetch that no other request waits for.
    pub(crate) fn go_alone(&self, group: Group, order: &Order) -> FetchLeader {
        self.fills.solo(&order.uri, group.key, self.store.begin(&order.uri, order.key, group.variant))
    }

    /// Returns whether what a fetch brings is of no use to those who come now: it has been purged or changed,
    /// or has become stale, before it is here.
    fn is_useless(&self, fill: &Fill) -> bool {
        let head = fill.head();
        // Its tags are not known yet; they may be the ones that were purged.
        if head.is_none() && self.store.has_struck_tags(fill.epoch) || fill.is_outdated.load(Ordering::Acquire) {
            return true;
        }
        let tags = head.as_ref().map_or(&[][..], |head| &head.tags);
        let is_stale = head.as_ref().is_some_and(|head| head.reuse(self.now(), None) == Reuse::AfterValidation);
        is_stale || self.store.is_struck(&fill.uri, tags, fill.epoch)
    }

    /// Returns whether a fetch, had it brought these fields, would have been beaten by a purge or a change.
    pub(crate) fn is_beaten(&self, order: &Order, fields: &HeaderMap, token: &FetchToken) -> bool {
        token.is_outdated() || self.store.is_struck(&order.uri, &object::tags(fields), token.epoch)
    }

    /// Begins a fetch that no request waits for.
    pub(crate) fn begin(&self, order: &Order) -> FetchToken {
        self.store.begin(&order.uri, order.key, self.group(order).variant)
    }

    /// Puts a purge in force, at once for every request that comes later. Returns a function that counts the stored
    /// responses that it has struck: it looks at all of them, so it is for a thread that may block. They leave memory
    /// once it has been called or dropped.
    pub(crate) fn purge(self: &Arc<Self>, purge: &Purge, soft: bool) -> impl FnOnce() -> u64 + Send + 'static {
        let struck = self.store.purge(purge, soft);
        let sweep = Sweep(Arc::clone(self));
        move || sweep.0.store.count(&struck)
    }

    /// Forgets the responses to a URI whose resource has changed (RFC 9111 4.4), those that are being fetched included,
    /// but for the fetch that has changed it. `key` is the one that is made of the URI alone.
    pub(crate) fn invalidate(&self, key: Key, uri: &str, but: Option<&FetchToken>) {
        self.store.invalidate(key, uri, but);
    }

    /// Removes what purges have struck, for as long as the process lives.
    pub(crate) async fn keep_clean(self: Arc<Self>) {
        let mut is_more = false;
        loop {
            if !is_more {
                self.struck.notified().await;
            }
            let cache = Arc::clone(&self);
            // A large table takes a while to look through.
            is_more = tokio::task::spawn_blocking(move || cache.store.sweep()).await.unwrap_or(false);
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    }

    /// Returns how many entries there are, and what they take in memory.
    pub(crate) fn extent(&self) -> (u64, u64) {
        self.store.extent()
    }

    /// Returns the bytes that it may take.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }
}

#[cfg(test)]
mod tests;
