//! The keys of the fleet in etcd, and their values as JSON.

use crate::config::NodeState;
use crate::control::node_state;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// The names of the keys, all below the prefix of the fleet.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) prefix: String,
}

impl Keys {
    pub(super) const TABLE: &str = "health/";
    pub(super) const STATE: &str = "state/";
    pub(super) const MEMBER: &str = "member/";
    pub(super) const LIVE: &str = "live/";
    pub(super) const LEADER: &str = "leader";
    pub(super) const BEAT: &str = "beat";

    /// The key of the leader.
    pub(super) fn leader(&self) -> String {
        format!("{}{}", self.prefix, Self::LEADER)
    }

    /// The key of the leader's beats, which change with every publication.
    pub(super) fn beat(&self) -> String {
        format!("{}{}", self.prefix, Self::BEAT)
    }

    /// The key of the verdicts on a pool's nodes.
    pub(super) fn table(&self, pool: &str) -> String {
        format!("{}{}{pool}", self.prefix, Self::TABLE)
    }

    /// The key of a node's state for the fleet.
    pub(super) fn state(&self, pool: &str, node: &str) -> String {
        let [pool, node] = [pool, node].map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC).to_string());
        format!("{}{}{pool}/{node}", self.prefix, Self::STATE)
    }

    /// The key of a member, without a lease while it is alive.
    pub(super) fn member(&self, process: &str) -> String {
        format!("{}{}{process}", self.prefix, Self::MEMBER)
    }

    /// The key of a member's sign of life, with its lease.
    pub(super) fn live(&self, process: &str) -> String {
        format!("{}{}{process}", self.prefix, Self::LIVE)
    }
}

/// The process that leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaderValue {
    pub(super) process: String,
    pub(super) name: String,
}

/// A member of the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct MemberValue {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) version: String,
    /// The revision up to which it has applied the states of nodes.
    pub(super) applied: u64,
    /// The pools and nodes that drain for the fleet, and have no request and no session left here.
    pub(super) drained: Vec<(String, String)>,
}

/// A sign of life of the leader's probes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Beat {
    pub(super) term: u64,
    /// Counts in each term.
    pub(super) number: u64,
    /// The pools that the leader checks.
    pub(super) pools: Vec<String>,
}

/// The verdicts on the nodes of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Table {
    pub(super) term: u64,
    pub(super) nodes: Vec<NodeVerdict>,
}

/// The verdict of health checks on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeVerdict {
    /// The id and the address of the node, as the file has them.
    pub(crate) node: String,
    pub(crate) healthy: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

/// A state of a node for the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateOrder {
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
    /// Distinguishes it from other orders with the same content.
    #[serde(default)]
    pub(crate) number: u64,
    /// The revision of etcd at which it was set.
    #[serde(default)]
    pub(crate) revision: u64,
}
