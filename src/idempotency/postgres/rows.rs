//! The statements, and the rows that they return. All decide as [`transition`] has it, in SQL where that is one
//! statement; the conformance suite holds them to it.
//!
//! [`transition`]: crate::idempotency::record::transition

use crate::idempotency::clock::{grace, millis};
use crate::idempotency::copy::Archived;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::record::{Millis, Record, State, Token};
use crate::idempotency::response::StoredResponse;
use crate::idempotency::store::{Found, Listed};
use bytes::Bytes;
use std::time::Duration;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

/// A parameter of a statement, with its type: statements are not prepared.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The start of every transaction that grants or ends a claim: it waits for the synchronous standby, whatever the
/// role's default is, and hears where that wait was cancelled.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SET LOCAL synchronous_commit = on; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '400ms'; \
     SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// Fails where the connection leads to another store than when it was made: a pooler may have been told of another
/// server, or the tables were made anew.
pub(super) const SAME_STORE: &str = "SELECT 1 WHERE 1 / (SELECT count(*) FROM ringway_store WHERE identity = $1) = 0";

/// The start of a transaction that may be lost: upkeep is repeated.
pub(super) const BEGIN_UPKEEP: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = local; \
     SET LOCAL lock_timeout = '400ms'; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '5s'";

pub(super) const BEAT: &str = "INSERT INTO ringway_holders (holder, beat, name) VALUES ($1, clock_timestamp(), $2)
     ON CONFLICT (holder) DO UPDATE SET beat = clock_timestamp()";

/// Claims that are sent for the first time, and the heartbeat that those have which are made. Claims that meet records
/// write nothing, so that their commit waits for no disk.
pub(super) const CLAIM: &str = "WITH made AS (
         INSERT INTO ringway_records AS r
         (id, state, holder, number, lease, created, touched, expires, fingerprint, namespace, method, authority, path, key)
         SELECT c.id, 0, c.holder, c.number, c.lease, now(), now(), now() + c.ttl * interval '1 millisecond',
                c.fingerprint, c.namespace, c.method, c.authority, c.path, c.key
         FROM unnest($1::bytea[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::bytea[], $7::text[], $8::text[],
                     $9::text[], $10::text[], $11::text[])
              AS c (id, holder, number, lease, ttl, fingerprint, namespace, method, authority, path, key)
         ORDER BY c.id
         ON CONFLICT (id) DO NOTHING
         RETURNING r.id, r.holder, r.number
     ), beat AS (
         INSERT INTO ringway_holders (holder, beat, name)
         SELECT $12, clock_timestamp(), $13 WHERE EXISTS (SELECT FROM made)
         ON CONFLICT (holder) DO UPDATE SET beat = clock_timestamp()
     )
     SELECT id, holder, number FROM made";

/// A claim that is sent again: it rewrites its row, for only a write waits for the standby.
pub(super) const CLAIM_AGAIN: &str = "INSERT INTO ringway_records AS r
     (id, state, holder, number, lease, created, touched, expires, fingerprint, namespace, method, authority, path, key)
     VALUES ($1, 0, $2, $3, $4, now(), now(), now() + $5 * interval '1 millisecond', $6, $7, $8, $9, $10, $11)
     ON CONFLICT (id) DO UPDATE SET state = 0, touched = now(), expires = r.created + $5 * interval '1 millisecond'
     WHERE r.holder = excluded.holder AND r.number = excluded.number AND r.state IN (0, 3)
           AND (r.dead_holder, r.dead_number) IS DISTINCT FROM (r.holder, r.number)
     RETURNING r.id, r.holder, r.number";

/// Takes the place of the record that was read, unless it has changed since.
pub(super) const TAKE: &str = "UPDATE ringway_records r
     SET state = 0, holder = $3, number = $4, lease = $5, created = CASE WHEN $14 THEN r.created ELSE now() END,
         touched = now(), expires = CASE WHEN $14 THEN r.created ELSE now() END + $6 * interval '1 millisecond',
         fingerprint = $7, namespace = $8, method = $9, authority = $10, path = $11, key = $12,
         status = NULL, fields = NULL, body = NULL, trailers = NULL,
         dead_holder = CASE WHEN $13 THEN r.dead_holder END, dead_number = CASE WHEN $13 THEN r.dead_number END
     WHERE r.id = $1 AND r.xmin::text = $2
     RETURNING r.id, r.holder, r.number";

