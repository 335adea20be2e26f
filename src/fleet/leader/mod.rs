//! One leader of the fleet, by etcd: it checks nodes for all proxies. And the states of nodes for the whole fleet.
//!
//! - `election`: who leads, as a pure state machine; `search` examines it. `health`: whose checks count.
//! - `values`: the keys and their values; `view`: what this process knows of them.
//! - `shared`: the handle that the admin API calls; `status`, what it shows. `thread`, `core`: the thread behind it, and
//!   its state. `tasks` keep the lease, the watch and the key of this member; `office` is the work of the leader, and
//!   `orders` what operators ask for.
//!
//! The room knows no pools: what follows for them goes to a [`Host`].

mod core;
mod election;
mod health;
mod office;
mod orders;
#[cfg(test)]
mod search;
mod shared;
mod status;
mod tasks;
mod thread;
mod values;
mod view;

pub(crate) use shared::Leadership;
pub(crate) use thread::start;
pub(crate) use values::{NodeVerdict, StateOrder};

use std::time::Duration;

/// A pool whose nodes one proxy checks for the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedPool {
    pub(crate) name: String,
    /// The time between two checks of a node.
    pub(crate) interval: Duration,
}

/// The process around this room, called on its thread.
pub(crate) trait Host: Send + Sync + 'static {
    /// Returns the pools with shared health.
    fn shared_pools(&self) -> Vec<SharedPool>;
    /// Returns the verdicts on the nodes of a pool, which this process checks.
    fn verdicts(&self, pool: &str) -> Vec<NodeVerdict>;
    /// Has the nodes of a pool follow the verdicts of the leader, those without one and all without verdicts the checks
    /// of this process.
    fn follow(&self, pool: &str, verdicts: Option<&[NodeVerdict]>);
    /// Puts the states of nodes for the fleet in force, these and no others.
    fn apply(&self, orders: &[StateOrder]);
    /// Returns whether a node has no request and no session left in this process.
    fn is_drained(&self, pool: &str, node: &str) -> bool;
    /// Notes that etcd works from now on, or why it does not.
    fn changed(&self, error: Option<String>);
    /// Returns the address at which operators reach the process.
    fn address(&self) -> String;
}
