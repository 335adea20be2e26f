//! A pool as one configuration has it: its ring, its nodes, its rules, and the choice of a node.

use super::NodePreference;
use super::connect::Endpoint;
use super::group::Group;
use super::node::{InFlight, NodeRuntime};
use super::pick::{self, Nodes, Pick, PickError, PickRules, Skip};
use super::retry::RetryRules;
use crate::clock::{SteadyMillis, steady_millis};
use crate::config::{HealthCheck, NodeState, OutlierEjection, PoolConnections, Protocol, Timeouts};
use crate::ring::Ring;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A pool of nodes behind one ring.
pub(crate) struct Pool {
    pub(crate) name: Arc<str>,
    pub(crate) ring: Arc<Ring>,
    /// The settings that the ring was built by, beside the nodes.
    pub(super) ring_settings: (String, u32),
    pub(crate) nodes: Vec<Node>,
    pub(crate) timeouts: Timeouts,
    pub(crate) connections: PoolConnections,
    pub(crate) health_check: Option<Arc<HealthCheck>>,
    /// One process checks the nodes for the fleet.
    pub(crate) is_health_shared: bool,
    /// The node is discovered by DNS, and may be missing from an answer for a while.
    pub(super) is_discovered: bool,
    pub(crate) ejection: OutlierEjection,
    pub(crate) retries: RetryRules,
    pub(crate) slow_start: Duration,
    pub(crate) protocol: Protocol,
    pub(super) rules: PickRules,
    pub(super) totals: Totals,
    pub(crate) group: Arc<Group>,
}

/// Pools of at most this many nodes are counted for every request that needs it.
const FEW: usize = 32;

/// The load of a large pool's nodes at one moment.
#[derive(Default)]
pub(super) struct Totals {
    at: AtomicU64,
    load: AtomicU64,
    weight: AtomicU64,
}

/// A node as one configuration has it.
pub(crate) struct Node {
    pub(crate) id: Arc<str>,
    pub(crate) endpoint: Endpoint,
    pub(crate) weight: u32,
    /// The state in the file; the state in force is that of the runtime.
    pub(crate) state: NodeState,
    pub(crate) runtime: Arc<NodeRuntime>,
    /// The node's address as the file has it; empty for one that was found.
    pub(super) named: String,
    /// Why the node's name cannot be resolved; it takes no requests then.
    pub(crate) unresolved: Option<String>,
    /// The node's own number among the hashes, for its slow start.
    pub(super) salt: u64,
}

/// A node that takes a request, and the permit for it.
pub(crate) struct Picked {
    /// Its index in the pool's list.
    pub(crate) node: usize,
    pub(crate) in_flight: InFlight,
    /// So few nodes are well that all of them are tried.
    pub(crate) in_panic: bool,
}

/// The nodes that a request has tried, by their indices in the pool's list.
pub(crate) type Tried = SmallVec<[usize; 4]>;

impl Node {
    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Returns the name of the node in verdicts that processes share: its id and its address, as the file has them.
    pub(super) fn verdict_name(&self) -> String {
        match self.named.is_empty() {
            true => format!("{}@{}", self.id, self.endpoint.address),
            false => format!("{}@{}", self.id, self.named),
        }
    }
}

impl Pool {
    /// Chooses the node that takes a request, and takes a permit there. Those that were tried are passed
    /// over.
    pub(crate) fn pick(&self, wanted: &NodePreference, tried: &[usize], now: Instant) -> Result<Picked, PickError> {
        let moment = PoolState { pool: self, hash: wanted.hash, now: steady_millis(now) };
        let mut lost: Tried = SmallVec::new();
        let mut spilled = None;
        if let Some(node) = wanted.pinned.filter(|node| !tried.contains(node)) {
            match pick::pick_pinned(node, &moment, &self.rules) {
                Ok(pick) => match self.take(pick, moment.now) {
                    Some(picked) => return Ok(picked),
                    None => spilled = Some(Skip::Full),
                },
                Err(skip) => spilled = Some(skip),
            }
            if !wanted.may_leave {
                return Err(if spilled == Some(Skip::Full) { PickError::Full } else { PickError::Unavailable });
            }
        } else if wanted.pinned.is_some() && !wanted.may_leave {
            return Err(PickError::Unavailable);
        }
        loop {
            let passed = |node: &usize| tried.contains(node) || lost.contains(node) || wanted.pinned == Some(*node);
            let order = self.ring.walk(wanted.hash).filter(|node| !passed(node));
            let pick = match pick::pick(order, &moment, &self.rules) {
                Ok(pick) => pick,
                Err(PickError::Unavailable) if !lost.is_empty() || spilled == Some(Skip::Full) => {
                    return Err(PickError::Full);
                }
                Err(error) => return Err(error),
            };
            if let Some(picked) = self.take(pick, moment.now) {
                // A retry has been counted as such.
                if tried.is_empty()
                    && let Some(skip) = spilled.or(pick.spilled)
                {
                    self.group.spilled(skip);
                }
                return Ok(picked);
            }
            // Another request was faster.
            lost.push(pick.node);
            spilled = spilled.or(pick.spilled).or(Some(Skip::Full));
        }
    }

