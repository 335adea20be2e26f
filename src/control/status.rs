//! The status of a running proxy: the JSON of the admin API, written by the server and read by the command line.

use super::events::RecordedEvent;
use super::fleet::HeardBy;
use super::leader::AppliedBy;
use super::node_state;
use crate::config::NodeState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Counters by the value of a label.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Version, uptime, listeners, the result of the last reload: `GET /api/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: u64,
    /// New requests are welcome.
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) workers: usize,
    pub(crate) listeners: Vec<ListenerStatus>,
    pub(crate) connections: ConnectionsStatus,
    pub(crate) cache: CacheStatus,
    /// `None` until a route uses the store.
    pub(crate) idempotency: Option<IdempotencyStatus>,
    /// What the numbers of `fleet.redis` tolerate and lose; `None` without a strong route that is verified by a quorum.
    #[serde(default)]
    pub(crate) quorum: Option<QuorumStatus>,
    pub(crate) config: ConfigStatus,
    pub(crate) last_reload: ReloadStatus,
    /// The last ten reloads, the newest first.
    #[serde(default)]
    pub(crate) reloads: Vec<RecordedEvent>,
    /// The certificates in use.
    #[serde(default)]
    pub(crate) certificates: Vec<CertificateStatus>,
}

/// The numbers by which strong reads are verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuorumStatus {
    /// N: the nodes of a slot.
    pub(crate) replicas: usize,
    /// W.
    pub(crate) write: usize,
    /// R.
    pub(crate) read: usize,
    /// What these numbers tolerate and lose, in words.
    pub(crate) tolerance: String,
    /// The routes that read by it.
    pub(crate) routes: Vec<String>,
}

/// A certificate of a listener.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct CertificateStatus {
    /// Its first name, else its file.
    pub(crate) name: String,
    pub(crate) file: String,
    /// Its end, in seconds since 1970.
    pub(crate) expires: i64,
}

/// A listener and its address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// Client connections that may be open, and that may be opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionsStatus {
    pub(crate) limit: u32,
    pub(crate) free: usize,
}

/// The content of the cache; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CacheStatus {
    /// The bound.
    pub(crate) memory: u64,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) evictions: u64,
    /// By result.
    pub(crate) requests: Counts,
    /// By kind.
    pub(crate) purges: Counts,
}

/// The idempotency store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct IdempotencyStatus {
    pub(crate) store: String,
    /// The store takes writes.
    pub(crate) up: bool,
    /// The promise of the store under the settings that were found on it: the losses that are possible, and when.
    pub(crate) promise: Vec<String>,
    /// `None` while the store is not available.
    pub(crate) records: Option<u64>,
    /// By result.
    pub(crate) requests: Counts,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConfigStatus {
    pub(crate) file: String,
    pub(crate) routes: usize,
    pub(crate) pools: usize,
}

/// The result of the last reload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReloadStatus {
    /// When the file was read, in RFC 3339.
    pub(crate) time: String,
    pub(crate) success: bool,
    /// The first error with its place.
    pub(crate) error: Option<String>,
    pub(crate) reloads: u64,
    pub(crate) failures: u64,
    /// Settings that have changed and take effect at a restart.
    pub(crate) needs_restart: Vec<String>,
}

/// A pool: `GET /api/pools` lists all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PoolStatus {
    pub(crate) name: String,
    /// Points on the ring.
    pub(crate) points: usize,
    /// A node takes requests.
    pub(crate) usable: bool,
    /// So few nodes are well that health is ignored.
    pub(crate) panic: bool,
    /// Requests that wait for a node with room.
    pub(crate) queued: u32,
    pub(crate) retry_tokens: f64,
    pub(crate) nodes: Vec<NodeStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) discovery: Option<DiscoveryStatus>,
}

/// The last answer of a pool's name server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiscoveryStatus {
    pub(crate) success: bool,
    pub(crate) error: Option<String>,
}

/// A node, its share of the keys, its load and its health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) id: String,
    /// `None` while its name is not resolved.
    pub(crate) address: Option<String>,
    /// Why its name is not resolved.
    pub(crate) unresolved: Option<String>,
    pub(crate) weight: u32,
    #[serde(with = "node_state")]
    pub(crate) state: NodeState,
    /// The state in the file, which an operator may have changed.
    #[serde(with = "node_state")]
    pub(crate) file_state: NodeState,
    /// The part of the pool's keys that it owns, from 0 to 1.
    pub(crate) share: f64,
    pub(crate) in_flight: u32,
    pub(crate) idle_connections: u32,
    pub(crate) healthy: bool,
    pub(crate) failures_in_a_row: u32,
    pub(crate) ejected_for_seconds: Option<f64>,
    /// Progress of its slow start, from 0 to 1.
    pub(crate) slow_start: f64,
    /// `None` for a pool without health checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health_check: Option<HealthCheckStatus>,
    /// `None` for a node that does not drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) drain: Option<DrainStatus>,
}

/// The last health checks of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HealthCheckStatus {
    pub(crate) passed_in_a_row: u32,
    pub(crate) failed_in_a_row: u32,
    pub(crate) error: Option<String>,
    pub(crate) seconds_ago: Option<f64>,
}

/// The progress of a node's drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DrainStatus {
    pub(crate) done: bool,
    pub(crate) in_flight: u32,
    pub(crate) last_session_ends_in_seconds: u64,
    pub(crate) session_seen_seconds_ago: Option<u64>,
}

/// The nodes of a key: `GET /api/pools/POOL/ring?key=KEY`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyOwners {
    pub(crate) pool: String,
    /// `None` where only its place is known.
    pub(crate) key: Option<String>,
    /// 64 bits in hexadecimal.
    pub(crate) hash: String,
    pub(crate) owner: Option<String>,
    /// The nodes in the order of the ring, the owner first.
    pub(crate) order: Vec<String>,
    /// The node that takes the key now.
    pub(crate) takes: Option<String>,
}

/// The owners of equal slices of a ring: `GET /api/pools/POOL/ring`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RingSlices {
    pub(crate) pool: String,
    pub(crate) nodes: Vec<String>,
    /// For each slice, from the place 0 on, the owner of the key at its middle, as an index into `nodes`.
    pub(crate) slices: Vec<Option<usize>>,
}

/// A record of the idempotency store: `GET /api/idempotency?key=KEY` lists those of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RecordStatus {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) method: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) key: String,
    pub(crate) state: String,
    /// The status code of the stored response.
    pub(crate) status: Option<u16>,
    /// In seconds.
    pub(crate) age: f64,
    /// In seconds; `None` for a request that still runs.
    pub(crate) expires_in: Option<f64>,
    pub(crate) fingerprint: String,
    /// The process that made the claim: its host and process id where the store has them, else a random number.
    pub(crate) holder: String,
}

/// A saga: `GET /api/sagas`, and `GET /.ringway/sagas/{id}` for the caller that began it. Times in RFC 3339.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SagaStatus {
    pub(crate) id: String,
    pub(crate) route: String,
    /// `running`, `compensating`, `succeeded`, `compensated` or `stuck`.
    pub(crate) state: String,
    pub(crate) started: String,
    pub(crate) ended: Option<String>,
    /// Why the saga has turned back.
    pub(crate) failed: Option<SagaFailure>,
    pub(crate) steps: Vec<SagaStepStatus>,
}

/// The step that a saga has failed at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SagaFailure {
    pub(crate) step: String,
    /// The status of the step's last answer, if there was one.
    pub(crate) status: Option<u16>,
    /// `refused`, `deadline`, `unresolved` or `operator`.
    pub(crate) cause: String,
}

/// A step of a saga.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SagaStepStatus {
    pub(crate) name: String,
    /// `untouched`, `started`, `done` or `undone`.
    pub(crate) state: String,
    /// The status of the answer by which the step is done.
    pub(crate) status: Option<u16>,
    /// When the step came into its state.
    pub(crate) since: Option<String>,
}

/// The configuration in force, defaults filled in and secrets hidden. Its shape is that of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct EffectiveConfig(pub(crate) serde_json::Value);

/// The answer to a command that was carried out. Fields that do not belong to it are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CommandResult {
    /// Always `success`: a failure is a problem document.
    pub(crate) result: String,
    /// The record that was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    /// The state that the node has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<String>,
    /// The number of purged responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) responses: Option<u64>,
    /// The proxies of the fleet that have applied the purge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) heard_by: Option<HeardBy>,
    /// The proxies of the fleet that have applied the state of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) applied_by: Option<AppliedBy>,
    /// Set where too few nodes have the stamps of the purge: other proxies may serve strong reads from before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unmarked: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

impl CommandResult {
    pub(crate) fn success() -> CommandResult {
        CommandResult { result: "success".to_owned(), ..CommandResult::default() }
    }

    pub(crate) fn with_detail(self, detail: impl Into<String>) -> CommandResult {
        CommandResult { detail: Some(detail.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Scripts depend on names, order and on which fields are left out.
    #[test]
    fn the_json_of_a_node_stays() {
        let text = r#"{"id":"n0","address":"127.0.0.1:9","unresolved":null,"weight":1,"state":"drain","file_state":"up","share":1.0,"in_flight":2,"idle_connections":0,"healthy":true,"failures_in_a_row":0,"ejected_for_seconds":null,"slow_start":1.0,"drain":{"done":false,"in_flight":2,"last_session_ends_in_seconds":30,"session_seen_seconds_ago":null}}"#;
        let node: NodeStatus = serde_json::from_str(text).unwrap();
        assert_eq!((node.state, node.file_state), (NodeState::Drain, NodeState::Up));
        assert_eq!(serde_json::to_string(&node).unwrap(), text);
        assert!(serde_json::from_str::<NodeStatus>(&text.replace("\"drain\",", "\"away\",")).is_err());
    }

    #[test]
    fn the_answer_to_a_command_has_only_its_own_fields() {
        let released = CommandResult { id: Some("a".into()), ..CommandResult::success() }.with_detail("released");
        assert_eq!(serde_json::to_string(&released).unwrap(), r#"{"result":"success","id":"a","detail":"released"}"#);
        let read: CommandResult = serde_json::from_value(json!({ "result": "success", "added": 1 })).unwrap();
        assert_eq!(read, CommandResult::success());
    }
}
