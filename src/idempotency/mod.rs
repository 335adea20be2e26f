//! At most once: a request with an `Idempotency-Key` runs one time, and its repetitions get the same
//! answer.
//!
//! `key`, `identity`, `fingerprint` and `record` are pure: the sameness of two requests, and the transitions of a
//! record. `store` is the promise of every store, and `stores` opens one: `memory`, `sqlite`, and behind the adapter
//! `remote` `postgres` and `redis`. `open_claims` lists the claims of this process, `records` joins them and the store,
//! `claim` is one of them, and `run` takes a request through all this. The node is an [`Origin`] that is handed in.
//! `saga` is what a store keeps of a saga, and `open_saga` one that this process works on.
//! `copy` moves the records of one store to another.

mod canonical;
mod claim;
mod clock;
mod copy;
mod ended;
mod fingerprint;
mod identity;
mod key;
mod memory;
mod open_claims;
mod open_saga;
mod open_sagas;
#[cfg(feature = "postgres")]
mod postgres;
mod record;
mod records;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod remote;
mod request;
mod response;
mod run;
mod saga;
mod sqlite;
mod store;
mod store_identity;
mod stores;
mod unknowns;

pub(crate) use claim::{Claim, Settled};
pub(crate) use copy::copy;
pub(crate) use fingerprint::{Fingerprint, Fingerprinting};
pub(crate) use identity::{Id, Scope, Subject};
pub(crate) use key::key_of;
pub(crate) use open_saga::{LostSaga, OpenSaga, TakenSaga};
pub(crate) use records::Records;
#[cfg(feature = "redis")]
pub(crate) use redis::Settings as RedisSettings;
pub(crate) use request::{KeyedRequest, Policy};
pub(crate) use response::StoredResponse;
pub(crate) use run::{Origin, Outcome, Pieces, Refused, Sent, Started, repeat, run, start};
pub(crate) use saga::{NewSaga, SagaRow};
pub(crate) use store::{Authorised, Listed, StoreError};
pub(crate) use stores::{Kind, OpenError, adopt, inspect, schema};

/// The line in the log for every record that becomes UNKNOWN.
fn warn_unknown(id: Id, subject: &Subject, why: &str) {
    let Subject { namespace, method, authority, path, key } = subject;
    tracing::warn!(%id, namespace, method, authority, path, key, "the outcome of a request is unknown: {why}");
}

#[cfg(test)]
mod tests;
