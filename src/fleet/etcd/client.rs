//! Calls of etcd, which fail over from endpoint to endpoint.
//!
//! A call whose reply is lost is sent again to the next endpoint. Every call of the fleet may be carried out twice:
//! transactions compare revisions, so that a late copy changes nothing.

use super::connection::Connection;
use super::error::{EtcdError, NOT_FOUND, refusal};
use super::settings::EtcdSettings;
use super::version::of_version;
use super::wire::{self, Header, KeyValue, Lease, Login, Range, Status, Streamed, Token, TxnReply};
use crate::clock::BootTime;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use std::time::Duration;
use tokio::sync::watch;

/// The largest reply, in bytes.
const MAX_REPLY: usize = 16 << 20;
/// The longest wait for one endpoint.
const PATIENCE: Duration = Duration::from_secs(2);

/// A transaction: it changes all of its keys where all comparisons hold, and reads keys where one does not.
#[derive(Clone, Debug, Default)]
pub(in crate::fleet) struct Txn {
    compare: Vec<Json>,
    success: Vec<Json>,
    failure: Vec<Json>,
}

/// The result of a transaction.
#[derive(Debug)]
pub(in crate::fleet) struct Done {
    pub(in crate::fleet) header: Header,
    pub(in crate::fleet) succeeded: bool,
    /// The keys that were read because a comparison failed.
    pub(in crate::fleet) found: Vec<KeyValue>,
}

impl Txn {
    /// Demands that a key was created at a revision; 0 demands that there is no such key.
    pub(in crate::fleet) fn created_at(mut self, key: &str, revision: u64) -> Txn {
        let (key, revision) = (wire::encode(key), revision.to_string());
        self.compare.push(json!({ "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": revision }));
        self
    }

    /// Demands that there is such a key.
    pub(in crate::fleet) fn exists(mut self, key: &str) -> Txn {
        let key = wire::encode(key);
        self.compare.push(json!({ "key": key, "target": "CREATE", "result": "GREATER", "create_revision": "0" }));
        self
    }

    /// Demands that a key was changed last at a revision; 0 demands that there is no such key.
    pub(in crate::fleet) fn changed_at(mut self, key: &str, revision: u64) -> Txn {
        let (key, revision) = (wire::encode(key), revision.to_string());
        self.compare.push(json!({ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision }));
        self
    }

    /// Sets a key; with a lease of 0 it has none.
    pub(in crate::fleet) fn put(mut self, key: &str, value: &[u8], lease: u64) -> Txn {
        let put = json!({ "key": wire::encode(key), "value": wire::encode(value), "lease": lease.to_string() });
        self.success.push(json!({ "request_put": put }));
        self
    }

    pub(in crate::fleet) fn delete(mut self, key: &str) -> Txn {
        self.success.push(json!({ "request_delete_range": { "key": wire::encode(key) } }));
        self
    }

    /// Reads a key where a comparison fails.
    pub(in crate::fleet) fn or_read(mut self, key: &str) -> Txn {
        self.failure.push(json!({ "request_range": { "key": wire::encode(key) } }));
        self
    }
}

/// A client: one call at a time, on a connection of its own.
pub(in crate::fleet) struct Client {
    settings: watch::Receiver<EtcdSettings>,
    /// The endpoint in use, by its place in the list.
    at: usize,
    connection: Option<Connection>,
    token: Option<String>,
    /// The longest wait for one endpoint.
    patience: Duration,
}

impl Client {
    /// Returns a client that connects at its first call. Clients begin at different endpoints.
    pub(in crate::fleet) fn new(settings: watch::Receiver<EtcdSettings>) -> Client {
        let at = fastrand::usize(..settings.borrow().endpoints.len().max(1));
        Client { settings, at, connection: None, token: None, patience: PATIENCE }
    }

    /// Returns a client that waits for an endpoint no longer than so long.
    pub(in crate::fleet) fn within(self, patience: Duration) -> Client {
        Client { patience: patience.min(PATIENCE), ..self }
    }

    /// Returns the URL of the endpoint in use.
    pub(in crate::fleet) fn endpoint(&self) -> String {
        let settings = self.settings.borrow();
        settings.endpoints.get(self.at % settings.endpoints.len().max(1)).map_or(String::new(), |it| it.url.clone())
    }

