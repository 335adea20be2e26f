//! What each call does to the tables, as [`transition`] has it. The statements for what happens to
//! every request say so in SQL; a property holds them to the same as the function.

use super::Desk;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::record::{Event, Finish, Holder, Millis, Record, State, Token, Transition, transition};
use crate::idempotency::response::StoredResponse;
use crate::idempotency::store::{Authorised, BATCH, Claimed, Completion, Found, Listed, NewClaim, Tended};
use crate::idempotency::warn_unknown;
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};
use std::time::{Duration, Instant};

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
    if insert(desk, claim)? {
        desk.added += 1;
        return Ok(Claimed::First);
    }
    let (mut found, lease) = read(&desk.connection, claim.id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    if let Some(record) = bury(desk, claim.id, &found.record, lease, claim.now)? {
        found.record = record;
    }
    let NewClaim { token, fingerprint, retake, now, expires, .. } = *claim;
    match transition(Some(&found.record), Event::Claim { token, fingerprint, retake, expires }, now) {
        Transition::Becomes(_) => {
            desk.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([claim.id.0])?;
            insert(desk, claim)?;
            Ok(Claimed::over(Some(&found.record), now))
        }
        Transition::Goes | Transition::Stays => Ok(Claimed::Found(found)),
    }
}

/// Enters a claim where there is no record.
fn insert(desk: &mut Desk, claim: &NewClaim) -> Result<bool> {
    let Subject { namespace, method, authority, path, key } = &*claim.subject;
    let inserted = desk
        .connection
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
    // Whoever sees the claim sees a heart that beats.
    if inserted == 1 && desk.last_beat.is_none_or(|last| last.elapsed() >= claim.lease / 3) {
        beat(desk)?;
    }
    Ok(inserted == 1)
}

