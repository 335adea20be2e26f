//! The cache: a shared one in the sense of RFC 9111.
//!
//! - `directives`, `policy`, `vary`, `conditional`, `range`: the rules of the RFCs, as pure functions.
//! - `key`: the cache key. `object`, `packed_headers`, `body`: a stored response.
//! - `store`: the table, bounded by memory. `uris`: the keys of each URI. `purge`: the rules of purges.
//! - `fill`: collapsed forwarding, one fetch for all requests of a group. `streaming_body`: the body that they
//!   read while it arrives. `fetch`: a fetch and its result.
//! - `status`: the members of `Cache-Status` (RFC 9211).
//!
//! The room gets a [`FetchOrigin`] and knows neither pools nor clients.

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

pub(crate) use body::{Body, Part, Reader, Run};
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
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use store::{EntryStore, Found};
use tokio::sync::Notify;

/// The time for which the requests of a group go to the nodes one by one after a response that cannot be shared.
const PASS: Milliseconds = 10_000;

/// The most validations of responses in doubt that begin in a second; other requests for such responses go to the
/// nodes.
const VALIDATIONS: u32 = 1000;

/// The pause between two sweeps.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The cache of the whole process; it outlives configurations.
pub(crate) struct Cache {
    store: Arc<EntryStore>,
    fills: Arc<Fills>,
    memory: u64,
    started: Instant,
    /// The time by which a test has advanced the clock.
    #[cfg(test)]
    advanced: std::sync::atomic::AtomicI64,
    purged: Notify,
    validations: Validations,
}

/// The validations of responses in doubt that have begun in a second.
#[derive(Default)]
struct Validations {
    second: AtomicI64,
    begun: AtomicU32,
}

/// Wakes the sweeper when it is dropped.
struct Sweep(Arc<Cache>);

impl Drop for Sweep {
    fn drop(&mut self) {
        self.0.purged.notify_one();
    }
}

/// The result of a look-up.
#[derive(Debug)]
pub(crate) enum Known {
    Response(CacheHit),
    /// Only responses of other variants (`Vary`) are stored.
    OtherVariants,
    Nothing,
}

/// The requests that may share a fetch: they have the same URI and choose the same variant, and are equal in the
/// traits that decide on sharing (`Authorization`, `Cookie`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    key: Key,
    /// The same for all requests that choose the same variant.
    variant: Key,
    /// A recent response could not be shared: each request goes to the nodes by itself.
    pub(crate) passes: bool,
}

#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "some is for events of a fleet"))]
impl Cache {
    /// Returns an empty cache. `memory` bounds the stored responses in bytes, the budget the arriving bodies; `evicted`
    /// is called for every evicted entry.
    pub(crate) fn new(memory: u64, budget: &Arc<Budget>, evicted: impl Fn() + Send + Sync + 'static) -> Cache {
        Cache {
            store: Arc::new(EntryStore::new(memory, evicted)),
            fills: Arc::new(Fills::new(budget)),
            memory,
            started: Instant::now(),
            #[cfg(test)]
            advanced: Default::default(),
            purged: Notify::new(),
            validations: Validations::default(),
        }
    }

    /// Returns a time on the clock of the cache, by which ages are computed.
    pub(crate) fn at(&self, time: Instant) -> Milliseconds {
        let elapsed = milliseconds(time.saturating_duration_since(self.started));
        #[cfg(test)]
        let elapsed = elapsed + self.advanced.load(Ordering::Relaxed);
        elapsed
    }

    pub(crate) fn now(&self) -> Milliseconds {
        self.at(Instant::now())
    }

    /// Returns the stored response for a request. Takes no waiting lock and builds no string.
    pub(crate) fn look_up(&self, key: Key, request: &RequestFields) -> Known {
        match self.store.look_up(key, request) {
            Found::Response(hit) => Known::Response(hit),
            Found::OtherVariants(_) => Known::OtherVariants,
            Found::Nothing => Known::Nothing,
        }
    }

