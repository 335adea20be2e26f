//! Slots that a process has written to, or purged, without W nodes: they are stamped once the quorum is back.

use super::messages::WriteOrder;
use super::rules::QuorumRules;
use crate::consistency::quorum::{Slot, Slots};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// The most last operations that wait.
const MAX_ENDINGS: usize = 4096;

/// The operations that are still to be sent. Bounded by the number of slots.
#[derive(Default)]
pub(super) struct Debts {
    /// Slots to stamp.
    pub(super) stamps: BTreeSet<Slot>,
    /// Slots to stamp from a time on, beside.
    pub(super) later: BTreeMap<Slot, Instant>,
    /// The last operations of writes whose clients have gone, to be sent once.
    endings: Vec<Ending>,
}

/// The last operation of a write.
pub(super) struct Ending {
    pub(super) rules: Arc<QuorumRules>,
    pub(super) order: WriteOrder,
    pub(super) slots: Slots,
}

impl Debts {
    /// Adds the last operation of a write. Where too many wait, its mark ends by itself.
    pub(super) fn end(&mut self, ending: Ending) {
        if self.endings.len() < MAX_ENDINGS {
            self.endings.push(ending);
        }
    }

    pub(super) fn take_endings(&mut self) -> Vec<Ending> {
        std::mem::take(&mut self.endings)
    }

    /// Has the slots stamped whose time has come.
    pub(super) fn come_due(&mut self, now: Instant) {
        self.stamps.extend(self.later.extract_if(.., |_, due| *due <= now).map(|(slot, _)| slot));
    }
}
