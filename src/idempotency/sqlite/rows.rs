//! What each call does to the tables, as [`transition`] has it. The statements for what happens to
//! every request say so in SQL; a property holds them to the same as the function.

use super::Desk;
use super::holders::Life;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::record::{Event, Finish, Holder, Millis, Record, State, Token, Transition, transition};
use crate::idempotency::response::StoredResponse;
use crate::idempotency::store::{Authorised, BATCH, Claimed, Completion, Found, Listed, NewClaim, Tended};
use crate::idempotency::warn_unknown;
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};
use std::time::Duration;

/// Another process's claims are looked after with this much patience where no claim says its own.
const DAY: Duration = Duration::from_secs(86_400);

impl State {
    fn code(self) -> i64 {
        match self {
            State::Running => 0,
            State::Done => 1,
            State::DoneWithoutBody => 2,
            State::Unknown => 3,
        }
    }

    fn of(code: i64) -> Option<State> {
        State::ALL.into_iter().find(|state| state.code() == code)
    }
}

/// SQLite's numbers have a sign; ours are bits.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

pub(super) fn claim(desk: &mut Desk, claim: &NewClaim) -> Result<Claimed> {
    if insert(&desk.connection, claim)? {
        desk.added += 1;
        return Ok(Claimed::First);
    }
    let (mut found, lease) = read(&desk.connection, claim.id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    if found.record.state == State::Running && bury_if_dead(desk, found.record.token.holder, lease)? {
        let died = Event::HolderDied(found.record.token.holder);
        if let Transition::Becomes(record) = transition(Some(&found.record), died, claim.now) {
            found.record = record;
        }
    }
    let NewClaim { token, fingerprint, retake, now, expires, .. } = *claim;
    match transition(Some(&found.record), Event::Claim { token, fingerprint, retake, expires }, now) {
        Transition::Becomes(_) => {
            desk.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([claim.id.0])?;
            insert(&desk.connection, claim)?;
            Ok(Claimed::First)
        }
        Transition::Goes | Transition::Stays => Ok(Claimed::Found(found)),
    }
}

fn insert(connection: &Connection, claim: &NewClaim) -> Result<bool> {
    let Subject { namespace, method, authority, path, key } = &*claim.subject;
    let inserted = connection
        .prepare_cached(
            "INSERT INTO records (id, state, holder, number, lease, created, expires, fingerprint,
                                  namespace, method, authority, path, key)
             VALUES (?1, 0, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            claim.id.0,
            signed(claim.token.holder),
            signed(claim.token.number),
            claim.lease.as_millis() as i64,
            signed(claim.now),
            signed(claim.expires),
            claim.fingerprint.0,
            namespace,
            method,
            authority,
            path,
            key,
        ])?;
    Ok(inserted == 1)
}

pub(super) fn complete(connection: &Connection, completion: &Completion) -> Result<bool> {
    let Completion { id, token, finish, response, expires } = completion;
    let state = match finish {
        Finish::Done => State::Done,
        Finish::DoneWithoutBody => State::DoneWithoutBody,
        Finish::Unknown => State::Unknown,
    };
    let response = response.as_ref().filter(|_| *finish == Finish::Done);
    let completed = connection
        .prepare_cached(
            "UPDATE records SET state = ?1, status = ?2, fields = ?3, body = ?4, trailers = ?5
             WHERE id = ?6 AND holder = ?7 AND number = ?8 AND state IN (0, 3)",
        )?
        .execute(params![
            state.code(),
            response.map(|response| response.status),
            response.map(|response| &response.fields[..]),
            response.map(|response| &response.body[..]),
            response.map(|response| &response.trailers[..]),
            id.0,
            signed(token.holder),
            signed(token.number),
        ])?;
    // Apart, for it costs a change of the index.
    if let (1, Some(expires)) = (completed, expires) {
        connection
            .prepare_cached("UPDATE records SET expires = ?1 WHERE id = ?2")?
            .execute(params![signed(*expires), id.0])?;
    }
    Ok(completed == 1)
}

pub(super) fn release(desk: &mut Desk, id: Id, token: Token) -> Result<bool> {
    let released = desk
        .connection
        .prepare_cached("DELETE FROM records WHERE id = ?1 AND holder = ?2 AND number = ?3 AND state IN (0, 3)")?
        .execute(params![id.0, signed(token.holder), signed(token.number)])?;
    desk.added -= i64::from(released == 1);
    Ok(released == 1)
}

pub(super) fn authorise(desk: &mut Desk, id: Id) -> Result<Authorised> {
    let Some((found, lease)) = read(&desk.connection, id)? else { return Ok(Authorised::Absent) };
    if found.record.state == State::Running && !bury_if_dead(desk, found.record.token.holder, lease)? {
        return Ok(Authorised::Running);
    }
    desk.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id.0])?;
    desk.added -= 1;
    Ok(Authorised::Released)
}

pub(super) fn look_up(connection: &Connection, id: Id) -> Result<Option<Found>> {
    Ok(read(connection, id)?.map(|(found, _)| found))
}

/// A record and its claim's lease.
fn read(connection: &Connection, id: Id) -> Result<Option<(Found, Duration)>> {
    connection
        .prepare_cached(
            "SELECT state, holder, number, fingerprint, expires, lease, status, fields, body, trailers
             FROM records WHERE id = ?1",
        )?
        .query_row([id.0], |row| {
            let record = Record {
                state: state(row, 0)?,
                token: Token { holder: number(row, 1)?, number: number(row, 2)? },
                fingerprint: Fingerprint(row.get(3)?),
                expires: number(row, 4)?,
            };
            let response = match record.state {
                State::Done => Some(StoredResponse {
                    status: row.get(6)?,
                    fields: bytes(row, 7)?,
                    body: bytes(row, 8)?,
                    trailers: bytes(row, 9)?,
                }),
                State::Running | State::DoneWithoutBody | State::Unknown => None,
            };
            Ok((Found { record, response }, Duration::from_millis(number(row, 5)?)))
        })
        .optional()
}

