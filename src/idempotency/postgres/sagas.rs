//! The statements about sagas, their parameters, and the rows that they return.

use super::rows::{Param, id, kept, number, signed, subject};
use crate::idempotency::clock::millis;
use crate::idempotency::record::{Holder, Token};
use crate::idempotency::saga::{Append, SagaRow, Seen};
use crate::idempotency::store::{NewClaim, Release};
use crate::saga::log::Standing;
use std::time::Duration;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

/// The most orphans that are returned at a time.
pub(super) const ORPHANS: i64 = 64;

/// Gives a claim that was made in this transaction to its saga, in the place of one that has ended. A claim that is
/// sent again finds its saga, and writes.
pub(super) const BEGIN: &str = "WITH mine AS (
         UPDATE ringway_records r SET state = 5, touched = now()
         WHERE r.id = $1 AND r.holder = $2 AND r.number = $3 AND r.state IN (0, 5)
         RETURNING r.id, r.holder, r.number
     ), saga AS (
         INSERT INTO ringway_sagas AS s (id, holder, number, owner, epoch, sequence, state, seed, definition, inputs, log,
                                         lease, ttl, created, touched, expires)
         SELECT id, holder, number, holder, 0, 0, 0, $4, $5, $6, '', $7, $8, now(), now(), now() FROM mine
         ON CONFLICT (id) DO UPDATE
         SET holder = excluded.holder, number = excluded.number, owner = excluded.owner, epoch = 0, sequence = 0,
             state = 0, seed = excluded.seed, definition = excluded.definition, inputs = excluded.inputs, log = '',
             lease = excluded.lease, ttl = excluded.ttl, created = now(), touched = now(), expires = now()
         WHERE s.state IN (2, 3)
     )
     SELECT id, holder, number, (extract(epoch FROM now()) * 1000)::int8 FROM mine";

/// Takes back the saga of a claim that is released, unless the saga has gone on.
pub(super) const WITHDRAW: &str = "WITH gone AS (
         DELETE FROM ringway_sagas s
         WHERE s.id = $1 AND s.holder = $2 AND s.number = $3 AND s.epoch = 0 AND s.sequence = 0 AND s.state = 0
         RETURNING s.id, s.holder, s.number
     ), freed AS (
         UPDATE ringway_records r SET state = 0 FROM gone g
         WHERE r.id = g.id AND r.holder = g.holder AND r.number = g.number AND r.state = 5
     )
     SELECT id, holder, number FROM gone WHERE false";

/// Appends to the log. An append that is sent again is recognised by its sequence, and writes.
pub(super) const APPEND: &str = "WITH appended AS (
         UPDATE ringway_sagas s
         SET log = CASE WHEN s.sequence = $3 THEN s.log || $4 ELSE s.log END, sequence = $3 + $5, state = $6, owner = $7,
             touched = now()
         WHERE s.id = $1 AND s.epoch = $2 AND s.sequence IN ($3, $3 + $5)
         RETURNING s.id, s.holder, s.number
     )
     SELECT id, holder, number, (extract(epoch FROM clock_timestamp()) * 1000)::int8 FROM appended";

/// The same, and ends the record.
pub(super) const END: &str = "WITH appended AS (
         UPDATE ringway_sagas s
         SET log = CASE WHEN s.sequence = $3 THEN s.log || $4 ELSE s.log END, sequence = $3 + $5, state = $6, owner = $7,
             touched = now(), expires = now() + s.ttl * interval '1 millisecond'
         WHERE s.id = $1 AND s.epoch = $2 AND s.sequence IN ($3, $3 + $5)
         RETURNING s.id, s.holder, s.number, s.expires
     ), ended AS (
         UPDATE ringway_records r
         SET state = $8, status = $9, fields = $10, body = $11, trailers = $12, touched = now(), expires = a.expires
         FROM appended a
         WHERE r.id = a.id AND r.holder = a.holder AND r.number = a.number AND r.state IN (5, $8)
     )
     SELECT id, holder, number, (extract(epoch FROM clock_timestamp()) * 1000)::int8 FROM appended";

/// Makes this process the owner, where the saga is as it was seen and has no owner that lives.
pub(super) const TAKE_OVER: &str = "UPDATE ringway_sagas s
     SET owner = $3, epoch = $2 + 1, touched = now()
     WHERE s.id = $1 AND s.state IN (0, 1, 4)
           AND (s.epoch = $2 + 1 AND s.owner = $3
                OR s.epoch = $2
                   AND (s.owner IN (0, $3) OR s.state = 4
                        OR NOT EXISTS (SELECT FROM ringway_holders h WHERE h.holder = s.owner
                                       AND clock_timestamp() - h.beat < s.lease * interval '1 millisecond')))
     RETURNING s.id";

