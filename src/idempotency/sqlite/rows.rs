//! The effect of each call on the tables, as [`transition`] defines it. The statements of the frequent calls implement
//! it in SQL; a property compares them with the function.

use super::beats::beat_within;
use super::columns::{number, signed, subject};
use super::{Desk, sagas};
use crate::idempotency::copy::{Archived, PAGE};
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::record::{
    Event, Finish, Holder, Millis, Record, ReleaseWay, State, Token, Transition, transition,
};
use crate::idempotency::response::StoredResponse;
use crate::idempotency::store::{
    Authorised, BATCH, Claimed, Completion, Found, Listed, NewClaim, Release, StoreError, Tended,
};
use crate::idempotency::warn_unknown;
use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};
use std::time::Duration;

/// The result of a claim, and the time at which its saga began.
type Made = std::result::Result<(Claimed, Option<Millis>), StoreError>;

pub(super) fn claim(desk: &mut Desk, claim: &NewClaim) -> Result<Made> {
    let NewClaim { id, token, fingerprint, retake, lease, ttl, ref subject, .. } = *claim;
    let (now, expires) = (desk.clock.now(), desk.clock.expiry(ttl));
    let event = Event::Claim { token, fingerprint, retake, expires };
    let began = claim.saga.as_ref().map(|_| now);
    if let Transition::Becomes(mut record) = transition(None, event, now) {
        if claim.saga.is_some() {
            record.state = State::Saga;
        }
        if insert(desk, id, &record, subject, lease)? {
            desk.added += 1;
            sagas::begin(desk, claim, now)?;
            return Ok(Ok((Claimed::First, began)));
        }
    }
    let (mut found, found_lease) = read(&desk.connection, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    if found.record.token != token
        && let Some(record) = bury(desk, id, &found.record, found_lease, now)?
    {
        found.record = record;
    }
    match transition(Some(&found.record), event, now) {
        Transition::Becomes(mut record) => {
            if claim.saga.is_some() {
                record.state = State::Saga;
            }
            replace(desk, id, Some(&found.record), &record, subject, lease)?;
            sagas::begin(desk, claim, now)?;
            Ok(Ok((Claimed::over(Some(&found.record), claim, now), began)))
        }
        _ if found.record.state == State::Tombstone => Ok(Err(StoreError::Released)),
        Transition::Goes | Transition::Stays => Ok(Ok((Claimed::Found(found), None))),
    }
}

/// Puts a record in the place of another one, or of none.
fn replace(
    desk: &mut Desk,
    id: Id,
    before: Option<&Record>,
    record: &Record,
    subject: &Subject,
    lease: Duration,
) -> Result<()> {
    let counts = |record: &Record| i64::from(record.state != State::Tombstone);
    desk.added += counts(record) - before.map_or(0, counts);
    desk.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id.0])?;
    insert(desk, id, record, subject, lease)?;
    Ok(())
}

/// Inserts a record where there is none. Returns whether there was none.
fn insert(desk: &mut Desk, id: Id, record: &Record, subject: &Subject, lease: Duration) -> Result<bool> {
    let Subject { namespace, method, authority, path, key } = subject;
    let inserted = desk
        .connection
        .prepare_cached(
            "INSERT INTO records (id, state, holder, number, lease, created, expires, fingerprint,
                                  namespace, method, authority, path, key, dead_holder, dead_number)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            id.0,
            record.state.code(),
            signed(record.token.holder),
            signed(record.token.number),
            lease.as_millis() as i64,
            signed(record.created),
            signed(record.expires),
            record.fingerprint.0,
            namespace,
            method,
            authority,
            path,
            key,
            record.dead.map(|token| signed(token.holder)),
            record.dead.map(|token| signed(token.number)),
        ])?;
    // A process that sees the claim sees a heartbeat of its holder.
    if inserted == 1 && record.is_running() {
        beat_within(desk, lease)?;
    }
    Ok(inserted == 1)
}

