//! The rows of sagas. The row begins with its claim, and ends with its record.

use super::Desk;
use super::beats::beat_within;
use super::columns::{number, signed, subject};
use crate::idempotency::identity::Id;
use crate::idempotency::record::{Holder, Millis, Token};
use crate::idempotency::saga::{Append, MOST, NO_OWNER, SagaQuery, SagaRow, Seen};
use crate::idempotency::store::{BATCH, NewClaim};
use crate::saga::log::Standing;
use rusqlite::{Connection, OptionalExtension, Result, Row, params};
use std::collections::HashMap;
use std::time::Duration;

/// The columns of a saga, and those of its record's request.
const COLUMNS: &str = "s.id, s.holder, s.number, s.owner, s.epoch, s.sequence, s.state, s.seed, s.definition, s.inputs,
     s.log, s.lease, s.ttl, s.created, s.touched, r.namespace, r.method, r.authority, r.path, r.key
     FROM sagas s LEFT JOIN records r ON r.id = s.id";

/// Appends to the log of a saga whose state and owner stay: columns with an index that are set, also to the values that
/// they have, would have their pages written with each append.
const APPEND_IN_PLACE: &str = "UPDATE sagas
     SET log = CASE WHEN sequence = ?3 THEN log || ?4 ELSE log END, sequence = ?3 + ?5, touched = ?8
     WHERE id = ?1 AND epoch = ?2 AND sequence IN (?3, ?3 + ?5) AND state = ?6 AND owner = ?7
     RETURNING holder, number, ttl";

/// Appends to the log of any saga.
const APPEND: &str = "UPDATE sagas
     SET log = CASE WHEN sequence = ?3 THEN log || ?4 ELSE log END, sequence = ?3 + ?5, state = ?6, owner = ?7,
         touched = ?8
     WHERE id = ?1 AND epoch = ?2 AND sequence IN (?3, ?3 + ?5)
     RETURNING holder, number, ttl";

/// The most owners that are looked at, and orphans that are returned, at a time.
const ORPHANS: i64 = 64;

/// Enters the saga of a claim that was made, in the place of one that has ended. A claim that is sent again finds its
/// saga.
pub(super) fn begin(desk: &mut Desk, claim: &NewClaim, now: Millis) -> Result<()> {
    let Some(saga) = &claim.saga else { return Ok(()) };
    desk.connection
        .prepare_cached(
            "INSERT INTO sagas (id, holder, number, owner, epoch, sequence, state, seed, definition, inputs, log,
                                lease, ttl, created, touched, expires)
             VALUES (?1, ?2, ?3, ?2, 0, 0, 0, ?4, ?5, ?6, '', ?7, ?8, ?9, ?9, ?9)
             ON CONFLICT (id) DO UPDATE
             SET holder = excluded.holder, number = excluded.number, owner = excluded.owner, epoch = 0, sequence = 0,
                 state = 0, seed = excluded.seed, definition = excluded.definition, inputs = excluded.inputs, log = '',
                 lease = excluded.lease, ttl = excluded.ttl, created = excluded.created, touched = excluded.touched,
                 expires = excluded.expires
             WHERE sagas.state IN (2, 3)",
        )?
        .execute(params![
            claim.id.0,
            signed(claim.token.holder),
            signed(claim.token.number),
            saga.seed,
            saga.definition,
            saga.inputs,
            claim.lease.as_millis() as i64,
            saga.ttl.as_millis() as i64,
            signed(now),
        ])?;
    Ok(())
}

/// Takes back the saga of a claim that is released, unless the saga has gone on.
pub(super) fn withdraw(desk: &mut Desk, id: Id, token: Token) -> Result<()> {
    let withdrawn = desk
        .connection
        .prepare_cached(
            "DELETE FROM sagas WHERE id = ?1 AND holder = ?2 AND number = ?3 AND epoch = 0 AND sequence = 0
                               AND state = 0",
        )?
        .execute(params![id.0, signed(token.holder), signed(token.number)])?;
    if withdrawn == 1 {
        desk.connection
            .prepare_cached("UPDATE records SET state = 0 WHERE id = ?1 AND holder = ?2 AND number = ?3 AND state = 5")?
            .execute(params![id.0, signed(token.holder), signed(token.number)])?;
    }
    Ok(())
}

