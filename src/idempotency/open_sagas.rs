//! The sagas of this process: those that a task works on, and those that its workers may go on with.

use super::identity::Id;
use super::saga::SagaRow;
use crate::clock::BootTime;
use crate::saga::machine::Event;
use foldhash::{HashMap, HashSet};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sagas that wait to be taken over here; other processes see the rest.
const OFFERS: usize = 256;

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
}

/// A saga that was stuck, that a person has decided about, and that this process owns now.
pub(super) struct DecidedSaga {
    pub(super) row: SagaRow,
    /// When the takeover was sent.
    pub(super) sent: BootTime,
    pub(super) decision: Event,
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

    pub(super) fn decide(&self, decided: DecidedSaga) {
        self.lock().decided.push_back(decided);
    }

    pub(super) fn decided(&self) -> Option<DecidedSaga> {
        self.lock().decided.pop_front()
    }
}
