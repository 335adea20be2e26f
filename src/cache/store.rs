//! The table of stored responses, bounded by the memory that they take.

use super::key::Key;
use super::object::{Marker, Object, SharedResponse, Stored, StoredEntry, Variants};
use super::policy::Milliseconds;
use super::purge::{Epoch, Purge, PurgeRules, Turn, Verdict};
use super::uris::{UriHash, Uris};
use super::vary::Selecting;
use crate::http::head::RequestFields;
use arc_swap::ArcSwap;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The bytes that may be added before eviction runs.
const SLACK: u64 = 1 << 20;

/// `memory` divided by this is reserved for entries that eviction has not seen yet.
const RESERVE: u64 = 64;

/// A hasher that returns the key, as keys are hashes already.
#[derive(Clone, Default)]
pub(super) struct AsIs;

pub(super) struct Passed(u64);

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

    fn write_u64(&mut self, bits: u64) {
        self.0 = bits;
    }

    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The result of the look-up of a key for a request.
#[derive(Debug)]
pub(super) enum Found {
    /// A stored response, fresh or stale.
    Response(CacheHit),
    /// Only responses of other variants, with the selecting fields of the newest.
    OtherVariants(Selecting),
    Nothing,
}

/// A stored response that a request has found.
#[derive(Debug)]
pub(crate) struct CacheHit {
    entry: Arc<StoredEntry>,
    index: usize,
}

impl CacheHit {
    /// Returns a copy for several owners, which shares the body.
    pub(super) fn share(&self) -> SharedResponse {
        Arc::new(Stored::clone(self))
    }

    /// Returns a copy that may be served in place of an error of a node that has just failed, and begins its pause.
    pub(crate) fn stand_in(&self, now: Milliseconds) -> Option<SharedResponse> {
        self.pause(now);
        self.note_use(now);
        self.stands_in(now).then(|| self.share())
    }
}

impl std::ops::Deref for CacheHit {
    type Target = Stored;

    fn deref(&self) -> &Stored {
        match &*self.entry {
            StoredEntry::Object(object) => &object.variants[self.index],
            StoredEntry::Marker(_) => unreachable!("only objects are held"),
        }
    }
}

/// The key and the URI under which a response is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address<'a> {
    pub(super) key: Key,
    pub(super) uri: &'a str,
    /// The key has further parts besides the URI.
    pub(super) is_listed: bool,
}

/// The store: bounded by weight, with eviction of the least recently used entries.
pub(super) struct EntryStore {
    table: moka::sync::Cache<u128, Arc<StoredEntry>, AsIs>,
    rules: ArcSwap<PurgeRules>,
    /// A copy of `rules.epoch` that every hit reads without a lock.
    epoch: AtomicU64,
    /// Serialises purges and sweeps.
    changing: Mutex<()>,
    /// The keys with further parts, by URI.
    uris: Arc<Uris>,
    running: Mutex<Running>,
    /// The last position in the order of fetches and changes.
    turn: AtomicU64,
    /// The epoch up to which a complete sweep has run.
    swept: AtomicU64,
    added: AtomicU64,
    slack: u64,
}

/// The rules of one purge, and those that were in force before it, by which the responses that only this purge has
/// removed are counted.
pub(super) struct PurgeCount {
    epoch: Epoch,
    alone: PurgeRules,
    before: Arc<PurgeRules>,
}

/// The running fetches.
#[derive(Default)]
struct Running {
    /// By the turn of their begin, with the epoch of that time.
    epochs: BTreeMap<Turn, Epoch>,
    by_uri: HashMap<UriHash, SmallVec<[Watched; 1]>, AsIs>,
}

/// A running fetch.
struct Watched {
    turn: Turn,
    key: Key,
    /// The variant that its response is for, as far as it is known; the key stands for all variants.
    variant: Key,
    /// Set when the fetch becomes outdated.
    is_outdated: Arc<AtomicBool>,
}

