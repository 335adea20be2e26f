//! The calls of operators and of upkeep, each carried out by itself.

use super::{Batch, LOOKS, Reply, Trouble, finish, pipelined, query, simple, within};
use crate::idempotency::identity::Id;
use crate::idempotency::postgres::rows::{self, Param, Read, signed};
use crate::idempotency::postgres::{UPKEEP_LOCK, sagas};
use crate::idempotency::record::{State, Token};
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::saga::SagaQuery;
use crate::idempotency::store::{Authorised, BATCH, Tended};
use crate::idempotency::warn_unknown;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

/// Returns whether a call is carried out by itself.
pub(super) fn is_operation(call: &Call) -> bool {
    let is_orphaned = matches!(call, Call::Sagas(SagaQuery::Orphaned, _));
    is_orphaned || matches!(call, Call::Authorise(..) | Call::Tend(_) | Call::Running(_) | Call::TakeOver(..))
}

impl Batch<'_> {
    /// Carries out the calls of operators and of upkeep.
    pub(super) async fn operate(&self, calls: &mut Vec<Pending>) -> Result<(), Trouble> {
        while let Some(at) = calls.iter().position(|pending| is_operation(&pending.call)) {
            // Broken off, it may have been carried out.
            calls[at].is_resent = true;
            let replied = match &calls[at].call {
                Call::Authorise(id, _) => self.authorise(*id).await.map(Reply::Authorised),
                Call::Tend(_) => self.tend().await.map(Reply::Tended),
                Call::TakeOver(seen, _) => self.take_over(*seen).await.map(|row| Reply::Taken(row.map(Box::new))),
                Call::Sagas(..) => self.orphaned().await.map(Reply::Sagas),
                _ => self.running().await.map(Reply::Running),
            };
            if let Err(Trouble::Refused(error)) = &replied {
                // A transaction that upkeep has begun is not to stay open.
                within(self.client().batch_execute("ROLLBACK")).await?;
                tracing::error!(%error, "a call to the idempotency store failed");
            }
            finish(calls, at, replied)?;
        }
        Ok(())
    }

    async fn authorise(&self, id: Id) -> Result<Authorised, Trouble> {
        for _ in 0..LOOKS {
            let ids = [&id.0[..]];
            let rows = within(self.client().query_typed(rows::READ, &[(&&ids[..], Type::BYTEA_ARRAY)])).await?;
            let read = rows.first().map(Read::of).transpose().map_err(|error| Trouble::of(&error))?;
            let Some(read) = read.filter(|read| read.found.record.state != State::Tombstone) else {
                return Ok(Authorised::Absent);
            };
            let record = read.found.record;
            if record.state == State::Saga {
                return Ok(Authorised::Running);
            }
            if record.state == State::Running {
                let is_own = record.token.holder == self.engine.holder;
                if is_own || read.silence.is_some_and(|silence| silence < read.lease) {
                    return Ok(Authorised::Running);
                }
                self.bury(&read).await?;
                continue;
            }
            let id = ids[0];
            let params: Vec<Param<'_>> = vec![(&id, Type::BYTEA), (&read.version, Type::TEXT)];
            let (client, connection) = (self.client(), self.connection);
            let deleted = within(pipelined(vec![
                simple(client, rows::BEGIN),
                query(connection, rows::DELETE, params),
                simple(client, "COMMIT"),
            ]));
            if deleted.await?.iter().any(|rows| !rows.is_empty()) {
                return Ok(Authorised::Released);
            }
        }
        Ok(Authorised::Running)
    }

    /// Removes expired records and buries silent ones, unless another proxy does at this moment.
    async fn tend(&self) -> Result<Tended, Trouble> {
        let (client, connection) = (self.client(), self.connection);
        let (own, limit) = (signed(self.engine.holder), i64::from(BATCH));
        let count = within(client.query_typed_one(rows::COUNT, &[])).await?;
        self.engine.status.counted(rows::number(&count, 0).map_err(|error| Trouble::of(&error))?);
        within(client.batch_execute(rows::BEGIN_UPKEEP)).await?;
        let lock: [Param<'_>; 1] = [(&UPKEEP_LOCK, Type::INT8)];
        let is_ours = within(client.query_typed_one(rows::LOCK_UPKEEP, &lock)).await?;
        if !is_ours.try_get::<_, bool>(0).map_err(|error| Trouble::of(&error))? {
            within(client.batch_execute("ROLLBACK")).await?;
            return Ok(Tended { expired: 0, more: false });
        }
        let silent: [Param<'_>; 2] = [(&own, Type::INT8), (&limit, Type::INT8)];
        let silent = within(client.query_typed(rows::LOCK_SILENT, &silent)).await?;
        let silent = silent.iter().map(|row| row.try_get::<_, Vec<u8>>(0)).collect::<Result<Vec<_>, Error>>();
        let silent = silent.map_err(|error| Trouble::of(&error))?;
        let done = within(pipelined(vec![
            query(connection, rows::EXPIRE, vec![(&limit, Type::INT8)]),
            query(connection, rows::BURY_SILENT, vec![(&own, Type::INT8), (&silent, Type::BYTEA_ARRAY)]),
            query(connection, rows::FORGET_HOLDERS, vec![(&own, Type::INT8)]),
            query(connection, sagas::FORGET, vec![(&limit, Type::INT8)]),
            simple(client, "COMMIT"),
        ]));
        let done = done.await?;
        for row in &done[1] {
            let (id, subject) = (rows::id(row, 0), rows::subject(row, 1));
            if let (Ok(id), Ok(subject)) = (id, subject) {
                warn_unknown(
                    id,
                    &subject,
                    "the proxy that held the claim is gone, or has been silent for its whole lease",
                );
            }
        }
        let (expired, buried) = (done[0].len(), done[1].len());
        Ok(Tended { expired, more: expired.max(buried) >= BATCH as usize })
    }

    async fn running(&self) -> Result<Vec<(Id, Token)>, Trouble> {
        let (own, limit) = (signed(self.engine.holder), i64::from(BATCH));
        let params: [Param<'_>; 2] = [(&own, Type::INT8), (&limit, Type::INT8)];
        let rows = within(self.client().query_typed(rows::RUNNING, &params)).await?;
        let running = rows
            .iter()
            .map(|row| Ok((rows::id(row, 0)?, Token { holder: self.engine.holder, number: rows::number(row, 1)? })));
        running.collect::<Result<_, Error>>().map_err(|error| Trouble::of(&error))
    }
}
