//! The trait of stores, and its guarantees.
//!
//! Each call is one atomic step, whose change is durable when `done` is called. A call is carried out even if its
//! caller does not wait any more. Nothing here assumes a single process: a reply about another process's record is what
//! the store has. The store's own clock decides about times: calls carry durations.

use super::fingerprint::Fingerprint;
use super::identity::{Id, Subject};
use super::record::{Finish, Holder, Millis, Record, ReleaseWay, State, Token};
use super::response::StoredResponse;
use super::saga::{Append, Appended, NewSaga, SagaQuery, SagaRow, Seen};
use crate::clock::BootTime;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// Called with the result of a call; on any thread, and once.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// A store of records.
pub(crate) trait Store: Send + Sync {
    /// Returns the number of this process in the store.
    fn holder(&self) -> Holder;
    /// Inserts a running record where there is none; otherwise returns the existing one.
    fn claim(&self, claim: NewClaim, done: Done<ClaimReply>);
    /// Records the end of a run; `false` where the record is another one's, or missing.
    fn complete(&self, completion: Completion, done: Done<bool>);
    /// Releases a claim whose request does not count as sent; `false` as for `complete`.
    fn release(&self, release: Release, done: Done<bool>);
    /// Removes a record that has ended, for an operator.
    fn authorise(&self, id: Id, done: Done<Authorised>);
    /// Sends the heartbeat of this process.
    fn beat(&self, done: Done<()>);
    /// Removes some expired records; ends, and logs, claims of dead holders.
    fn tend(&self, done: Done<Tended>);
    /// Returns some of the running records of this process.
    fn running(&self, done: Done<Vec<(Id, Token)>>);
    /// Returns the record of an identity.
    fn look_up(&self, id: Id, done: Done<Option<Found>>);
    /// All records with a key, a thousand at most.
    fn find(&self, key: String, done: Done<Vec<Listed>>);
    /// Appends to a saga's log; nothing where another process owns the saga.
    fn append(&self, _append: Append, done: Done<Option<Appended>>) {
        done(Err(no_sagas()));
    }
    /// Makes this process the owner of a saga that has none, whose owner is dead, or that is stuck; nothing where it
    /// has changed since it was seen.
    fn take_over(&self, _seen: Seen, done: Done<Option<SagaRow>>) {
        done(Err(no_sagas()));
    }
    /// Returns sagas; of a long list the first ones.
    fn sagas(&self, _query: SagaQuery, done: Done<Vec<SagaRow>>) {
        done(Err(no_sagas()));
    }
    /// Returns whether it keeps sagas.
    fn keeps_sagas(&self) -> bool {
        false
    }
    /// Returns whether a look-up takes it less than a claim that finds a result.
    fn prefers_look_ups(&self) -> bool {
        false
    }
    /// Returns the number of records, where the store has it.
    fn count(&self) -> Option<u64>;
    /// Returns whether writes reach the store; `None` where only their results tell.
    fn is_up(&self) -> Option<bool> {
        None
    }
    /// Returns what can be lost and when, under the current settings of the store, in sentences.
    fn promise(&self) -> Vec<String> {
        Vec::new()
    }
    /// Goes on under another configuration of the same store: another address, another password.
    fn reconfigure(&self, _settings: &(dyn Any + Send + Sync)) {}
    /// Returns the time between two rounds of upkeep.
    fn tend_interval(&self) -> Duration {
        Duration::from_millis(500)
    }
}

/// The most records that [`Store::find`] returns, and that [`Store::tend`] removes at a time.
pub(crate) const BATCH: u32 = 1000;

/// A claim to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewClaim {
    pub(crate) id: Id,
    pub(crate) subject: Arc<Subject>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) token: Token,
    /// Claims an UNKNOWN record too.
    pub(crate) retake: bool,
    /// The time without a heartbeat after which others count the holder as dead.
    pub(crate) lease: Duration,
    /// The time for which the record is kept once it has ended.
    pub(crate) ttl: Duration,
    /// A saga that begins with it, in one transaction: the record is the saga's then.
    pub(crate) saga: Option<Box<NewSaga>>,
}

/// The answer to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimReply {
    pub(crate) claimed: Claimed,
    /// When the claim was sent that this answers: the holder's heartbeat is at least as young.
    pub(crate) sent: BootTime,
    /// Copies of it may still be under way.
    pub(crate) is_resent: bool,
    /// The store's time, where a saga has begun.
    pub(crate) began: Option<Millis>,
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
    /// Returns the result of a claim in the place of a record. A repeated claim cannot tell whether its first copy took
    /// the place of an unknown outcome; if it may have, it counts so.
    pub(super) fn over(before: Option<&Record>, claim: &NewClaim, now: Millis) -> Claimed {
        match before.filter(|record| !record.is_over(now)) {
            Some(record) if record.is_open_to(claim.token) && !claim.retake => Claimed::First,
            Some(record) if matches!(record.state, State::Running | State::Unknown) => Claimed::Again,
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
    /// The time for which the record is kept from now on.
    pub(crate) ttl: Duration,
}

/// The end of a claim whose request does not count as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) id: Id,
    pub(crate) token: Token,
    pub(crate) way: ReleaseWay,
    /// The time for which a record that stays is kept from now on.
    pub(crate) ttl: Duration,
    /// The claim began a saga: it goes too, unless it has an entry.
    pub(crate) of_saga: bool,
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

/// A record for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: Id,
    pub(crate) subject: Subject,
    pub(crate) record: Record,
    /// The status of the stored response.
    pub(crate) status: Option<u16>,
    /// The time since its claim.
    pub(crate) age: Duration,
    /// The time until it may go; a running record has none.
    pub(crate) expires_in: Option<Duration>,
    /// The name of the process that made the claim, where the store has it.
    pub(crate) holder_name: Option<String>,
}

impl Listed {
    /// Returns a record as of a time.
    pub(super) fn at(now: Millis, id: Id, subject: Subject, record: Record, status: Option<u16>) -> Listed {
        let age = Duration::from_millis(now.saturating_sub(record.created));
        let left = Duration::from_millis(record.expires.saturating_sub(now));
        let expires_in = (!record.is_running()).then_some(left);
        Listed { id, subject, record, status, age, expires_in, holder_name: None }
    }
}

/// The reasons for which a store has not carried out a call.
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
    /// The store cannot be reached; nothing was sent to it.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    #[error("the store cannot be reached: {0}")]
    Away(String),
    /// The claim was released before this copy of it arrived.
    #[error("the claim was released before it arrived")]
    Released,
    #[error("the store has ended")]
    Ended,
}

/// The error of a store that keeps no sagas.
pub(super) fn no_sagas() -> StoreError {
    StoreError::Failed("this kind of store keeps no sagas; SQLite and PostgreSQL do".to_owned())
}
