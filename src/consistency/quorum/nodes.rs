//! Sets of nodes, and the numbers of them that a decision needs.

use smallvec::SmallVec;

/// A set of nodes, by their numbers below 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeSet(u64);

/// So many of some nodes are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Need {
    pub(crate) nodes: NodeSet,
    pub(crate) count: u32,
}

/// All of these are needed: one for each slot whose nodes differ from those of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Needs(SmallVec<[Need; 3]>);

impl NodeSet {
    pub(crate) fn insert(&mut self, node: u8) {
        self.0 |= 1 << node;
    }

    pub(crate) fn contains(self, node: u8) -> bool {
        self.0 >> node & 1 == 1
    }

    pub(crate) fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn and(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 & other.0)
    }

    pub(crate) fn with(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 | other.0)
    }

    /// Returns the nodes of this set that the other one lacks.
    pub(crate) fn without(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 & !other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |node| self.contains(*node))
    }
}

impl FromIterator<u8> for NodeSet {
    fn from_iter<I: IntoIterator<Item = u8>>(nodes: I) -> NodeSet {
        let mut set = NodeSet::default();
        nodes.into_iter().for_each(|node| set.insert(node));
        set
    }
}

impl Needs {
    /// Adds a need, unless it is there already.
    pub(crate) fn add(&mut self, need: Need) {
        if !self.0.contains(&need) {
            self.0.push(need);
        }
    }

    /// Returns whether these nodes are enough.
    pub(crate) fn are_met_by(&self, nodes: NodeSet) -> bool {
        self.0.iter().all(|need| nodes.and(need.nodes).len() >= need.count)
    }

    /// Returns all nodes that are concerned.
    pub(crate) fn nodes(&self) -> NodeSet {
        self.0.iter().fold(NodeSet::default(), |all, need| all.with(need.nodes))
    }
}

impl FromIterator<Need> for Needs {
    fn from_iter<I: IntoIterator<Item = Need>>(needs: I) -> Needs {
        let mut all = Needs::default();
        needs.into_iter().for_each(|need| all.add(need));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_counts_by_itself() {
        let set = |nodes: &[u8]| nodes.iter().copied().collect::<NodeSet>();
        let need = |nodes: &[u8], count| Need { nodes: set(nodes), count };
        let needs: Needs = [need(&[0, 1, 2], 2), need(&[2, 3, 63], 2), need(&[0, 1, 2], 2)].into_iter().collect();
        assert_eq!((needs.0.len(), needs.nodes()), (2, set(&[0, 1, 2, 3, 63])));
        assert!(needs.are_met_by(set(&[1, 2, 63])) && !needs.are_met_by(set(&[0, 1, 3])));
        assert!(Needs::default().are_met_by(NodeSet::default()));
        assert_eq!(needs.nodes().without(set(&[0, 1, 2])).iter().collect::<Vec<_>>(), [3, 63]);
    }
}
