//! The one way to answer a call that is carried out outside of the transaction of all writes.

use super::Trouble;
use crate::idempotency::identity::Id;
use crate::idempotency::record::Token;
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::saga::SagaRow;
use crate::idempotency::store::{Authorised, Listed, StoreError, Tended};

/// The result of a call.
pub(super) enum Reply {
    Listed(Vec<Listed>),
    Authorised(Authorised),
    Tended(Tended),
    Running(Vec<(Id, Token)>),
    Taken(Option<Box<SagaRow>>),
    Sagas(Vec<SagaRow>),
}

impl Reply {
    fn answer(self, call: Call) {
        match (self, call) {
            (Reply::Listed(listed), Call::Find(_, done)) => done(Ok(listed)),
            (Reply::Authorised(authorised), Call::Authorise(_, done)) => done(Ok(authorised)),
            (Reply::Tended(tended), Call::Tend(done)) => done(Ok(tended)),
            (Reply::Running(running), Call::Running(done)) => done(Ok(running)),
            (Reply::Taken(taken), Call::TakeOver(_, done)) => done(Ok(taken.map(|row| *row))),
            (Reply::Sagas(sagas), Call::Sagas(_, done)) => done(Ok(sagas)),
            (_, call) => call.fail(StoreError::Failed("the reply is to another call".to_owned())),
        }
    }
}

/// Answers the call at a place with its result, or with the server's refusal: a call that was sent before may have been
/// carried out. Where the connection is of no use any more, the call stays.
pub(super) fn finish(calls: &mut Vec<Pending>, at: usize, replied: Result<Reply, Trouble>) -> Result<(), Trouble> {
    match replied {
        Ok(reply) => reply.answer(calls.swap_remove(at).call),
        Err(Trouble::Refused(error)) => calls.swap_remove(at).refuse(&error),
        Err(broken) => return Err(broken),
    }
    Ok(())
}