pub(super) fn complete(connection: &Connection, completion: &Completion) -> Result<bool> {
    let Completion { id, token, finish, response, expires } = completion;
    let response = response.as_ref().filter(|_| *finish == Finish::Done);
    let completed = connection
        .prepare_cached(
            "UPDATE records SET state = ?1, status = ?2, fields = ?3, body = ?4, trailers = ?5
             WHERE id = ?6 AND holder = ?7 AND number = ?8 AND state IN (0, 3, ?1)",
        )?
        .execute(params![
            finish.state().code(),
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

pub(super) fn authorise(desk: &mut Desk, id: Id, now: Millis) -> Result<Authorised> {
    let Some((found, lease)) = read(&desk.connection, id)? else { return Ok(Authorised::Absent) };
    let record = bury(desk, id, &found.record, lease, now)?.unwrap_or(found.record);
    if transition(Some(&record), Event::Authorise, now) != Transition::Goes {
        return Ok(Authorised::Running);
    }
    desk.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id.0])?;
    desk.added -= 1;
    Ok(Authorised::Released)
}

pub(super) fn look_up(connection: &Connection, id: Id) -> Result<Option<Found>> {
    Ok(read(connection, id)?.map(|(found, _)| found))
}

/// Returns a record and its claim's lease.
fn read(connection: &Connection, id: Id) -> Result<Option<(Found, Duration)>> {
    connection
        .prepare_cached(
            "SELECT state, holder, number, fingerprint, created, expires, lease, status, fields, body, trailers
             FROM records WHERE id = ?1",
        )?
        .query_row([id.0], |row| {
            let record = record(row)?;
            let response = match record.state {
                State::Done => Some(StoredResponse {
                    status: row.get(7)?,
                    fields: bytes(row, 8)?,
                    body: bytes(row, 9)?,
                    trailers: bytes(row, 10)?,
                }),
                State::Running | State::DoneWithoutBody | State::Unknown => None,
            };
            Ok((Found { record, response }, Duration::from_millis(number(row, 6)?)))
        })
        .optional()
}

pub(super) fn find(connection: &Connection, key: &str) -> Result<Vec<Listed>> {
    let (mut first, mut last) = ([0; Id::LENGTH], [0xff; Id::LENGTH]);
    first[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
    last[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
    let mut statement = connection.prepare_cached(
        "SELECT state, holder, number, fingerprint, created, expires, id, status, namespace, method, authority, path, key
         FROM records WHERE id BETWEEN :first AND :last AND key = :key ORDER BY created LIMIT :limit",
    )?;
    let found = named_params! { ":first": first, ":last": last, ":key": key, ":limit": BATCH };
    let listed = statement.query_map(found, |row| {
        Ok(Listed { record: record(row)?, id: Id(row.get(6)?), status: row.get(7)?, subject: subject(row, 8)? })
    })?;
    listed.collect()
}

/// Enters a process among those that share the file.
pub(super) fn enter(connection: &Connection, holder: Holder) -> Result<()> {
    connection.execute("INSERT INTO holders VALUES (?1, 0)", [signed(holder)])?;
    Ok(())
}

pub(super) fn beat(desk: &mut Desk) -> Result<()> {
    desk.connection
        .prepare_cached("INSERT INTO holders VALUES (?1, 1) ON CONFLICT (holder) DO UPDATE SET beat = beat + 1")?
        .execute([signed(desk.holders.own)])?;
    desk.last_beat = Some(Instant::now());
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
    let buried = bury_the_dead(desk, now)?;
    Ok(Tended { expired, more: expired == BATCH as usize || buried >= BATCH as usize })
}

/// Marks some of what processes that are gone left behind, and of what silent ones have had for longer
/// than its lease. Gives how many.
pub(super) fn bury_the_dead(desk: &mut Desk, now: Millis) -> Result<usize> {
    let mut statement = desk.connection.prepare_cached(
        "SELECT holder, beat, NOT EXISTS (SELECT 1 FROM records WHERE state = 0 AND records.holder = holders.holder)
         FROM holders WHERE holder <> ?1",
    )?;
    let others =
        statement.query_map([signed(desk.holders.own)], |row| Ok((number(row, 0)?, number(row, 1)?, row.get(2)?)))?;
    let others = others.collect::<Result<Vec<(Holder, u64, bool)>>>()?;
    drop(statement);
    let mut buried = 0;
    for (holder, beat, is_idle) in others {
        let silence = desk.holders.silence(holder, beat, is_idle);
        let (lease, why) = match silence {
            None => (Duration::MAX, GONE),
            Some(silence) => (silence, SILENT),
        };
        let mut statement = desk.connection.prepare_cached(
            "UPDATE records SET state = 3, expires = max(expires, ?3 + expires - created)
             WHERE row IN (SELECT row FROM records WHERE state = 0 AND holder = ?1 AND lease <= ?2 LIMIT ?4)
             RETURNING id, namespace, method, authority, path, key",
        )?;
        let lease = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let found = params![signed(holder), lease, signed(now), BATCH];
        let orphaned = statement.query_map(found, |row| Ok((Id(row.get(0)?), subject(row, 1)?)))?;
        let orphaned = orphaned.collect::<Result<Vec<(Id, Subject)>>>()?;
        orphaned.iter().for_each(|(id, subject)| warn_unknown(*id, subject, why));
        if silence.is_none() && orphaned.len() < BATCH as usize {
            desk.connection.execute("DELETE FROM holders WHERE holder = ?1", [signed(holder)])?;
        }
        buried += orphaned.len();
    }
    Ok(buried)
}

const GONE: &str = "the proxy that held the claim is gone";
const SILENT: &str = "the proxy that held the claim has been silent for its whole lease";

/// Makes one claim UNKNOWN if its holder is dead, or has been silent for its lease. Gives the record
/// then.
fn bury(desk: &mut Desk, id: Id, record: &Record, lease: Duration, now: Millis) -> Result<Option<Record>> {
    let holder = record.token.holder;
    // What has ended needs nobody any more.
    let Transition::Becomes(orphan) = transition(Some(record), Event::HolderDied(holder), now) else {
        return Ok(None);
    };
    let beat = desk
        .connection
        .prepare_cached("SELECT beat FROM holders WHERE holder = ?1")?
        .query_row([signed(holder)], |row| number(row, 0))
        .optional()?;
    let why = match desk.holders.silence(holder, beat.unwrap_or_default(), false) {
        None => GONE,
        Some(silence) if silence >= lease && holder != desk.holders.own => SILENT,
        Some(_) => return Ok(None),
    };
    let subject = desk
        .connection
        .prepare_cached(
            "UPDATE records SET state = 3, expires = ?2 WHERE id = ?1
             RETURNING namespace, method, authority, path, key",
        )?
        .query_row(params![id.0, signed(orphan.expires)], |row| subject(row, 0))?;
    warn_unknown(id, &subject, why);
    Ok(Some(orphan))
}

/// Returns how many records there are.
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

/// The columns that come first wherever a record is read.
fn record(row: &Row<'_>) -> Result<Record> {
    Ok(Record {
        state: state(row, 0)?,
        token: Token { holder: number(row, 1)?, number: number(row, 2)? },
        fingerprint: Fingerprint(row.get(3)?),
        created: number(row, 4)?,
        expires: number(row, 5)?,
    })
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
