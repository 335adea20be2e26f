//! The table of stored responses, weighed by the memory that they take.

use super::key::Key;
use super::lock;
use super::object::{Entry, Marker, Object, Shared, Stored};
use super::policy::Milliseconds;
use super::purge::{Epoch, Purge, Rules, Verdict};
use super::vary::Selecting;
use crate::http::head::RequestFields;
use arc_swap::ArcSwap;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// So much may be added before the table is asked to make room.
const SLACK: u64 = 1 << 20;

/// So many rules are looked through; more become one for everything.
const MAX_RULES: usize = 4096;

/// So many changed keys are remembered each; with more, everything counts as changed.
const MAX_CHANGES: usize = 1 << 16;

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

    /// The node has just failed: a copy that stands in for it, where it may.
    pub(crate) fn stand_in(&self, now: Milliseconds) -> Option<Shared> {
        self.pause(now);
        self.stands_in(now).then(|| self.share())
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
    /// The fetches that run, by the turn at which they began, with the epoch of that moment.
    running: Mutex<BTreeMap<Turn, Epoch>>,
    /// Fetches and invalidations, in one order.
    turn: AtomicU64,
    /// Keys whose resource has changed, and when: what was being fetched by then is not stored.
    changed: Mutex<Changes>,
    /// The epoch up to which a whole sweep has looked at everything.
    swept: AtomicU64,
    added: AtomicU64,
    slack: u64,
}

/// The place of a fetch or an invalidation in the order of all.
pub(super) type Turn = u64;

/// What has changed, by key.
#[derive(Default)]
struct Changes {
    turns: HashMap<u128, Turn>,
    /// Everything counts as changed at this turn: there were too many to remember each.
    floor: Turn,
}

/// A fetch that has begun and not ended: rules that came later are kept for it.
pub(crate) struct Begun {
    store: Arc<Store>,
    pub(crate) epoch: Epoch,
    pub(super) turn: Turn,
}

impl Begun {
    /// The place of the fetch among purges, and among fetches and changes.
    pub(super) fn moment(&self) -> (Epoch, Turn) {
        (self.epoch, self.turn)
    }

