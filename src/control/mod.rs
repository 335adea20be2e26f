//! The handle on a running proxy: the server implements it, the admin listener uses it.

mod events;
mod fleet;
mod leader;
pub(crate) mod node_state;
mod plan;
mod status;

use crate::config::NodeState;
use crate::telemetry::observers::Observers;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

pub(crate) use crate::telemetry::history::HistoryStatus;
pub(crate) use crate::telemetry::top::TopStatus;
#[cfg(test)]
pub(crate) use events::CAPACITY as RING;
pub(crate) use events::{Event, Events, NewEvents, RecordedEvent};
pub(crate) use fleet::{
    BusNodeStatus, BusStatus, FleetStatus, GroupStatus, HeardBy, MemberStatus, RingStatus, WriteStatus,
};
pub(crate) use leader::{AppliedBy, AppliedStatus, FleetStateStatus, LeaderStatus, SharedHealthStatus};
pub(crate) use plan::{
    CheckStatus, Finding, KeyOrder, Members, PlanKeys, PlanNode, PlanOrder, PlanStatus, PoolPlan, Side, changed,
};
pub(crate) use status::{
    CacheStatus, CertificateStatus, CommandResult, ConfigStatus, ConnectionsStatus, DiscoveryStatus, DrainStatus,
    EffectiveConfig, HealthCheckStatus, IdempotencyStatus, KeyOwners, ListenerStatus, NodeStatus, PoolStatus,
    QuorumStatus, RecordStatus, ReloadStatus, RingSlices, SagaFailure, SagaStatus, SagaStepStatus, Status,
};

/// The requests that a running proxy answers for the admin API.
pub(crate) trait Control: Send + Sync {
    /// Returns whether the proxy accepts new requests: it is not draining, and a node is available.
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
    /// Returns the nodes of a key in their order; `None` where the pool does not exist.
    fn owners(&self, pool: &str, key: RingKey<'_>) -> Option<KeyOwners>;
    /// Returns the owners of equal slices of a pool's ring; `None` where the pool does not exist.
    fn slices(&self, pool: &str, count: usize) -> Option<RingSlices>;
    /// Returns the places of a key on the rings of all pools.
    fn places(&self, key: &str) -> Vec<u64>;
    /// Sets the state of a node, until the file changes it. Returns whether the node exists; `None` where a new process
    /// is taking over, which must be addressed instead.
    fn set_node_state(&self, pool: &str, id: &str, state: NodeState) -> Option<bool>;
    /// Reloads the configuration; returns a summary, or the reason for which the old one stays.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>>;
    /// Removes stored responses from the cache, in force for every later request, on all proxies of the fleet. Returns
    /// their number here and the members that have heard of it, or the reason for which the order is invalid.
    fn purge(&self, order: PurgeOrder) -> Reply<'_, Purged>;
    /// Returns the fleet as this process sees it; `None` where none is configured.
    fn fleet(&self) -> Option<FleetStatus>;
    /// Returns what this process knows of a group of causal routes, by its text.
    fn group(&self, group: &str) -> GroupStatus;
    /// Removes a member that is gone for good from the fleet. Returns whether there is one; or why the text names none.
    fn forget_member<'a>(&'a self, process: &'a str) -> Reply<'a, Forgotten>;
    /// Sets the state of a node for the whole fleet; `by` is the person and the address that it comes from. Returns the
    /// members that have applied it, or why etcd cannot tell.
    fn set_fleet_state<'a>(&'a self, node: (&'a str, &'a str), state: NodeState, by: &'a str) -> Reply<'a, FleetState>;
    /// Returns the records of requests with an `Idempotency-Key`, or the reason for which the store cannot.
    fn idempotency<'a>(&'a self, key: &'a str) -> Reply<'a, Vec<RecordStatus>>;
    /// Returns the newest records of this process whose outcome is not known, or the reason for which the store cannot.
    fn unknown(&self) -> Reply<'_, Vec<RecordStatus>>;
    /// Releases a record that has ended, so that the next request with its key runs; `by` is the operator's address.
    fn release<'a>(&'a self, id: &'a str, by: SocketAddr) -> Reply<'a, Release>;
    /// Returns the sagas in a state, or all of them, the newest first; or why the store cannot tell.
    fn sagas<'a>(&'a self, state: Option<&'a str>) -> Reply<'a, Vec<SagaStatus>>;
    /// Carries out a person's decision on a saga that is stuck; `by` is who decides.
    fn decide<'a>(&'a self, id: &'a str, decision: SagaDecision, by: &'a str) -> Reply<'a, Decided>;
    /// Returns the readers of finished requests.
    fn observers(&self) -> Arc<Observers>;
    /// Returns the samples of the last fifteen minutes after a number.
    fn history(&self, after: u64) -> HistoryStatus;
    /// Returns what a change would move, or why the order makes no sense.
    fn plan(&self, order: PlanOrder) -> Reply<'_, PlanStatus>;
    /// Returns the errors and warnings of the configuration file as it is now.
    fn check(&self) -> Reply<'_, CheckStatus>;
    /// Returns the events of the process.
    fn events(&self) -> Arc<Events>;
    /// Begins to drain, as SIGTERM does.
    fn drain(&self);
}

/// A key of a ring, or the place where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RingKey<'a> {
    Text(&'a str),
    Place(u64),
}

/// The reply to a call that the process carries out in the background, or the error as text.
pub(crate) type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// The result of a state of a node for the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FleetState {
    /// It is set; these members have applied it.
    Set(AppliedBy),
    NoSuchNode,
    /// A new process is taking over, which must be addressed instead.
    BeingReplaced,
    /// No etcd is configured.
    NoEtcd,
}

/// The result of the removal of a member that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// This process or etcd knew it.
    Known,
    Unknown,
    /// It cannot be removed, for this reason.
    Refused(String),
}

/// The result of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Released,
    /// A proxy still works on it.
    Running,
    /// There is no such record.
    Absent,
}

/// A person's decision on a saga that is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SagaDecision {
    /// The saga goes on where it was.
    Retry,
    /// The open step is seen to: all steps are done.
    ResolveSucceeded,
    /// The open step is seen to: it is not done, or all that was to be undone is undone.
    ResolveCompensated,
}

impl SagaDecision {
    /// Returns the words for it in logs and events.
    pub(crate) fn words(self) -> &'static str {
        match self {
            SagaDecision::Retry => "retry",
            SagaDecision::ResolveSucceeded => "resolve as succeeded",
            SagaDecision::ResolveCompensated => "resolve as compensated",
        }
    }
}

/// The result of a person's decision on a saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    /// The saga goes on as decided.
    Accepted,
    /// The saga is not stuck, or the decision does not fit it.
    Unfit,
    /// This proxy has no pool of this name, which the saga uses.
    LacksPool(String),
    /// There is no such saga.
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

/// The stored responses to purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PurgeTarget {
    Url(String),
    Prefix(String),
    Tag(String),
    All,
}

/// The result of a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purged {
    /// The number of responses that this process had stored.
    pub(crate) responses: u64,
    /// The members that have applied it; `None` without a bus.
    pub(crate) heard_by: Option<HeardBy>,
    /// Too few nodes have the stamps of it: other proxies may serve strong reads from before it. `None` where no route is
    /// verified by a quorum.
    pub(crate) unmarked: Option<bool>,
}

/// The clients that may use the admin listener.
pub(crate) struct Access {
    pub(crate) token: Option<String>,
    /// Host names beside addresses and `localhost`.
    pub(crate) allowed_hosts: Vec<String>,
}