/// Appends to the log, and ends the record with the saga. Returns the time; nothing where another process owns the
/// saga.
pub(super) fn append(desk: &mut Desk, append: &Append) -> Result<Option<Millis>> {
    let (now, own) = (desk.clock.now(), desk.holders.own);
    let update = |text: &str| -> Result<Option<(i64, i64, i64)>> {
        let params = params![
            append.id.0,
            signed(append.epoch),
            signed(append.sequence),
            append.entries.as_deref().unwrap_or_default(),
            append.growth(),
            append.standing.code(),
            signed(append.owner(own)),
            signed(now),
        ];
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        desk.connection.prepare_cached(text)?.query_row(params, row).optional()
    };
    let found = match update(APPEND_IN_PLACE)? {
        None => update(APPEND)?,
        found => found,
    };
    let Some((holder, number, ttl)) = found else { return Ok(None) };
    if let Some(end) = &append.end {
        let ttl = Duration::from_millis(ttl.unsigned_abs());
        let expires = signed(desk.clock.expiry(ttl));
        let response = end.response.as_ref();
        desk.connection
            .prepare_cached(
                "UPDATE records SET state = ?1, status = ?2, fields = ?3, body = ?4, trailers = ?5, expires = ?9
                 WHERE id = ?6 AND holder = ?7 AND number = ?8 AND state IN (5, ?1)",
            )?
            .execute(params![
                end.finish.state().code(),
                response.map(|response| response.status),
                response.map(|response| &response.fields[..]),
                response.map(|response| &response.body[..]),
                response.map(|response| &response.trailers[..]),
                append.id.0,
                holder,
                number,
                expires,
            ])?;
        desk.connection
            .prepare_cached("UPDATE sagas SET expires = ?2 WHERE id = ?1")?
            .execute(params![append.id.0, expires])?;
    }
    beat_within(desk, append.lease)?;
    Ok(Some(now))
}

/// Returns sagas that go on and have no owner, or a dead one.
pub(super) fn orphaned(desk: &mut Desk) -> Result<Vec<SagaRow>> {
    let (now, own) = (desk.clock.now(), desk.holders.own);
    // In any order: those that this process cannot go on with must not hide the others.
    let text = format!("SELECT {COLUMNS} WHERE s.state < 2 AND s.owner <> ?1 ORDER BY random() LIMIT ?2");
    let others = rows_of(&desk.connection, &text, params![signed(own), MOST], now)?;
    let mut silences = HashMap::new();
    let mut orphaned = Vec::new();
    for row in others {
        let silence = match silences.get(&row.owner) {
            Some(silence) => *silence,
            None => {
                let silence = silence(desk, row.owner)?;
                silences.insert(row.owner, silence);
                silence
            }
        };
        if silence.is_none_or(|silence| silence >= row.lease) && orphaned.len() < ORPHANS as usize {
            orphaned.push(row);
        }
    }
    Ok(orphaned)
}

/// Returns for how long a process has been silent; nothing where it is dead.
fn silence(desk: &mut Desk, owner: Holder) -> Result<Option<Duration>> {
    if owner == NO_OWNER {
        return Ok(None);
    }
    let beat = desk
        .connection
        .prepare_cached("SELECT beat FROM holders WHERE holder = ?1")?
        .query_row([signed(owner)], |row| number(row, 0))
        .optional()?;
    Ok(desk.holders.silence(owner, beat.unwrap_or_default(), false))
}

/// Makes this process the owner, where the saga is as it was seen and has no owner that lives.
pub(super) fn take_over(desk: &mut Desk, seen: Seen) -> Result<Option<SagaRow>> {
    let (now, own) = (desk.clock.now(), desk.holders.own);
    let Some(row) = one(&desk.connection, seen.id, now)? else { return Ok(None) };
    if row.epoch == seen.epoch + 1 && row.owner == own {
        return Ok(Some(row));
    }
    let may_be_taken = row.owner == own
        || row.standing == Standing::Stuck
        || silence(desk, row.owner)?.is_none_or(|silence| silence >= row.lease);
    if row.epoch != seen.epoch || row.standing.is_end() || !may_be_taken {
        return Ok(None);
    }
    desk.connection
        .prepare_cached("UPDATE sagas SET owner = ?2, epoch = epoch + 1, touched = ?3 WHERE id = ?1")?
        .execute(params![seen.id.0, signed(own), signed(now)])?;
    beat_within(desk, row.lease)?;
    Ok(Some(SagaRow { owner: own, epoch: row.epoch + 1, touched: now, ..row }))
}

