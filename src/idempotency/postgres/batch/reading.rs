//! The calls that only read: look-ups, searches, and questions about sagas. A result that could be lost with the server
//! is shown once standbys have it.

use super::{
    Batch, RESULTS, Reply, Trouble, finish, is_operation, pipelined, query, reads_of, simple, within, within_for,
};
use crate::idempotency::identity::Id;
use crate::idempotency::postgres::rows::{self, Param, Read, signed};
use crate::idempotency::record::State;
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::store::{BATCH, Listed, StoreError};
use std::collections::HashMap;
use std::time::Instant;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

/// Takes the look-ups out of the calls that wait.
fn look_ups_of(calls: &mut Vec<Pending>) -> impl Iterator<Item = Pending> {
    calls.extract_if(.., |pending| matches!(pending.call, Call::LookUp(..)))
}

/// Returns whether a call asks for a list.
fn is_search(call: &Call) -> bool {
    matches!(call, Call::Find(..)) || (matches!(call, Call::Sagas(..)) && !is_operation(call))
}

impl Batch<'_> {
    /// Answers look-ups, searches and questions about sagas.
    pub(super) async fn read(&self, calls: &mut Vec<Pending>) -> Result<(), Trouble> {
        let ids: Vec<&[u8]> = calls
            .iter()
            .filter_map(|pending| match &pending.call {
                Call::LookUp(id, _) => Some(&id.0[..]),
                _ => None,
            })
            .collect();
        if !ids.is_empty() {
            match self.look_up(&ids).await {
                Ok(found) => self.answer_look_ups(calls, found).await?,
                Err(Trouble::Refused(error)) => look_ups_of(calls).for_each(|pending| pending.refuse(&error)),
                Err(broken) => return Err(broken),
            }
        }
        while let Some(at) = calls.iter().position(|pending| is_search(&pending.call)) {
            let replied = match &calls[at].call {
                Call::Find(key, _) => self.find(key).await.map(Reply::Listed),
                Call::Sagas(query, _) => self.find_sagas(*query).await.map(Reply::Sagas),
                _ => break,
            };
            finish(calls, at, replied)?;
        }
        Ok(())
    }

    /// Returns the records with a key.
    async fn find(&self, key: &str) -> Result<Vec<Listed>, Trouble> {
        let (mut first, mut last) = ([0; Id::LENGTH], [0xff; Id::LENGTH]);
        first[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
        last[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
        let (first, last, limit) = (&first[..], &last[..], i64::from(BATCH));
        let params: [Param<'_>; 4] =
            [(&first, Type::BYTEA), (&last, Type::BYTEA), (&key, Type::TEXT), (&limit, Type::INT8)];
        let rows = within(self.client().query_typed(rows::FIND, &params)).await?;
        rows.iter().map(rows::listed).collect::<Result<_, Error>>().map_err(|error| Trouble::of(&error))
    }

    /// Reads the records that are not over.
    async fn look_up(&self, ids: &[&[u8]]) -> Result<HashMap<Id, Read>, Trouble> {
        let rows = within_for(RESULTS, query(self.connection, rows::READ, vec![(&ids, Type::BYTEA_ARRAY)])).await?;
        let is_here = |read: &Read| {
            let record = &read.found.record;
            record.state != State::Tombstone && !record.is_over(read.now)
        };
        Ok(reads_of(&rows)?.into_iter().filter(is_here).map(|read| (read.id, read)).collect())
    }

    /// Answers look-ups: those that have found a result which could be lost, once standbys have it.
    async fn answer_look_ups(&self, calls: &mut Vec<Pending>, found: HashMap<Id, Read>) -> Result<(), Trouble> {
        let may_be_lost = |id: &Id| found.get(id).is_some_and(|read| self.may_be_lost(read));
        let answer = |pending: Pending| {
            if let Call::LookUp(id, done) = pending.call {
                done(Ok(found.get(&id).map(|read| read.found.clone())));
            }
        };
        calls
            .extract_if(.., |pending| matches!(&pending.call, Call::LookUp(id, _) if !may_be_lost(id)))
            .for_each(answer);
        if !calls.iter().any(|pending| matches!(pending.call, Call::LookUp(..))) {
            return Ok(());
        }
        let error = match self.confirm().await {
            Ok(true) => {
                look_ups_of(calls).for_each(answer);
                return Ok(());
            }
            Ok(false) => StoreError::Away("its standbys do not confirm a result".to_owned()),
            Err(Trouble::Refused(error)) => error,
            Err(broken) => return Err(broken),
        };
        // A transaction that has failed is not to stay open.
        within(self.client().batch_execute("ROLLBACK")).await?;
        look_ups_of(calls).for_each(|pending| pending.refuse(&error));
        Ok(())
    }

    /// Returns whether a record has a result that could be lost with the server: standbys may not have it yet.
    pub(super) fn may_be_lost(&self, read: &Read) -> bool {
        self.connection.has_standbys && read.is_result() && !self.engine.confirmed.has(&self.connection.host, read.age)
    }

    /// Makes sure that standbys have all that was read before: by a commit that waits for them. Without that, a result
    /// that one client got could be lost with the server. Returns whether they have it.
    pub(super) async fn confirm(&self) -> Result<bool, Trouble> {
        // A row of its own: while it waits for a standby, its lock is not to be in the way of claims, which renew the
        // heartbeat of the process.
        let (client, connection, own) = (self.client(), self.connection, signed(!self.engine.holder));
        let (began, warnings) = (Instant::now(), self.connection.warnings());
        within(pipelined(vec![
            simple(client, rows::BEGIN),
            query(connection, rows::BEAT, vec![(&own, Type::INT8), (&self.engine.name, Type::TEXT)]),
            simple(client, "COMMIT"),
        ]))
        .await?;
        let is_confirmed = warnings == self.connection.warnings();
        if is_confirmed {
            self.engine.confirmed.note(&self.connection.host, began);
        }
        Ok(is_confirmed)
    }
}
