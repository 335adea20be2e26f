//! The leader of the fleet, shared health, and the states of nodes for the fleet, as the admin API shows them.

use super::node_state;
use crate::config::NodeState;
use serde::{Deserialize, Serialize};

/// The leader, shared health and states of nodes, as this process knows them by etcd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LeaderStatus {
    /// etcd answers, and its changes arrive.
    pub(crate) up: bool,
    /// The last error of etcd; absent while `up`.
    pub(crate) error: Option<String>,
    /// The endpoint that was used last.
    pub(crate) endpoint: String,
    /// This process is the leader.
    pub(crate) leads: bool,
    /// The revision of etcd at which the leader was elected; 0 without a leader.
    pub(crate) term: u64,
    /// The process of the leader, and its name; absent without one.
    pub(crate) process: Option<String>,
    pub(crate) name: Option<String>,
    /// The pools with shared health.
    pub(crate) pools: Vec<SharedHealthStatus>,
    /// The states of nodes for the fleet.
    pub(crate) states: Vec<FleetStateStatus>,
    pub(crate) members: Vec<AppliedStatus>,
}

/// A pool with shared health.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SharedHealthStatus {
    pub(crate) pool: String,
    /// The process whose checks count here: `self` as the leader, `leader`, or `local` where each checks for itself.
    pub(crate) prober: String,
    /// The reason for `local`.
    pub(crate) reason: Option<String>,
    /// The time since the last sign of life of the leader's checks, in seconds.
    pub(crate) age_seconds: Option<f64>,
}

/// A state of a node for the fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FleetStateStatus {
    pub(crate) pool: String,
    pub(crate) node: String,
    #[serde(with = "node_state")]
    pub(crate) state: NodeState,
    /// The state in the file that it overrides; it holds while that one stands.
    #[serde(with = "node_state")]
    pub(crate) file: NodeState,
    /// The person and the address that it came from.
    pub(crate) by: String,
    /// When it was set, in seconds since 1970.
    pub(crate) at: u64,
    pub(crate) revision: u64,
    /// The members that have not applied it.
    pub(crate) missing: Vec<String>,
    /// For a drain: the members where requests or sessions are left.
    pub(crate) draining: Vec<String>,
}

/// A member of the fleet, as etcd has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AppliedStatus {
    pub(crate) process: String,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) version: String,
    /// `self`, `live`, or `missed` where its lease is over.
    pub(crate) state: String,
    /// The revision up to which it has applied the states of nodes.
    pub(crate) applied: u64,
}

/// The members that have applied a state for the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppliedBy {
    pub(crate) revision: u64,
    /// The number of members that have, this process among them.
    pub(crate) members: usize,
    /// The number of members, with those that vanished without leaving.
    pub(crate) of: usize,
    /// The names and identities of those that have not.
    pub(crate) missing: Vec<String>,
    pub(crate) complete: bool,
}
