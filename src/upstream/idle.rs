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
    by_node: RefCell<HashMap<u64, Waiting, foldhash::fast::RandomState>>,
}

/// The idle connections to one node, which are in the node's process-wide count.
struct Waiting {
    node: Arc<NodeRuntime>,
    links: VecDeque<Idle>,
}

struct Idle {
    link: Box<Link>,
    since: Instant,
    until: Instant,
}

impl Waiting {
    fn at(node: &Arc<NodeRuntime>) -> Waiting {
        Waiting { node: Arc::clone(node), links: VecDeque::new() }
    }

    fn take_latest(&mut self) -> Option<Idle> {
        let idle = self.links.pop_back()?;
        self.node.idle.fetch_sub(1, Ordering::Relaxed);
        Some(idle)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.node.idle.fetch_sub(count(self.links.len()), Ordering::Relaxed);
    }
}

fn count(links: usize) -> u32 {
    u32::try_from(links).expect("the count of a node's idle connections fits")
}

impl IdleLinks {
    /// Returns a kept connection to the node without any event since its last response. Connections that the node has
    /// closed meanwhile, or on which it has sent something unexpected, are dropped. With `within`, only a connection
    /// that was used so recently.
    pub(crate) fn take(&self, node: &NodeRuntime, within: Option<Duration>) -> Option<Box<Link>> {
        let mut by_node = self.by_node.borrow_mut();
        let waiting = by_node.get_mut(&node.serial)?;
        // Those before the latest one have waited for longer.
        let is_fresh = |idle: &Idle| within.is_none_or(|within| idle.since.elapsed() < within);
        while waiting.links.back().is_some_and(is_fresh) {
            let mut idle = waiting.take_latest()?;
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
        let mut by_node = self.by_node.borrow_mut();
        let waiting = by_node.entry(node.serial).or_insert_with(|| Waiting::at(node));
        waiting.links.push_back(Idle { link, since: now, until: now + timeout });
    }

    /// Closes connections that were idle for too long, those that the node has closed, and those to removed nodes.
    /// Called about once a second.
    pub(crate) fn sweep(&self, now: Instant, is_known: impl Fn(u64) -> bool) {
        self.by_node.borrow_mut().retain(|&serial, waiting| {
            if !is_known(serial) {
                return false;
            }
            let before = waiting.links.len();
            waiting.links.retain_mut(|idle| idle.until > now && idle.link.is_quiet());
            waiting.node.idle.fetch_sub(count(before - waiting.links.len()), Ordering::Relaxed);
            !waiting.links.is_empty()
        });
    }
}