/// Makes a running record unknown whose holder is dead or silent, unless it has changed since it was read.
pub(super) const BURY: &str = "UPDATE ringway_records r
     SET state = 3, touched = now(), expires = greatest(r.expires, now() + (r.expires - r.created))
     WHERE r.id = $1 AND r.xmin::text = $2 AND r.state = 0
     RETURNING r.namespace, r.method, r.authority, r.path, r.key";

pub(super) const COMPLETE: &str = "UPDATE ringway_records r
     SET state = c.state, status = c.status, fields = c.fields, body = c.body, trailers = c.trailers,
         touched = now(), expires = now() + c.ttl * interval '1 millisecond'
     FROM unnest($1::bytea[], $2::int8[], $3::int8[], $4::int2[], $5::int8[], $6::int4[], $7::bytea[], $8::bytea[],
                 $9::bytea[])
          AS c (id, holder, number, state, ttl, status, fields, body, trailers)
     WHERE r.id = c.id AND r.holder = c.holder AND r.number = c.number
           AND (r.state = c.state
                OR r.state IN (0, 3) AND (r.dead_holder, r.dead_number) IS DISTINCT FROM (r.holder, r.number))
     RETURNING r.id, r.holder, r.number";

pub(super) const RELEASE: &str = "DELETE FROM ringway_records r
     USING unnest($1::bytea[], $2::int8[], $3::int8[]) AS c (id, holder, number)
     WHERE r.id = c.id AND r.holder = c.holder AND r.number = c.number AND r.state IN (0, 3)
           AND (r.dead_holder, r.dead_number) IS DISTINCT FROM (r.holder, r.number)
     RETURNING r.id, r.holder, r.number";

/// The record that is open to a token.
pub(super) const OPEN: &str = "SELECT id, holder, number FROM ringway_records
     WHERE id = $1 AND holder = $2 AND number = $3 AND state IN (0, 3)
           AND (dead_holder, dead_number) IS DISTINCT FROM (holder, number)";

/// Leaves a tombstone where there is no record, an expired one, or one of the same token.
pub(super) const ENTOMB: &str = "INSERT INTO ringway_records AS r
     (id, state, holder, number, lease, created, touched, expires, fingerprint, namespace, method, authority, path, key)
     VALUES ($1, 4, $2, $3, 0, now(), now(), now() + interval '60 seconds', $4, '', '', '', '', '')
     ON CONFLICT (id) DO UPDATE
     SET state = 4, holder = excluded.holder, number = excluded.number, created = now(), touched = now(),
         expires = excluded.expires, status = NULL, fields = NULL, body = NULL, trailers = NULL,
         dead_holder = NULL, dead_number = NULL
     WHERE r.state <> 0 AND r.expires <= now()
           OR r.holder = excluded.holder AND r.number = excluded.number
              AND (r.state = 4
                   OR r.state IN (0, 3) AND (r.dead_holder, r.dead_number) IS DISTINCT FROM (r.holder, r.number))";

/// Ends a claim that took the place of an unknown outcome: unknown again, and its token is dead.
pub(super) const END_RETAKEN: &str = "UPDATE ringway_records r
     SET state = 3, touched = now(), expires = now() + $4 * interval '1 millisecond', dead_holder = $2, dead_number = $3
     WHERE r.id = $1 AND r.holder = $2 AND r.number = $3 AND r.state IN (0, 3)
           AND (r.dead_holder, r.dead_number) IS DISTINCT FROM (r.holder, r.number)
     RETURNING r.id, r.holder, r.number";

/// Notes the token of such a claim that was perhaps never carried out.
pub(super) const NOTE_RETAKEN: &str = "UPDATE ringway_records r
     SET touched = now(), dead_holder = $2, dead_number = $3
     WHERE r.id = $1 AND r.state = 3 AND r.expires > now() AND (r.holder, r.number) IS DISTINCT FROM ($2, $3)";