pub(super) fn complete(desk: &mut Desk, completion: &Completion) -> Result<bool> {
    let Completion { id, token, finish, response, ttl } = completion;
    let response = response.as_ref().filter(|_| *finish == Finish::Done);
    let completed = desk
        .connection
        .prepare_cached(
            "UPDATE records SET state = ?1, status = ?2, fields = ?3, body = ?4, trailers = ?5, expires = ?9
             WHERE id = ?6 AND holder = ?7 AND number = ?8
                   AND (state = ?1 OR (state IN (0, 3) AND (dead_holder IS NOT ?7 OR dead_number IS NOT ?8)))",
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
            signed(desk.clock.expiry(*ttl)),
        ])?;
    Ok(completed == 1)
}

pub(super) fn release(desk: &mut Desk, release: &Release) -> Result<bool> {
    let Release { id, token, way, ttl, of_saga } = *release;
    if of_saga {
        sagas::withdraw(desk, id, token)?;
    }
    if way == ReleaseWay::Plain {
        let released = desk
            .connection
            .prepare_cached(
                "DELETE FROM records WHERE id = ?1 AND holder = ?2 AND number = ?3 AND state IN (0, 3)
                                           AND (dead_holder IS NOT ?2 OR dead_number IS NOT ?3)",
            )?
            .execute(params![id.0, signed(token.holder), signed(token.number)])?;
        desk.added -= i64::from(released == 1);
        return Ok(released == 1);
    }
    let found = read(&desk.connection, id)?;
    let before = found.as_ref().map(|(found, _)| found.record);
    let event = Event::Release { token, way, expires: desk.clock.expiry(ttl) };
    if let Transition::Becomes(record) = transition(before.as_ref(), event, desk.clock.now()) {
        let of = desk
            .connection
            .prepare_cached("SELECT namespace, method, authority, path, key FROM records WHERE id = ?1")?
            .query_row([id.0], |row| subject(row, 0))
            .optional()?
            .unwrap_or_default();
        replace(desk, id, before.as_ref(), &record, &of, found.map_or(Duration::ZERO, |(_, lease)| lease))?;
    }
    Ok(before.is_some_and(|record| record.is_open_to(token)))
}

pub(super) fn authorise(desk: &mut Desk, id: Id) -> Result<Authorised> {
    let now = desk.clock.now();
    let found = read(&desk.connection, id)?.filter(|(found, _)| found.record.state != State::Tombstone);
    let Some((found, lease)) = found else { return Ok(Authorised::Absent) };
    let record = bury(desk, id, &found.record, lease, now)?.unwrap_or(found.record);
    if transition(Some(&record), Event::Authorise, now) != Transition::Goes {
        return Ok(Authorised::Running);
    }
    desk.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id.0])?;
    desk.added -= 1;
    Ok(Authorised::Released)
}

pub(super) fn look_up(connection: &Connection, id: Id, now: Millis) -> Result<Option<Found>> {
    let found = read(connection, id)?.map(|(found, _)| found);
    Ok(found.filter(|found| found.record.state != State::Tombstone && !found.record.is_over(now)))
}

/// Returns a record and its claim's lease.
fn read(connection: &Connection, id: Id) -> Result<Option<(Found, Duration)>> {
    connection
        .prepare_cached(
            "SELECT state, holder, number, fingerprint, created, expires, dead_holder, dead_number,
                    lease, status, fields, body, trailers
             FROM records WHERE id = ?1",
        )?
        .query_row([id.0], |row| {
            let record = record(row)?;
            let response = match record.state {
                State::Done => Some(StoredResponse {
                    status: row.get(9)?,
                    fields: bytes(row, 10)?,
                    body: bytes(row, 11)?,
                    trailers: bytes(row, 12)?,
                }),
                State::Running | State::DoneWithoutBody | State::Unknown | State::Tombstone | State::Saga => None,
            };
            Ok((Found { record, response }, Duration::from_millis(number(row, 8)?)))
        })
        .optional()
}