const COLUMNS: &str = "SELECT s.id, s.holder, s.number, s.owner, s.epoch, s.sequence, s.state, s.seed, s.definition,
            s.inputs, s.log, s.lease, s.ttl, (extract(epoch FROM s.created) * 1000)::int8,
            (extract(epoch FROM s.touched) * 1000)::int8, (extract(epoch FROM clock_timestamp()) * 1000)::int8,
            r.namespace, r.method, r.authority, r.path, r.key
     FROM ringway_sagas s LEFT JOIN ringway_records r ON r.id = s.id";

/// Forgets sagas whose records have expired.
pub(super) const FORGET: &str = "DELETE FROM ringway_sagas WHERE id IN
         (SELECT id FROM ringway_sagas WHERE state IN (2, 3) AND expires <= now() ORDER BY expires LIMIT $1
          FOR UPDATE SKIP LOCKED)
     RETURNING id";

/// The number of sagas that go on, or are stuck.
pub(super) const OPEN: &str = "SELECT count(*) FROM ringway_sagas WHERE state IN (0, 1, 4)";

/// The types of the parameters of [`BEGIN`], [`APPEND`] and [`END`].
pub(super) const BEGIN_TYPES: [Type; 8] =
    [Type::BYTEA, Type::INT8, Type::INT8, Type::BYTEA, Type::TEXT, Type::TEXT, Type::INT8, Type::INT8];
pub(super) const APPEND_TYPES: [Type; 7] =
    [Type::BYTEA, Type::INT8, Type::INT8, Type::TEXT, Type::INT8, Type::INT2, Type::INT8];
pub(super) const END_TYPES: [Type; 12] = [
    Type::BYTEA,
    Type::INT8,
    Type::INT8,
    Type::TEXT,
    Type::INT8,
    Type::INT2,
    Type::INT8,
    Type::INT2,
    Type::INT4,
    Type::BYTEA,
    Type::BYTEA,
    Type::BYTEA,
];

/// Returns the statement for one saga.
pub(super) fn one() -> String {
    format!("{COLUMNS} WHERE s.id = $1")
}

/// Returns the statement for the sagas of some states, the youngest first.
pub(super) fn of_states() -> String {
    format!("{COLUMNS} WHERE s.state = ANY($1) ORDER BY s.created DESC LIMIT $2")
}

/// Returns the statement for the sagas of an owner that go on.
pub(super) fn owned() -> String {
    format!("{COLUMNS} WHERE s.state < 2 AND s.owner = $1 ORDER BY s.created LIMIT $2")
}

/// Returns the statement for the sagas that go on and have no owner, or a dead one; in any order, so that those which a
/// process cannot go on with do not hide the others.
pub(super) fn orphaned() -> String {
    format!(
        "{COLUMNS} WHERE s.state < 2 AND s.owner <> $1
               AND NOT EXISTS (SELECT FROM ringway_holders h WHERE h.holder = s.owner
                               AND clock_timestamp() - h.beat < s.lease * interval '1 millisecond')
         ORDER BY random() LIMIT $2"
    )
}

/// Returns the statement for the next sagas after an identity, in order.
pub(super) fn page() -> String {
    format!("{COLUMNS} WHERE s.id > $1 ORDER BY s.id LIMIT $2")
}

/// The parameters of the saga of a claim, which live as long as its statement.
pub(super) struct Begun {
    id: Vec<u8>,
    holder: i64,
    number: i64,
    seed: Vec<u8>,
    definition: String,
    inputs: String,
    lease: i64,
    ttl: i64,
}

impl Begun {
    /// Returns those of a claim that begins a saga.
    pub(super) fn of(claim: &NewClaim) -> Option<Begun> {
        let saga = claim.saga.as_ref()?;
        Some(Begun {
            id: claim.id.0.to_vec(),
            holder: signed(claim.token.holder),
            number: signed(claim.token.number),
            seed: saga.seed.to_vec(),
            definition: saga.definition.clone(),
            inputs: saga.inputs.clone(),
            lease: signed(millis(claim.lease)),
            ttl: kept(saga.ttl),
        })
    }

    pub(super) fn params(&self) -> Vec<Param<'_>> {
        let params: [&(dyn ToSql + Sync); 8] =
            [&self.id, &self.holder, &self.number, &self.seed, &self.definition, &self.inputs, &self.lease, &self.ttl];
        params.into_iter().zip(BEGIN_TYPES).collect()
    }
}

/// The parameters of an append, which live as long as its statement.
pub(super) struct Appending<'a> {
    append: &'a Append,
    id: &'a [u8],
    epoch: i64,
    sequence: i64,
    entries: &'a str,
    growth: i64,
    state: i16,
    owner: i64,
    finish: i16,
    status: Option<i32>,
    fields: Option<&'a [u8]>,
    body: Option<&'a [u8]>,
    trailers: Option<&'a [u8]>,
}

