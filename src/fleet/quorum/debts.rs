//! Slots that a process has written to, or purged, without W nodes: they are stamped once the quorum is back.

use crate::consistency::quorum::Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What is still to be done. Bounded by the number of slots.
#[derive(Default)]
pub(super) struct Debts {
    /// Slots to stamp.
    pub(super) stamps: BTreeSet<Slot>,
    /// Slots to stamp from a time on, beside.
    pub(super) later: BTreeMap<Slot, Instant>,
}

impl Debts {
    /// Has the slots stamped whose time has come.
    pub(super) fn come_due(&mut self, now: Instant) {
        self.stamps.extend(self.later.extract_if(.., |_, due| *due <= now).map(|(slot, _)| slot));
    }
}
