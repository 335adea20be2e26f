//! The calls that wait, carried out together: those that write in one transaction and one round trip.
//!
//! A transaction is torn where its outcome is unknown: the connection broke or was silent, or the server warned (a wait
//! for the standby that was cancelled). Its calls are sent again, as writes.

mod contest;
mod of_sagas;
mod operations;
mod reading;
mod reply;

use super::Postgres;
use super::connection::{Connection, explain, query};
use super::params::{Claims, Completions, One, texts};
use super::prepared::{Answer, pipelined};
use super::rows::{self, Param, Read, kept, signed};
use crate::clock::BootTime;
use crate::idempotency::identity::Id;
use crate::idempotency::record::{Millis, ReleaseWay, Token};
use crate::idempotency::remote::{Call, Pending, SILENCE, silence_for};
use crate::idempotency::saga::Appended;
use crate::idempotency::store::{ClaimReply, Claimed, NewClaim, Release, StoreError};
use of_sagas::OfSagas;
use operations::is_operation;
use reply::{Reply, finish};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

/// For how long the server may be silent before stored results arrive, which may be large.
const RESULTS: Duration = Duration::from_secs(4);

/// The number of times that a claim looks at a record that others change meanwhile.
const LOOKS: usize = 5;

/// Why calls were not carried out.
enum Trouble {
    /// The connection is of no use any more; what was sent on it may have been carried out.
    Broken(String),
    /// The server refused a statement: nothing was carried out.
    Refused(StoreError),
}

impl Trouble {
    fn of(error: &Error) -> Trouble {
        let text = explain(error);
        let Some(code) = error.code() else { return Trouble::Broken(text) };
        if *code == SqlState::DIVISION_BY_ZERO {
            return Trouble::Broken(
                "the connection leads to another store than when it was made; if that is meant, run `ringway store adopt`"
                    .to_owned(),
            );
        }
        // Connection exceptions, shutdowns, servers that have become read-only at a failover, and statements that must
        // be prepared anew.
        let is_away = code.code().starts_with("08")
            || code.code().starts_with("57P")
            || matches!(
                *code,
                SqlState::READ_ONLY_SQL_TRANSACTION
                    | SqlState::QUERY_CANCELED
                    | SqlState::UNDEFINED_TABLE
                    | SqlState::INVALID_SQL_STATEMENT_NAME
                    | SqlState::FEATURE_NOT_SUPPORTED
            );
        match is_away {
            true => Trouble::Broken(text),
            false if matches!(*code, SqlState::DISK_FULL | SqlState::OUT_OF_MEMORY) => {
                Trouble::Refused(StoreError::Full)
            }
            false => Trouble::Refused(StoreError::Failed(text)),
        }
    }
}

/// Carries out calls, and removes those that it has answered.
pub(super) async fn carry_out(
    engine: &Postgres,
    connection: &mut Connection,
    calls: &mut Vec<Pending>,
) -> Result<(), String> {
    let batch = Batch { engine, connection };
    let carried_out = async {
        batch.read(calls).await?;
        batch.write(calls).await?;
        batch.operate(calls).await
    };
    match carried_out.await {
        Ok(()) => Ok(()),
        Err(Trouble::Broken(reason)) => Err(reason),
        Err(Trouble::Refused(error)) => Err(error.to_string()),
    }
}

struct Batch<'a> {
    engine: &'a Postgres,
    connection: &'a Connection,
}

fn simple<'a>(client: &'a Client, text: &'a str) -> Answer<'a, Vec<Row>> {
    Box::pin(async move { client.batch_execute(text).await.map(|()| Vec::new()) })
}

/// Waits for an answer of the server, as long as it may be silent.
async fn within<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
    within_for(SILENCE, answer).await
}

async fn within_for<T>(silence: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(silence, answer).await {
        Ok(answer) => answer.map_err(|error| Trouble::of(&error)),
        Err(_) => Err(Trouble::Broken("the server does not answer".to_owned())),
    }
}

/// Returns the identity and the token that a call of the transaction is about.
fn subject_of(call: &Call) -> Option<(Id, Token)> {
    match call {
        Call::Claim(claim, _) => Some((claim.id, claim.token)),
        Call::Complete(completion, _) => Some((completion.id, completion.token)),
        Call::Release(release, _) => Some((release.id, release.token)),
        Call::Append(append, _) => Some((append.id, append.token)),
        _ => None,
    }
}

fn is_write(call: &Call) -> bool {
    matches!(call, Call::Claim(..) | Call::Complete(..) | Call::Release(..) | Call::Append(..) | Call::Beat(_))
}