pub(super) fn find(connection: &Connection, key: &str) -> Result<Vec<Listed>> {
    let (mut first, mut last) = ([0; Id::LENGTH], [0xff; Id::LENGTH]);
    first[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
    last[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
    let mut statement = connection.prepare_cached(
        "SELECT state, id, namespace, method, authority, path, key, fingerprint, status, created, expires
         FROM records WHERE id BETWEEN :first AND :last AND key = :key ORDER BY created LIMIT :limit",
    )?;
    let found = named_params! { ":first": first, ":last": last, ":key": key, ":limit": BATCH };
    let listed = statement.query_map(found, |row| {
        Ok(Listed {
            state: state(row, 0)?,
            id: Id(row.get(1)?),
            subject: subject(row, 2)?,
            fingerprint: Fingerprint(row.get(7)?),
            status: row.get(8)?,
            created: number(row, 9)?,
            expires: number(row, 10)?,
        })
    })?;
    listed.collect()
}

/// Enters a process among those that share the file.
pub(super) fn enter(connection: &Connection, holder: Holder) -> Result<()> {
    connection.execute("INSERT INTO holders VALUES (?1, 0)", [signed(holder)])?;
    Ok(())
}

pub(super) fn beat(connection: &Connection, holder: Holder) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO holders VALUES (?1, 1) ON CONFLICT (holder) DO UPDATE SET beat = beat + 1")?
        .execute([signed(holder)])?;
    Ok(())
}

pub(super) fn tend(desk: &mut Desk, now: Millis) -> Result<Tended> {
    let expired = desk
        .connection
        .prepare_cached(
            "DELETE FROM records WHERE row IN
                 (SELECT row FROM records WHERE expires <= ?1 AND state <> 0 ORDER BY expires LIMIT ?2)",
        )?
        .execute(params![signed(now), BATCH])?;
    desk.added = desk.added.saturating_sub_unsigned(expired as u64);
    bury_the_dead(desk)?;
    Ok(Tended { expired, more: expired == BATCH as usize })
}

/// Marks what processes that are gone left behind.
pub(super) fn bury_the_dead(desk: &mut Desk) -> Result<()> {
    let mut statement = desk.connection.prepare_cached(
        "SELECT holder, (SELECT max(lease) FROM records WHERE state = 0 AND records.holder = holders.holder)
         FROM holders WHERE holder <> ?1",
    )?;
    let others = statement.query_map([signed(desk.holders.own)], |row| {
        let lease: Option<i64> = row.get(1)?;
        Ok((number(row, 0)?, lease.map(|lease| Duration::from_millis(lease.cast_unsigned()))))
    })?;
    let others = others.collect::<Result<Vec<(Holder, Option<Duration>)>>>()?;
    drop(statement);
    for (holder, lease) in others {
        bury_if_dead(desk, holder, lease.unwrap_or(DAY))?;
    }
    Ok(())
}

/// Makes the claims of a process UNKNOWN if it is dead, or has been silent for a lease. Gives whether
/// it is so.
fn bury_if_dead(desk: &mut Desk, holder: Holder, lease: Duration) -> Result<bool> {
    let beat = desk
        .connection
        .prepare_cached("SELECT beat FROM holders WHERE holder = ?1")?
        .query_row([signed(holder)], |row| number(row, 0))
        .optional()?;
    let why = match desk.holders.life(holder, beat.unwrap_or_default(), lease) {
        Life::Alive => return Ok(false),
        Life::Silent => "the proxy that held the claim has been silent for its whole lease",
        Life::Dead => {
            desk.connection.execute("DELETE FROM holders WHERE holder = ?1", [signed(holder)])?;
            "the proxy that held the claim is gone"
        }
    };
    let mut statement = desk.connection.prepare_cached(
        "UPDATE records SET state = 3 WHERE state = 0 AND holder = ?1
         RETURNING id, namespace, method, authority, path, key",
    )?;
    let orphaned = statement.query_map([signed(holder)], |row| Ok((Id(row.get(0)?), subject(row, 1)?)))?;
    for orphan in orphaned {
        let (id, subject) = orphan?;
        warn_unknown(id, &subject, why);
    }
    Ok(true)
}

/// How many records there are.
pub(super) fn extent(connection: &Connection) -> Result<u64> {
    connection.query_row("SELECT records FROM extent", [], |row| number(row, 0))
}

/// Notes that there are more records, or fewer; gives how many.
pub(super) fn extend(connection: &Connection, added: i64) -> Result<u64> {
    connection
        .prepare_cached("UPDATE extent SET records = records + ?1 RETURNING records")?
        .query_row([added], |row| number(row, 0))
}

fn number(row: &Row<'_>, column: usize) -> Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn state(row: &Row<'_>, column: usize) -> Result<State> {
    let code = row.get(column)?;
    State::of(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, code))
}

fn subject(row: &Row<'_>, first: usize) -> Result<Subject> {
    Ok(Subject {
        namespace: row.get(first)?,
        method: row.get(first + 1)?,
        authority: row.get(first + 2)?,
        path: row.get(first + 3)?,
        key: row.get(first + 4)?,
    })
}

fn bytes(row: &Row<'_>, column: usize) -> Result<Bytes> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) => Ok(Bytes::copy_from_slice(bytes)),
        other => Err(rusqlite::Error::InvalidColumnType(column, "blob".to_owned(), other.data_type())),
    }
}
