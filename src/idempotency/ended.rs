//! The keys whose runs are known here to have ended: their next request is answered by a look-up, where a store takes
//! less for one than for a claim.

use super::identity::Id;
use std::sync::atomic::{AtomicU64, Ordering};

/// The keys that are remembered, at most.
const SLOTS: usize = 1 << 16;

/// The last keys whose runs have ended. It forgets keys, and may take one for another: a look-up that finds no result
/// is followed by a claim.
pub(super) struct EndedKeys(Box<[AtomicU64]>);

impl Default for EndedKeys {
    fn default() -> EndedKeys {
        EndedKeys((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl EndedKeys {
    /// Notes that the run of a key has ended.
    pub(super) fn note(&self, id: Id) {
        let (slot, tag) = self.place(id);
        slot.store(tag, Ordering::Relaxed);
    }

    /// Returns whether the run of a key is known to have ended.
    pub(super) fn has(&self, id: Id) -> bool {
        let (slot, tag) = self.place(id);
        slot.load(Ordering::Relaxed) == tag
    }

    fn place(&self, id: Id) -> (&AtomicU64, u64) {
        let [.., a, b, c, d, e, f, g, h, i, j] = id.0;
        (&self.0[usize::from(u16::from_be_bytes([a, b]))], u64::from_be_bytes([c, d, e, f, g, h, i, j]) | 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_until_another_takes_its_place() {
        let ended = EndedKeys::default();
        let [one, other] = [1, 3].map(|number| Id([number; Id::LENGTH]));
        assert!(!ended.has(one));
        ended.note(one);
        assert!(ended.has(one) && !ended.has(other));
        let mut same_place = one;
        same_place.0[Id::LENGTH - 1] = 7;
        ended.note(same_place);
        assert!(ended.has(same_place) && !ended.has(one));
    }
}
