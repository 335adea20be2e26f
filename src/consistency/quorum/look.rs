//! The replies of the nodes to a reader, and what follows of them: the tag of a response that is fetched now, and the
//! verdict on one that is stored.

use super::nodes::{Need, Needs, NodeSet};
use super::slot::{Slot, Slots};
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;
use std::hash::Hasher as _;

/// One memory of a node. A node that has restarted, or whose data was removed, has another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Life {
    /// The node's random birth key, which is lost with its data.
    pub(crate) birth: u64,
    /// The hash of the server's `run_id`, which a restart changes.
    pub(crate) run: u64,
}

/// The state of a slot on a node. Stamp and marks were read at one moment, or the stamp first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SlotView {
    /// `None`: there is none, which equals nothing.
    pub(crate) stamp: Option<u64>,
    /// A write that has not ended, or whose outcome is unknown, has its mark here.
    pub(crate) is_marked: bool,
}

/// The reply of one node to a reader.
#[derive(Clone, Debug)]
pub(crate) struct NodeReply {
    pub(crate) node: u8,
    pub(crate) life: Life,
    /// Its memory is as old as the longest protection that it may have forgotten.
    pub(crate) is_old: bool,
    /// A proxy with another configuration is alive.
    pub(crate) has_other_config: bool,
    /// For each slot of the reader that the node holds.
    pub(crate) slots: SmallVec<[(Slot, SlotView); 6]>,
}

/// The slots of a reader, and the nodes that it needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LookRules {
    /// Each slot, with R of its nodes.
    pub(crate) slots: SmallVec<[(Slot, Need); 6]>,
    /// The same needs, each once.
    pub(crate) needs: Needs,
}

/// A slot's state on a node, as one number: its stamp, in this life of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Component {
    slot: Slot,
    node: u8,
    value: u64,
}

/// The stamps of a response's slots from before its fetch began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct QuorumTag(Box<[Component]>);

/// The replies of the nodes to one reader so far. They were asked after its request had arrived.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Look {
    rules: LookRules,
    answered: NodeSet,
    /// Those among them whose memory is old enough to count.
    old: NodeSet,
    /// Of old nodes alone.
    components: SmallVec<[Component; 9]>,
    is_marked: bool,
    has_other_config: bool,
}

/// The consequence of a reader's look, whatever is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Stored responses may be compared, and a fetch may begin whose response is stored.
    Usable,
    /// A write is under way: the request passes to the node, and nothing is stored.
    Marked,
    /// Proxies with another configuration are alive, which may mark other slots: the same.
    OtherConfig,
    /// Enough nodes answer, and too few of them remember enough: the same.
    Young,
    /// Fewer than R nodes have answered.
    QuorumLost,
}

/// The verdict on a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No write of its groups has begun since its fetch did.
    Fresh,
    /// One may have.
    Changed,
}

impl LookRules {
    /// Returns the rules for slots with these needs.
    pub(crate) fn new(slots: &Slots, need: impl Fn(Slot) -> Need) -> LookRules {
        let slots: SmallVec<[(Slot, Need); 6]> = slots.iter().map(|slot| (*slot, need(*slot))).collect();
        let needs = slots.iter().map(|(_, need)| *need).collect();
        LookRules { slots, needs }
    }
}

impl QuorumTag {
    fn of(&self, slot: Slot, node: u8) -> Option<u64> {
        self.0.iter().find(|it| it.node == node && it.slot == slot).map(|it| it.value)
    }

    /// Returns its memory in bytes.
    pub(crate) fn size(&self) -> usize {
        size_of_val(&*self.0)
    }
}

impl Look {
    /// Returns the look of a reader whom no node has answered yet.
    pub(crate) fn new(rules: LookRules) -> Look {
        Look {
            rules,
            answered: NodeSet::default(),
            old: NodeSet::default(),
            components: SmallVec::new(),
            is_marked: false,
            has_other_config: false,
        }
    }

    /// Notes the reply of a node.
    pub(crate) fn add(&mut self, reply: &NodeReply) {
        self.answered.insert(reply.node);
        self.has_other_config |= reply.has_other_config;
        // The mark of a young node counts: only what it has forgotten does not.
        self.is_marked |= reply.slots.iter().any(|(_, view)| view.is_marked);
        if !reply.is_old {
            return;
        }
        self.old.insert(reply.node);
        for (slot, view) in &reply.slots {
            if let Some(stamp) = view.stamp {
                let value = component(reply.life, stamp);
                self.components.push(Component { slot: *slot, node: reply.node, value });
            }
        }
    }

    /// Returns whether R nodes of each slot have answered whose memory counts, or a mark is seen: more replies may only
    /// turn a verdict of [`Verdict::Changed`].
    pub(crate) fn is_settled(&self) -> bool {
        self.is_marked || self.has_other_config || self.rules.needs.are_met_by(self.old)
    }

    /// Returns what the look allows.
    pub(crate) fn standing(&self) -> Standing {
        if self.is_marked {
            Standing::Marked
        } else if self.has_other_config {
            Standing::OtherConfig
        } else if !self.rules.needs.are_met_by(self.answered) {
            Standing::QuorumLost
        } else if !self.rules.needs.are_met_by(self.old) {
            Standing::Young
        } else {
            Standing::Usable
        }
    }

