//! The check of one reader: what it waits for, and for how long.

use crate::consistency::quorum::{Look, LookRules, NodeReply, NodeSet, QuorumTag, Slot, Standing, Verdict};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The longest wait for R nodes of each slot.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// The longest wait for all N, from the begin: a tag that names more nodes survives the loss of one.
const FOR_ALL: Duration = Duration::from_millis(2);

/// A reader, as the connections see it.
pub(super) struct Asked {
    /// `None` once it is taken: later replies do not count.
    look: RefCell<Option<Look>>,
    slots: SmallVec<[(Slot, NodeSet); 6]>,
    /// The nodes whose replies are on their way.
    waiting: Cell<NodeSet>,
    told: Notify,
}

impl Asked {
    pub(super) fn new(rules: LookRules) -> Asked {
        Asked {
            slots: rules.slots.iter().map(|(slot, need)| (*slot, need.nodes)).collect(),
            look: RefCell::new(Some(Look::new(rules))),
            waiting: Cell::default(),
            told: Notify::new(),
        }
    }

    /// Returns the slots that a node holds.
    pub(super) fn slots_of(&self, node: u8) -> impl Iterator<Item = Slot> {
        self.slots.iter().filter(move |(_, nodes)| nodes.contains(node)).map(|(slot, _)| *slot)
    }

    /// Notes that a node is asked.
    pub(super) fn ask(&self, node: u8) {
        let mut waiting = self.waiting.get();
        waiting.insert(node);
        self.waiting.set(waiting);
    }

    pub(super) fn answered(&self, reply: &NodeReply) {
        if let Some(look) = &mut *self.look.borrow_mut() {
            look.add(reply);
        }
        self.failed(reply.node);
    }

    /// Notes that a node will not answer any more.
    pub(super) fn failed(&self, node: u8) {
        self.waiting.set(self.waiting.get().without([node].into_iter().collect()));
        self.told.notify_one();
    }

    fn is_settled(&self) -> bool {
        self.waiting.get().is_empty() || self.look.borrow().as_ref().is_none_or(Look::is_settled)
    }
}

/// A check that is on its way.
pub(crate) struct Check {
    asked: Rc<Asked>,
    began: Instant,
}

impl Check {
    pub(super) fn new(asked: Rc<Asked>, began: Instant) -> Check {
        Check { asked, began }
    }

    async fn wait(&self, until: Instant, is_over: impl Fn(&Asked) -> bool) {
        while !is_over(&self.asked) {
            if tokio::time::timeout_at(until.into(), self.asked.told.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Waits until R nodes of each slot have answered, or as many as will in time.
    pub(crate) async fn settle(&self) {
        self.wait(self.began + PATIENCE, Asked::is_settled).await;
    }

    /// Waits a moment for the nodes that have not answered yet, once R have: a tag that names all of them stays fresh
    /// whichever of them answer first.
    pub(crate) async fn settle_all(&self) {
        self.wait(Instant::now() + FOR_ALL, |asked| asked.waiting.get().is_empty()).await;
    }

    /// Returns what the look allows so far.
    pub(crate) fn standing(&self) -> Standing {
        self.asked.look.borrow().as_ref().map_or(Standing::QuorumLost, Look::standing)
    }

    /// Returns whether a stored response with this tag is fresh, by what has been answered so far.
    pub(crate) fn is_fresh(&self, tag: &QuorumTag) -> bool {
        self.asked.look.borrow().as_ref().is_some_and(|look| look.judge(tag) == Verdict::Fresh)
    }

    /// Returns the look; what is answered from here on does not count.
    pub(crate) fn into_look(self) -> Option<Look> {
        self.asked.look.borrow_mut().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::quorum::{ALL, Need, Slots};

    #[test]
    fn a_reader_waits_no_longer_than_a_node_can_answer() {
        let slots: Slots = [ALL].into_iter().collect();
        let nodes: NodeSet = (0..3).collect();
        let asked = Asked::new(LookRules::new(&slots, |_| Need { nodes, count: 2 }));
        assert!(asked.is_settled(), "no node is asked");
        (0..3).for_each(|node| asked.ask(node));
        assert!(!asked.is_settled());
        (0..3).for_each(|node| asked.failed(node));
        assert!(asked.is_settled());
        let check = Check::new(Rc::new(asked), Instant::now());
        assert_eq!(check.standing(), Standing::QuorumLost);
        assert!(check.into_look().is_some());
    }
}
