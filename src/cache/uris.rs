//! The keys under which responses to a URI are stored where other things are part of them: a change of its resource
//! strikes all of them. The key that is made of the URI alone needs no list.

use super::key::{Key, hash_text};
use super::lock;
use super::store::AsIs;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

/// Locks that URIs rarely share.
const SHARDS: usize = 16;

/// A URI, hashed with a key that no client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct UriHash(u64);

impl UriHash {
    pub(super) fn of(uri: &str) -> UriHash {
        UriHash(hash_text(uri.as_bytes()))
    }
}

/// The keys of all URIs.
#[derive(Default)]
pub(super) struct Uris {
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = HashMap<UriHash, SmallVec<[Holder; 1]>, AsIs>;

/// A key, and how many entries of the table, there or on their way there, it stands for.
struct Holder {
    bits: [u64; 2],
    count: u32,
}

impl Holder {
    fn is(&self, key: Key) -> bool {
        self.bits == halves(key)
    }
}

fn halves(key: Key) -> [u64; 2] {
    [(key.bits() >> 64) as u64, key.bits() as u64]
}

impl Uris {
    fn shard(&self, uri: UriHash) -> MutexGuard<'_, Shard> {
        // The map goes by the lower bits.
        lock(&self.shards[(uri.0 >> 60) as usize % SHARDS])
    }

    /// Counts an entry that is about to be stored.
    pub(super) fn add(&self, uri: UriHash, key: Key) {
        let mut shard = self.shard(uri);
        let holders = shard.entry(uri).or_default();
        match holders.iter_mut().find(|holder| holder.is(key)) {
            Some(holder) => holder.count += 1,
            None => holders.push(Holder { bits: halves(key), count: 1 }),
        }
    }

    /// Counts an entry no more.
    pub(super) fn remove(&self, uri: UriHash, key: Key) {
        let mut shard = self.shard(uri);
        let Some(holders) = shard.get_mut(&uri) else { return };
        if let Some(at) = holders.iter().position(|holder| holder.is(key)) {
            holders[at].count -= 1;
            if holders[at].count == 0 {
                holders.swap_remove(at);
            }
        }
        if holders.is_empty() {
            shard.remove(&uri);
            if shard.capacity() > 4 * shard.len() + 1024 {
                shard.shrink_to_fit();
            }
        }
    }

    /// Returns the keys of a URI.
    pub(super) fn keys(&self, uri: UriHash) -> SmallVec<[Key; 4]> {
        let shard = self.shard(uri);
        let key = |holder: &Holder| Key::from_bits(u128::from(holder.bits[0]) << 64 | u128::from(holder.bits[1]));
        shard.get(&uri).map(|holders| holders.iter().map(key).collect()).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).values().map(|holders| holders.len()).sum::<usize>()).sum()
    }
}
