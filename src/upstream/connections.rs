//! One worker's connections to nodes.

use super::http2::SharedLinks;
use super::idle::IdleLinks;
use crate::http::budget::Budget;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The connections that a worker keeps, and the budget for the bodies that it keeps for another attempt.
pub(crate) struct NodeConnections {
    /// Connections of HTTP/1 that wait for a request.
    pub(super) idle: Rc<IdleLinks>,
    /// Connections of HTTP/2, which requests share.
    pub(super) shared: SharedLinks,
    pub(super) budget: Arc<Budget>,
}

impl NodeConnections {
    pub(crate) fn new(budget: Arc<Budget>) -> NodeConnections {
        NodeConnections { idle: Rc::default(), shared: SharedLinks::default(), budget }
    }

    /// Closes the connections that were idle for too long, and those to nodes that are gone. `idle_timeout` returns the
    /// longest idle time by a node's serial; none for a node that is gone. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant, idle_timeout: impl Fn(u64) -> Option<Duration>) {
        self.idle.sweep(now, |serial| idle_timeout(serial).is_some());
        self.shared.sweep(now, idle_timeout);
    }
}