    fn take(&self, pick: Pick, now: SteadyMillis) -> Option<Picked> {
        let in_flight = self.nodes[pick.node].runtime.begin(self.rules.max_per_node, pick.is_trial, now)?;
        Some(Picked { node: pick.node, in_flight, in_panic: pick.in_panic })
    }

    /// Returns the node that a key would get now.
    pub(crate) fn taker(&self, hash: u64, now: Instant) -> Option<&Node> {
        let moment = PoolState { pool: self, hash, now: steady_millis(now) };
        let pick = pick::pick(self.ring.walk(hash), &moment, &self.rules).ok()?;
        Some(&self.nodes[pick.node])
    }

    /// Returns the number of waiting requests.
    pub(crate) fn queued(&self) -> u32 {
        self.group.queue.waiting() + self.nodes.iter().map(|node| node.runtime.queue.waiting()).sum::<u32>()
    }

    /// Returns whether any node accepts requests.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        let now = steady_millis(now);
        let takes =
            |node: &&Node| node.runtime.state() == NodeState::Up && node.weight > 0 && node.unresolved.is_none();
        let mut up = self.nodes.iter().filter(takes).peekable();
        let any_up = up.peek().is_some();
        up.any(|node| node.runtime.fitness(now).is_ok()) || (any_up && self.is_panic(now))
    }

    /// Returns whether so few nodes are healthy that health is ignored (panic mode).
    pub(crate) fn is_panic(&self, now: SteadyMillis) -> bool {
        pick::is_panic(&PoolState { pool: self, hash: 0, now }, self.rules.panic_threshold)
    }
}

/// A pool's nodes as a key finds them.
struct PoolState<'a> {
    pool: &'a Pool,
    hash: u64,
    now: SteadyMillis,
}

impl Nodes for PoolState<'_> {
    fn count(&self) -> usize {
        self.pool.nodes.len()
    }

    fn state(&self, node: usize) -> NodeState {
        let node = &self.pool.nodes[node];
        if node.unresolved.is_some() { NodeState::Down } else { node.runtime.state() }
    }

    fn fitness(&self, node: usize) -> Result<bool, Skip> {
        self.pool.nodes[node].runtime.fitness(self.now)
    }

    fn load(&self, node: usize) -> u32 {
        self.pool.nodes[node].runtime.in_flight()
    }

    fn weight(&self, node: usize) -> u32 {
        self.pool.nodes[node].weight
    }

    /// For a large pool the totals of a millisecond ago are good enough.
    fn totals(&self, in_panic: bool) -> (u64, u64) {
        if self.pool.nodes.len() <= FEW {
            return self.count_totals(in_panic);
        }
        let Totals { at, load, weight } = &self.pool.totals;
        // Several may find it old at a time; each of them is right.
        if at.swap(self.now, Ordering::Relaxed) != self.now {
            let (now_load, now_weight) = self.count_totals(in_panic);
            load.store(now_load, Ordering::Relaxed);
            weight.store(now_weight, Ordering::Relaxed);
        }
        (load.load(Ordering::Relaxed), weight.load(Ordering::Relaxed))
    }

    fn has_reached_key(&self, node: usize) -> bool {
        let length = self.pool.slow_start;
        let node = &self.pool.nodes[node];
        length.is_zero() || node.runtime.ramp.has_reached(self.hash, node.salt, self.now, length)
    }
}