    /// Returns the tag of a response whose fetch begins now; `None` where its response may not be stored.
    pub(crate) fn freeze(&self) -> Option<QuorumTag> {
        (self.standing() == Standing::Usable).then(|| QuorumTag(self.components.as_slice().into()))
    }

    /// Returns the verdict on a stored response: it is fresh where, for each slot, R nodes that its tag names answer, and
    /// all of them as the tag has it.
    pub(crate) fn judge(&self, tag: &QuorumTag) -> Verdict {
        if self.standing() != Standing::Usable {
            return Verdict::Changed;
        }
        let is_fresh = |(slot, need): &(Slot, Need)| {
            let mut equal = 0;
            for node in self.old.and(need.nodes).iter() {
                let Some(known) = tag.of(*slot, node) else { continue };
                let shown = self.components.iter().find(|it| it.node == node && it.slot == *slot);
                if shown.is_none_or(|shown| shown.value != known) {
                    return false;
                }
                equal += 1;
            }
            equal >= need.count
        };
        match self.rules.slots.iter().all(is_fresh) {
            true => Verdict::Fresh,
            false => Verdict::Changed,
        }
    }
}

/// Returns a stamp in a life of its node as one number. Stamps and lives are random, and compared for equality alone.
fn component(life: Life, stamp: u64) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u64(life.birth);
    hasher.write_u64(life.run);
    hasher.write_u64(stamp);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::slot::{ALL, slot_of};
    use super::*;

    fn look(read: u32, replies: &[NodeReply]) -> Look {
        let slots: Slots = [slot_of(1), ALL].into_iter().collect();
        let nodes: NodeSet = (0..3).collect();
        let mut look = Look::new(LookRules::new(&slots, |_| Need { nodes, count: read }));
        replies.iter().for_each(|reply| look.add(reply));
        look
    }

    fn reply(node: u8, stamp: Option<u64>) -> NodeReply {
        let view = SlotView { stamp, is_marked: false };
        let slots = [(slot_of(1), view), (ALL, SlotView { stamp: Some(9), is_marked: false })].into_iter().collect();
        NodeReply { node, life: Life { birth: 1, run: 1 }, is_old: true, has_other_config: false, slots }
    }

    #[test]
    fn a_look_allows_what_its_replies_do() {
        let (a, b) = (reply(0, Some(5)), reply(1, Some(6)));
        assert_eq!(look(2, &[a.clone(), b.clone()]).standing(), Standing::Usable);
        assert_eq!(look(2, std::slice::from_ref(&a)).standing(), Standing::QuorumLost);
        let young = NodeReply { is_old: false, ..b.clone() };
        assert_eq!(look(2, &[a.clone(), young.clone()]).standing(), Standing::Young);
        assert_eq!(look(2, &[a.clone(), young, reply(2, Some(7))]).standing(), Standing::Usable);
        let other = NodeReply { has_other_config: true, ..b.clone() };
        assert_eq!(look(2, &[a.clone(), other]).standing(), Standing::OtherConfig);
        let mut marked = NodeReply { is_old: false, ..b };
        marked.slots[0].1.is_marked = true;
        let marked = look(2, &[a, marked]);
        assert_eq!((marked.standing(), marked.freeze()), (Standing::Marked, None), "a young node's mark counts");
        assert!(marked.is_settled());
    }

    #[test]
    fn a_response_is_fresh_by_r_equal_nodes_of_its_tag() {
        let (a, b, c) = (reply(0, Some(5)), reply(1, Some(6)), reply(2, Some(7)));
        let tag = look(2, &[a.clone(), b.clone()]).freeze().unwrap();
        let judge = |replies: &[NodeReply]| look(2, replies).judge(&tag);
        assert_eq!(judge(&[a.clone(), b.clone()]), Verdict::Fresh);
        assert_eq!(judge(&[a.clone(), b.clone(), c.clone()]), Verdict::Fresh);
        assert_eq!(judge(&[a.clone(), c.clone()]), Verdict::Changed, "the tag does not name the last one");
        assert_eq!(judge(&[a.clone(), reply(1, Some(8)), c.clone()]), Verdict::Changed);
        assert_eq!(judge(&[a.clone(), b.clone(), reply(2, None)]), Verdict::Fresh);
        let wide = look(2, &[a.clone(), b.clone(), c.clone()]).freeze().unwrap();
        let restarted = NodeReply { life: Life { birth: 2, run: 2 }, is_old: false, ..c.clone() };
        assert_eq!(look(2, &[a.clone(), b.clone(), restarted.clone()]).judge(&wide), Verdict::Fresh);
        let aged = NodeReply { is_old: true, ..restarted };
        assert_eq!(look(2, &[a, b.clone(), aged]).judge(&wide), Verdict::Changed, "another life of the node");
        let absent = look(2, &[reply(0, None), b.clone(), c]).freeze().unwrap();
        assert_eq!(look(2, &[reply(0, None), b]).judge(&absent), Verdict::Changed, "no stamp equals nothing");
    }
}