pub(super) fn find(connection: &Connection, key: &str, now: Millis) -> Result<Vec<Listed>> {
    let (mut first, mut last) = ([0; Id::LENGTH], [0xff; Id::LENGTH]);
    first[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
    last[..Id::PREFIX].copy_from_slice(&Id::prefix(key));
    let mut statement = connection.prepare_cached(
        "SELECT state, holder, number, fingerprint, created, expires, dead_holder, dead_number,
                id, status, namespace, method, authority, path, key
         FROM records WHERE id BETWEEN :first AND :last AND key = :key AND state <> 4 ORDER BY created LIMIT :limit",
    )?;
    let found = named_params! { ":first": first, ":last": last, ":key": key, ":limit": BATCH };
    let listed = statement
        .query_map(found, |row| Ok(Listed::at(now, Id(row.get(8)?), subject(row, 10)?, record(row)?, row.get(9)?)))?;
    listed.collect()
}

/// Returns the next records after an identity, in order.
pub(super) fn page(connection: &Connection, after: Option<Id>) -> Result<Vec<Archived>> {
    let mut statement = connection.prepare_cached(
        "SELECT state, holder, number, fingerprint, created, expires, dead_holder, dead_number, id, lease,
                namespace, method, authority, path, key, status, fields, body, trailers
         FROM records WHERE id > ?1 AND state <> 4 ORDER BY id LIMIT ?2",
    )?;
    let after = after.map_or_else(Vec::new, |id| id.0.to_vec());
    let page = statement.query_map(params![after, PAGE], |row| {
        let status: Option<u16> = row.get(15)?;
        let response = match status {
            Some(status) => Some(StoredResponse {
                status,
                fields: bytes(row, 16)?,
                body: bytes(row, 17)?,
                trailers: bytes(row, 18)?,
            }),
            None => None,
        };
        Ok(Archived {
            id: Id(row.get(8)?),
            subject: subject(row, 10)?,
            record: record(row)?,
            lease: row.get(9)?,
            response,
        })
    })?;
    page.collect()
}

/// Adds a record of another store, where there is none, or one that says less: an expired one, a tombstone, or an
/// unknown outcome of the same run. Returns how many it added.
pub(super) fn add(connection: &Connection, archived: &Archived, now: Millis) -> Result<u64> {
    let Archived { id, subject, record, lease, response } = archived;
    let Subject { namespace, method, authority, path, key } = subject;
    let added = connection
        .prepare_cached(
            "INSERT INTO records (id, state, holder, number, lease, created, expires, fingerprint,
                                  namespace, method, authority, path, key, dead_holder, dead_number,
                                  status, fields, body, trailers)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
             ON CONFLICT (id) DO UPDATE
             SET state = excluded.state, holder = excluded.holder, number = excluded.number, lease = excluded.lease,
                 created = excluded.created, expires = excluded.expires, fingerprint = excluded.fingerprint,
                 namespace = excluded.namespace, method = excluded.method, authority = excluded.authority,
                 path = excluded.path, key = excluded.key, dead_holder = excluded.dead_holder,
                 dead_number = excluded.dead_number, status = excluded.status, fields = excluded.fields,
                 body = excluded.body, trailers = excluded.trailers
             WHERE records.state = 4 OR (records.state <> 0 AND records.expires <= ?20)
                   OR (records.state = 3 AND records.holder = excluded.holder AND records.number = excluded.number
                       AND excluded.state <> 3)",
        )?
        .execute(params![
            id.0,
            record.state.code(),
            signed(record.token.holder),
            signed(record.token.number),
            lease,
            signed(record.created),
            signed(record.expires),
            record.fingerprint.0,
            namespace,
            method,
            authority,
            path,
            key,
            record.dead.map(|token| signed(token.holder)),
            record.dead.map(|token| signed(token.number)),
            response.as_ref().map(|response| response.status),
            response.as_ref().map(|response| &response.fields[..]),
            response.as_ref().map(|response| &response.body[..]),
            response.as_ref().map(|response| &response.trailers[..]),
            signed(now),
        ])?;
    Ok(added as u64)
}

/// Enters a process among those that share the file.
pub(super) fn enter(connection: &Connection, holder: Holder) -> Result<()> {
    connection.execute("INSERT INTO holders VALUES (?1, 0)", [signed(holder)])?;
    Ok(())
}