/// Leaves a tombstone where there is no record, or an expired one.
pub(super) const ENTOMB_ABSENT: &str = "INSERT INTO ringway_records AS r
     (id, state, holder, number, lease, created, touched, expires, fingerprint, namespace, method, authority, path, key)
     VALUES ($1, 4, $2, $3, 0, now(), now(), now() + interval '60 seconds', $4, '', '', '', '', '')
     ON CONFLICT (id) DO UPDATE
     SET state = 4, holder = excluded.holder, number = excluded.number, created = now(), touched = now(),
         expires = excluded.expires, status = NULL, fields = NULL, body = NULL, trailers = NULL,
         dead_holder = NULL, dead_number = NULL
     WHERE r.state <> 0 AND r.expires <= now()";

/// The records of some identities, with what a claim has to know of them.
pub(super) const READ: &str = "SELECT r.id, r.state, r.holder, r.number, r.fingerprint,
            (extract(epoch FROM r.created) * 1000)::int8, (extract(epoch FROM r.expires) * 1000)::int8,
            r.dead_holder, r.dead_number, r.status, r.fields, r.body, r.trailers, r.xmin::text, r.lease,
            (extract(epoch FROM clock_timestamp()) * 1000)::int8,
            (extract(epoch FROM clock_timestamp() - h.beat) * 1000)::int8, (extract(epoch FROM clock_timestamp() - r.touched) * 1000)::int8
     FROM ringway_records r LEFT JOIN ringway_holders h ON h.holder = r.holder
     WHERE r.id = ANY($1)";

/// The same, without those that this transaction has made.
pub(super) const READ_OTHERS: &str = "SELECT r.id, r.state, r.holder, r.number, r.fingerprint,
            (extract(epoch FROM r.created) * 1000)::int8, (extract(epoch FROM r.expires) * 1000)::int8,
            r.dead_holder, r.dead_number, r.status, r.fields, r.body, r.trailers, r.xmin::text, r.lease,
            (extract(epoch FROM clock_timestamp()) * 1000)::int8,
            (extract(epoch FROM clock_timestamp() - h.beat) * 1000)::int8, (extract(epoch FROM clock_timestamp() - r.touched) * 1000)::int8
     FROM ringway_records r LEFT JOIN ringway_holders h ON h.holder = r.holder
     WHERE r.id = ANY($1) AND r.touched <> now()";

/// The records of a key.
pub(super) const FIND: &str = "SELECT r.id, r.state, r.holder, r.number, r.fingerprint,
            (extract(epoch FROM r.created) * 1000)::int8, (extract(epoch FROM r.expires) * 1000)::int8,
            r.dead_holder, r.dead_number, r.status, (extract(epoch FROM clock_timestamp()) * 1000)::int8,
            r.namespace, r.method, r.authority, r.path, r.key, h.name
     FROM ringway_records r LEFT JOIN ringway_holders h ON h.holder = r.holder
     WHERE r.id BETWEEN $1 AND $2 AND r.key = $3 AND r.state <> 4 ORDER BY r.created LIMIT $4";

pub(super) const RUNNING: &str = "SELECT id, number FROM ringway_records WHERE holder = $1 AND state = 0 LIMIT $2";

/// Deletes one record that has not changed since it was read.
pub(super) const DELETE: &str = "DELETE FROM ringway_records r WHERE r.id = $1 AND r.xmin::text = $2 RETURNING r.id";

pub(super) const LOCK_UPKEEP: &str = "SELECT pg_try_advisory_xact_lock($1)";

pub(super) const EXPIRE: &str = "DELETE FROM ringway_records WHERE id IN
         (SELECT id FROM ringway_records WHERE state <> 0 AND expires <= now() ORDER BY expires LIMIT $1
          FOR UPDATE SKIP LOCKED)
     RETURNING state";

/// Locks running records whose holders seem dead, or silent for the lease of the record.
pub(super) const LOCK_SILENT: &str = "SELECT c.id, c.holder, c.number
     FROM ringway_records c LEFT JOIN ringway_holders h ON h.holder = c.holder
     WHERE c.state = 0 AND c.holder <> $1
           AND (h.beat IS NULL OR now() - h.beat >= c.lease * interval '1 millisecond')
     LIMIT $2 FOR UPDATE OF c SKIP LOCKED";

