//! The last requests whose run has ended without a known outcome in this process, for operators: they look at the
//! node's own records, and release what did not run.

use super::identity::{Id, Subject};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// The most that are kept, and that are listed: each is looked up in the store.
const KEPT: usize = 100;
const LISTED: usize = 20;

/// The last outcomes that are not known, the newest first.
#[derive(Default)]
pub(super) struct Unknowns(Mutex<VecDeque<(Id, Arc<Subject>, Instant)>>);

impl Unknowns {
    pub(super) fn note(&self, id: Id, subject: &Arc<Subject>) {
        let mut kept = self.0.lock();
        kept.retain(|(known, ..)| *known != id);
        kept.truncate(KEPT - 1);
        kept.push_front((id, Arc::clone(subject), Instant::now()));
    }

    /// Returns the newest ones, with the time since which each is not known.
    pub(super) fn newest(&self) -> Vec<(Id, Arc<Subject>, Instant)> {
        self.0.lock().iter().take(LISTED).cloned().collect()
    }

    pub(super) fn forget(&self, id: Id) {
        self.0.lock().retain(|(known, ..)| *known != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> Id {
        Id([number; Id::LENGTH])
    }

    #[test]
    fn the_newest_are_kept_once() {
        let (unknowns, subject) = (Unknowns::default(), Arc::new(Subject::default()));
        for number in (0..KEPT as u8 + 20).chain([119, 118]) {
            unknowns.note(id(number), &subject);
        }
        let kept: Vec<Id> = unknowns.0.lock().iter().map(|(id, ..)| *id).collect();
        assert!((kept.len(), kept[0], kept[1]) == (KEPT, id(118), id(119)));
        unknowns.forget(id(118));
        assert_eq!(unknowns.0.lock().len(), KEPT - 1);
    }
}