pub(super) fn tend(desk: &mut Desk) -> Result<Tended> {
    let now = desk.clock.now();
    let counted: i64 = desk
        .connection
        .prepare_cached(
            "SELECT count(*) FROM
                 (SELECT state FROM records WHERE expires <= ?1 AND state <> 0 ORDER BY expires LIMIT ?2)
             WHERE state <> 4",
        )?
        .query_row(params![signed(now), BATCH], |row| row.get(0))?;
    let expired = desk
        .connection
        .prepare_cached(
            "DELETE FROM records WHERE row IN
                 (SELECT row FROM records WHERE expires <= ?1 AND state <> 0 ORDER BY expires LIMIT ?2)",
        )?
        .execute(params![signed(now), BATCH])?;
    desk.added -= counted;
    sagas::forget(desk, now)?;
    let buried = bury_the_dead(desk, now)?;
    Ok(Tended { expired, more: expired == BATCH as usize || buried >= BATCH as usize })
}

/// Ends some claims of dead processes, and of those that are silent for longer than the lease. Returns their number.
pub(super) fn bury_the_dead(desk: &mut Desk, now: Millis) -> Result<usize> {
    let mut statement = desk.connection.prepare_cached(
        "SELECT holder, beat, NOT EXISTS (SELECT 1 FROM records WHERE state = 0 AND records.holder = holders.holder)
                AND NOT EXISTS (SELECT 1 FROM sagas WHERE state < 2 AND sagas.owner = holders.holder)
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

/// Returns some of the running records of this process.
pub(super) fn running(desk: &mut Desk) -> Result<Vec<(Id, Token)>> {
    let own = desk.holders.own;
    let mut statement =
        desk.connection.prepare_cached("SELECT id, number FROM records WHERE state = 0 AND holder = ?1 LIMIT ?2")?;
    let running = statement.query_map(params![signed(own), BATCH], |row| {
        Ok((Id(row.get(0)?), Token { holder: own, number: number(row, 1)? }))
    })?;
    running.collect()
}

const GONE: &str = "the proxy that held the claim is gone";
const SILENT: &str = "the proxy that held the claim has been silent for its whole lease";

/// Makes one claim UNKNOWN if its holder is dead, or silent for longer than the lease. Returns the record then.
fn bury(desk: &mut Desk, id: Id, record: &Record, lease: Duration, now: Millis) -> Result<Option<Record>> {
    let holder = record.token.holder;
    // A record that has ended needs no holder.
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

/// Returns the number of records.
pub(super) fn extent(connection: &Connection) -> Result<u64> {
    connection.query_row("SELECT records FROM extent", [], |row| number(row, 0))
}

/// Notes that there are more records, or fewer; gives how many.
pub(super) fn extend(connection: &Connection, added: i64) -> Result<u64> {
    connection
        .prepare_cached("UPDATE extent SET records = records + ?1 RETURNING records")?
        .query_row([added], |row| number(row, 0))
}

fn state(row: &Row<'_>, column: usize) -> Result<State> {
    let code = row.get(column)?;
    State::of(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(column, code.into()))
}

/// The columns that come first wherever a record is read.
fn record(row: &Row<'_>) -> Result<Record> {
    Ok(Record {
        state: state(row, 0)?,
        token: Token { holder: number(row, 1)?, number: number(row, 2)? },
        fingerprint: Fingerprint(row.get(3)?),
        created: number(row, 4)?,
        expires: number(row, 5)?,
        dead: match (row.get::<_, Option<i64>>(6)?, row.get::<_, Option<i64>>(7)?) {
            (Some(holder), Some(number)) => {
                Some(Token { holder: holder.cast_unsigned(), number: number.cast_unsigned() })
            }
            _ => None,
        },
    })
}

fn bytes(row: &Row<'_>, column: usize) -> Result<Bytes> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) => Ok(Bytes::copy_from_slice(bytes)),
        other => Err(rusqlite::Error::InvalidColumnType(column, "blob".to_owned(), other.data_type())),
    }
}
