//! What a node is beyond one configuration: its load and its metrics, kept by its stable id.

use super::pool::Pool;
use crate::config::NodeState;
use crate::telemetry::metrics::Metrics;
use prometheus::{Histogram, IntCounter};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A node's state that outlives reloads, shared by all workers.
pub(crate) struct NodeRuntime {
    /// Unique in the process: what a worker keeps its idle connections by.
    pub(crate) serial: u64,
    pool: Arc<str>,
    id: Arc<str>,
    /// The [`NodeState`] in force, as `state_code` has it.
    state: AtomicU8,
    in_flight: AtomicU32,
    pub(super) idle: AtomicU32,
    metrics: Arc<Metrics>,
    pub(super) duration: Histogram,
    /// The counter that nearly every attempt needs.
    answered: OnceLock<IntCounter>,
}

impl NodeRuntime {
    /// Whether the node takes requests: as the file says, or as somebody has said since.
    pub(crate) fn state(&self) -> NodeState {
        match self.state.load(Ordering::Relaxed) {
            0 => NodeState::Up,
            1 => NodeState::Drain,
            _ => NodeState::Down,
        }
    }

    fn set_state(&self, state: NodeState) {
        self.state.store(state_code(state), Ordering::Relaxed);
    }

    /// Requests and tunnels that this node is working on.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Connections to this node that wait for a request.
    pub(crate) fn idle(&self) -> u32 {
        self.idle.load(Ordering::Relaxed)
    }

    /// Takes one of the node's places; `None` where all are taken.
    pub(crate) fn begin(self: &Arc<Self>, limit: u32) -> Option<InFlight> {
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= limit {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(InFlight { node: Arc::clone(self) })
    }

    /// Counts what became of an attempt.
    pub(crate) fn count(&self, outcome: &str) {
        let counter = |outcome| self.metrics.upstream_requests.with_label_values(&[&*self.pool, &*self.id, outcome]);
        match outcome {
            "answer" => self.answered.get_or_init(|| counter("answer")).inc(),
            _ => counter(outcome).inc(),
        }
    }
}

/// A place among a node's requests in flight, given back when dropped.
pub(crate) struct InFlight {
    node: Arc<NodeRuntime>,
}

impl InFlight {
    pub(crate) fn node(&self) -> &Arc<NodeRuntime> {
        &self.node
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.node.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn state_code(state: NodeState) -> u8 {
    match state {
        NodeState::Up => 0,
        NodeState::Drain => 1,
        NodeState::Down => 2,
    }
}

/// Pool, id and address.
type Identity = (Arc<str>, Arc<str>, SocketAddr);

/// The nodes that are known to the process. A new configuration finds its nodes here again; the
/// same id under another address is a new node.
pub(crate) struct Registry {
    metrics: Arc<Metrics>,
    next: AtomicU64,
    nodes: Mutex<HashMap<Identity, Arc<NodeRuntime>>>,
    /// What somebody has said of a node, by pool and id; it holds until the file says something new.
    overrides: Mutex<HashMap<PoolAndId, Override>>,
}

type PoolAndId = (Arc<str>, Arc<str>);

#[derive(Clone, Copy, Debug)]
struct Override {
    /// What the file said then.
    file: NodeState,
    state: NodeState,
}

impl Registry {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Registry {
        Registry { metrics, next: AtomicU64::new(0), nodes: Mutex::default(), overrides: Mutex::default() }
    }

    /// The state of a node, new where it is not known yet.
    pub(crate) fn node(&self, pool: &Arc<str>, id: &Arc<str>, address: SocketAddr) -> Arc<NodeRuntime> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = nodes.entry((Arc::clone(pool), Arc::clone(id), address));
        Arc::clone(entry.or_insert_with(|| {
            Arc::new(NodeRuntime {
                serial: self.next.fetch_add(1, Ordering::Relaxed),
                pool: Arc::clone(pool),
                id: Arc::clone(id),
                // Takes nothing before the configuration that knows it is in force.
                state: AtomicU8::new(state_code(NodeState::Down)),
                in_flight: AtomicU32::new(0),
                idle: AtomicU32::new(0),
                duration: self.metrics.upstream_duration.with_label_values(&[&**pool, &**id]),
                answered: OnceLock::new(),
                metrics: Arc::clone(&self.metrics),
            })
        }))
    }

    /// Puts the states of a configuration in force and forgets nodes that are not in it. Called once,
    /// when that configuration takes over.
    pub(crate) fn adopt(&self, pools: &[Arc<Pool>]) {
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = || pools.iter().flat_map(|pool| pool.nodes.iter().map(move |node| (pool, node)));
        overrides.retain(|(pool, id), held| {
            in_force().any(|(other, node)| other.name == *pool && node.id == *id && node.state == held.file)
        });
        for (pool, node) in in_force() {
            let held = overrides.get(&(Arc::clone(&pool.name), Arc::clone(&node.id)));
            node.runtime.set_state(held.map_or(node.state, |held| held.state));
        }
        let serials: HashSet<u64> = in_force().map(|(_, node)| node.runtime.serial).collect();
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, node| serials.contains(&node.serial));
    }

    /// Says whether a node takes requests, until the file says something new about it.
    pub(crate) fn set_state(&self, pool: &Pool, id: &str, state: NodeState) -> bool {
        let Some(node) = pool.nodes.iter().find(|node| &*node.id == id) else { return false };
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        overrides.insert((Arc::clone(&pool.name), Arc::clone(&node.id)), Override { file: node.state, state });
        node.runtime.set_state(state);
        true
    }
}
