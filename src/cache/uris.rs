//! The keys of each URI that have further parts: a change of its resource invalidates all of them. The key of the URI
//! alone needs no entry here.

use super::key::{Key, hash_text};
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The number of locks by which the table is divided.
const SHARDS: usize = 16;

/// A hash of a URI, with a random key per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct UriHash(u64);

impl UriHash {
    pub(super) fn of(uri: &str) -> UriHash {
        UriHash(hash_text(uri.as_bytes()))
    }
}

/// The index from URIs to keys.
#[derive(Default)]
pub(super) struct Uris {
    shards: [Mutex<Shard>; SHARDS],
}

/// For each key of a URI, the number of entries of the table, stored or about to be stored. Sorted, so that a URI with
/// very many keys is as fast to find as any other.
type Shard = BTreeMap<(UriHash, u128), u32>;

impl Uris {
    fn shard(&self, uri: UriHash) -> MutexGuard<'_, Shard> {
        self.shards[uri.0 as usize % SHARDS].lock()
    }

    /// Counts an entry that is about to be stored.
    pub(super) fn add(&self, uri: UriHash, key: Key) {
        *self.shard(uri).entry((uri, key.bits())).or_default() += 1;
    }

    /// Stops counting an entry.
    pub(super) fn remove(&self, uri: UriHash, key: Key) {
        let mut shard = self.shard(uri);
        let Entry::Occupied(mut count) = shard.entry((uri, key.bits())) else { return };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }

    /// Returns the keys of a URI.
    pub(super) fn keys(&self, uri: UriHash) -> SmallVec<[Key; 4]> {
        let shard = self.shard(uri);
        shard.range((uri, 0)..=(uri, u128::MAX)).map(|(&(_, bits), _)| Key::from_bits(bits)).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}