/// Makes those of them unknown that are: looked at anew, for a lock may have come after another claim.
pub(super) const BURY_SILENT: &str = "UPDATE ringway_records r
     SET state = 3, touched = now(), expires = greatest(r.expires, now() + (r.expires - r.created))
     WHERE r.id = ANY($2) AND r.state = 0 AND r.holder <> $1
           AND NOT EXISTS (SELECT FROM ringway_holders h WHERE h.holder = r.holder
                           AND clock_timestamp() - h.beat < r.lease * interval '1 millisecond')
     RETURNING r.id, r.namespace, r.method, r.authority, r.path, r.key";

/// Forgets processes that have long been silent and hold nothing.
pub(super) const FORGET_HOLDERS: &str = "DELETE FROM ringway_holders h
     WHERE h.holder <> $1 AND h.beat < now() - interval '1 day'
           AND NOT EXISTS (SELECT FROM ringway_records r WHERE r.holder = h.holder AND r.state = 0)";

/// The number of records: counted up to 100,000, beyond that as the server's statistics have it.
pub(super) const COUNT: &str = "SELECT CASE WHEN c.counted <= 100000 THEN c.counted
            ELSE greatest(c.counted, (SELECT reltuples::int8 FROM pg_class WHERE oid = 'ringway_records'::regclass)) END
     FROM (SELECT count(*) AS counted
           FROM (SELECT FROM ringway_records WHERE state <> 4 LIMIT 100001) AS first) c";

/// The next records after an identity, in order.
pub(super) const PAGE: &str = "SELECT r.id, r.state, r.holder, r.number, r.fingerprint,
            (extract(epoch FROM r.created) * 1000)::int8, (extract(epoch FROM r.expires) * 1000)::int8,
            r.dead_holder, r.dead_number, r.status, r.fields, r.body, r.trailers, r.lease,
            r.namespace, r.method, r.authority, r.path, r.key
     FROM ringway_records r WHERE r.id > $1 AND r.state <> 4 ORDER BY r.id LIMIT $2";

/// Adds a record of another store, where there is none, or one that says less: an expired one, a tombstone, or an
/// unknown outcome of the same run.
pub(super) const ADD: &str = "INSERT INTO ringway_records
     (id, state, holder, number, lease, created, touched, expires, fingerprint, namespace, method, authority, path, key,
      dead_holder, dead_number, status, fields, body, trailers)
     VALUES ($1, $2, $3, $4, $5, to_timestamp($6::int8 / 1000.0), now(), to_timestamp($7::int8 / 1000.0), $8,
             $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
     ON CONFLICT (id) DO UPDATE
     SET state = excluded.state, holder = excluded.holder, number = excluded.number, lease = excluded.lease,
         created = excluded.created, touched = now(), expires = excluded.expires, fingerprint = excluded.fingerprint,
         namespace = excluded.namespace, method = excluded.method, authority = excluded.authority,
         path = excluded.path, key = excluded.key, dead_holder = excluded.dead_holder,
         dead_number = excluded.dead_number, status = excluded.status, fields = excluded.fields, body = excluded.body,
         trailers = excluded.trailers
     WHERE ringway_records.state = 4 OR ringway_records.state <> 0 AND ringway_records.expires <= now()
           OR ringway_records.state = 3 AND ringway_records.holder = excluded.holder
              AND ringway_records.number = excluded.number AND excluded.state <> 3
     RETURNING id";

/// The query for claims that a living proxy holds.
pub(super) const IS_IN_USE: &str = "SELECT EXISTS (SELECT FROM ringway_records r
     JOIN ringway_holders h ON h.holder = r.holder
     WHERE r.state = 0 AND now() - h.beat < r.lease * interval '1 millisecond')";

/// PostgreSQL's numbers have a sign; these are bits.
pub(super) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// Returns the milliseconds for which a record is kept.
pub(super) fn kept(ttl: Duration) -> i64 {
    let ttl = ttl.min(Duration::from_secs(100 * 365 * 86_400));
    signed(millis(ttl + grace(ttl)))
}

/// Returns the identity and the token of a row that begins with them.
pub(super) fn claim_of(row: &Row) -> Result<(Id, Token), Error> {
    let token = Token { holder: number(row, 1)?, number: number(row, 2)? };
    Ok((id(row, 0)?, token))
}

pub(super) fn id(row: &Row, column: usize) -> Result<Id, Error> {
    let bytes: &[u8] = row.try_get(column)?;
    let mut id = [0; Id::LENGTH];
    let length = bytes.len().min(Id::LENGTH);
    id[..length].copy_from_slice(&bytes[..length]);
    Ok(Id(id))
}

