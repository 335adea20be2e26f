//! The time limits of a request to the nodes of a pool.

use super::pool::Pool;
use crate::clock::BootTime;
use std::time::{Duration, Instant};

/// The time limits of a request over all attempts. Those of one attempt are the pool's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// When the first attempt begins.
    pub(crate) started: Instant,
    /// The time by which the response's body must be complete; `None` for no limit.
    pub(crate) until: Option<Instant>,
    /// The time from which nothing more is sent, where the request has a claim: another process may run it then.
    pub(crate) send_by: Option<BootTime>,
}

impl Deadlines {
    /// Returns the deadlines of a request that has begun at `started`, by the pool's `timeouts`.
    pub(crate) fn from(started: Instant, pool: &Pool) -> Deadlines {
        let total = pool.timeouts.total;
        Deadlines { started, until: (!total.is_zero()).then(|| started + total), send_by: None }
    }

    /// Returns the same for a request that begins now.
    pub(crate) fn from_now(pool: &Pool) -> Deadlines {
        Deadlines::from(Instant::now(), pool)
    }

    /// Returns whether the request's claim is too old to send anything under it.
    pub(super) fn has_lapsed(&self) -> bool {
        self.send_by.is_some_and(|by| BootTime::now() >= by)
    }

    /// Shortens a time to what is left until nothing more is sent; zero is no limit.
    pub(super) fn before_lapse(&self, time: Duration) -> Duration {
        let Some(by) = self.send_by else { return time };
        let left = by.left().max(Duration::from_millis(1));
        if time.is_zero() { left } else { time.min(left) }
    }
}
