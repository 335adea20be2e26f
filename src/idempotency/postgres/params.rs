//! The parameters of the statements: column by column for many calls, or those of one.

use super::rows::{Param, kept, signed};
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::record::{Finish, Token};
use crate::idempotency::store::{Completion, NewClaim};
use tokio_postgres::types::Type;

/// The parameters of many claims, column by column.
#[derive(Default)]
pub(super) struct Claims<'a> {
    pub(super) ids: Vec<&'a [u8]>,
    holders: Vec<i64>,
    numbers: Vec<i64>,
    leases: Vec<i64>,
    ttls: Vec<i64>,
    fingerprints: Vec<&'a [u8]>,
    namespaces: Vec<&'a str>,
    methods: Vec<&'a str>,
    authorities: Vec<&'a str>,
    paths: Vec<&'a str>,
    keys: Vec<&'a str>,
}

impl<'a> Claims<'a> {
    pub(super) fn push(&mut self, claim: &'a NewClaim) {
        let Subject { namespace, method, authority, path, key } = &*claim.subject;
        self.ids.push(&claim.id.0);
        self.holders.push(signed(claim.token.holder));
        self.numbers.push(signed(claim.token.number));
        self.leases.push(lease(claim));
        self.ttls.push(kept(claim.ttl));
        self.fingerprints.push(&claim.fingerprint.0);
        self.namespaces.push(namespace);
        self.methods.push(method);
        self.authorities.push(authority);
        self.paths.push(path);
        self.keys.push(key);
    }

    pub(super) fn params(&'a self) -> Vec<Param<'a>> {
        vec![
            (&self.ids, Type::BYTEA_ARRAY),
            (&self.holders, Type::INT8_ARRAY),
            (&self.numbers, Type::INT8_ARRAY),
            (&self.leases, Type::INT8_ARRAY),
            (&self.ttls, Type::INT8_ARRAY),
            (&self.fingerprints, Type::BYTEA_ARRAY),
            (&self.namespaces, Type::TEXT_ARRAY),
            (&self.methods, Type::TEXT_ARRAY),
            (&self.authorities, Type::TEXT_ARRAY),
            (&self.paths, Type::TEXT_ARRAY),
            (&self.keys, Type::TEXT_ARRAY),
        ]
    }
}

/// The parameters of many completions.
#[derive(Default)]
pub(super) struct Completions<'a> {
    pub(super) ids: Vec<&'a [u8]>,
    holders: Vec<i64>,
    numbers: Vec<i64>,
    states: Vec<i16>,
    ttls: Vec<i64>,
    statuses: Vec<Option<i32>>,
    fields: Vec<Option<&'a [u8]>>,
    bodies: Vec<Option<&'a [u8]>>,
    trailers: Vec<Option<&'a [u8]>>,
}

impl<'a> Completions<'a> {
    pub(super) fn push(&mut self, completion: &'a Completion) {
        let Completion { id, token, finish, response, ttl } = completion;
        let response = response.as_ref().filter(|_| *finish == Finish::Done);
        self.ids.push(&id.0);
        self.holders.push(signed(token.holder));
        self.numbers.push(signed(token.number));
        self.states.push(finish.state().code());
        self.ttls.push(kept(*ttl));
        self.statuses.push(response.map(|response| response.status.into()));
        self.fields.push(response.map(|response| &response.fields[..]));
        self.bodies.push(response.map(|response| &response.body[..]));
        self.trailers.push(response.map(|response| &response.trailers[..]));
    }

    pub(super) fn params(&'a self) -> Vec<Param<'a>> {
        vec![
            (&self.ids, Type::BYTEA_ARRAY),
            (&self.holders, Type::INT8_ARRAY),
            (&self.numbers, Type::INT8_ARRAY),
            (&self.states, Type::INT2_ARRAY),
            (&self.ttls, Type::INT8_ARRAY),
            (&self.statuses, Type::INT4_ARRAY),
            (&self.fields, Type::BYTEA_ARRAY),
            (&self.bodies, Type::BYTEA_ARRAY),
            (&self.trailers, Type::BYTEA_ARRAY),
        ]
    }
}

/// The parameters of one claim or release, which live as long as its statement.
pub(super) struct One {
    pub(super) id: Vec<u8>,
    pub(super) holder: i64,
    pub(super) number: i64,
    pub(super) lease: i64,
    pub(super) ttl: i64,
    pub(super) fingerprint: Vec<u8>,
}

impl One {
    pub(super) fn claim(claim: &NewClaim) -> One {
        let fingerprint = claim.fingerprint.0.to_vec();
        One { lease: lease(claim), fingerprint, ..One::of(claim.id, claim.token, kept(claim.ttl)) }
    }

    pub(super) fn of(id: Id, token: Token, ttl: i64) -> One {
        let (holder, number) = (signed(token.holder), signed(token.number));
        One { id: id.0.to_vec(), holder, number, lease: 0, ttl, fingerprint: vec![0; 32] }
    }

    /// The identity and the token.
    pub(super) fn token(&self) -> Vec<Param<'_>> {
        vec![(&self.id, Type::BYTEA), (&self.holder, Type::INT8), (&self.number, Type::INT8)]
    }

    pub(super) fn tombstone(&self) -> Vec<Param<'_>> {
        let mut params = self.token();
        params.push((&self.fingerprint, Type::BYTEA));
        params
    }

    pub(super) fn times(&self) -> Vec<Param<'_>> {
        let mut params = self.token();
        params.push((&self.ttl, Type::INT8));
        params
    }
}

/// Returns a statement's parameters for the texts of a subject.
pub(super) fn texts(subject: &Subject) -> [Param<'_>; 5] {
    let Subject { namespace, method, authority, path, key } = subject;
    [namespace, method, authority, path, key].map(|text| (text as _, Type::TEXT))
}

pub(super) fn lease(claim: &NewClaim) -> i64 {
    i64::try_from(claim.lease.as_millis()).unwrap_or(i64::MAX)
}