pub(super) fn number(row: &Row, column: usize) -> Result<u64, Error> {
    row.try_get::<_, i64>(column).map(i64::cast_unsigned)
}

/// Reads the columns with which [`READ`] and [`FIND`] begin. A state of a newer version is unknown.
fn record(row: &Row) -> Result<Record, Error> {
    let mut fingerprint = [0; 32];
    let bytes: &[u8] = row.try_get(4)?;
    let length = bytes.len().min(32);
    fingerprint[..length].copy_from_slice(&bytes[..length]);
    let dead = match (row.try_get::<_, Option<i64>>(7)?, row.try_get::<_, Option<i64>>(8)?) {
        (Some(holder), Some(number)) => Some(Token { holder: holder.cast_unsigned(), number: number.cast_unsigned() }),
        _ => None,
    };
    Ok(Record {
        state: State::of(row.try_get(1)?).unwrap_or(State::Unknown),
        token: Token { holder: number(row, 2)?, number: number(row, 3)? },
        fingerprint: Fingerprint(fingerprint),
        created: number(row, 5)?,
        expires: number(row, 6)?,
        dead,
    })
}

/// A record with what a claim has to know of it.
pub(super) struct Read {
    pub(super) id: Id,
    pub(super) found: Found,
    /// The version of the row.
    pub(super) version: String,
    pub(super) lease: Duration,
    /// The server's time.
    pub(super) now: Millis,
    /// For how long its holder has been silent; nothing where there is no such holder.
    pub(super) silence: Option<Duration>,
    /// The time since it was written.
    pub(super) age: Duration,
}

impl Read {
    /// Returns whether it has the result of a run.
    pub(super) fn is_result(&self) -> bool {
        matches!(self.found.record.state, State::Done | State::DoneWithoutBody)
    }

    pub(super) fn of(row: &Row) -> Result<Read, Error> {
        let (record, response) = (record(row)?, response(row)?);
        let duration = |millis: i64| Duration::from_millis(u64::try_from(millis).unwrap_or_default());
        Ok(Read {
            id: id(row, 0)?,
            found: Found { record, response },
            version: row.try_get(13)?,
            lease: duration(row.try_get(14)?),
            now: number(row, 15)?,
            silence: row.try_get::<_, Option<i64>>(16)?.map(duration),
            age: duration(row.try_get(17)?),
        })
    }
}

/// Reads the columns of a result, with which [`READ`] and [`PAGE`] go on.
fn response(row: &Row) -> Result<Option<StoredResponse>, Error> {
    let bytes =
        |column| Ok::<_, Error>(Bytes::copy_from_slice(row.try_get::<_, Option<&[u8]>>(column)?.unwrap_or_default()));
    let (state, status): (i16, Option<i32>) = (row.try_get(1)?, row.try_get(9)?);
    Ok(match (State::of(state), status) {
        (Some(State::Done), Some(status)) => Some(StoredResponse {
            status: u16::try_from(status).unwrap_or_default(),
            fields: bytes(10)?,
            body: bytes(11)?,
            trailers: bytes(12)?,
        }),
        _ => None,
    })
}

/// Reads a row of [`PAGE`].
pub(super) fn archived(row: &Row) -> Result<Archived, Error> {
    let (id, record, response) = (id(row, 0)?, record(row)?, response(row)?);
    Ok(Archived { id, subject: subject(row, 14)?, record, lease: row.try_get(13)?, response })
}

/// Reads a row of [`FIND`].
pub(super) fn listed(row: &Row) -> Result<Listed, Error> {
    let status: Option<i32> = row.try_get(9)?;
    let status = status.and_then(|status| u16::try_from(status).ok());
    let listed = Listed::at(number(row, 10)?, id(row, 0)?, subject(row, 11)?, record(row)?, status);
    Ok(Listed { holder_name: row.try_get(16)?, ..listed })
}

/// Reads five columns.
pub(super) fn subject(row: &Row, first: usize) -> Result<Subject, Error> {
    Ok(Subject {
        namespace: row.try_get(first)?,
        method: row.try_get(first + 1)?,
        authority: row.try_get(first + 2)?,
        path: row.try_get(first + 3)?,
        key: row.try_get(first + 4)?,
    })
}
