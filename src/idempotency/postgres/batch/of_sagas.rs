//! The calls about sagas that stand apart from the transaction of all writes.

use super::{Batch, RESULTS, Trouble, is_operation, pipelined, query, simple, within_for};
use crate::idempotency::postgres::rows::{self, Param, signed};
use crate::idempotency::postgres::sagas::{self, Owned};
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::saga::{MOST, SagaQuery, SagaRow, Seen};
use crate::saga::log::Standing;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

impl Batch<'_> {
    /// Answers questions about sagas.
    pub(super) async fn read_sagas(&self, calls: &mut Vec<Pending>) -> Result<(), Trouble> {
        let is_read = |pending: &Pending| matches!(&pending.call, Call::Sagas(..)) && !is_operation(&pending.call);
        while let Some(at) = calls.iter().position(is_read) {
            let Call::Sagas(query, _) = calls[at].call else { break };
            match (self.find_sagas(query).await, calls.swap_remove(at)) {
                (Ok(found), Pending { call: Call::Sagas(_, done), .. }) => done(Ok(found)),
                (Err(Trouble::Refused(error)), pending) => pending.refuse(&error),
                (Err(broken), pending) => {
                    calls.push(pending);
                    return Err(broken);
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn find_sagas(&self, query: SagaQuery) -> Result<Vec<SagaRow>, Trouble> {
        let limit = MOST;
        match query {
            SagaQuery::One(id) => {
                let id = &id.0[..];
                self.sagas(&sagas::one(), vec![(&id, Type::BYTEA)]).await
            }
            SagaQuery::Standing(standing) => {
                let states: Vec<i16> = match standing {
                    Some(standing) => vec![standing.code()],
                    None => Standing::ALL.map(Standing::code).to_vec(),
                };
                self.sagas(&sagas::of_states(), vec![(&states, Type::INT2_ARRAY), (&limit, Type::INT8)]).await
            }
            SagaQuery::Owned | SagaQuery::Orphaned => {
                let own = signed(self.engine.holder);
                self.sagas(&sagas::owned(), vec![(&own, Type::INT8), (&limit, Type::INT8)]).await
            }
        }
    }

    async fn sagas(&self, text: &str, params: Vec<Param<'_>>) -> Result<Vec<SagaRow>, Trouble> {
        let rows = within_for(RESULTS, self.client().query_typed(text, &params)).await?;
        rows.iter().map(sagas::row).collect::<Result<_, Error>>().map_err(|error| Trouble::of(&error))
    }

    pub(super) async fn orphaned(&self) -> Result<Vec<SagaRow>, Trouble> {
        let own = signed(self.engine.holder);
        self.sagas(&sagas::orphaned(), vec![(&own, Type::INT8), (&sagas::ORPHANS, Type::INT8)]).await
    }

    /// Makes this process the owner of a saga, durably.
    pub(super) async fn take_over(&self, seen: Seen) -> Result<Option<SagaRow>, Trouble> {
        let (client, own) = (self.client(), signed(self.engine.holder));
        let warnings = self.connection.warnings();
        let (taken, id) = (Owned::taken(seen, self.engine.holder), &seen.id.0[..]);
        let one = sagas::one();
        let results = within_for(
            RESULTS,
            pipelined(vec![
                simple(client, rows::BEGIN),
                query(self.connection, rows::SAME_STORE, vec![(&self.connection.identity, Type::TEXT)]),
                query(self.connection, rows::BEAT, vec![(&own, Type::INT8), (&self.engine.name, Type::TEXT)]),
                query(self.connection, sagas::TAKE_OVER, taken.params()),
                query(self.connection, &one, vec![(&id, Type::BYTEA)]),
                simple(client, "COMMIT"),
            ]),
        );
        let results = results.await?;
        if warnings != self.connection.warnings() {
            return Err(Trouble::Broken("a standby has not confirmed that a saga was taken over".to_owned()));
        }
        let is_taken = !results[3].is_empty();
        let row = results[4].first().filter(|_| is_taken).map(sagas::row);
        row.transpose().map_err(|error| Trouble::of(&error))
    }
}
