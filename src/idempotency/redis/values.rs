//! The replies of the scripts, read.

use crate::idempotency::copy::Archived;
use crate::idempotency::fingerprint::Fingerprint;
use crate::idempotency::identity::{Id, Subject};
use crate::idempotency::record::{Record, State, Token};
use crate::idempotency::response::StoredResponse;
use crate::idempotency::store::{Found, Listed};
use crate::io::redis::Value;
use bytes::Bytes;

pub(super) use crate::io::redis::{bytes, list, number, text};

/// A reply that no script gives.
#[derive(Debug)]
pub(super) struct Strange;

/// Returns a token as records have it.
pub(super) fn token_text(token: Token) -> String {
    holder_text(token.holder) + &format!("{:016x}", token.number)
}

pub(super) fn holder_text(holder: u64) -> String {
    format!("{holder:016x}")
}

fn token(value: &Value) -> Option<Token> {
    let text = std::str::from_utf8(bytes(value)?).ok()?;
    let half = |digits: Option<&str>| u64::from_str_radix(digits?, 16).ok();
    Some(Token { holder: half(text.get(..16))?, number: half(text.get(16..))? })
}

fn id(value: &Value) -> Option<Id> {
    bytes(value)?.try_into().ok().map(Id)
}

/// Reads the fields `s t f c e d`. A state of a newer version is unknown.
fn record(values: &[Value]) -> Option<Record> {
    let [state, claim, fingerprint, created, expires, dead, ..] = values else { return None };
    let code = number(state).and_then(|code| i16::try_from(code).ok());
    Some(Record {
        state: code.and_then(State::of).unwrap_or(State::Unknown),
        token: token(claim)?,
        fingerprint: Fingerprint(bytes(fingerprint)?.try_into().ok()?),
        created: number(created)?,
        expires: number(expires)?,
        dead: token(dead),
    })
}

/// Reads the fields `st fi bo tr`.
fn response(values: &[Value]) -> Option<StoredResponse> {
    let [status, fields, body, trailers, ..] = values else { return None };
    let part = |value| Bytes::copy_from_slice(bytes(value).unwrap_or_default());
    let status = number(status).and_then(|status| u16::try_from(status).ok())?;
    Some(StoredResponse { status, fields: part(fields), body: part(body), trailers: part(trailers) })
}

/// Reads the fields `n m a p k`.
pub(super) fn subject(values: &[Value]) -> Subject {
    let part = |at: usize| values.get(at).and_then(text).unwrap_or_default();
    Subject { namespace: part(0), method: part(1), authority: part(2), path: part(3), key: part(4) }
}

/// Reads the fields `s t f c e d st fi bo tr`; nothing where there is no record.
pub(super) fn found(value: &Value) -> Result<Option<Found>, Strange> {
    let values = list(value);
    if matches!(values.first(), None | Some(Value::Nil)) {
        return Ok(None);
    }
    let record = record(values).ok_or(Strange)?;
    let response = values.get(6..).and_then(response).filter(|_| record.state == State::Done);
    Ok(Some(Found { record, response }))
}

/// Reads the identity and the subject of a record that was buried.
pub(super) fn buried(value: &Value) -> Option<(Id, Subject)> {
    let [of, texts] = list(value) else { return None };
    Some((id(of)?, subject(list(texts))))
}

/// Reads an identity and a token.
pub(super) fn running(value: &Value) -> Option<(Id, Token)> {
    let [of, claim] = list(value) else { return None };
    Some((id(of)?, token(claim)?))
}

/// Reads the reply of the search for a key.
pub(super) fn listed(value: &Value) -> Result<Vec<Listed>, Strange> {
    let (time, records) = list(value).split_first().ok_or(Strange)?;
    let now = number(time).ok_or(Strange)?;
    let one = |value: &Value| {
        let (of, values) = (list(value).first()?, list(list(value).get(1)?));
        let status = number(values.get(6)?).and_then(|status| u16::try_from(status).ok());
        let (subject, record) = (subject(values.get(7..)?), record(values)?);
        let status = status.filter(|_| record.state == State::Done);
        let holder_name = list(value).get(2).and_then(text);
        Some(Listed { holder_name, ..Listed::at(now, id(of)?, subject, record, status) })
    };
    records.iter().map(|value| one(value).ok_or(Strange)).collect()
}

/// Reads a record of a page.
pub(super) fn archived(value: &Value) -> Option<Archived> {
    let (of, values) = (list(value).first()?, list(list(value).get(1)?));
    let found = found(list(value).get(1)?).ok()??;
    let lease = number(values.get(10)?)?.cast_signed();
    let subject = subject(values.get(11..)?);
    Some(Archived { id: id(of)?, subject, record: found.record, lease, response: found.response })
}