impl Batch<'_> {
    fn client(&self) -> &Client {
        &self.connection.client
    }

    /// Carries out claims, completions, releases and heartbeats in one transaction; each alone where one of them fails.
    async fn write(&self, calls: &mut Vec<Pending>) -> Result<(), Trouble> {
        let mut writes: Vec<Pending> = calls.extract_if(.., |pending| is_write(&pending.call)).collect();
        if writes.is_empty() {
            return Ok(());
        }
        writes.sort_by_key(|pending| subject_of(&pending.call));
        let written = self.transact(&mut writes).await;
        let result = match written {
            Err(Trouble::Refused(_)) if writes.len() > 1 => self.write_each(&mut writes).await,
            Err(Trouble::Refused(error)) => {
                tracing::error!(%error, "a call to the idempotency store failed");
                writes.drain(..).for_each(|pending| pending.refuse(&error));
                Ok(())
            }
            result => result,
        };
        calls.extend(writes);
        result
    }

    async fn write_each(&self, writes: &mut Vec<Pending>) -> Result<(), Trouble> {
        let mut rest: Vec<Pending> = std::mem::take(writes);
        while let Some(pending) = rest.pop() {
            let mut one = vec![pending];
            match self.transact(&mut one).await {
                Err(Trouble::Refused(error)) => {
                    tracing::error!(%error, "a call to the idempotency store failed");
                    one.drain(..).for_each(|pending| pending.refuse(&error));
                }
                Err(broken) => {
                    writes.extend(one);
                    writes.extend(rest);
                    return Err(broken);
                }
                Ok(()) => writes.extend(one),
            }
        }
        Ok(())
    }

    /// One transaction for all writes. Calls that stay are sent again.
    async fn transact(&self, writes: &mut Vec<Pending>) -> Result<(), Trouble> {
        let (sent, began) = (BootTime::now(), Instant::now());
        let warnings = self.connection.warnings();
        let bytes: usize = writes.iter().map(|pending| pending.call.size()).sum();
        let carried_out = within_for(silence_for(bytes), self.send(writes)).await;
        let is_torn = warnings != self.connection.warnings();
        if is_torn || matches!(carried_out, Err(Trouble::Broken(_))) {
            writes.iter_mut().for_each(|pending| pending.is_resent = true);
        }
        let Sent { changed, found, times } = carried_out?;
        if is_torn {
            return Ok(());
        }
        // What changes nothing waits for no standby.
        if !changed.is_empty() {
            self.engine.confirmed.note(&self.connection.host, began);
        }
        let mut contested = Vec::new();
        for pending in writes.drain(..) {
            let is_changed = subject_of(&pending.call).is_some_and(|subject| changed.contains(&subject));
            match pending.call {
                Call::Claim(claim, done) if is_changed => {
                    // A copy cannot tell whether the first one took the place of an unknown outcome.
                    let is_again = pending.is_resent && claim.retake;
                    let claimed = if is_again { Claimed::Again } else { Claimed::First };
                    let began = claim.saga.as_ref().and_then(|_| times.get(&claim.id).copied());
                    done(Ok(ClaimReply { claimed, sent, is_resent: pending.is_resent, began }));
                }
                Call::Claim(..) => contested.push(pending),
                Call::Complete(_, done) | Call::Release(_, done) => done(Ok(is_changed)),
                Call::Append(append, done) => {
                    let now = times.get(&append.id).copied().filter(|_| is_changed);
                    done(Ok(now.map(|now| Appended { now, sent })));
                }
                Call::Beat(done) => done(Ok(())),
                _ => {}
            }
        }
        let settled = self.contest(&mut contested, found).await;
        *writes = contested;
        settled
    }

    /// Sends the transaction of all writes.
    async fn send(&self, writes: &[Pending]) -> Result<Sent, Error> {
        let (client, connection) = (self.client(), self.connection);
        let (mut claims, mut completions) = (Claims::default(), Completions::default());
        let (mut ids, mut holders, mut numbers): (Vec<&[u8]>, Vec<i64>, Vec<i64>) = Default::default();
        let mut again: Vec<(One, &NewClaim)> = Vec::new();
        let mut traces: Vec<(One, ReleaseWay)> = Vec::new();
        let own = signed(self.engine.holder);
        let of_sagas = OfSagas::of(writes, self.engine.holder);
        let mut beats = false;
        for pending in writes {
            match &pending.call {
                Call::Append(..) => {}
                Call::Claim(claim, _) if pending.is_resent => again.push((One::claim(claim), claim)),
                Call::Claim(claim, _) => claims.push(claim),
                Call::Complete(completion, _) => completions.push(completion),
                Call::Release(Release { id, token, way: ReleaseWay::Plain, .. }, _) => {
                    ids.push(&id.0);
                    holders.push(signed(token.holder));
                    numbers.push(signed(token.number));
                }
                Call::Release(Release { id, token, way, ttl, .. }, _) => {
                    traces.push((One::of(*id, *token, kept(*ttl)), *way));
                }
                _ => beats = true,
            }
        }
        // Each batch of claims renews the heartbeat; and what is sent again waits for the standby, by a write.
        beats |= !again.is_empty() || of_sagas.have_appends() || writes.iter().any(|pending| pending.is_resent);
        // A heartbeat alone need not wait for a standby.
        let only_beats = writes.iter().all(|pending| matches!(pending.call, Call::Beat(_)));
        let begin = if only_beats { rows::BEGIN_UPKEEP } else { rows::BEGIN };
        // The identities whose records claims may meet.
        let met: Vec<&[u8]> = claims.ids.iter().copied().chain(again.iter().map(|(one, _)| &one.id[..])).collect();
        let identity = &self.connection.identity;
        let mut statements =
            vec![simple(client, begin), query(connection, rows::SAME_STORE, vec![(identity, Type::TEXT)])];
        if beats {
            statements.push(query(connection, rows::BEAT, vec![(&own, Type::INT8), (&self.engine.name, Type::TEXT)]));
        }
        if !claims.ids.is_empty() {
            let mut params = claims.params();
            params.extend([(&own as _, Type::INT8), (&self.engine.name as _, Type::TEXT)]);
            statements.push(query(connection, rows::CLAIM, params));
        }
        for (one, claim) in &again {
            let mut params = one.token();
            params.extend([(&one.lease as _, Type::INT8), (&one.ttl as _, Type::INT8)]);
            params.push((&one.fingerprint, Type::BYTEA));
            params.extend(texts(&claim.subject));
            statements.push(query(connection, rows::CLAIM_AGAIN, params));
        }
        statements.extend(of_sagas.begin(connection));
        let look = (!met.is_empty()).then_some(statements.len());
        if look.is_some() {
            statements.push(query(connection, rows::READ_OTHERS, vec![(&met, Type::BYTEA_ARRAY)]));
        }
        if !completions.ids.is_empty() {
            statements.push(query(connection, rows::COMPLETE, completions.params()));
        }
        statements.extend(of_sagas.go_on(connection));
        if !ids.is_empty() {
            let params: Vec<Param<'_>> =
                vec![(&ids, Type::BYTEA_ARRAY), (&holders, Type::INT8_ARRAY), (&numbers, Type::INT8_ARRAY)];
            statements.push(query(connection, rows::RELEASE, params));
        }
        for (one, way) in &traces {
            if *way == ReleaseWay::Retaken {
                statements.push(query(connection, rows::END_RETAKEN, one.times()));
                statements.push(query(connection, rows::NOTE_RETAKEN, one.token()));
                statements.push(query(connection, rows::ENTOMB_ABSENT, one.tombstone()));
            } else {
                statements.push(query(connection, rows::OPEN, one.token()));
                statements.push(query(connection, rows::ENTOMB, one.tombstone()));
            }
        }
        statements.push(simple(client, "COMMIT"));
        let mut results = pipelined(statements).await?;
        let found = look.map(|at| std::mem::take(&mut results[at])).unwrap_or_default();
        // Statements without a result to speak of return no rows.
        let changed = results.iter().flatten().map(rows::claim_of).collect::<Result<_, Error>>()?;
        // The rows of sagas have the server's time.
        let times = results.iter().flatten().filter(|row| row.len() == 4);
        let times = times.map(|row| Ok((rows::id(row, 0)?, rows::number(row, 3)?))).collect::<Result<_, Error>>()?;
        Ok(Sent { changed, found, times })
    }
}

/// Reads the rows of records.
fn reads_of(rows: &[Row]) -> Result<Vec<Read>, Trouble> {
    rows.iter().map(Read::of).collect::<Result<_, Error>>().map_err(|error| Trouble::of(&error))
}

/// The result of a transaction.
struct Sent {
    /// The claims that were changed as the calls have it.
    changed: HashSet<(Id, Token)>,
    /// The records that new claims have met.
    found: Vec<Row>,
    /// The server's time, of sagas that were begun or appended to.
    times: HashMap<Id, Millis>,
}
