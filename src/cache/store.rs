//! The table of stored responses, weighed by the memory that they take.

use super::key::Key;
use super::object::{Entry, Marker, Object, Shared, Stored};
use super::policy::Milliseconds;
use super::purge::{Epoch, Purge, Rules, Verdict};
use super::vary::Selecting;
use arc_swap::ArcSwap;
use http::HeaderMap;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// So much may be added before the table is asked to make room.
const SLACK: u64 = 1 << 20;

/// The part of `memory` that is left for what the table has not looked at yet.
const RESERVE: u64 = 64;

/// Keys are hashes already.
#[derive(Clone, Default)]
struct AsIs;

struct Passed(u64);

impl BuildHasher for AsIs {
    type Hasher = Passed;

    fn build_hasher(&self) -> Passed {
        Passed(0)
    }
}

impl Hasher for Passed {
    fn write(&mut self, bytes: &[u8]) {
        let mut first = [0; 8];
        let length = bytes.len().min(8);
        first[..length].copy_from_slice(&bytes[..length]);
        self.0 ^= u64::from_ne_bytes(first);
    }

    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What the store has of a key for a request.
#[derive(Debug)]
pub(super) enum Found {
    /// A response, fresh or not.
    Response(Held),
    /// Responses, but none for this request's fields; those by which the newest was chosen.
    OtherVariants(Selecting),
    Nothing,
}

/// A response in the store, held by whoever found it.
#[derive(Debug)]
pub(crate) struct Held {
    entry: Arc<Entry>,
    index: usize,
}

impl Held {
    /// A copy that many may hold; its body is shared.
    pub(super) fn share(&self) -> Shared {
        Arc::new(Stored::clone(self))
    }

    /// A copy that stands in for a node that has just failed, where it may.
    pub(crate) fn stand_in(&self, now: Milliseconds) -> Option<Shared> {
        if !self.stands_in(now) {
            return None;
        }
        self.pause(now);
        Some(self.share())
    }
}

impl std::ops::Deref for Held {
    type Target = Stored;

    fn deref(&self) -> &Stored {
        match &*self.entry {
            Entry::Object(object) => &object.variants[self.index],
            Entry::Marker(_) => unreachable!("only objects are held"),
        }
    }
}

/// The store. What it holds is bounded by weight; the least recently used goes first.
pub(super) struct Store {
    table: moka::sync::Cache<u128, Arc<Entry>, AsIs>,
    rules: ArcSwap<Rules>,
    /// `rules.epoch`, for the look that every hit takes.
    epoch: AtomicU64,
    /// One purge, or one clean-up, at a time.
    changing: Mutex<()>,
    /// How many fetches run that began at an epoch.
    running: Mutex<BTreeMap<Epoch, usize>>,
    added: AtomicU64,
    slack: u64,
}

/// A fetch that has begun and not ended: rules that came later are kept for it.
pub(crate) struct Begun {
    store: Arc<Store>,
    pub(crate) epoch: Epoch,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut running = self.store.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.epoch);
            }
        }
    }
}

