//! Where records are kept: what every store promises.
//!
//! Each call is one atomic step, and what it changed is durable when `done` hears of it. A call that
//! nobody waits for any more is carried out all the same. Nothing here assumes that there is only one
//! process: every answer about another's record is what the store knows, not what this process does.

use super::fingerprint::Fingerprint;
use super::identity::{Id, Subject};
use super::record::{Finish, Holder, Millis, Record, State, Token};
use super::response::StoredResponse;
use std::sync::Arc;
use std::time::Duration;

/// Hears what became of a call; on any thread, and once.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// A store of records.
pub(crate) trait Store: Send + Sync {
    /// The number by which this process is known to the others.
    fn holder(&self) -> Holder;
    /// Inserts a running record where none is; else gives what is there.
    fn claim(&self, claim: NewClaim, done: Done<Claimed>);
    /// Says how a run ended; `false` where the record is another's, or none.
    fn complete(&self, completion: Completion, done: Done<bool>);
    /// Removes a claim whose request does not count as sent; `false` as for `complete`.
    fn release(&self, id: Id, token: Token, done: Done<bool>);
    /// Removes a record that has ended, on an operator's word.
    fn authorise(&self, id: Id, now: Millis, done: Done<Authorised>);
    /// Shows the others that this process lives.
    fn beat(&self, done: Done<()>);
    /// Removes some of what has expired; marks, and logs, what dead holders left behind.
    fn tend(&self, now: Millis, done: Done<Tended>);
    /// Returns the record of an identity.
    fn look_up(&self, id: Id, done: Done<Option<Found>>);
    /// All records with a key, a thousand at most.
    fn find(&self, key: String, done: Done<Vec<Listed>>);
    /// Returns how many records there are.
    fn count(&self) -> u64;
}

/// How many records [`Store::find`] gives at most, and [`Store::tend`] removes at a time.
pub(crate) const BATCH: u32 = 1000;

/// A claim to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewClaim {
    pub(crate) id: Id,
    pub(crate) subject: Arc<Subject>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) token: Token,
    /// Take what is UNKNOWN, too.
    pub(crate) retake: bool,
    /// The time for which the holder may be silent before others take it for dead.
    pub(crate) lease: Duration,
    pub(crate) now: Millis,
    pub(crate) expires: Millis,
}

/// The result of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// It is made.
    First,
    /// It is made, in the place of a run whose outcome is unknown.
    Again,
    /// There is a record already.
    Found(Found),
}

impl Claimed {
    /// What a claim is that is made where this record was.
    pub(super) fn over(before: Option<&Record>, now: Millis) -> Claimed {
        match before {
            Some(record) if record.state == State::Unknown && !record.is_over(now) => Claimed::Again,
            _ => Claimed::First,
        }
    }
}

/// A record with its result, where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) response: Option<StoredResponse>,
}

/// The end of a run.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) id: Id,
    pub(crate) token: Token,
    pub(crate) finish: Finish,
    /// With [`Finish::Done`].
    pub(crate) response: Option<StoredResponse>,
    /// Where the run took so long that its record would go too early.
    pub(crate) expires: Option<Millis>,
}

/// The result of an operator's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authorised {
    /// The record is gone; the next request runs.
    Released,
    /// Its holder still works on it.
    Running,
    /// There is no such record.
    Absent,
}

/// The result of a clean-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tended {
    pub(crate) expired: usize,
    /// There is more to do.
    pub(crate) more: bool,
}

/// A record as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: Id,
    pub(crate) subject: Subject,
    pub(crate) record: Record,
    /// The status of the stored response.
    pub(crate) status: Option<u16>,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("more calls wait for the store than it takes")]
    Overloaded,
    #[error("the store did not answer in time")]
    TooSlow,
    #[error("the store is full")]
    Full,
    /// Nothing was changed.
    #[error("{0}")]
    Failed(String),
    /// The change may be there, or not: it broke off while it was made durable.
    #[error("{0}")]
    Torn(String),
    #[error("the store has ended")]
    Ended,
}
