//! The nodes and pools of the process, by their stable names: a new configuration finds the state of the old one here.

use super::connect::Endpoint;
use super::group::Group;
use super::node::NodeRuntime;
use super::pool::Pool;
use crate::config::NodeState;
use crate::control::Events;
use crate::telemetry::metrics::Metrics;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pool, id, address, and protocol: after a change of any of them, earlier results do not apply.
type Identity = (Arc<str>, Arc<str>, SocketAddr, Vec<u8>);

type PoolAndId = (Arc<str>, Arc<str>);

/// The most absent nodes whose state by an operator is kept.
const MAX_ABSENT: usize = 1000;
/// The time for which the state of an absent node is kept: after that another node may have its address.
const LONGEST_ABSENCE: Duration = Duration::from_secs(3600);

/// Everything that outlives a configuration. The same id under another address is a new node.
pub(crate) struct Registry {
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    next: AtomicU64,
    groups: Mutex<HashMap<Arc<str>, Arc<Group>>>,
    nodes: Mutex<HashMap<Identity, Arc<NodeRuntime>>>,
    /// The serials of the nodes in force.
    in_force: Mutex<HashSet<u64>>,
    /// The states that operators have set, by pool and id; each holds until the file changes it.
    overrides: Mutex<HashMap<PoolAndId, Override>>,
}

/// The state that an operator has set, as one process passes it to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateOverride {
    pool: String,
    node: String,
    /// The state in the file at that time.
    file: String,
    state: String,
}

#[derive(Clone, Copy, Debug)]
struct Override {
    /// The state in the file at that time.
    file: NodeState,
    state: NodeState,
    /// The time since when DNS answers do not contain the node.
    absent: Option<Instant>,
}

impl Registry {
    pub(crate) fn new(metrics: Arc<Metrics>, events: Arc<Events>) -> Registry {
        Registry {
            metrics,
            events,
            next: AtomicU64::new(0),
            groups: Mutex::default(),
            nodes: Mutex::default(),
            in_force: Mutex::default(),
            overrides: Mutex::default(),
        }
    }

    /// Returns the state of a pool, a new one for an unknown pool.
    pub(super) fn group(&self, pool: &Arc<str>) -> Arc<Group> {
        let mut groups = self.groups.lock();
        let entry = groups.entry(Arc::clone(pool));
        Arc::clone(entry.or_insert_with(|| Arc::new(Group::new(pool, &self.metrics, &self.events))))
    }

    /// Returns the state of a node, a new one for an unknown node.
    pub(super) fn node(&self, group: &Arc<Group>, id: &Arc<str>, endpoint: &Endpoint) -> Arc<NodeRuntime> {
        let mut nodes = self.nodes.lock();
        let entry = nodes.entry((Arc::clone(&group.name), Arc::clone(id), endpoint.address, endpoint.manner()));
        Arc::clone(entry.or_insert_with(|| {
            let serial = self.next.fetch_add(1, Ordering::Relaxed);
            Arc::new(NodeRuntime::new(serial, Arc::clone(group), Arc::clone(id), Arc::clone(&self.metrics)))
        }))
    }

    /// Applies the states of a configuration and drops nodes that are not in it. Called once, when that configuration
    /// takes over.
    pub(crate) fn adopt(&self, pools: &[Arc<Pool>]) {
        let mut overrides = self.overrides.lock();
        let all = || pools.iter().flat_map(|pool| pool.nodes.iter().map(move |node| (pool, node)));
        let mut absent = 0;
        overrides.retain(|(pool, id), held| {
            match all().find(|(other, node)| other.name == *pool && node.id == *id) {
                Some((_, node)) => {
                    let is_recent = held.absent.take().is_none_or(|since| since.elapsed() < LONGEST_ABSENCE);
                    is_recent && node.state == held.file
                }
                // A single DNS answer without the node does not end the state that an operator has set.
                None => {
                    absent += 1;
                    let is_recent = held.absent.get_or_insert_with(Instant::now).elapsed() < LONGEST_ABSENCE;
                    is_recent
                        && absent <= MAX_ABSENT
                        && pools.iter().any(|other| other.name == *pool && other.is_discovered)
                }
            }
        });
        let mut in_force = self.in_force.lock();
        for pool in pools {
            // Where all nodes are new, none has keys that it could get back one by one.
            let is_new = |serial: &u64| !in_force.contains(serial);
            let all_new = pool.nodes.iter().all(|node| is_new(&node.runtime.serial));
            for node in &pool.nodes {
                match &pool.health_check {
                    _ if let Some(cause) = &node.unresolved => node.runtime.health.is_unresolved(cause),
                    Some(check) if is_new(&node.runtime.serial) => node.runtime.health.begin(check),
                    Some(_) => {}
                    None => node.runtime.health.forget(),
                }
                let held = overrides.get(&(Arc::clone(&pool.name), Arc::clone(&node.id)));
                node.runtime.set_state(held.map_or(node.state, |held| held.state));
                if all_new {
                    node.runtime.ramp.begin(0);
                }
            }
            let members = pool.nodes.iter().map(|node| Arc::downgrade(&node.runtime)).collect();
            pool.group.adopt(members, &pool.ejection);
        }
        *in_force = all().map(|(_, node)| node.runtime.serial).collect();
        self.nodes.lock().retain(|_, node| {
            let stays = in_force.contains(&node.serial);
            if !stays {
                node.leave();
            }
            stays
        });
        self.groups.lock().retain(|name, group| {
            let stays = pools.iter().any(|pool| pool.name == *name);
            if !stays {
                group.leave();
            }
            stays
        });
    }

    /// Returns all states that operators have set.
    pub(crate) fn state_overrides(&self) -> Vec<StateOverride> {
        let overrides = self.overrides.lock();
        let state_overrides = overrides.iter().map(|((pool, node), held)| StateOverride {
            pool: (**pool).to_owned(),
            node: (**node).to_owned(),
            file: held.file.word().to_owned(),
            state: held.state.word().to_owned(),
        });
        state_overrides.collect()
    }

    /// Takes over the states of another process, where the file still has the state that it had then.
    pub(crate) fn take_over(&self, pools: &[Arc<Pool>], all: &[StateOverride]) {
        for state_overrides in all {
            let pool = pools.iter().find(|pool| *pool.name == *state_overrides.pool);
            let node = pool.and_then(|pool| pool.nodes.iter().find(|node| *node.id == *state_overrides.node));
            if let (Some(pool), Some(node), Some(state)) = (pool, node, NodeState::from_word(&state_overrides.state))
                && node.state.word() == state_overrides.file
            {
                self.set_state(pool, &node.id, state);
            }
        }
    }

    /// Sets the state of a node, until the file changes it.
    pub(crate) fn set_state(&self, pool: &Pool, id: &str, state: NodeState) -> bool {
        let Some(node) = pool.nodes.iter().find(|node| &*node.id == id) else { return false };
        let mut overrides = self.overrides.lock();
        overrides
            .insert((Arc::clone(&pool.name), Arc::clone(&node.id)), Override { file: node.state, state, absent: None });
        node.runtime.set_state(state);
        pool.group.hold_bound();
        true
    }
}