impl Store {
    pub(super) fn new(memory: u64, evicted: impl Fn() + Send + Sync + 'static) -> Store {
        let table = moka::sync::Cache::builder()
            .max_capacity(memory - memory / RESERVE)
            .weigher(|_, entry: &Arc<Entry>| entry.weight())
            // What was stored is there until it has been the least used: nothing new is turned away.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    evicted();
                }
            })
            .build_with_hasher(AsIs);
        Store {
            table,
            rules: ArcSwap::default(),
            epoch: AtomicU64::new(0),
            changing: Mutex::default(),
            running: Mutex::default(),
            added: AtomicU64::new(0),
            slack: SLACK.min(memory / RESERVE),
        }
    }

    /// Looks for a response to a request. Takes no lock that anybody waits for.
    pub(super) fn look_up(&self, key: Key, request: &HeaderMap) -> Found {
        let Some(entry) = self.table.get(&key.bits()) else { return Found::Nothing };
        let Entry::Object(object) = &*entry else { return Found::Nothing };
        let chosen = object.variants.iter().position(|stored| stored.is_for(request));
        let Some(index) = chosen.filter(|&index| !self.is_gone(&object.uri, &object.variants[index])) else {
            let newest = object.variants.iter().find_map(|stored| stored.varies.as_deref());
            return match (chosen, newest) {
                (None, Some(selecting)) => Found::OtherVariants(selecting.for_request(request)),
                _ => Found::Nothing,
            };
        };
        Found::Response(Held { entry, index })
    }

    /// Whether a purge has struck a response. What is found out is remembered with it.
    fn is_gone(&self, uri: &str, stored: &Stored) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        if stored.checked.load(Ordering::Relaxed) >= epoch {
            return false;
        }
        let rules = self.rules.load();
        match rules.judge(uri, &stored.tags, stored.epoch) {
            Verdict::Gone => return true,
            Verdict::Stale => stored.is_soft_purged.store(true, Ordering::Relaxed),
            Verdict::Untouched => {}
        }
        stored.checked.fetch_max(rules.epoch, Ordering::Relaxed);
        false
    }

    /// What is known of a key whose responses are not stored.
    pub(super) fn marker<T>(&self, key: Key, read: impl FnOnce(&Marker) -> T) -> Option<T> {
        match &*self.table.get(&marked(key).bits())? {
            Entry::Marker(marker) => Some(read(marker)),
            Entry::Object(_) => None,
        }
    }

    pub(super) fn mark(&self, key: Key, pass_until: Milliseconds, varies: Option<Selecting>) {
        self.insert(marked(key), Arc::new(Entry::Marker(Marker { pass_until, varies })));
    }

    /// Begins a fetch: purges from now on beat what it brings.
    pub(super) fn begin(self: &Arc<Self>) -> Begun {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.epoch.load(Ordering::Acquire);
        *running.entry(epoch).or_default() += 1;
        Begun { store: Arc::clone(self), epoch }
    }

    /// Whether any fetch runs.
    pub(super) fn is_fetching(&self) -> bool {
        !self.running.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether a purge, hard or soft, has struck what a fetch is bringing.
    pub(super) fn is_struck(&self, uri: &str, tags: &[u64], since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().judge(uri, tags, since) != Verdict::Untouched
    }

    /// Whether a hard purge has struck what a fetch is bringing.
    pub(super) fn is_beaten(&self, uri: &str, tags: &[u64], since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().judge(uri, tags, since) == Verdict::Gone
    }

    /// Stores a response, in place of those that it replaces. `since` is the epoch at which the
    /// request began that brought its body. Gives whether it was stored.
    pub(super) fn put(&self, key: Key, uri: &str, stored: Stored, since: Epoch) -> bool {
        if self.is_beaten(uri, &stored.tags, since) {
            return false;
        }
        let mut weight = 0;
        self.table.entry(key.bits()).and_compute_with(|known| {
            let known = known.map(moka::Entry::into_value);
            let object = match known.as_deref() {
                Some(Entry::Object(object)) => object.with(stored),
                _ => Object { uri: uri.into(), variants: SmallVec::from_iter([stored]) },
            };
            let entry = Entry::Object(object);
            weight = entry.weight();
            Op::Put(Arc::new(entry))
        });
        self.make_room(weight.into());
        // A purge that came between the look and the insertion is seen by every reader: the response
        // was checked only up to the epoch at which it began.
        true
    }

    fn insert(&self, key: Key, entry: Arc<Entry>) {
        let weight = entry.weight();
        self.table.insert(key.bits(), entry);
        self.make_room(weight.into());
    }

    /// Has the table throw out what is too much, once enough has been added since the last time.
    fn make_room(&self, weight: u64) {
        let added = self.added.fetch_add(weight, Ordering::Relaxed) + weight;
        if added >= self.slack {
            self.added.store(0, Ordering::Relaxed);
            self.table.run_pending_tasks();
        }
    }

    /// Removes what is stored under a key.
    pub(super) fn remove(&self, key: Key) -> bool {
        self.table.remove(&key.bits()).is_some()
    }

    /// Puts a purge in force.
    pub(super) fn purge(&self, purge: &Purge, soft: bool) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = self.rules.load().with(purge, soft);
        let epoch = rules.epoch;
        self.rules.store(Arc::new(rules));
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Removes what purges have struck, and then the rules that nobody needs any more. Gives whether
    /// there is more to do later.
    pub(super) fn sweep(&self) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        let is_first = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.keys().next().is_none_or(|&oldest| oldest >= epoch)
        };
        for (key, entry) in &self.table {
            let Entry::Object(object) = &*entry else { continue };
            let gone = object.variants.iter().filter(|stored| self.is_gone(&object.uri, stored)).count();
            if gone == object.variants.len() {
                self.table.invalidate(&*key);
            } else if gone > 0 {
                self.drop_gone_variants(*key);
            }
        }
        self.table.run_pending_tasks();
        if is_first {
            let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let rules = self.rules.load().after(epoch);
            self.rules.store(Arc::new(rules));
        }
        !is_first || !self.rules.load().is_empty()
    }

    fn drop_gone_variants(&self, key: u128) {
        self.table.entry(key).and_compute_with(|known| {
            let Some(known) = known.map(moka::Entry::into_value) else { return Op::Nop };
            let Entry::Object(object) = &*known else { return Op::Nop };
            let left = object.variants.iter().filter(|stored| !self.is_gone(&object.uri, stored));
            let variants: SmallVec<[Stored; 1]> = left.cloned().collect();
            match variants.is_empty() {
                true => Op::Remove,
                false => Op::Put(Arc::new(Entry::Object(Object { uri: object.uri.clone(), variants }))),
            }
        });
    }

    /// How many entries there are and what they weigh.
    pub(super) fn extent(&self) -> (u64, u64) {
        self.table.run_pending_tasks();
        (self.table.entry_count(), self.table.weighted_size())
    }
}

/// The key under which a marker stands.
fn marked(key: Key) -> Key {
    key.derive(|part| part(b"marker"))
}
