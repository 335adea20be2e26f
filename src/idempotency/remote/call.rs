//! A call that waits for a remote store.

use crate::idempotency::identity::Id;
use crate::idempotency::record::Token;
use crate::idempotency::saga::{Append, Appended, SagaQuery, SagaRow, Seen};
use crate::idempotency::store::{
    Authorised, ClaimReply, Completion, Done, Found, Listed, NewClaim, Release, StoreError, Tended,
};
use std::time::{Duration, Instant};

/// The time after which a call fails, unless its claim's lease ends earlier.
const PATIENCE: Duration = Duration::from_secs(5);

/// A call of the store's trait, with its callback.
pub(in crate::idempotency) enum Call {
    Claim(NewClaim, Done<ClaimReply>),
    Complete(Completion, Done<bool>),
    Release(Release, Done<bool>),
    Authorise(Id, Done<Authorised>),
    Beat(Done<()>),
    Tend(Done<Tended>),
    Running(Done<Vec<(Id, Token)>>),
    LookUp(Id, Done<Option<Found>>),
    Find(String, Done<Vec<Listed>>),
    Append(Append, Done<Option<Appended>>),
    TakeOver(Seen, Done<Option<SagaRow>>),
    Sagas(SagaQuery, Done<Vec<SagaRow>>),
}

impl Call {
    /// Answers the call with an error.
    pub(in crate::idempotency) fn fail(self, error: StoreError) {
        match self {
            Call::Claim(_, done) => done(Err(error)),
            Call::Complete(_, done) | Call::Release(_, done) => done(Err(error)),
            Call::Authorise(_, done) => done(Err(error)),
            Call::Beat(done) => done(Err(error)),
            Call::Tend(done) => done(Err(error)),
            Call::Running(done) => done(Err(error)),
            Call::LookUp(_, done) => done(Err(error)),
            Call::Find(_, done) => done(Err(error)),
            Call::Append(_, done) => done(Err(error)),
            Call::TakeOver(_, done) => done(Err(error)),
            Call::Sagas(_, done) => done(Err(error)),
        }
    }

    /// Returns whether the call changes nothing.
    pub(super) fn only_reads(&self) -> bool {
        let is_list = matches!(self, Call::Sagas(query, _) if *query != SagaQuery::Orphaned);
        is_list || matches!(self, Call::LookUp(..) | Call::Find(..))
    }

    /// Returns the memory that the call's texts and bodies take, in bytes.
    pub(in crate::idempotency) fn size(&self) -> usize {
        match self {
            Call::Complete(completion, _) => completion.response.as_ref().map_or(0, |response| response.size()),
            Call::Claim(NewClaim { saga: Some(saga), .. }, _) => saga.definition.len() + saga.inputs.len(),
            Call::Append(append, _) => {
                let response = append.end.as_ref().and_then(|end| end.response.as_ref());
                append.entries.as_ref().map_or(0, String::len) + response.map_or(0, |response| response.size())
            }
            _ => 0,
        }
    }
}

/// A call, with its progress.
pub(in crate::idempotency) struct Pending {
    pub(in crate::idempotency) call: Call,
    /// It was sent before, and its fate is unknown: it is sent again as a write.
    pub(in crate::idempotency) is_resent: bool,
    /// The time at which an answer is of no use any more.
    pub(in crate::idempotency) give_up: Instant,
}

impl Pending {
    pub(super) fn new(call: Call) -> Pending {
        let patience = match &call {
            Call::Claim(claim, _) => PATIENCE.min(claim.lease / 2),
            Call::Append(append, _) => PATIENCE.min(append.lease / 2),
            _ => PATIENCE,
        };
        Pending { call, is_resent: false, give_up: Instant::now() + patience }
    }

    /// Answers a call that the store has refused. Of one that was sent before, an earlier copy may have been carried
    /// out.
    pub(in crate::idempotency) fn refuse(self, error: &StoreError) {
        self.call.fail(match self.is_resent {
            true => StoreError::Torn(error.to_string()),
            false => error.clone(),
        });
    }

    /// Answers a call that could not be carried out in time.
    pub(super) fn give_up(self, reason: &str) {
        self.call.fail(match self.is_resent {
            true => StoreError::Torn(format!("the store did not confirm it: {reason}")),
            false => StoreError::Away(reason.to_owned()),
        });
    }
}