    /// Returns the group of a request.
    pub(crate) fn group(&self, order: &Order) -> Group {
        let base = order.base_group();
        let marked = self.store.marker(base, |marker| (marker.pass_until, marker.varies.clone()));
        let (pass_until, hint) = marked.unwrap_or((Milliseconds::MIN, None));
        // The `Vary` of the newest response counts, stored or not.
        let selecting = match hint {
            Some(selecting) => Some(selecting.for_request(&order.request)),
            None => match self.store.look_up(order.key, &order.request) {
                Found::Response(hit) => hit.varies().map(|selecting| selecting.for_request(&order.request)),
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

    /// Joins the running fetch of a group, or begins one as its leader.
    pub(crate) fn join(&self, group: Group, order: &Order) -> Joined {
        self.fills.join(
            group.key,
            &order.uri,
            || (self.store.begin(&order.uri, order.key, group.variant), order.base.clone()),
            |fill| self.is_useless(fill) || !order.may_wait(fill.base.as_ref()),
        )
    }

    /// Begins a fetch that no other request can join.
    pub(crate) fn fetch_alone(&self, group: Group, order: &Order) -> FetchLeader {
        let token = self.store.begin(&order.uri, order.key, group.variant);
        self.fills.solo(&order.uri, group.key, (token, order.base.clone()))
    }

    /// Returns whether the response of a running fetch cannot answer new requests: it was purged, its resource has
    /// changed, or it is stale already.
    fn is_useless(&self, fill: &Fill) -> bool {
        let head = fill.head();
        if self.store.is_in_doubt(fill.epoch) {
            return true;
        }
        // Before the head has arrived its tags are unknown, and may be among the purged ones.
        if head.is_none() && self.store.has_purged_tags(fill.epoch) || fill.is_outdated.load(Ordering::Acquire) {
            return true;
        }
        let tags = head.as_ref().map_or(&[][..], |head| head.tags());
        let is_stale = head.as_ref().is_some_and(|head| head.reuse(self.now(), None) == Reuse::AfterValidation);
        is_stale || self.store.is_purged(&fill.uri, tags, fill.epoch)
    }

    /// Returns whether a purge or a change since its begin outdates a fetch whose response has these fields.
    pub(crate) fn is_outdated(&self, order: &Order, fields: &HeaderMap, token: &FetchToken) -> bool {
        token.is_outdated() || self.store.is_purged(&order.uri, &object::tags(fields), token.epoch)
    }

    /// Begins a fetch whose response no request joins, and returns its token.
    pub(crate) fn begin(&self, order: &Order) -> FetchToken {
        self.store.begin(&order.uri, order.key, self.group(order).variant)
    }

    /// Applies a purge, at once for every later request. Returns a function that counts the purged responses: it scans
    /// the table, so it must run on a thread that may block. Memory is freed once it has been called or dropped.
    pub(crate) fn purge(self: &Arc<Self>, purge: &Purge, soft: bool) -> impl FnOnce() -> u64 + Send + 'static {
        let rule = self.store.purge(purge, soft);
        let sweep = Sweep(Arc::clone(self));
        move || sweep.0.store.count(&rule)
    }

    /// Applies many purges at once, each hard or soft, for every later request.
    pub(crate) fn purge_many(&self, purges: &[(Purge, bool)]) {
        if !purges.is_empty() {
            self.store.purge_many(purges);
            self.purged.notify_one();
        }
    }

    /// Has each response that was fetched or validated before now validated before it is served: what other proxies
    /// have said of it may have been missed.
    pub(crate) fn doubt(&self) {
        self.store.doubt();
    }

    /// Returns whether a response in doubt may be validated now: validations of different responses begin at a bounded
    /// rate, so that a whole store in doubt is validated little by little.
    pub(crate) fn may_validate(&self, stored: &Stored, now: Milliseconds) -> bool {
        if !stored.begin_validation() {
            // Another request has begun it; this one joins.
            return true;
        }
        let second = now / 1000;
        if self.validations.second.swap(second, Ordering::Relaxed) != second {
            self.validations.begun.store(0, Ordering::Relaxed);
        }
        let may = self.validations.begun.fetch_add(1, Ordering::Relaxed) < VALIDATIONS;
        if !may {
            stored.put_off_validation();
        }
        may
    }

    /// Invalidates the stored responses of a URI, in the form of [`KeyRules::uri`], and those of its running fetches.
    pub(crate) fn invalidate_uri(&self, uri: &str) {
        let Some((scheme, rest)) = uri.split_once("://") else { return };
        let (authority, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        let target = TargetUri { scheme, authority, path, query };
        self.store.invalidate(KeyRules::default().of_uri(target), uri, None);
    }

    /// Invalidates the stored responses of a URI whose resource has changed (RFC 9111 4.4) and those of its running
    /// fetches, except the fetch `but`, which has changed it. `key` is the cache key without further parts.
    pub(crate) fn invalidate(&self, key: Key, uri: &str, but: Option<&FetchToken>) {
        self.store.invalidate(key, uri, but);
    }

    /// Sweeps purged responses from memory, for as long as the process lives.
    pub(crate) async fn keep_clean(self: Arc<Self>) {
        let mut is_more = false;
        loop {
            if !is_more {
                self.purged.notified().await;
            }
            let cache = Arc::clone(&self);
            // A scan of a large table takes a while.
            is_more = tokio::task::spawn_blocking(move || cache.store.sweep()).await.unwrap_or(false);
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    }

    /// Returns the number of entries and their memory in bytes.
    pub(crate) fn extent(&self) -> (u64, u64) {
        self.store.extent()
    }

    /// Returns their memory in bytes as of the table's last upkeep, which this does not run.
    pub(crate) fn weight(&self) -> u64 {
        self.store.weight()
    }

    /// Returns the bound of the memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }
}

#[cfg(test)]
mod tests;
