//! In place of the connections where Ringway is built without Redis: none is ever made.

use super::messages::{Checked, ServerFacts, WriteOrder};
use super::rules::QuorumRules;
use crate::consistency::quorum::Slot;

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
