//! Sagas: their part of the transaction of all writes, and the calls that stand apart from it.

use super::{Answer, Batch, RESULTS, Trouble, pipelined, query, simple, within_for};
use crate::idempotency::postgres::connection::Connection;
use crate::idempotency::postgres::rows::{self, Param, signed};
use crate::idempotency::postgres::sagas::{self, Appending, Begun, Owned};
use crate::idempotency::record::Holder;
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::saga::{MOST, SagaQuery, SagaRow, Seen};
use crate::saga::log::Standing;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

/// The parameters of the statements about sagas in one transaction.
pub(super) struct OfSagas<'a> {
    begun: Vec<Begun>,
    appends: Vec<Appending<'a>>,
    withdrawn: Vec<Owned>,
}

impl<'a> OfSagas<'a> {
    pub(super) fn of(writes: &'a [Pending], own: Holder) -> OfSagas<'a> {
        let mut of = OfSagas { begun: Vec::new(), appends: Vec::new(), withdrawn: Vec::new() };
        for pending in writes {
            match &pending.call {
                Call::Claim(claim, _) => of.begun.extend(Begun::of(claim)),
                Call::Append(append, _) => of.appends.push(Appending::of(append, own)),
                Call::Release(release, _) if release.of_saga => of.withdrawn.push(Owned::released(release)),
                _ => {}
            }
        }
        of
    }

    pub(super) fn have_appends(&self) -> bool {
        !self.appends.is_empty()
    }

    /// Returns the statements that follow the claims.
    pub(super) fn begin<'b>(&'b self, connection: &'b Connection) -> impl Iterator<Item = Answer<'b, Vec<Row>>> {
        self.begun.iter().map(|saga| query(connection, sagas::BEGIN, saga.params()))
    }

    /// Returns the statements that come before the releases.
    pub(super) fn go_on<'b>(&'b self, connection: &'b Connection) -> impl Iterator<Item = Answer<'b, Vec<Row>>> {
        let appends = self.appends.iter().map(|append| query(connection, append.statement(), append.params()));
        appends.chain(self.withdrawn.iter().map(|release| query(connection, sagas::WITHDRAW, release.params())))
    }
}

impl Batch<'_> {
    /// Returns the sagas that are asked for.
    pub(super) async fn find_sagas(&self, query: SagaQuery) -> Result<Vec<SagaRow>, Trouble> {
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
