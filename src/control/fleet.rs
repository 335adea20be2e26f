//! The state of the fleet, as the admin API shows it.

use super::leader::LeaderStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The members that have applied a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeardBy {
    /// The number of members that have, this process among them.
    pub(crate) members: usize,
    /// The number of members, with those that vanished without leaving.
    pub(crate) of: usize,
    /// The names and identities of those that have not.
    pub(crate) missing: Vec<String>,
    /// All members have it, and the bus works: no member is unknown.
    pub(crate) complete: bool,
    /// As many nodes of the bus as `write` demands have it.
    pub(crate) published: bool,
}

/// The fleet, as this process sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FleetStatus {
    pub(crate) id: String,
    /// The identity of this process.
    pub(crate) process: String,
    /// The bus; absent where none is configured.
    pub(crate) bus: Option<BusStatus>,
    /// The leader, shared health and states by etcd; absent where none is configured.
    pub(crate) leader: Option<LeaderStatus>,
    pub(crate) members: Vec<MemberStatus>,
    /// The pools, and whether all members send a key to the same node.
    pub(crate) rings: Vec<RingStatus>,
    /// Warnings for operators, in sentences.
    pub(crate) warnings: Vec<String>,
}

/// The bus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BusStatus {
    /// N, W and R.
    pub(crate) replicas: usize,
    pub(crate) write: usize,
    pub(crate) read: usize,
    /// Too many nodes are away: purges of others may be missed until they are back.
    pub(crate) open_gap: bool,
    /// Each time at which stored responses came in doubt, since the start.
    pub(crate) doubts: u64,
    /// The promise of the bus, and its losses, in sentences.
    pub(crate) promise: Vec<String>,
    pub(crate) nodes: Vec<BusNodeStatus>,
}

/// A node of the bus.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BusNodeStatus {
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) up: bool,
    /// Why it is not.
    pub(crate) error: Option<String>,
    /// The age of the last reading by which this process had all that the node has, in seconds.
    pub(crate) read_seconds: f64,
    /// The events that wait to be published there.
    pub(crate) waiting: usize,
}

/// A member of the fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemberStatus {
    pub(crate) process: String,
    /// Host and process id.
    pub(crate) name: String,
    /// The address of its admin listener.
    pub(crate) address: String,
    pub(crate) version: String,
    /// `self`, `live`, or `missed` where its lease is over.
    pub(crate) state: String,
    /// The time since its last sign of life, in seconds.
    pub(crate) heard_seconds: f64,
    /// The time that events take to reach it, in seconds.
    pub(crate) lag_seconds: f64,
    /// Its clock minus that of this process, in seconds, as far as heartbeats tell.
    pub(crate) clock_offset_seconds: f64,
    /// The digest of its configuration.
    pub(crate) config: String,
    /// The digest of the ring of each pool.
    pub(crate) rings: BTreeMap<String, String>,
}

/// The agreement on the ring of a pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RingStatus {
    pub(crate) pool: String,
    /// All members that have the pool assign every key alike.
    pub(crate) agree: bool,
}

/// A group of causal routes, as this process knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GroupStatus {
    pub(crate) group: String,
    /// The clock of this process: the highest number that it has given out or heard, by process.
    pub(crate) clock: BTreeMap<String, u64>,
    /// The last writes, those that a later one includes left out. Several are concurrent.
    pub(crate) writes: Vec<WriteStatus>,
}

/// A write to a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WriteStatus {
    pub(crate) process: String,
    pub(crate) number: u64,
    /// The clock of its process when it began.
    pub(crate) clock: BTreeMap<String, u64>,
}