impl Running {
    /// Outdates the fetches of a URI for which `is_purged` returns true: their responses are not stored. Returns
    /// whether there were any.
    fn outdate(&self, uri: UriHash, is_purged: impl Fn(&Watched) -> bool) -> bool {
        let mut any = false;
        for fetch in self.by_uri.get(&uri).into_iter().flatten().filter(|fetch| is_purged(fetch)) {
            fetch.is_outdated.store(true, Ordering::Release);
            any = true;
        }
        any
    }

    fn end(&mut self, uri: UriHash, turn: Turn) {
        self.epochs.remove(&turn);
        if let Some(fetches) = self.by_uri.get_mut(&uri) {
            fetches.retain(|fetch| fetch.turn != turn);
            if fetches.is_empty() {
                self.by_uri.remove(&uri);
            }
        }
    }
}

/// A running fetch: rules after its begin are kept until it ends.
pub(crate) struct FetchToken {
    store: Arc<EntryStore>,
    pub(crate) epoch: Epoch,
    pub(super) turn: Turn,
    uri: UriHash,
    variant: Cell<Key>,
    is_outdated: Arc<AtomicBool>,
}

impl FetchToken {
    /// Returns the position of the fetch among purges, and among fetches and changes.
    pub(super) fn moment(&self) -> (Epoch, Turn) {
        (self.epoch, self.turn)
    }

    /// Returns whether the resource has changed since the begin.
    pub(super) fn is_outdated(&self) -> bool {
        self.is_outdated.load(Ordering::Acquire)
    }

    /// Returns the shared flag of [`FetchToken::is_outdated`].
    pub(super) fn outdated(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_outdated)
    }

    /// Sets the variant of the response, once its selecting fields are known.
    pub(super) fn is_for(&self, variant: Key) {
        self.variant.set(variant);
        let mut running = self.store.running.lock();
        let fetches = running.by_uri.get_mut(&self.uri).into_iter().flatten();
        for fetch in fetches.filter(|fetch| fetch.turn == self.turn) {
            fetch.variant = variant;
        }
    }

    /// Ends the token early: nothing of the fetch will be stored.
    pub(super) fn retire(&self) {
        self.store.running.lock().end(self.uri, self.turn);
    }
}

impl Drop for FetchToken {
    fn drop(&mut self) {
        self.retire();
    }
}