    /// Nothing of it will be stored: nobody needs to keep anything for it.
    pub(super) fn retire(&self) {
        lock(&self.store.running).remove(&self.turn);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        lock(&self.store.running).remove(&self.turn);
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
            turn: AtomicU64::new(0),
            changed: Mutex::default(),
            swept: AtomicU64::new(0),
            added: AtomicU64::new(0),
            slack: SLACK.min(memory / RESERVE),
        }
    }

    /// Looks for a response to a request. Takes no lock that anybody waits for.
    pub(super) fn look_up(&self, key: Key, request: &RequestFields) -> Found {
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
        match rules.judge(uri, &stored.tags, stored.checked.load(Ordering::Relaxed)) {
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
        let mut running = lock(&self.running);
        let epoch = self.epoch.load(Ordering::Acquire);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        running.insert(turn, epoch);
        Begun { store: Arc::clone(self), epoch, turn }
    }

    /// Whether a resource has changed since a fetch of it began.
    pub(super) fn has_changed(&self, key: Key, since: Turn) -> bool {
        let changed = lock(&self.changed);
        changed.floor > since || changed.turns.get(&key.bits()).is_some_and(|&turn| turn > since)
    }

    /// Forgets what is stored under a key, and what is being fetched for it.
    pub(super) fn invalidate(&self, key: Key) {
        {
            let mut changed = lock(&self.changed);
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            changed.turns.insert(key.bits(), turn);
            if changed.turns.len() >= MAX_CHANGES {
                changed.turns.clear();
                changed.floor = turn;
            }
        }
        self.remove(key);
    }

    /// Whether any tag was purged after a fetch began.
    pub(super) fn has_struck_tags(&self, since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().last_tag > since
    }

    /// How many purges, beside the one of everything, have not been swept yet.
    pub(super) fn rules_in_force(&self) -> usize {
        self.rules.load().len()
    }

    /// Whether a purge, hard or soft, has struck what a fetch is bringing.
    pub(super) fn is_struck(&self, uri: &str, tags: &[u64], since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().judge(uri, tags, since) != Verdict::Untouched
    }

    /// Whether a hard purge has struck what a fetch is bringing.
    pub(super) fn is_beaten(&self, uri: &str, tags: &[u64], since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().judge(uri, tags, since) == Verdict::Gone
    }

    /// Stores a response, in place of those that it replaces. `confirmed` is the one whose body it has
    /// kept. Gives whether it was stored.
    pub(super) fn put(&self, key: Key, uri: &str, stored: Stored, begun: &Begun, confirmed: Option<&Stored>) -> bool {
        let mut weight = None;
        // All changes of a key happen one after the other.
        self.table.entry(key.bits()).and_compute_with(|known| {
            let struck = |tags: &[u64], since| self.is_beaten(uri, tags, since);
            let revived = confirmed.is_some_and(|older| {
                let since = older.checked.load(Ordering::Relaxed);
                struck(&older.tags, since) || struck(&stored.tags, since)
            });
            if struck(&stored.tags, begun.epoch) || revived || self.has_changed(key, begun.turn) {
                return Op::Nop;
            }
            let known = known.map(moka::Entry::into_value);
            // What was asked for later is newer; and a confirmation is about what it has confirmed.
            let replaced = match known.as_deref() {
                Some(Entry::Object(object)) => object.variants.iter().find(|other| other.varies == stored.varies),
                _ => None,
            };
            let is_late = match (replaced, confirmed) {
                (Some(replaced), Some(older)) => replaced.turn != older.turn,
                (Some(replaced), None) => stored.is_older_than(replaced),
                (None, _) => false,
            };
            if is_late {
                return Op::Nop;
            }
            let object = match known.as_deref() {
                Some(Entry::Object(object)) => object.with(stored, |other| !self.is_gone(uri, other)),
                _ => Object { uri: uri.into(), variants: SmallVec::from_iter([stored]) },
            };
            let entry = Entry::Object(object);
            weight = Some(entry.weight());
            Op::Put(Arc::new(entry))
        });
        // A purge that came after the look is seen by every reader: the response was checked only up to
        // the epoch at which it began.
        let Some(weight) = weight else { return false };
        self.make_room(weight.into());
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

    /// Removes what is stored under a key, after the changes of it that have begun.
    pub(super) fn remove(&self, key: Key) {
        self.table.entry(key.bits()).and_compute_with(|_| Op::Remove);
    }

    /// Puts a purge in force.
    pub(super) fn purge(&self, purge: &Purge, soft: bool) {
        let _one = lock(&self.changing);
        let known = self.rules.load();
        let rules = match known.len() < MAX_RULES {
            true => known.with(purge, soft),
            // An operator's; too many to look through, and to keep: rather too much goes than too little.
            false => known.with(&Purge::All, soft),
        };
        let epoch = rules.epoch;
        self.rules.store(Arc::new(rules));
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Removes what purges have struck, and then the rules that nobody needs any more. Gives whether
    /// there is more to do later.
    pub(super) fn sweep(&self) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        // No fetch is left that began before the last rule: whatever it could store is stored.
        let is_last = lock(&self.running).values().all(|&began| began >= epoch);
        for (key, entry) in &self.table {
            if let Entry::Object(object) = &*entry
                && object.variants.iter().any(|stored| self.is_gone(&object.uri, stored))
            {
                self.drop_gone_variants(*key);
            }
        }
        self.table.run_pending_tasks();
        if is_last {
            // Those of the sweep before: whoever found something just before it was removed has looked
            // at the rules by now.
            let done = self.swept.swap(epoch, Ordering::Relaxed);
            let _one = lock(&self.changing);
            let rules = self.rules.load().after(done);
            self.rules.store(Arc::new(rules));
        }
        self.rules.load().len() > 0
    }

    fn drop_gone_variants(&self, key: u128) {
        self.table.entry(key).and_compute_with(|known| {
            let Some(known) = known.map(moka::Entry::into_value) else { return Op::Nop };
            let Entry::Object(object) = &*known else { return Op::Nop };
            let left = object.variants.iter().filter(|stored| !self.is_gone(&object.uri, stored));
            let variants: SmallVec<[Stored; 1]> = left.cloned().collect();
            match variants.len() {
                0 => Op::Remove,
                left if left == object.variants.len() => Op::Nop,
                _ => Op::Put(Arc::new(Entry::Object(Object { uri: object.uri.clone(), variants }))),
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
