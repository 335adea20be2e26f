//! The messages between a process and a node of the fleet: the facts about its server, checks and writes.

use crate::consistency::quorum::{Millis, Slot, SlotView};
use std::time::Instant;

/// The facts about a server that its connection has found.
#[derive(Clone, Debug)]
pub(super) struct ServerFacts {
    /// The hash of its `run_id`.
    pub(super) run: u64,
    /// The server had run for so many milliseconds, at least, when the connection was made.
    pub(super) uptime: Millis,
    pub(super) at: Instant,
}

/// The reply to a batch of checks.
pub(super) struct Checked {
    /// The clock of the server.
    pub(super) now: Millis,
    pub(super) birth: u64,
    pub(super) born: Millis,
    pub(super) has_other_config: bool,
    /// In the order of the slots.
    pub(super) views: Vec<SlotView>,
}

/// An operation on slots of a node.
#[derive(Clone, Debug)]
pub(super) struct WriteOrder {
    /// `s`: a new stamp. `m`: the mark. `u`: no mark. `d`: only where the digest is registered.
    pub(super) flags: &'static str,
    pub(super) write: String,
    /// The life of the mark.
    pub(super) life: Millis,
    pub(super) digest: u64,
    pub(super) slots: Vec<Slot>,
}
