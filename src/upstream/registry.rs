//! The nodes and pools of the process, by their stable names: a new configuration finds the state of the old one here.

use super::connect::Endpoint;
use super::group::Group;
use super::node::NodeRuntime;
use super::pool::Pool;
use crate::config::NodeState;
use crate::control::Events;
use crate::fleet::StateOrder;
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
    orders: Mutex<Orders>,
}

/// The states that operators have set for the whole fleet.
#[derive(Default)]
struct Orders {
    all: HashMap<PoolAndId, StateOrder>,
    /// They come from etcd, and not from the process before.
    are_read: bool,
    /// The pools in force.
    pools: Vec<Arc<Pool>>,
}

/// The state that an operator has set, as one process passes it to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateOverride {
    pool: String,
    node: String,
    /// The state in the file at that time.
    file: String,
    state: String,
    /// The revision of the state for the fleet that it has replaced here.
    #[serde(default)]
    over: u64,
}

#[derive(Clone, Copy, Debug)]
struct Override {
    /// The state in the file at that time.
    file: NodeState,
    state: NodeState,
    /// The revision of the state for the fleet that it has replaced here; 0 without one.
    over: u64,
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
            orders: Mutex::default(),
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
        let mut orders = self.orders.lock();
        orders.pools = pools.to_vec();
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
                let key = (Arc::clone(&pool.name), Arc::clone(&node.id));
                node.runtime.set_state(state_of(node.state, overrides.get(&key), orders.all.get(&key)));
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
            over: held.over,
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
                self.set_over(pool, &node.id, state, state_overrides.over);
            }
        }
    }

    /// Sets the state of a node, until the file changes it.
    pub(crate) fn set_state(&self, pool: &Pool, id: &str, state: NodeState) -> bool {
        let key = (Arc::clone(&pool.name), Arc::from(id));
        let over = self.orders.lock().all.get(&key).map_or(0, |order| order.revision);
        self.set_over(pool, id, state, over)
    }

    fn set_over(&self, pool: &Pool, id: &str, state: NodeState, over: u64) -> bool {
        let Some(node) = pool.nodes.iter().find(|node| &*node.id == id) else { return false };
        let key = (Arc::clone(&pool.name), Arc::clone(&node.id));
        let mut overrides = self.overrides.lock();
        let own = Override { file: node.state, state, over, absent: None };
        // One that the process before had may be older than a state for the fleet.
        node.runtime.set_state(state_of(node.state, Some(&own), self.orders.lock().all.get(&key)));
        overrides.insert(key, own);
        pool.group.hold_bound();
        true
    }

    /// Returns the states that operators have set for the fleet.
    pub(crate) fn orders(&self) -> Vec<StateOrder> {
        self.orders.lock().all.values().cloned().collect()
    }

    /// Puts the states for the fleet in force that the process before knew, unless etcd has told of others.
    pub(crate) fn take_over_orders(&self, all: &[StateOrder]) {
        self.put_in_force(all, false);
    }

    /// Puts the states for the fleet in force, these and no others. Returns those that have changed the state of a node.
    pub(crate) fn apply_orders(&self, all: &[StateOrder]) -> Vec<StateOrder> {
        self.put_in_force(all, true)
    }

    fn put_in_force(&self, all: &[StateOrder], are_read: bool) -> Vec<StateOrder> {
        let mut overrides = self.overrides.lock();
        let mut orders = self.orders.lock();
        if orders.are_read && !are_read {
            return Vec::new();
        }
        let key = |order: &StateOrder| (Arc::from(&*order.pool), Arc::from(&*order.node));
        orders.all = all.iter().map(|order| (key(order), order.clone())).collect();
        orders.are_read = are_read;
        let mut applied = Vec::new();
        for pool in &orders.pools {
            for node in &pool.nodes {
                let key = (Arc::clone(&pool.name), Arc::clone(&node.id));
                let order = orders.all.get(&key);
                // A later state for the fleet ends an earlier one of this proxy alone.
                if let Some(order) = order
                    && overrides.get(&key).is_some_and(|own| own.over != order.revision && order.file == node.state)
                {
                    overrides.remove(&key);
                }
                let state = state_of(node.state, overrides.get(&key), order);
                if node.runtime.state() != state {
                    node.runtime.set_state(state);
                    pool.group.hold_bound();
                    let by_file = || StateOrder {
                        pool: pool.name.to_string(),
                        node: node.id.to_string(),
                        state,
                        file: node.state,
                        by: "the file".to_owned(),
                        at: 0,
                        number: 0,
                        revision: 0,
                    };
                    applied.push(order.cloned().filter(|order| order.state == state).unwrap_or_else(by_file));
                }
            }
        }
        applied
    }
}

/// Returns the state of a node: that of the file, of an operator for this proxy, or of an operator for the fleet. Either
/// order holds while the state in the file stands that it overrides; the later one counts.
fn state_of(file: NodeState, own: Option<&Override>, order: Option<&StateOrder>) -> NodeState {
    let own = own.filter(|own| own.file == file);
    let order = order.filter(|order| order.file == file);
    match (own, order) {
        (Some(own), Some(order)) if own.over != order.revision => order.state,
        (Some(own), _) => own.state,
        (None, Some(order)) => order.state,
        (None, None) => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NodeState::{Down, Drain, Up};

    #[test]
    fn the_later_of_two_orders_counts_while_its_state_in_the_file_stands() {
        let own = |file, state, over| Override { file, state, over, absent: None };
        let order = |file, state, revision| StateOrder {
            pool: "app".to_owned(),
            node: "a".to_owned(),
            state,
            file,
            by: String::new(),
            at: 0,
            number: 0,
            revision,
        };
        assert_eq!(state_of(Up, None, None), Up);
        assert_eq!(state_of(Up, None, Some(&order(Up, Drain, 5))), Drain);
        assert_eq!(state_of(Down, None, Some(&order(Up, Drain, 5))), Down, "the file has another state");
        assert_eq!(state_of(Up, Some(&own(Up, Up, 5)), Some(&order(Up, Drain, 5))), Up, "set here later");
        assert_eq!(state_of(Up, Some(&own(Up, Up, 5)), Some(&order(Up, Drain, 7))), Drain, "set for the fleet later");
        assert_eq!(
            state_of(Up, Some(&own(Up, Down, 5)), Some(&order(Down, Drain, 7))),
            Down,
            "an order for another file"
        );
    }
}