#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "some is for events of a fleet"))]
impl EntryStore {
    pub(super) fn new(memory: u64, evicted: impl Fn() + Send + Sync + 'static) -> EntryStore {
        let uris = Arc::new(Uris::default());
        let held = Arc::clone(&uris);
        let table = moka::sync::Cache::builder()
            .max_capacity(memory - memory / RESERVE)
            .weigher(|_, entry: &Arc<StoredEntry>| entry.weight())
            // Evicted by use only: a new entry is never refused.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |key: Arc<u128>, entry: Arc<StoredEntry>, cause| {
                // Also called for an entry that another one has replaced.
                if let StoredEntry::Object(object) = &*entry
                    && object.is_listed
                {
                    held.remove(UriHash::of(&object.uri), Key::from_bits(*key));
                }
                if cause == RemovalCause::Size {
                    evicted();
                }
            })
            .build_with_hasher(AsIs);
        EntryStore {
            table,
            rules: ArcSwap::default(),
            epoch: AtomicU64::new(0),
            changing: Mutex::default(),
            uris,
            running: Mutex::default(),
            turn: AtomicU64::new(0),
            swept: AtomicU64::new(0),
            added: AtomicU64::new(0),
            slack: SLACK.min(memory / RESERVE),
        }
    }

    /// Returns the stored response for a request. Takes no waiting lock.
    pub(super) fn look_up(&self, key: Key, request: &RequestFields) -> Found {
        let Some(entry) = self.table.get(&key.bits()) else { return Found::Nothing };
        let StoredEntry::Object(object) = &*entry else { return Found::Nothing };
        let chosen = object.variants.iter().position(|stored| stored.is_for(request));
        let Some(index) = chosen.filter(|&index| !self.is_gone(&object.uri, &object.variants[index])) else {
            let newest = object.variants.iter().find_map(Stored::varies);
            return match (chosen, newest) {
                (None, Some(selecting)) => Found::OtherVariants(selecting.for_request(request)),
                _ => Found::Nothing,
            };
        };
        Found::Response(CacheHit { entry, index })
    }

    /// Returns whether a purge has removed a response. The result is cached in the response.
    pub(super) fn is_gone(&self, uri: &str, stored: &Stored) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        if stored.checked.load(Ordering::Relaxed) >= epoch {
            return false;
        }
        let rules = self.rules.load();
        let checked = stored.checked.load(Ordering::Relaxed);
        if rules.doubt > checked {
            stored.doubt();
        }
        match rules.judge(uri, stored.tags(), checked) {
            Verdict::Gone => return true,
            Verdict::Stale => stored.soft_purge(),
            Verdict::Untouched => {}
        }
        stored.checked.fetch_max(rules.epoch, Ordering::Relaxed);
        false
    }

    /// Reads the marker of a key.
    pub(super) fn marker<T>(&self, key: Key, read: impl FnOnce(&Marker) -> T) -> Option<T> {
        match &*self.table.get(&marked(key).bits())? {
            StoredEntry::Marker(marker) => Some(read(marker)),
            StoredEntry::Object(_) => None,
        }
    }

    pub(super) fn mark(&self, key: Key, pass_until: Milliseconds, varies: Option<Selecting>) {
        self.insert(marked(key), Arc::new(StoredEntry::Marker(Marker { pass_until, varies })));
    }

    /// Begins a fetch, which later purges and changes outdate. `variant` is that of its response, as far as it is
    /// known.
    pub(super) fn begin(self: &Arc<Self>, uri: &str, key: Key, variant: Key) -> FetchToken {
        let (uri, is_outdated): (_, Arc<AtomicBool>) = (UriHash::of(uri), Arc::default());
        let mut running = self.running.lock();
        let epoch = self.epoch.load(Ordering::Acquire);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        running.epochs.insert(turn, epoch);
        running.by_uri.entry(uri).or_default().push(Watched {
            turn,
            key,
            variant,
            is_outdated: Arc::clone(&is_outdated),
        });
        FetchToken { store: Arc::clone(self), epoch, turn, uri, variant: Cell::new(variant), is_outdated }
    }

    /// Removes the responses of a URI and outdates its fetches, except one. `key` is the key of the URI without further
    /// parts.
    pub(super) fn invalidate(&self, key: Key, uri: &str, but: Option<&FetchToken>) {
        let uri = UriHash::of(uri);
        // First the fetches: whatever they have stored by then is found under its key.
        self.running.lock().outdate(uri, |fetch| but.is_none_or(|but| but.turn != fetch.turn));
        for key in self.uris.keys(uri).into_iter().chain([key]) {
            self.remove(key);
        }
    }

    /// Removes the responses of a key that a newer, unstored response supersedes: those with an earlier turn for which
    /// `is_superseded` returns true, and those of earlier fetches.
    pub(super) fn supersede(&self, key: Key, token: &FetchToken, is_superseded: impl Fn(&Stored) -> bool) {
        let known = token.variant.get();
        let is_alike = |fetch: &Watched| fetch.variant == known || fetch.variant == key || known == key;
        let is_older = |fetch: &Watched| fetch.turn < token.turn && fetch.key == key && is_alike(fetch);
        let are_some_running = self.running.lock().outdate(token.uri, is_older);
        // Nearly always nothing is stored.
        if !are_some_running && !self.table.contains_key(&key.bits()) {
            return;
        }
        self.retain(key, |_, stored| !(stored.is_from_before(token.turn) && is_superseded(stored)));
    }

    /// Returns whether any tag was purged after an epoch.
    pub(super) fn has_purged_tags(&self, since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().last_tag > since
    }

    /// Returns whether events of the fleet may have been missed since an epoch.
    pub(super) fn is_in_doubt(&self, since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().doubt > since
    }

    /// Returns whether a purge, hard or soft, applies to the response of a fetch that began at an epoch.
    pub(super) fn is_purged(&self, uri: &str, tags: &[u64], since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().judge(uri, tags, since) != Verdict::Untouched
    }

    /// Returns whether a hard purge applies to the response of a fetch that began at an epoch.
    pub(super) fn is_hard_purged(&self, uri: &str, tags: &[u64], since: Epoch) -> bool {
        self.epoch.load(Ordering::Acquire) > since && self.rules.load().judge(uri, tags, since) == Verdict::Gone
    }

    /// Stores a response in place of those that it replaces. `confirmed` is the validated one whose body it shares.
    /// Returns whether it was stored.
    pub(super) fn put(&self, at: Address<'_>, stored: Stored, token: &FetchToken, confirmed: Option<&Stored>) -> bool {
        let Address { key, uri, is_listed } = at;
        let mut weight = None;
        // Before the check for changes: a change after that check finds the key here.
        if is_listed {
            self.uris.add(token.uri, key);
        }
        // Changes of one key are serialised.
        self.table.entry(key.bits()).and_compute_with(|known| {
            let purged = |tags: &[u64], since| self.is_hard_purged(uri, tags, since);
            let revived = confirmed.is_some_and(|older| {
                let since = older.checked.load(Ordering::Relaxed);
                purged(older.tags(), since) || purged(stored.tags(), since)
            });
            if purged(stored.tags(), token.epoch) || revived || token.is_outdated() {
                return Op::Nop;
            }
            let known = known.map(moka::Entry::into_value);
            // A response with a later turn is newer; and a validation applies only to the response that it has
            // confirmed.
            let replaced = match known.as_deref() {
                Some(StoredEntry::Object(object)) => {
                    object.variants.iter().find(|other| other.varies() == stored.varies())
                }
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
                Some(StoredEntry::Object(object)) => object.with(stored, |other| !self.is_gone(uri, other)),
                _ => Object { uri: uri.into(), is_listed, variants: Variants::One(stored) },
            };
            let entry = StoredEntry::Object(object);
            weight = Some(entry.weight());
            Op::Put(Arc::new(entry))
        });
        // Every reader sees a purge that came after the check: the response is marked as checked only up to the epoch
        // of its begin.
        let Some(weight) = weight else {
            if is_listed {
                self.uris.remove(token.uri, key);
            }
            return false;
        };
        self.make_room(weight.into());
        true
    }

    fn insert(&self, key: Key, entry: Arc<StoredEntry>) {
        let weight = entry.weight();
        self.table.insert(key.bits(), entry);
        self.make_room(weight.into());
    }

    /// Runs eviction once enough has been added since the last time.
    fn make_room(&self, weight: u64) {
        let added = self.added.fetch_add(weight, Ordering::Relaxed) + weight;
        if added >= self.slack {
            self.added.store(0, Ordering::Relaxed);
            self.table.run_pending_tasks();
        }
    }

    /// Removes the entry of a key, after the running changes of it.
    pub(super) fn remove(&self, key: Key) {
        self.table.entry(key.bits()).and_compute_with(|_| Op::Remove);
    }

    /// Applies a purge. Returns the rules by which the purged responses are counted.
    pub(super) fn purge(&self, purge: &Purge, soft: bool) -> PurgeCount {
        let _one = self.changing.lock();
        let before = self.rules.load_full();
        let mut rules = PurgeRules::clone(&before);
        rules.add(purge, soft);
        let epoch = rules.epoch;
        self.enforce(rules);
        PurgeCount { epoch, alone: PurgeRules::default().with(purge, false), before }
    }

    /// Applies many purges, each hard or soft, at once.
    pub(super) fn purge_many(&self, purges: &[(Purge, bool)]) {
        let _one = self.changing.lock();
        let mut rules = PurgeRules::clone(&self.rules.load());
        purges.iter().for_each(|(purge, soft)| rules.add(purge, *soft));
        self.enforce(rules);
    }

    /// Has each response that was fetched or validated before now validated before it is served.
    pub(super) fn doubt(&self) {
        let _one = self.changing.lock();
        let mut rules = PurgeRules::clone(&self.rules.load());
        rules.epoch += 1;
        rules.doubt = rules.epoch;
        self.enforce(rules);
    }

    /// Puts rules in force. The lock of changes must be held.
    fn enforce(&self, rules: PurgeRules) {
        let epoch = rules.epoch;
        self.rules.store(Arc::new(rules));
        self.epoch.store(epoch, Ordering::Release);
    }

    /// Returns the number of responses that a purge has removed. It scans the table.
    pub(super) fn count(&self, purged: &PurgeCount) -> u64 {
        let is_purged = |uri: &str, stored: &Stored| {
            let checked = stored.checked.load(Ordering::Relaxed);
            let came_later = checked >= purged.epoch && !stored.is_soft_purged();
            !came_later
                && purged.alone.judge(uri, stored.tags(), 0) == Verdict::Gone
                && purged.before.judge(uri, stored.tags(), checked) != Verdict::Gone
        };
        let counts = self.table.iter().map(|(_, entry)| match &*entry {
            StoredEntry::Object(object) => {
                object.variants.iter().filter(|stored| is_purged(&object.uri, stored)).count()
            }
            StoredEntry::Marker(_) => 0,
        });
        counts.sum::<usize>() as u64
    }

    /// Removes purged responses, and then the rules that no fetch needs any more. Returns whether another sweep is
    /// needed.
    pub(super) fn sweep(&self) -> bool {
        let epoch = self.epoch.load(Ordering::Acquire);
        // No fetch is left that began before the last rule, so all their responses are stored.
        let is_last = self.running.lock().epochs.values().all(|&began| began >= epoch);
        for (key, entry) in &self.table {
            if let StoredEntry::Object(object) = &*entry
                && object.variants.iter().any(|stored| self.is_gone(&object.uri, stored))
            {
                self.retain(Key::from_bits(*key), |object, stored| !self.is_gone(&object.uri, stored));
            }
        }
        self.table.run_pending_tasks();
        if is_last {
            // The rules of the sweep before: a reader that found a response just before its removal has checked the
            // rules by now.
            let done = self.swept.swap(epoch, Ordering::Relaxed);
            let _one = self.changing.lock();
            let rules = self.rules.load().after(done);
            self.rules.store(Arc::new(rules));
        }
        self.rules.load().len() > 0
    }

    /// Keeps the responses of a key for which `stays` returns true.
    fn retain(&self, key: Key, stays: impl Fn(&Object, &Stored) -> bool) {
        self.table.entry(key.bits()).and_compute_with(|known| {
            let Some(known) = known.map(moka::Entry::into_value) else { return Op::Nop };
            let StoredEntry::Object(object) = &*known else { return Op::Nop };
            let variants: Variants = object.variants.iter().filter(|stored| stays(object, stored)).cloned().collect();
            match variants.len() {
                0 => Op::Remove,
                left if left == object.variants.len() => Op::Nop,
                _ => {
                    if object.is_listed {
                        self.uris.add(UriHash::of(&object.uri), key);
                    }
                    let (uri, is_listed) = (object.uri.clone(), object.is_listed);
                    Op::Put(Arc::new(StoredEntry::Object(Object { uri, is_listed, variants })))
                }
            }
        });
    }

    /// Returns the number of entries and their weight.
    pub(super) fn extent(&self) -> (u64, u64) {
        self.table.run_pending_tasks();
        (self.table.entry_count(), self.table.weighted_size())
    }

    /// Returns their weight as of the table's last upkeep.
    pub(super) fn weight(&self) -> u64 {
        self.table.weighted_size()
    }

    /// Returns the number of listed keys.
    #[cfg(test)]
    pub(super) fn known_keys(&self) -> usize {
        self.table.run_pending_tasks();
        self.uris.len()
    }
}

/// Returns the key of the marker of a key.
fn marked(key: Key) -> Key {
    key.derive(|part| part(b"marker"))
}