fn one(connection: &Connection, id: Id, now: Millis) -> Result<Option<SagaRow>> {
    let text = format!("SELECT {COLUMNS} WHERE s.id = ?1");
    Ok(rows_of(connection, &text, params![id.0], now)?.pop())
}

/// Returns sagas of this store.
pub(super) fn find(connection: &Connection, own: Holder, query: SagaQuery, now: Millis) -> Result<Vec<SagaRow>> {
    let most = MOST;
    match query {
        SagaQuery::One(id) => Ok(one(connection, id, now)?.into_iter().collect()),
        SagaQuery::Standing(None) => {
            let text = format!("SELECT {COLUMNS} ORDER BY s.created DESC LIMIT ?1");
            rows_of(connection, &text, params![most], now)
        }
        SagaQuery::Standing(Some(standing)) => {
            let text = format!("SELECT {COLUMNS} WHERE s.state = ?1 ORDER BY s.created DESC LIMIT ?2");
            rows_of(connection, &text, params![standing.code(), most], now)
        }
        SagaQuery::Owned | SagaQuery::Orphaned => {
            let text = format!("SELECT {COLUMNS} WHERE s.state < 2 AND s.owner = ?1 ORDER BY s.created LIMIT ?2");
            rows_of(connection, &text, params![signed(own), most], now)
        }
    }
}

/// Forgets sagas whose records have expired.
pub(super) fn forget(desk: &mut Desk, now: Millis) -> Result<()> {
    desk.connection
        .prepare_cached(
            "DELETE FROM sagas WHERE id IN
                 (SELECT id FROM sagas WHERE state IN (2, 3) AND expires <= ?1 ORDER BY expires LIMIT ?2)",
        )?
        .execute(params![signed(now), BATCH])?;
    Ok(())
}

/// Returns how many sagas go on, or are stuck.
pub(super) fn open(connection: &Connection) -> Result<u64> {
    connection.query_row("SELECT count(*) FROM sagas WHERE state IN (0, 1, 4)", [], |row| number(row, 0))
}

/// Returns the next sagas after an identity, in order.
pub(super) fn page(connection: &Connection, after: Option<Id>, limit: i64) -> Result<Vec<SagaRow>> {
    let after = after.map_or_else(Vec::new, |id| id.0.to_vec());
    let text = format!("SELECT {COLUMNS} WHERE s.id > ?1 ORDER BY s.id LIMIT ?2");
    rows_of(connection, &text, params![after, limit], 0)
}

/// Adds a saga of another store that has ended, where there is none.
pub(super) fn add(connection: &Connection, row: &SagaRow) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO sagas (id, holder, number, owner, epoch, sequence, state, seed, definition, inputs, log,
                                lease, ttl, created, touched, expires)
             SELECT ?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, r.expires
             FROM records r WHERE r.id = ?1 AND r.holder = ?2 AND r.number = ?3
             ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            row.id.0,
            signed(row.token.holder),
            signed(row.token.number),
            signed(row.epoch),
            signed(row.sequence),
            row.standing.code(),
            row.seed,
            row.definition,
            row.inputs,
            row.log,
            row.lease.as_millis() as i64,
            row.ttl.as_millis() as i64,
            signed(row.created),
            signed(row.touched),
        ])?;
    Ok(())
}

fn rows_of(connection: &Connection, text: &str, params: impl rusqlite::Params, now: Millis) -> Result<Vec<SagaRow>> {
    let mut statement = connection.prepare_cached(text)?;
    let rows = statement.query_map(params, |row| saga(row, now))?;
    rows.collect()
}

fn saga(row: &Row<'_>, now: Millis) -> Result<SagaRow> {
    let code: i16 = row.get(6)?;
    let standing = Standing::of(code).ok_or(rusqlite::Error::IntegralValueOutOfRange(6, code.into()))?;
    let has_record = row.get::<_, Option<String>>(15)?.is_some();
    Ok(SagaRow {
        id: Id(row.get(0)?),
        token: Token { holder: number(row, 1)?, number: number(row, 2)? },
        owner: number(row, 3)?,
        epoch: number(row, 4)?,
        sequence: number(row, 5)?,
        standing,
        seed: row.get(7)?,
        definition: row.get(8)?,
        inputs: row.get(9)?,
        log: row.get(10)?,
        lease: Duration::from_millis(number(row, 11)?),
        ttl: Duration::from_millis(number(row, 12)?),
        created: number(row, 13)?,
        touched: number(row, 14)?,
        now,
        subject: has_record.then(|| subject(row, 15)).transpose()?,
    })
}
