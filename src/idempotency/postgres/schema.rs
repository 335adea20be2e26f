//! The tables in PostgreSQL, and their versions.

/// The version of the tables that this Ringway reads and writes.
pub(super) const VERSION: i32 = 2;

/// The tables. `state`: 0 running, 1 done, 2 done without a body, 3 unknown, 4 tombstone, 5 under a saga. `holder` and
/// `number` are the token of the claim. `expires` of a running record is `created` and its time to live. An identity
/// begins with a hash of its key, so that the records of a key stand together.
pub(crate) const DDL: &str = "\
CREATE TABLE IF NOT EXISTS ringway_store (
    version integer NOT NULL,
    identity text NOT NULL
);
CREATE TABLE IF NOT EXISTS ringway_records (
    id bytea PRIMARY KEY,
    state smallint NOT NULL,
    holder bigint NOT NULL,
    number bigint NOT NULL,
    lease bigint NOT NULL,
    created timestamptz NOT NULL,
    touched timestamptz NOT NULL,
    expires timestamptz NOT NULL,
    fingerprint bytea NOT NULL,
    namespace text NOT NULL,
    method text NOT NULL,
    authority text NOT NULL,
    path text NOT NULL,
    key text NOT NULL,
    dead_holder bigint,
    dead_number bigint,
    status integer,
    fields bytea,
    body bytea,
    trailers bytea
);
CREATE INDEX IF NOT EXISTS ringway_records_by_expiry ON ringway_records (expires) WHERE state <> 0;
CREATE INDEX IF NOT EXISTS ringway_records_by_holder ON ringway_records (holder) WHERE state = 0;
CREATE TABLE IF NOT EXISTS ringway_holders (
    holder bigint PRIMARY KEY,
    beat timestamptz NOT NULL,
    name text NOT NULL
);
";

/// The sagas. `holder` and `number` are the token of the claim, `owner` the process that works on it, or 0; `state` as
/// [`Standing`](crate::saga::log::Standing) has it: 0 running, 1 compensating, 2 succeeded, 3 compensated, 4 stuck.
pub(crate) const SAGAS: &str = "\
CREATE TABLE IF NOT EXISTS ringway_sagas (
    id bytea PRIMARY KEY,
    holder bigint NOT NULL,
    number bigint NOT NULL,
    owner bigint NOT NULL,
    epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    state smallint NOT NULL,
    seed bytea NOT NULL,
    definition text NOT NULL,
    inputs text NOT NULL,
    log text NOT NULL,
    lease bigint NOT NULL,
    ttl bigint NOT NULL,
    created timestamptz NOT NULL,
    touched timestamptz NOT NULL,
    expires timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS ringway_sagas_by_state ON ringway_sagas (state, created);
CREATE INDEX IF NOT EXISTS ringway_sagas_by_owner ON ringway_sagas (owner) WHERE state < 2;
CREATE INDEX IF NOT EXISTS ringway_sagas_by_expiry ON ringway_sagas (expires) WHERE state IN (2, 3);
";

/// Takes the tables from version 1 to version 2. Proxies of the version before go on with the connections that they
/// have, and know nothing of sagas.
pub(crate) const MIGRATE: &str = "UPDATE ringway_store SET version = 2 WHERE version = 1;\n";

/// Makes the tables usable: the version and the identity of the store, once. The identity is made by the server.
pub(crate) const NAME: &str = "\
INSERT INTO ringway_store (version, identity)
    SELECT 2, gen_random_uuid()::text WHERE NOT EXISTS (SELECT FROM ringway_store);
";

/// Returns the statements that a database administrator runs where the proxy's role may not create tables.
pub(crate) fn script() -> String {
    format!(
        "-- The tables of Ringway's idempotency store, version {VERSION}. Run them once, as a role that may create tables,\n\
         -- and again after an update of Ringway that asks for it:\n\
         --   ringway store schema | psql --single-transaction DATABASE\n\
         -- and grant the proxy's role SELECT, INSERT, UPDATE and DELETE on them, and SELECT on ringway_store.\n\
         {DDL}{SAGAS}{NAME}{MIGRATE}"
    )
}
