//! The fleet: proxies that hear each other's purges and writes.
//!
//! - `event`: the events of the bus; `encoding`: their bytes. `queue`: those that wait for a node.
//! - `gaps`: whether something may have been missed; `members`: who belongs to the fleet; `window`: which events were
//!   heard already. Pure state machines.
//! - `bus`: the handle that workers and the admin API call. `thread`, `core`: the thread behind it, and its
//!   state. `node`: one Redis node: the
//!   connection that publishes, and the one that reads. `stream`: the commands, and their replies.
//! - `etcd`: the client of etcd; `leader`: one leader for the fleet, shared health, and the states of nodes.
//! - `quorum`: the stamps and marks of strong reads, on the same nodes and connections of their own.
//!
//! The room knows neither the cache nor the routes: what arrives goes to a [`Listener`].

mod bus;
#[cfg(feature = "redis")]
mod core;
mod encoding;
mod etcd;
mod event;
mod gaps;
mod leader;
mod members;
#[cfg(feature = "redis")]
mod node;
mod queue;
pub(crate) mod quorum;
#[cfg(feature = "redis")]
mod settings;
mod status;
#[cfg(feature = "redis")]
mod stream;
#[cfg(feature = "redis")]
mod thread;
mod window;

pub(crate) use bus::Bus;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use encoding::read_any;
pub(crate) use etcd::{Endpoint, EtcdLogin, EtcdSettings, inspect as inspect_etcd};
pub(crate) use event::{Event, ProcessId, Purge, PurgeBy};
pub(crate) use leader::{Host, Leadership, NodeVerdict, SharedPool, StateOrder, start as start_leadership};
#[cfg(feature = "redis")]
pub(crate) use node::inspect;
#[cfg(feature = "redis")]
use node::words;
#[cfg(feature = "redis")]
pub(crate) use settings::{BusControl, BusSettings};
#[cfg(feature = "redis")]
use stream::field as field_of;
#[cfg(feature = "redis")]
pub(crate) use thread::start;

/// An event that another process of the fleet has published.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Heard {
    pub(crate) from: ProcessId,
    /// The number of the event among those of its process.
    pub(crate) number: u64,
    pub(crate) event: Event,
}

/// The receiver of what arrives on the bus, called on the thread of the bus.
pub(crate) trait Listener: Send + Sync + 'static {
    /// Applies purges, writes and fills, in the order in which they were heard. They are in force for every later
    /// request when the function returns, and beat every fetch that began before.
    fn apply(&self, batch: &[Heard]);
    /// Notes that events may have been missed: each response that was fetched or validated before now must be
    /// validated before it is served.
    fn missed(&self);
    /// Notes that the bus works from now on, or does not.
    fn changed(&self, works: bool);
    /// Returns what other members compare with their own.
    fn digests(&self) -> Digests;
}

/// The digests that the members of a fleet compare with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    /// Of the configuration.
    pub(crate) config: u64,
    /// Of the ring of each pool, by its name.
    pub(crate) rings: Vec<(String, u64)>,
    /// The address at which operators reach the process.
    pub(crate) address: String,
}
