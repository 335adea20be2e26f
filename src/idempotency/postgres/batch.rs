//! The calls that wait, carried out together: those that write in one transaction and one round trip.
//!
//! A transaction is torn where its outcome is unknown: the connection broke or was silent, or the server warned (a wait
//! for the standby that was cancelled). Its calls are sent again, as writes.

mod of_sagas;

use super::Postgres;
use super::connection::{Connection, explain, query};
use super::params::{Claims, Completions, One, texts};
use super::prepared::{Answer, pipelined};
use super::rows::{self, Param, Read, kept, signed};
use super::sagas::{self, Begun};
use crate::clock::BootTime;
use crate::idempotency::identity::Id;
use crate::idempotency::record::{Event, Millis, ReleaseWay, State, Token, Transition, transition};
use crate::idempotency::remote::{Call, Pending, SILENCE, silence_for};
use crate::idempotency::saga::{Appended, SagaQuery};
use crate::idempotency::store::{Authorised, BATCH, ClaimReply, Claimed, NewClaim, Release, StoreError, Tended};
use crate::idempotency::warn_unknown;
use of_sagas::OfSagas;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

/// For how long the server may be silent before stored results arrive, which may be large.
const RESULTS: Duration = Duration::from_secs(4);

/// How often a claim looks at a record that others change meanwhile.
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
        batch.read_sagas(calls).await?;
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

/// Takes the look-ups out of the calls that wait.
fn look_ups_of(calls: &mut Vec<Pending>) -> impl Iterator<Item = Pending> {
    calls.extract_if(.., |pending| matches!(pending.call, Call::LookUp(..)))
}

/// Returns whether a call is carried out by itself.
fn is_operation(call: &Call) -> bool {
    let is_orphaned = matches!(call, Call::Sagas(SagaQuery::Orphaned, _));
    is_orphaned || matches!(call, Call::Authorise(..) | Call::Tend(_) | Call::Running(_) | Call::TakeOver(..))
}

fn is_write(call: &Call) -> bool {
    matches!(call, Call::Claim(..) | Call::Complete(..) | Call::Release(..) | Call::Append(..) | Call::Beat(_))
}

