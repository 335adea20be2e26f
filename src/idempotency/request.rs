//! A request with a key, and the rules of its route.

use super::fingerprint::Fingerprint;
use super::identity::{Id, Subject};
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;

/// A request with an idempotency key: its identity and its fingerprint.
#[derive(Clone, Debug)]
pub(crate) struct KeyedRequest {
    pub(crate) id: Id,
    pub(crate) subject: Arc<Subject>,
    pub(crate) fingerprint: Fingerprint,
}

/// A route's rules.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) ttl: Duration,
    pub(crate) lease: Duration,
    /// The time that a repetition waits for the run; `None` refuses it at once.
    pub(crate) wait: Option<Duration>,
    /// A request whose outcome is unknown may run again.
    pub(crate) retries_unknown: bool,
    /// Requests run unprotected where the store fails.
    pub(crate) forwards_without_store: bool,
    /// The statuses by which a node declares that it has done nothing.
    pub(crate) release_on: Vec<StatusCode>,
    /// The largest body that is stored.
    pub(crate) max_response: u64,
}
