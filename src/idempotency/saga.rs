//! Sagas as a store keeps them: a row beside a record that is running until its saga ends.
//!
//! The row is inserted with the claim, in one transaction. It holds the copy of the definition, the seed of the steps'
//! keys and the log. Its owner is a process; the epoch rises with each takeover, and every append demands it. An append
//! that is sent again is recognised by epoch and sequence.

use super::identity::{Id, Subject};
use super::record::{Finish, Holder, Millis, Token};
use super::response::StoredResponse;
use crate::clock::BootTime;
use crate::saga::log::Standing;
use std::time::Duration;

/// The most sagas that a query returns.
pub(crate) const MOST: i64 = 1000;

/// The owner of a saga that has none.
pub(crate) const NO_OWNER: Holder = 0;

/// The time to live of a claim under a saga: it has no end of its own.
pub(super) const LASTING: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A saga to be begun with its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewSaga {
    pub(crate) seed: [u8; 16],
    pub(crate) definition: String,
    /// The parts of the request that the templates use.
    pub(crate) inputs: String,
    /// The time for which the record is kept once the saga has ended.
    pub(crate) ttl: Duration,
}

/// A saga as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SagaRow {
    /// The identity and the token of the record.
    pub(crate) id: Id,
    pub(crate) token: Token,
    pub(crate) owner: Holder,
    pub(crate) epoch: u64,
    /// The number of appends.
    pub(crate) sequence: u64,
    pub(crate) standing: Standing,
    pub(crate) seed: [u8; 16],
    pub(crate) definition: String,
    pub(crate) inputs: String,
    pub(crate) log: String,
    pub(crate) lease: Duration,
    pub(crate) ttl: Duration,
    pub(crate) created: Millis,
    pub(crate) touched: Millis,
    /// The store's time when it was read.
    pub(crate) now: Millis,
    /// The request, where its record is there.
    pub(crate) subject: Option<Subject>,
}

/// An append to the log of a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Append {
    pub(crate) id: Id,
    pub(crate) token: Token,
    pub(crate) epoch: u64,
    /// The number of appends before it.
    pub(crate) sequence: u64,
    /// The entries; without any it only shows that the owner lives, and owns the saga.
    pub(crate) entries: Option<String>,
    pub(crate) standing: Standing,
    /// Its owner gives it up, for another process to go on.
    pub(crate) gives_up: bool,
    pub(crate) lease: Duration,
    /// The end of the record, in the same transaction.
    pub(crate) end: Option<SagaEnd>,
}

/// The end of a record under a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SagaEnd {
    pub(crate) finish: Finish,
    pub(crate) response: Option<StoredResponse>,
}

/// The answer to an append by the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    /// The store's time.
    pub(crate) now: Millis,
    /// When the append was sent that this answers: the owner's heartbeat is at least as young.
    pub(crate) sent: BootTime,
}

/// A saga that is to be taken over, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: Id,
    pub(crate) epoch: u64,
}

/// The sagas that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SagaQuery {
    One(Id),
    /// All, or those of one state; the youngest first.
    Standing(Option<Standing>),
    /// Those that go on and have no owner, or a dead one.
    Orphaned,
    /// Those that go on and are this process's own.
    Owned,
}

impl Append {
    /// Returns the owner after the append.
    pub(super) fn owner(&self, own: Holder) -> Holder {
        let rests = self.gives_up || self.standing.is_end() || self.standing == Standing::Stuck;
        if rests { NO_OWNER } else { own }
    }

    /// Returns by how much the sequence grows.
    pub(super) fn growth(&self) -> i64 {
        i64::from(self.entries.is_some())
    }
}
