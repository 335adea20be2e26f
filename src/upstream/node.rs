//! What a node is beyond one configuration: its load and its metrics, kept by its stable id.

use crate::telemetry::metrics::Metrics;
use prometheus::{Histogram, IntCounter};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A node's state that outlives reloads, shared by all workers.
pub(crate) struct NodeRuntime {
    /// Unique in the process: what a worker keeps its idle connections by.
    pub(crate) serial: u64,
    pool: Arc<str>,
    id: Arc<str>,
    in_flight: AtomicU32,
    pub(super) idle: AtomicU32,
    metrics: Arc<Metrics>,
    pub(super) duration: Histogram,
    /// The counter that nearly every attempt needs.
    answered: OnceLock<IntCounter>,
}

impl NodeRuntime {
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

/// Pool, id and address.
type Identity = (Arc<str>, Arc<str>, SocketAddr);

/// The nodes that are known to the process. A new configuration finds its nodes here again; the
/// same id under another address is a new node.
pub(crate) struct Registry {
    metrics: Arc<Metrics>,
    next: AtomicU64,
    nodes: Mutex<HashMap<Identity, Arc<NodeRuntime>>>,
}

impl Registry {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Registry {
        Registry { metrics, next: AtomicU64::new(0), nodes: Mutex::default() }
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
                in_flight: AtomicU32::new(0),
                idle: AtomicU32::new(0),
                duration: self.metrics.upstream_duration.with_label_values(&[&**pool, &**id]),
                answered: OnceLock::new(),
                metrics: Arc::clone(&self.metrics),
            })
        }))
    }
}