    /// Returns the keys with a prefix, as of the header's revision.
    pub(in crate::fleet) async fn range(&mut self, prefix: &str) -> Result<(Header, Vec<KeyValue>), EtcdError> {
        let body = json!({ "key": wire::encode(prefix), "range_end": wire::encode(wire::end_of(prefix)) });
        let (found, _) = self.call::<Range>("/v3/kv/range", &body).await?;
        Ok((found.header, found.kvs))
    }

    /// Returns a key, as of the header's revision; nothing where there is none.
    pub(in crate::fleet) async fn get(&mut self, key: &str) -> Result<(Header, Option<KeyValue>), EtcdError> {
        let (found, _) = self.call::<Range>("/v3/kv/range", &json!({ "key": wire::encode(key) })).await?;
        Ok((found.header, found.kvs.into_iter().next()))
    }

    /// Carries out a transaction.
    pub(in crate::fleet) async fn txn(&mut self, txn: &Txn) -> Result<Done, EtcdError> {
        let body = json!({ "compare": txn.compare, "success": txn.success, "failure": txn.failure });
        let (reply, _) = self.call::<TxnReply>("/v3/kv/txn", &body).await?;
        let found = if reply.succeeded { Vec::new() } else { reply.responses };
        let found = found.into_iter().filter_map(|it| it.response_range).flat_map(|range| range.kvs).collect();
        Ok(Done { header: reply.header, succeeded: reply.succeeded, found })
    }

    /// Grants a lease. Returns its id, its time to live in seconds, and the time at which the call was sent.
    pub(in crate::fleet) async fn grant(&mut self, ttl: u64) -> Result<(u64, u64, BootTime), EtcdError> {
        let (lease, sent) = self.call::<Lease>("/v3/lease/grant", &json!({ "TTL": ttl.to_string() })).await?;
        Ok((lease.id, lease.ttl, sent))
    }

    /// Keeps a lease alive. Returns its time to live in seconds, 0 where the lease is over, and the time at which the
    /// acknowledged call was sent.
    pub(in crate::fleet) async fn keep_alive(&mut self, lease: u64) -> Result<(u64, BootTime), EtcdError> {
        let body = json!({ "ID": lease.to_string() });
        match self.call::<Streamed<Lease>>("/v3/lease/keepalive", &body).await {
            Ok((Streamed { result: Some(lease), .. }, sent)) => Ok((lease.ttl, sent)),
            Ok((Streamed { error, .. }, _)) => Err(EtcdError::Malformed(error.unwrap_or_default().to_string())),
            Err(EtcdError::Refused { code: NOT_FOUND, .. }) => Ok((0, BootTime::now())),
            Err(error) => Err(error),
        }
    }

    /// Ends a lease, and with it its keys.
    pub(in crate::fleet) async fn revoke(&mut self, lease: u64) -> Result<(), EtcdError> {
        let body = json!({ "ID": lease.to_string() });
        match self.call::<Json>("/v3/lease/revoke", &body).await {
            // A copy that was sent before has ended it.
            Err(EtcdError::Refused { code: NOT_FOUND, .. }) => Ok(()),
            done => done.map(|_| ()),
        }
    }

    /// Returns the state of the member in use.
    pub(super) async fn status(&mut self) -> Result<Status, EtcdError> {
        Ok(self.call::<Status>("/v3/maintenance/status", &json!({})).await?.0)
    }

    /// Returns a warning where the member in use has a version with known faults.
    pub(in crate::fleet) async fn version_warning(&mut self) -> Result<Option<String>, EtcdError> {
        Ok(of_version(&self.status().await?.version))
    }

