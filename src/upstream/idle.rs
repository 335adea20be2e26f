//! One worker's connections that wait for a request, the latest used first.

use super::link::Link;
use super::node::NodeRuntime;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The idle connections of one worker.
#[derive(Default)]
pub(crate) struct IdleLinks {
    by_node: RefCell<HashMap<u64, VecDeque<Idle>, foldhash::fast::RandomState>>,
}

struct Idle {
    link: Box<Link>,
    since: Instant,
    until: Instant,
    _counted: Counted,
}

/// One of a node's idle connections in the process-wide count.
struct Counted(Arc<NodeRuntime>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Ordering::Relaxed);
    }
}

impl IdleLinks {
    /// Returns a kept connection to the node without any event since its last response. Connections that the node has
    /// closed meanwhile, or on which it has sent something unexpected, are dropped. With `within`, only a connection
    /// that was used so recently.
    pub(crate) fn take(&self, node: &NodeRuntime, within: Option<Duration>) -> Option<Box<Link>> {
        let mut by_node = self.by_node.borrow_mut();
        let waiting = by_node.get_mut(&node.serial)?;
        while let Some(mut idle) = waiting.pop_back() {
            // Those before it have waited for longer.
            if within.is_some_and(|within| idle.since.elapsed() >= within) {
                waiting.push_back(idle);
                return None;
            }
            if idle.link.is_quiet() {
                return Some(idle.link);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if the node may have one more.
    pub(crate) fn put(&self, node: &Arc<NodeRuntime>, link: Box<Link>, now: Instant, timeout: Duration, max_idle: u32) {
        if node.idle.fetch_add(1, Ordering::Relaxed) >= max_idle {
            node.idle.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let idle = Idle { link, since: now, until: now + timeout, _counted: Counted(Arc::clone(node)) };
        self.by_node.borrow_mut().entry(node.serial).or_default().push_back(idle);
    }

    /// Closes connections that were idle for too long, those that the node has closed, and those to removed nodes.
    /// Called about once a second.
    pub(crate) fn sweep(&self, now: Instant, is_known: impl Fn(u64) -> bool) {
        self.by_node.borrow_mut().retain(|&serial, waiting| {
            if !is_known(serial) {
                return false;
            }
            waiting.retain_mut(|idle| idle.until > now && idle.link.is_quiet());
            !waiting.is_empty()
        });
    }
}
