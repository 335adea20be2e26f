//! The state that the nodes of a pool share beyond one configuration: ejections, the retry budget, and the queue.

use super::node::NodeRuntime;
use super::pick::Skip;
use super::queue::Queue;
use super::retry::RetryBudget;
use crate::clock::steady_millis;
use crate::config::{NodeState, OutlierEjection};
use crate::control::{Event, Events};
use crate::telemetry::metrics::Metrics;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A pool's own state, kept by its name.
pub(crate) struct Group {
    pub(crate) name: Arc<str>,
    pub(crate) budget: RetryBudget,
    /// Requests that wait for room at any node.
    pub(crate) queue: Queue,
    /// By [`Skip`].
    spills: [IntCounter; Skip::ALL.len()],
    pub(crate) retries_denied: IntCounter,
    metrics: Arc<Metrics>,
    pub(super) events: Arc<Events>,
    is_gone: AtomicBool,
    members: Mutex<Members>,
}

/// The nodes in force, and when they are taken out.
#[derive(Default)]
struct Members {
    nodes: Vec<Weak<NodeRuntime>>,
    ejection: Option<OutlierEjection>,
}

impl Group {
    pub(super) fn new(name: &Arc<str>, metrics: &Arc<Metrics>, events: &Arc<Events>) -> Group {
        let spills = &metrics.ring_spills;
        Group {
            name: Arc::clone(name),
            budget: RetryBudget::default(),
            queue: Queue::default(),
            spills: Skip::ALL.map(|skip| spills.with_label_values(&[&**name, skip.label()])),
            retries_denied: metrics.upstream_retries_denied.with_label_values(&[&**name]),
            metrics: Arc::clone(metrics),
            events: Arc::clone(events),
            is_gone: AtomicBool::new(false),
            members: Mutex::default(),
        }
    }

    /// Puts the nodes of a configuration in force.
    pub(super) fn adopt(&self, nodes: Vec<Weak<NodeRuntime>>, ejection: &OutlierEjection) {
        if ejection.consecutive_failures == 0 {
            let now = steady_millis(Instant::now());
            for node in nodes.iter().filter_map(Weak::upgrade).filter(|node| !node.circuit.is_closed()) {
                node.circuit.close(now);
            }
        }
        *self.members() = Members { nodes, ejection: Some(ejection.clone()) };
        self.hold_bound();
        self.queue.wake_all();
    }

    /// Ends ejections above the allowed share, those first that would end first. Called whenever the number of nodes
    /// falls.
    pub(super) fn hold_bound(&self) {
        let now = steady_millis(Instant::now());
        let members = self.members();
        let Some(rules) = &members.ejection else { return };
        let (all, mut out) = members.counted();
        out.sort_by_cached_key(|node| node.circuit.left(now));
        let most = (0..=all).take_while(|&out| out == 0 || may_be_out(out, all, rules.max_ejected.ratio())).count() - 1;
        for node in out.iter().take(out.len().saturating_sub(most)) {
            node.circuit.close(now);
            let (pool, node) = (&*self.name, &*node.id);
            let reason = "too few others are left";
            tracing::info!(pool, node, "the node takes requests again: {reason}");
            self.ejection(node, false, reason, None);
        }
    }

    /// Counts a key that got another node than its owner.
    pub(super) fn spilled(&self, skip: Skip) {
        self.spills[skip as usize].inc();
    }

    /// The pool is in no configuration any more.
    pub(super) fn leave(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// Counts an attempt after a failed one.
    pub(crate) fn retried(&self, reason: &str) {
        // A removed pool has no series, and must not get them back.
        if !self.is_gone.load(Ordering::Relaxed) {
            self.metrics.upstream_retries.with_label_values(&[&*self.name, reason]).inc();
        }
    }

    /// Returns whether no node passes its health checks.
    pub(super) fn is_all_unhealthy(&self) -> bool {
        let members = self.members();
        let mut up = members.nodes.iter().filter_map(Weak::upgrade).filter(|node| node.state() == NodeState::Up);
        !up.any(|node| node.health.is_healthy())
    }

    /// A request to a node has failed: takes the node out where it was one too many.
    pub(super) fn failed(&self, node: &NodeRuntime, was_trial: bool) {
        let now = steady_millis(Instant::now());
        let members = self.members();
        let Some(rules) = &members.ejection else { return };
        let (reason, length) = match was_trial {
            true if rules.consecutive_failures == 0 => return,
            true => ("the request that tried it failed", node.circuit.open(rules, now)),
            false if node.circuit.is_closed() => {
                let failures = node.circuit.failed();
                if rules.consecutive_failures == 0
                    || failures < rules.consecutive_failures
                    || !members.may_lose_one(rules)
                {
                    return;
                }
                ("its requests fail in a row", node.circuit.open(rules, now))
            }
            // Failures of requests that were in flight before the ejection say nothing new.
            false => return,
        };
        let (pool, node, length) = (&*self.name, &*node.id, Duration::from_millis(length));
        tracing::warn!(pool, node, ?length, "the node takes no requests for a while: {reason}");
        self.ejection(node, true, reason, Some(length.as_secs_f64()));
    }

    /// Records that a node was taken out, or is back.
    pub(super) fn ejection(&self, node: &str, ejected: bool, reason: &str, seconds: Option<f64>) {
        let [pool, node, reason] = [&*self.name, node, reason].map(str::to_owned);
        self.events.record(Event::NodeEjection { pool, node, ejected, reason, seconds });
    }

    fn members(&self) -> parking_lot::MutexGuard<'_, Members> {
        self.members.lock()
    }
}

impl Members {
    /// Returns whether one more node may be ejected.
    fn may_lose_one(&self, rules: &OutlierEjection) -> bool {
        let (all, out) = self.counted();
        may_be_out(out.len() + 1, all, rules.max_ejected.ratio())
    }

    /// Returns the number of nodes that could take requests, and the ejected ones.
    fn counted(&self) -> (usize, Vec<Arc<NodeRuntime>>) {
        let up = self.nodes.iter().filter_map(Weak::upgrade).filter(|node| node.state() == NodeState::Up);
        let well: Vec<_> = up.filter(|node| node.health.is_healthy()).collect();
        let all = well.len();
        (all, well.into_iter().filter(|node| !node.circuit.is_closed()).collect())
    }
}

/// Returns whether `out` of `all` nodes are at most this share.
fn may_be_out(out: usize, all: usize, share: f64) -> bool {
    // Rounded against the dust of binary fractions: half of two is one.
    out as f64 <= all as f64 * share + 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_share_of_the_nodes_may_be_out() {
        for (all, share, expected) in
            [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (10, 0.1, 1), (3, 1.0, 3), (5, 0.0, 0)]
        {
            let most = (1..=all).take_while(|&out| may_be_out(out, all, share)).count();
            assert_eq!(most, expected, "{all} nodes, {share}");
        }
    }
}
