//! In place of the connections where Ringway is built without Redis: none is ever made.

use super::rules::QuorumRules;
use crate::consistency::quorum::{Millis, Slot, SlotView};
use std::time::Instant;

pub(super) struct ServerFacts {
    pub(super) run: u64,
    pub(super) uptime: Millis,
    pub(super) at: Instant,
}

pub(super) struct Checked {
    pub(super) now: Millis,
    pub(super) birth: u64,
    pub(super) born: Millis,
    pub(super) has_other_config: bool,
    pub(super) views: Vec<SlotView>,
}

#[derive(Clone, Debug)]
#[allow(dead_code, reason = "no connection reads it")]
pub(super) struct WriteOrder {
    pub(super) flags: &'static str,
    pub(super) write: String,
    pub(super) life: Millis,
    pub(super) digest: u64,
    pub(super) slots: Vec<Slot>,
}

/// A connection that cannot be made.
pub(super) enum Connection {}

impl Connection {
    pub(super) async fn open(_: &QuorumRules, _: usize) -> Result<(Connection, ServerFacts), String> {
        Err("this Ringway was built without Redis (the feature `redis`)".to_owned())
    }

    pub(super) async fn closed(&self) {
        match *self {}
    }

    pub(super) async fn register(&self, _: &QuorumRules) -> Result<u64, String> {
        match *self {}
    }

    pub(super) async fn check(&self, _: u64, _: &[Slot]) -> Result<Checked, String> {
        match *self {}
    }

    pub(super) async fn write(&self, _: &WriteOrder) -> Result<(), String> {
        match *self {}
    }
}
