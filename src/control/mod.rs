//! The one handle on a running proxy: the server implements it, the admin listener holds it.

mod events;
mod status;

use crate::config::NodeState;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

#[cfg(test)]
pub(crate) use events::CAPACITY as RING;
pub(crate) use events::{Event, Events, NewEvents, RecordedEvent};
pub(crate) use status::{
    CacheStatus, CommandResult, ConfigStatus, ConnectionsStatus, DiscoveryStatus, DrainStatus, EffectiveConfig,
    HealthCheckStatus, IdempotencyStatus, KeyOwners, ListenerStatus, NodeStatus, PoolStatus, RecordStatus,
    ReloadStatus, Status,
};

/// The requests that a running proxy answers for the admin API.
pub(crate) trait Control: Send + Sync {
    /// Returns whether new requests are welcome: not draining, and there is a node that takes them.
    fn is_ready(&self) -> bool;
    /// The clients that may use the admin listener.
    fn access(&self) -> Access;
    /// Returns the metrics page in the Prometheus text format.
    fn metrics(&self) -> Vec<u8>;
    /// Returns version, uptime, listeners and the result of the last reload.
    fn status(&self) -> Status;
    /// Returns the configuration in force, defaults filled in.
    fn config(&self) -> EffectiveConfig;
    /// Returns every pool with its nodes, their states, shares of the keys and load.
    fn pools(&self) -> Vec<PoolStatus>;
    /// Returns the nodes of a key in their order; `None` where there is no such pool.
    fn owners(&self, pool: &str, key: &str) -> Option<KeyOwners>;
    /// Says whether a node takes requests, until the file says something new about it. Gives
    /// whether there is such a node; `None` where it is to be said to the process that takes over.
    fn set_node_state(&self, pool: &str, id: &str, state: NodeState) -> Option<bool>;
    /// Reads the configuration anew; gives what to say of it, or why the old one serves on.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>>;
    /// Removes stored responses from the cache: in force for every request that comes later. Returns how many it has
    /// struck, or why the order makes no sense.
    fn purge(&self, order: PurgeOrder) -> Reply<'_, u64>;
    /// Returns the records of requests with an `Idempotency-Key`; or why the store cannot tell.
    fn idempotency<'a>(&'a self, key: &'a str) -> Reply<'a, Vec<RecordStatus>>;
    /// Releases a record that has ended, so that the next request with its key runs; `by` is who says so.
    fn release<'a>(&'a self, id: &'a str, by: SocketAddr) -> Reply<'a, Release>;
    /// Returns the events of the process.
    fn events(&self) -> Arc<Events>;
    /// Begins to drain, as SIGTERM does.
    fn drain(&self);
}

/// The reply to a call that the process carries out in the background, or the error as text.
pub(crate) type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// The result of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Released,
    /// A proxy still works on it.
    Running,
    /// There is no such record.
    Absent,
}

/// The responses that a purge removes from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PurgeOrder {
    pub(crate) what: PurgeTarget,
    /// Stale, instead of gone.
    pub(crate) soft: bool,
}

impl fmt::Display for PurgeOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            PurgeTarget::Url(url) => write!(f, "the URL `{url}`")?,
            PurgeTarget::Prefix(prefix) => write!(f, "the prefix `{prefix}`")?,
            PurgeTarget::Tag(tag) => write!(f, "the tag `{tag}`")?,
            PurgeTarget::All => f.write_str("everything")?,
        }
        f.write_str(if self.soft { ", soft" } else { "" })
    }
}

/// Which responses are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PurgeTarget {
    Url(String),
    Prefix(String),
    Tag(String),
    All,
}

/// The clients that may use the admin listener.
pub(crate) struct Access {
    pub(crate) token: Option<String>,
    /// Host names beside addresses and `localhost`.
    pub(crate) allowed_hosts: Vec<String>,
}