impl Batch<'_> {
    fn client(&self) -> &Client {
        &self.connection.client
    }

    /// Answers look-ups and searches.
    async fn read(&self, calls: &mut Vec<Pending>) -> Result<(), Trouble> {
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
        while let Some(at) = calls.iter().position(|pending| matches!(pending.call, Call::Find(..))) {
            let Call::Find(key, _) = &calls[at].call else { break };
            let (mut first, mut last) = ([0; Id::LENGTH], [0xff; Id::LENGTH]);
            first[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
            last[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
            let (first, last, limit) = (&first[..], &last[..], i64::from(BATCH));
            let params: [Param<'_>; 4] =
                [(&first, Type::BYTEA), (&last, Type::BYTEA), (key, Type::TEXT), (&limit, Type::INT8)];
            let rows = within(self.client().query_typed(rows::FIND, &params)).await;
            let listed = rows.and_then(|rows| {
                rows.iter().map(rows::listed).collect::<Result<Vec<_>, Error>>().map_err(|error| Trouble::of(&error))
            });
            match (listed, calls.swap_remove(at)) {
                (Ok(listed), Pending { call: Call::Find(_, done), .. }) => done(Ok(listed)),
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

    /// Settles claims that met a record: most find it, some take its place. `found` are the records as the transaction
    /// saw them.
    async fn contest(&self, claims: &mut Vec<Pending>, found: Vec<Row>) -> Result<(), Trouble> {
        let mut found = Some(found);
        for _ in 0..LOOKS {
            if claims.is_empty() {
                return Ok(());
            }
            let ids: Vec<&[u8]> = claims
                .iter()
                .filter_map(|pending| match &pending.call {
                    Call::Claim(claim, _) => Some(&claim.id.0[..]),
                    _ => None,
                })
                .collect();
            let rows = match found.take() {
                Some(found) if !found.is_empty() => found,
                _ => within(query(self.connection, rows::READ, vec![(&ids, Type::BYTEA_ARRAY)])).await?,
            };
            let mut there: HashMap<Id, Read> = reads_of(&rows)?.into_iter().map(|read| (read.id, read)).collect();
            let mut recent = Vec::new();
            let mut rest = std::mem::take(claims).into_iter();
            while let Some(pending) = rest.next() {
                let Call::Claim(claim, _) = &pending.call else { continue };
                let Some(read) = there.get(&claim.id) else {
                    // It has gone meanwhile: the claim is made anew.
                    claims.push(pending);
                    continue;
                };
                match self.meet(claim, read).await {
                    Ok(Met::Found) if self.may_be_lost(read) => recent.push((pending, read.found.clone())),
                    Ok(Met::Found) => answer(pending, Claimed::Found(read.found.clone()), BootTime::now(), None),
                    Ok(Met::Dead) => pending.call.fail(StoreError::Released),
                    Ok(Met::Took { is_again, sent, began }) => {
                        // Another claim of this batch meets it, not what was there.
                        there.remove(&claim.id);
                        let claimed = if is_again { Claimed::Again } else { Claimed::First };
                        answer(pending, claimed, sent, began);
                    }
                    Ok(Met::Torn) => claims.push(Pending { is_resent: true, ..pending }),
                    Ok(Met::Changed) => claims.push(pending),
                    Err(trouble) => {
                        claims.push(Pending { is_resent: true, ..pending });
                        claims.extend(rest);
                        return Err(trouble);
                    }
                }
            }
            if !recent.is_empty() {
                let confirmed = self.confirm().await;
                for (pending, found) in recent {
                    match confirmed {
                        Ok(true) => answer(pending, Claimed::Found(found), BootTime::now(), None),
                        _ => claims.push(pending),
                    }
                }
                confirmed?;
            }
            // Those that found nothing, and those that are torn, are sent with the next batch.
            if claims.iter().all(|pending| {
                matches!(&pending.call, Call::Claim(claim, _) if pending.is_resent || !there.contains_key(&claim.id))
            }) {
                return Ok(());
            }
        }
        let error = StoreError::Failed("others change the record all the time".to_owned());
        claims.drain(..).for_each(|pending| pending.refuse(&error));
        Ok(())
    }

    /// Returns whether a record has a result that could be lost with the server: standbys may not have it yet.
    fn may_be_lost(&self, read: &Read) -> bool {
        self.connection.has_standbys && read.is_result() && !self.engine.confirmed.has(&self.connection.host, read.age)
    }

    /// Makes sure that standbys have all that was read before: by a commit that waits for them. Without that, a result
    /// that one client got could be lost with the server. Returns whether they have it.
    async fn confirm(&self) -> Result<bool, Trouble> {
        let (client, connection, own) = (self.client(), self.connection, signed(self.engine.holder));
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

    /// Lets a claim meet the record that was read.
    async fn meet(&self, claim: &NewClaim, read: &Read) -> Result<Met, Trouble> {
        let record = read.found.record;
        let is_dead = record.state == State::Running
            && record.token.holder != self.engine.holder
            && read.silence.is_none_or(|silence| silence >= read.lease);
        if is_dead {
            self.bury(read).await?;
            return Ok(Met::Changed);
        }
        let event = Event::Claim {
            token: claim.token,
            fingerprint: claim.fingerprint,
            retake: claim.retake,
            expires: read.now.saturating_add(kept(claim.ttl).cast_unsigned()),
        };
        let Transition::Becomes(next) = transition(Some(&record), event, read.now) else {
            return Ok(if record.state == State::Tombstone { Met::Dead } else { Met::Found });
        };
        let sent = BootTime::now();
        let warnings = self.connection.warnings();
        let one = One { fingerprint: next.fingerprint.0.to_vec(), ..One::claim(claim) };
        let (keeps_dead, keeps_created) = (next.dead.is_some(), record.is_open_to(claim.token));
        let mut params: Vec<Param<'_>> = vec![(&one.id, Type::BYTEA), (&read.version, Type::TEXT)];
        params.extend([(&one.holder as _, Type::INT8), (&one.number as _, Type::INT8)]);
        params.extend([(&one.lease as _, Type::INT8), (&one.ttl as _, Type::INT8)]);
        params.push((&one.fingerprint, Type::BYTEA));
        params.extend(texts(&claim.subject));
        params.extend([(&keeps_dead as _, Type::BOOL), (&keeps_created as _, Type::BOOL)]);
        let (client, connection, own) = (self.client(), self.connection, signed(self.engine.holder));
        let saga = Begun::of(claim);
        let mut statements = vec![
            simple(client, rows::BEGIN),
            query(connection, rows::SAME_STORE, vec![(&self.connection.identity, Type::TEXT)]),
            query(connection, rows::BEAT, vec![(&own, Type::INT8), (&self.engine.name, Type::TEXT)]),
            query(connection, rows::TAKE, params),
        ];
        statements.extend(saga.iter().map(|saga| query(connection, sagas::BEGIN, saga.params())));
        statements.push(simple(client, "COMMIT"));
        let taken = within(pipelined(statements)).await?;
        let is_taken = taken.iter().any(|rows| !rows.is_empty());
        let began = taken.iter().flatten().find(|row| row.len() == 4);
        let began = began.map(|row| rows::number(row, 3)).transpose().map_err(|error| Trouble::of(&error))?;
        Ok(match is_taken {
            _ if warnings != self.connection.warnings() => Met::Torn,
            true => {
                let is_again = Claimed::over(Some(&record), claim, read.now) == Claimed::Again;
                Met::Took { is_again, sent, began }
            }
            false => Met::Changed,
        })
    }

    /// Makes a record unknown whose holder is dead or silent, unless it has changed.
    async fn bury(&self, read: &Read) -> Result<(), Trouble> {
        let id = &read.id.0[..];
        let params: [Param<'_>; 2] = [(&id, Type::BYTEA), (&read.version, Type::TEXT)];
        let rows = within(self.client().query_typed(rows::BURY, &params)).await?;
        for row in &rows {
            let subject = rows::subject(row, 0).map_err(|error| Trouble::of(&error))?;
            warn_unknown(read.id, &subject, "the proxy that held the claim has been silent for its whole lease");
        }
        Ok(())
    }

    /// Carries out the calls of operators and of upkeep, each by itself.
    async fn operate(&self, calls: &mut Vec<Pending>) -> Result<(), Trouble> {
        while let Some(at) = calls.iter().position(|pending| is_operation(&pending.call)) {
            // Broken off, it may have been carried out.
            let mut pending = calls.swap_remove(at);
            pending.is_resent = true;
            let trouble = match &pending.call {
                Call::Authorise(id, _) => match self.authorise(*id).await {
                    Ok(authorised) => {
                        if let Call::Authorise(_, done) = pending.call {
                            done(Ok(authorised));
                        }
                        continue;
                    }
                    Err(trouble) => trouble,
                },
                Call::Tend(_) => match self.tend().await {
                    Ok(tended) => {
                        if let Call::Tend(done) = pending.call {
                            done(Ok(tended));
                        }
                        continue;
                    }
                    Err(trouble) => trouble,
                },
                Call::TakeOver(seen, _) => match self.take_over(*seen).await {
                    Ok(taken) => {
                        if let Call::TakeOver(_, done) = pending.call {
                            done(Ok(taken));
                        }
                        continue;
                    }
                    Err(trouble) => trouble,
                },
                Call::Sagas(..) => match self.orphaned().await {
                    Ok(orphaned) => {
                        if let Call::Sagas(_, done) = pending.call {
                            done(Ok(orphaned));
                        }
                        continue;
                    }
                    Err(trouble) => trouble,
                },
                _ => match self.running().await {
                    Ok(running) => {
                        if let Call::Running(done) = pending.call {
                            done(Ok(running));
                        }
                        continue;
                    }
                    Err(trouble) => trouble,
                },
            };
            let Trouble::Refused(error) = trouble else {
                calls.push(pending);
                return Err(trouble);
            };
            // A transaction that upkeep has begun is not to stay open.
            within(self.client().batch_execute("ROLLBACK")).await?;
            tracing::error!(%error, "a call to the idempotency store failed");
            pending.refuse(&error);
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
        let lock: [Param<'_>; 1] = [(&super::UPKEEP_LOCK, Type::INT8)];
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

/// The result of a claim's meeting a record.
enum Met {
    /// The record stays.
    Found,
    /// The record is the claim's own tombstone.
    Dead,
    /// The claim took its place.
    Took { is_again: bool, sent: BootTime, began: Option<Millis> },
    /// It may have.
    Torn,
    /// The record is another one now.
    Changed,
}

fn answer(pending: Pending, claimed: Claimed, sent: BootTime, began: Option<Millis>) {
    let is_resent = pending.is_resent;
    if let Call::Claim(_, done) = pending.call {
        done(Ok(ClaimReply { claimed, sent, is_resent, began }));
    }
}
