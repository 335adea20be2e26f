//! The slots: each stands for the groups with one hash, and one more for everything.

use crate::consistency::GroupId;
use smallvec::SmallVec;
use std::fmt;

/// The number of slots that groups are divided among.
const SLOTS: u32 = 1 << 16;

/// A slot. Groups that share one are taken for one, which costs fetches and never safety.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(u32);

/// The slots of a request, each once, in their order.
pub(crate) type Slots = SmallVec<[Slot; 6]>;

/// The slot of purges by prefix, by tag and of everything: every stored response has it.
pub(crate) const ALL: Slot = Slot(SLOTS);

impl Slot {
    /// Returns the number of the slot: 65,536 for [`ALL`].
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ALL => f.write_str("*"),
            Slot(number) => number.fmt(f),
        }
    }
}

/// Returns the slot of a group.
pub(crate) fn slot_of(group: GroupId) -> Slot {
    Slot((group % u64::from(SLOTS)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_group_has_the_slot_of_everything() {
        assert_eq!((slot_of(0), slot_of(u64::MAX), slot_of(65_536)), (Slot(0), Slot(65_535), Slot(0)));
        assert!(slot_of(65_535) < ALL);
        assert_eq!([slot_of(7).to_string(), ALL.to_string()], ["7", "*"]);
    }
}