    /// Makes a call at the endpoint in use, and at the others where it fails. Returns the reply, and the time at which
    /// the call was sent that got it.
    pub(super) async fn call<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &Json,
    ) -> Result<(T, BootTime), EtcdError> {
        let body = Bytes::from(body.to_string());
        let mut last = EtcdError::Unreachable("no endpoint".to_owned());
        for _ in 0..self.endpoints() {
            match self.call_here(path, &body).await {
                Err(error) if error.is_passing() => {
                    last = error;
                    self.next_endpoint();
                }
                done => return done,
            }
        }
        Err(last)
    }

    fn endpoints(&self) -> usize {
        self.settings.borrow().endpoints.len()
    }

    /// Goes over to the next endpoint.
    pub(in crate::fleet) fn next_endpoint(&mut self) {
        self.connection = None;
        self.at = self.at.wrapping_add(1);
    }

    /// Makes a call at the endpoint in use; again, with a new token, where the old one has expired.
    async fn call_here<T: DeserializeOwned>(&mut self, path: &str, body: &Bytes) -> Result<(T, BootTime), EtcdError> {
        match self.attempt(path, body).await {
            Err(error) if error.is_about_the_token() && self.has_user() => {
                self.token = None;
                self.attempt(path, body).await
            }
            done => done,
        }
    }

    async fn attempt<T: DeserializeOwned>(&mut self, path: &str, body: &Bytes) -> Result<(T, BootTime), EtcdError> {
        let patience = self.patience;
        let whole = async {
            let (response, sent) = self.begin(path, body).await?;
            let status = response.status();
            let bytes = whole_body(response.into_body()).await?;
            if status != StatusCode::OK {
                return Err(refusal(status, &bytes));
            }
            let read = serde_json::from_slice(&bytes).map_err(|error| EtcdError::Malformed(error.to_string()))?;
            Ok((read, sent))
        };
        match tokio::time::timeout(patience, whole).await {
            Ok(Err(EtcdError::Unreachable(cause))) => {
                self.connection = None;
                Err(EtcdError::Unreachable(cause))
            }
            Ok(done) => done,
            Err(_) => {
                // A reply that comes later belongs to no call.
                self.connection = None;
                Err(EtcdError::Unreachable(format!("{} has not answered for {patience:?}", self.endpoint())))
            }
        }
    }

    /// Sends a call with a token, on a connection that works. Returns its response, whose body is still to come, and
    /// the time at which it was sent.
    pub(super) async fn begin(
        &mut self,
        path: &str,
        body: &Bytes,
    ) -> Result<(http::Response<Incoming>, BootTime), EtcdError> {
        if self.settings.has_changed().unwrap_or(false) {
            self.settings.mark_unchanged();
            (self.connection, self.token) = (None, None);
        }
        if !self.connection.as_ref().is_some_and(Connection::is_usable) {
            let (endpoint, login) = {
                let settings = self.settings.borrow();
                let endpoint = settings.endpoints.get(self.at % settings.endpoints.len().max(1)).cloned();
                (endpoint, settings.login.clone())
            };
            let endpoint = endpoint.ok_or_else(|| EtcdError::Unreachable("no endpoint".to_owned()))?;
            self.connection = Some(Connection::open(&endpoint, &login).await?);
        }
        if self.token.is_none() && self.has_user() {
            self.token = Some(self.authenticate().await?);
        }
        let connection = self.connection.as_mut().ok_or_else(|| EtcdError::Unreachable("no connection".to_owned()))?;
        let sent = BootTime::now();
        let response = connection.send(path, body.clone(), self.token.as_deref()).await?;
        Ok((response, sent))
    }

    fn has_user(&self) -> bool {
        self.settings.borrow().login.user.is_some()
    }

    /// Returns a token of the user, who has one to log in by.
    async fn authenticate(&mut self) -> Result<String, EtcdError> {
        let user = self.settings.borrow().login.user.clone();
        let (name, password) = user.unwrap_or_default();
        let body = serde_json::to_vec(&Login { name: &name, password: &password }).unwrap_or_default();
        let connection = self.connection.as_mut().ok_or_else(|| EtcdError::Unreachable("no connection".to_owned()))?;
        let response = connection.send("/v3/auth/authenticate", body.into(), None).await?;
        let status = response.status();
        let bytes = whole_body(response.into_body()).await?;
        match status {
            StatusCode::OK => {
                let token: Token =
                    serde_json::from_slice(&bytes).map_err(|error| EtcdError::Malformed(error.to_string()))?;
                Ok(token.token)
            }
            _ => Err(refusal(status, &bytes)),
        }
    }

    /// Takes the connection out, for a stream.
    pub(super) fn take_connection(&mut self) -> Option<Connection> {
        self.connection.take()
    }
}

async fn whole_body(body: Incoming) -> Result<Bytes, EtcdError> {
    let whole = Limited::new(body, MAX_REPLY).collect().await;
    whole.map(http_body_util::Collected::to_bytes).map_err(|error| EtcdError::Unreachable(error.to_string()))
}
