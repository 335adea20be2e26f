//! Claims that meet a record: most find it, some take its place.

use super::{Batch, LOOKS, Trouble, pipelined, query, reads_of, simple, within};
use crate::clock::BootTime;
use crate::idempotency::identity::Id;
use crate::idempotency::postgres::params::{One, texts};
use crate::idempotency::postgres::rows::{self, Param, Read, kept, signed};
use crate::idempotency::postgres::sagas::{self, Begun};
use crate::idempotency::record::{Event, Millis, State, Transition, transition};
use crate::idempotency::remote::{Call, Pending};
use crate::idempotency::store::{ClaimReply, Claimed, NewClaim, StoreError};
use crate::idempotency::warn_unknown;
use std::collections::HashMap;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

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

impl Batch<'_> {
    /// Settles claims that met a record: most find it, some take its place. `found` are the records as the transaction
    /// saw them.
    pub(super) async fn contest(&self, claims: &mut Vec<Pending>, found: Vec<Row>) -> Result<(), Trouble> {
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
    pub(super) async fn bury(&self, read: &Read) -> Result<(), Trouble> {
        let id = &read.id.0[..];
        let params: [Param<'_>; 2] = [(&id, Type::BYTEA), (&read.version, Type::TEXT)];
        let rows = within(self.client().query_typed(rows::BURY, &params)).await?;
        for row in &rows {
            let subject = rows::subject(row, 0).map_err(|error| Trouble::of(&error))?;
            warn_unknown(read.id, &subject, "the proxy that held the claim has been silent for its whole lease");
        }
        Ok(())
    }
}
