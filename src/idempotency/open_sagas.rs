//! The sagas of this process: those that a task works on, and those that its workers may go on with.

use super::identity::Id;
use super::saga::SagaRow;
use crate::clock::BootTime;
use crate::saga::machine::Event;
use foldhash::{HashMap, HashSet};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::oneshot;

/// Sagas that wait to be taken over here; other processes see the rest.
const OFFERS: usize = 256;

/// The most sagas that tasks of this process work on. Each keeps 64 KiB of values at most.
const MOST_OPEN: usize = 8192;

/// The most sagas that are remembered as unreadable.
const UNREADABLE: usize = 1024;

/// The sagas of this process.
#[derive(Default)]
pub(super) struct OpenSagas {
    sagas: Mutex<Sagas>,
    /// Routes run sagas.
    are_expected: AtomicBool,
    /// The number of sagas that were stuck at the last look.
    stuck: AtomicU64,
}

#[derive(Default)]
struct Sagas {
    /// Those that a task works on, with their epochs.
    open: HashMap<Id, u64>,
    /// Those without an owner, as they were seen.
    offered: VecDeque<SagaRow>,
    /// Those that are offered, or are being taken over.
    wanted: HashSet<Id>,
    /// Those that a person has decided about, and that this process owns now.
    decided: VecDeque<DecidedSaga>,
    /// Those that a decision is being made about.
    in_decision: HashSet<Id>,
    /// Those whose rows cannot be read here, as it was logged.
    unreadable: HashSet<Id>,
}

/// A saga that was stuck, that a person has decided about, and that this process owns now.
pub(super) struct DecidedSaga {
    pub(super) row: SagaRow,
    /// When the takeover was sent.
    pub(super) sent: BootTime,
    pub(super) decision: Decision,
}

/// A person's decision on a saga that was stuck.
pub(crate) struct Decision {
    pub(crate) event: Event,
    /// Told once the decision is in the log: only then it is answered.
    pub(crate) logged: oneshot::Sender<()>,
}

/// The turn of one decision on a saga, which ends when this is dropped.
pub(super) struct DecisionTurn<'a> {
    sagas: &'a OpenSagas,
    id: Id,
}

impl Drop for DecisionTurn<'_> {
    fn drop(&mut self) {
        self.sagas.lock().in_decision.remove(&self.id);
    }
}

impl OpenSagas {
    fn lock(&self) -> MutexGuard<'_, Sagas> {
        self.sagas.lock()
    }

    /// Notes that routes run sagas: those without an owner are looked for more often.
    pub(super) fn expect(&self) {
        self.are_expected.store(true, Ordering::Relaxed);
    }

    pub(super) fn are_expected(&self) -> bool {
        self.are_expected.load(Ordering::Relaxed)
    }

    pub(super) fn note_stuck(&self, stuck: usize) {
        self.stuck.store(stuck as u64, Ordering::Relaxed);
    }

    pub(super) fn stuck(&self) -> u64 {
        self.stuck.load(Ordering::Relaxed)
    }

    pub(super) fn are_open(&self) -> bool {
        !self.lock().open.is_empty()
    }

    /// Returns whether this process works on as many sagas as it may.
    pub(super) fn are_full(&self) -> bool {
        self.lock().open.len() >= MOST_OPEN
    }

    /// Notes a saga whose row cannot be read here. Returns whether that is new.
    pub(super) fn note_unreadable(&self, id: Id) -> bool {
        let mut sagas = self.lock();
        sagas.unreadable.len() < UNREADABLE && sagas.unreadable.insert(id)
    }

    /// Notes that a task works on a saga.
    pub(super) fn enter(&self, id: Id, epoch: u64) {
        self.lock().open.insert(id, epoch);
    }

    /// Notes that the task has ended.
    pub(super) fn leave(&self, id: Id, epoch: u64) {
        let mut sagas = self.lock();
        if sagas.open.get(&id) == Some(&epoch) {
            sagas.open.remove(&id);
        }
    }

    /// Offers sagas to the workers, of which no task works on any.
    pub(super) fn offer(&self, rows: impl IntoIterator<Item = SagaRow>) {
        let mut sagas = self.lock();
        for row in rows {
            if !sagas.open.contains_key(&row.id) && sagas.offered.len() < OFFERS && sagas.wanted.insert(row.id) {
                sagas.offered.push_back(row);
            }
        }
    }

    /// Returns a saga that is offered; [`OpenSagas::settle`] ends the offer.
    pub(super) fn offered(&self) -> Option<SagaRow> {
        self.lock().offered.pop_front()
    }

    /// Ends an offer: the saga was taken over, or not.
    pub(super) fn settle(&self, id: Id) {
        self.lock().wanted.remove(&id);
    }

    /// Returns the turn to decide on a saga; `None` while another decision has it.
    pub(super) fn decide_on(&self, id: Id) -> Option<DecisionTurn<'_>> {
        let is_first = self.lock().in_decision.insert(id);
        is_first.then(|| DecisionTurn { sagas: self, id })
    }

    pub(super) fn decide(&self, decided: DecidedSaga) {
        self.lock().decided.push_back(decided);
    }

    pub(super) fn decided(&self) -> Option<DecidedSaga> {
        self.lock().decided.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> Id {
        let mut id = [0; Id::LENGTH];
        id[..8].copy_from_slice(&number.to_be_bytes());
        Id(id)
    }

    #[test]
    fn the_sagas_of_a_process_are_bounded() {
        let sagas = OpenSagas::default();
        for number in 0..MOST_OPEN {
            assert!(!sagas.are_full());
            sagas.enter(id(number), 0);
        }
        assert!(sagas.are_full());
        sagas.leave(id(0), 0);
        assert!(!sagas.are_full());
    }

    #[test]
    fn a_saga_that_cannot_be_read_is_new_once() {
        let sagas = OpenSagas::default();
        assert!(sagas.note_unreadable(id(0)));
        assert!(!sagas.note_unreadable(id(0)));
        assert!((1..UNREADABLE).all(|number| sagas.note_unreadable(id(number))));
        assert!(!sagas.note_unreadable(id(UNREADABLE)), "no more are remembered");
    }
}