impl<'a> Appending<'a> {
    pub(super) fn of(append: &'a Append, own: Holder) -> Appending<'a> {
        let response = append.end.as_ref().and_then(|end| end.response.as_ref());
        Appending {
            append,
            id: &append.id.0,
            epoch: signed(append.epoch),
            sequence: signed(append.sequence),
            entries: append.entries.as_deref().unwrap_or_default(),
            growth: append.growth(),
            state: append.standing.code(),
            owner: signed(append.owner(own)),
            finish: append.end.as_ref().map_or(0, |end| end.finish.state().code()),
            status: response.map(|response| response.status.into()),
            fields: response.map(|response| &response.fields[..]),
            body: response.map(|response| &response.body[..]),
            trailers: response.map(|response| &response.trailers[..]),
        }
    }

    pub(super) fn statement(&self) -> &'static str {
        if self.append.end.is_some() { END } else { APPEND }
    }

    pub(super) fn params(&self) -> Vec<Param<'_>> {
        let params: [&(dyn ToSql + Sync); 12] = [
            &self.id,
            &self.epoch,
            &self.sequence,
            &self.entries,
            &self.growth,
            &self.state,
            &self.owner,
            &self.finish,
            &self.status,
            &self.fields,
            &self.body,
            &self.trailers,
        ];
        let types = if self.append.end.is_some() { &END_TYPES[..] } else { &APPEND_TYPES[..] };
        params.into_iter().zip(types.iter().cloned()).collect()
    }
}

/// The parameters of a token, which live as long as its statement.
pub(super) struct Owned {
    id: Vec<u8>,
    first: i64,
    second: i64,
}

impl Owned {
    pub(super) fn released(release: &Release) -> Owned {
        let Token { holder, number } = release.token;
        Owned { id: release.id.0.to_vec(), first: signed(holder), second: signed(number) }
    }

    pub(super) fn taken(seen: Seen, own: Holder) -> Owned {
        Owned { id: seen.id.0.to_vec(), first: signed(seen.epoch), second: signed(own) }
    }

    pub(super) fn params(&self) -> Vec<Param<'_>> {
        vec![(&self.id, Type::BYTEA), (&self.first, Type::INT8), (&self.second, Type::INT8)]
    }
}

/// Reads a saga. One of a state that this Ringway does not know is stuck: a person sees it, and no proxy goes on with
/// it.
pub(super) fn row(row: &Row) -> Result<SagaRow, Error> {
    let bytes: &[u8] = row.try_get(7)?;
    let mut seed = [0; 16];
    let length = bytes.len().min(16);
    seed[..length].copy_from_slice(&bytes[..length]);
    let has_record = row.try_get::<_, Option<&str>>(16)?.is_some();
    Ok(SagaRow {
        id: id(row, 0)?,
        token: Token { holder: number(row, 1)?, number: number(row, 2)? },
        owner: number(row, 3)?,
        epoch: number(row, 4)?,
        sequence: number(row, 5)?,
        standing: Standing::of(row.try_get(6)?).unwrap_or(Standing::Stuck),
        seed,
        definition: row.try_get(8)?,
        inputs: row.try_get(9)?,
        log: row.try_get(10)?,
        lease: Duration::from_millis(number(row, 11)?),
        ttl: Duration::from_millis(number(row, 12)?),
        created: number(row, 13)?,
        touched: number(row, 14)?,
        now: number(row, 15)?,
        subject: has_record.then(|| subject(row, 16)).transpose()?,
    })
}

/// Adds a saga of another store that has ended, beside its record, where there is none.
pub(super) async fn add(client: &Client, row: &SagaRow) -> Result<(), Error> {
    const ADD: &str = "INSERT INTO ringway_sagas (id, holder, number, owner, epoch, sequence, state, seed, definition,
                                                  inputs, log, lease, ttl, created, touched, expires)
         SELECT r.id, r.holder, r.number, 0, $4, $5, $6, $7, $8, $9, $10, $11, $12, to_timestamp($13::int8 / 1000.0),
                to_timestamp($14::int8 / 1000.0), r.expires
         FROM ringway_records r WHERE r.id = $1 AND r.holder = $2 AND r.number = $3
         ON CONFLICT (id) DO NOTHING";
    let (id, seed) = (&row.id.0[..], &row.seed[..]);
    let (holder, number) = (signed(row.token.holder), signed(row.token.number));
    let (epoch, sequence, state) = (signed(row.epoch), signed(row.sequence), row.standing.code());
    let (lease, ttl) = (signed(millis(row.lease)), signed(millis(row.ttl)));
    let (created, touched) = (signed(row.created), signed(row.touched));
    let params: [Param<'_>; 14] = [
        (&id, Type::BYTEA),
        (&holder, Type::INT8),
        (&number, Type::INT8),
        (&epoch, Type::INT8),
        (&sequence, Type::INT8),
        (&state, Type::INT2),
        (&seed, Type::BYTEA),
        (&row.definition, Type::TEXT),
        (&row.inputs, Type::TEXT),
        (&row.log, Type::TEXT),
        (&lease, Type::INT8),
        (&ttl, Type::INT8),
        (&created, Type::INT8),
        (&touched, Type::INT8),
    ];
    client.query_typed(ADD, &params).await.map(drop)
}
