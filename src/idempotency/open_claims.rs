//! The open claims of this process: each is kept until the store has recorded its end, whatever happens to its task.

use super::identity::Id;
use super::record::{ReleaseWay, Token};
use foldhash::{HashMap, HashSet};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::Duration;

/// Claims whose end the store has not heard; beyond that, new claims are refused.
const MAX_UNSETTLED: usize = 10_000;
/// The number of them that are tried again in a round.
const SETTLED_A_ROUND: usize = 1000;

/// The end of a claim that no task will settle any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abandoned {
    /// Nothing was sent.
    Released(ReleaseWay),
    /// It may have run.
    Unknown,
}

/// A claim without a task, whose end the store has not recorded.
#[derive(Clone, Copy)]
pub(super) struct Unsettled {
    pub(super) id: Id,
    pub(super) end: Abandoned,
    pub(super) ttl: Duration,
    /// It began a saga, which has not gone on.
    pub(super) of_saga: bool,
    /// The store was called, and has not answered yet.
    pub(super) is_told: bool,
}

/// The open claims of this process.
#[derive(Default)]
pub(super) struct OpenClaims(Mutex<Claims>);

#[derive(Default)]
struct Claims {
    /// Claims that were sent to the store, or have a task.
    held: HashSet<Token>,
    unsettled: HashMap<Token, Unsettled>,
    /// The last claims that were never granted and whose fate was unknown: copies of them may still arrive.
    ungranted: VecDeque<Token>,
}

impl OpenClaims {
    fn lock(&self) -> MutexGuard<'_, Claims> {
        self.0.lock()
    }

    /// Registers a claim before it is sent to the store. Returns whether there is room for it.
    pub(super) fn enter(&self, token: Token) -> bool {
        let mut claims = self.lock();
        claims.unsettled.len() < MAX_UNSETTLED && claims.held.insert(token)
    }

    /// Removes a claim of whose end the store has heard, or which the store has refused.
    pub(super) fn leave(&self, token: Token) {
        let mut claims = self.lock();
        claims.held.remove(&token);
        claims.unsettled.remove(&token);
    }

    /// Notes the end of a claim without a task.
    pub(super) fn abandon(&self, token: Token, unsettled: Unsettled) {
        let mut claims = self.lock();
        claims.held.remove(&token);
        claims.unsettled.insert(token, unsettled);
    }

    /// Notes that a claim was never granted, before it is abandoned.
    pub(super) fn was_not_granted(&self, token: Token) {
        let mut claims = self.lock();
        if claims.ungranted.len() == MAX_UNSETTLED {
            claims.ungranted.pop_front();
        }
        claims.ungranted.push_back(token);
    }

    /// Returns whether certainly no request was sent under a claim.
    pub(super) fn is_ungranted(&self, token: Token) -> bool {
        self.lock().ungranted.contains(&token)
    }

    /// Returns the end of a claim without a task that the store has not recorded.
    pub(super) fn unsettled(&self, token: Token) -> Option<Abandoned> {
        self.lock().unsettled.get(&token).map(|unsettled| unsettled.end)
    }

    /// Returns the claims whose end the store must record.
    pub(super) fn untold(&self) -> Vec<(Token, Unsettled)> {
        let claims = self.lock();
        let untold = claims.unsettled.iter().filter(|(_, unsettled)| !unsettled.is_told);
        untold.take(SETTLED_A_ROUND).map(|(token, unsettled)| (*token, *unsettled)).collect()
    }

    /// Returns whether a claim is open.
    pub(super) fn contains(&self, token: Token) -> bool {
        let claims = self.lock();
        claims.held.contains(&token) || claims.unsettled.contains_key(&token)
    }

    /// Returns whether a claim has a task.
    pub(super) fn are_held(&self) -> bool {
        !self.lock().held.is_empty()
    }

    /// Returns whether the store has recorded the end of every claim without a task.
    pub(super) fn are_settled(&self) -> bool {
        self.lock().unsettled.is_empty()
    }
}
