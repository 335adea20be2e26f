//! Missed events: a pure state machine over the nodes of the bus that tells when some may have been.
//!
//! An event counts as published once W nodes have it at a time. A node is continuous from one reading to the next; where
//! it is not (its entries were trimmed, it was restarted, it is silent), the time between is a gap. An event is missed
//! only where W nodes have a gap at the time at which it was published: then every stored response from before is in
//! doubt. With R + W <= N one gap suffices, as the operator does not demand that readers overlap with writers.

/// A time, by a clock that is never set.
pub(super) type Moment = u64;

/// The most gaps of one node that are kept; the earliest become one.
const MAX_GAPS: usize = 8;

/// A finding at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// All entries that the node had at a moment were read.
    Read(Moment),
    /// Entries may have been lost since the last reading, up to a moment.
    Lost(Moment),
    /// The node has not answered since the last reading.
    Silent(Moment),
}

/// The continuity of reading, over all nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Gaps {
    /// The number of nodes with a gap at the same time by which an event can be missed.
    threshold: usize,
    nodes: Vec<Node>,
    /// The moment up to which everything that may have been missed is in doubt.
    doubted: Moment,
    /// Events may be missed as things are.
    is_open: bool,
}

/// The continuity of reading of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Node {
    /// All entries up to this moment were read or are in a gap.
    read: Moment,
    is_silent: bool,
    /// First and last moment of each gap that is over.
    gaps: Vec<(Moment, Moment)>,
}

impl Gaps {
    /// Returns the state of a process that has read nothing since its start.
    pub(super) fn new(replicas: usize, write: usize, read: usize, started: Moment) -> Gaps {
        let threshold = if read + write > replicas { write } else { 1 };
        let node = Node { read: started, is_silent: true, gaps: Vec::new() };
        Gaps { threshold, nodes: vec![node; replicas], doubted: started, is_open: true }
    }

    /// Notes a finding. Returns whether each response that was stored or validated before now is in doubt.
    pub(super) fn note(&mut self, at: usize, finding: Finding) -> bool {
        let Some(node) = self.nodes.get_mut(at) else { return false };
        let now = match finding {
            Finding::Read(moment) => {
                node.read = node.read.max(moment);
                node.is_silent = false;
                None
            }
            Finding::Lost(moment) => {
                node.is_silent = false;
                node.gaps.push((node.read.min(moment), moment));
                if node.gaps.len() > MAX_GAPS {
                    let second = node.gaps.remove(1);
                    node.gaps[0] = (node.gaps[0].0.min(second.0), node.gaps[0].1.max(second.1));
                }
                Some(moment)
            }
            Finding::Silent(moment) if !node.is_silent => {
                node.is_silent = true;
                Some(moment)
            }
            Finding::Silent(_) => None,
        };
        let was_open = self.is_open;
        self.is_open = self.overlap() >= self.threshold;
        let is_loss = matches!(finding, Finding::Lost(_));
        let is_doubt = self.is_open && (is_loss || !was_open);
        if let Some(now) = now.filter(|_| is_doubt) {
            self.doubted = self.doubted.max(now);
        }
        self.prune();
        self.is_open = self.overlap() >= self.threshold;
        is_doubt
    }

    /// Returns whether events may be missed as things are: too many nodes are silent.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns whether a node is silent.
    pub(super) fn is_silent(&self, at: usize) -> bool {
        self.nodes.get(at).is_none_or(|node| node.is_silent)
    }

    /// Returns the last moment up to which a node was read.
    pub(super) fn read(&self, at: usize) -> Moment {
        self.nodes.get(at).map_or(0, |node| node.read)
    }

    /// Returns the largest number of nodes that have a gap at the same time, after what is in doubt already.
    fn overlap(&self) -> usize {
        let starts = self.nodes.iter().flat_map(|node| node.spans(self.doubted)).map(|(first, _)| first);
        starts
            .map(|moment| self.nodes.iter().filter(|node| node.has_gap(moment, self.doubted)).count())
            .max()
            .unwrap_or(0)
    }

    /// Removes the gaps that cannot let an event be missed any more: enough other nodes were read past them.
    fn prune(&mut self) {
        let (doubted, threshold) = (self.doubted, self.threshold);
        let nodes = self.nodes.clone();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.gaps.retain(|&(first, last)| {
                let first = first.max(doubted + 1);
                let may_overlap = |other: &Node| {
                    other.read <= last || other.spans(doubted).any(|(from, to)| from <= last && first <= to)
                };
                let others = nodes.iter().enumerate().filter(|(other, node)| *other != at && may_overlap(node)).count();
                first <= last && others + 1 >= threshold
            });
        }
    }
}

impl Node {
    /// Returns the gaps, that of a silent node without an end, as far as they are after a moment.
    fn spans(&self, after: Moment) -> impl Iterator<Item = (Moment, Moment)> + '_ {
        let open = self.is_silent.then_some((self.read, Moment::MAX));
        let spans = self.gaps.iter().copied().chain(open);
        spans.map(move |(first, last)| (first.max(after + 1), last)).filter(|(first, last)| first <= last)
    }

    fn has_gap(&self, moment: Moment, after: Moment) -> bool {
        self.spans(after).any(|(first, last)| first <= moment && moment <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// All nodes were read at 1.
    fn connect(gaps: &mut Gaps, nodes: usize) {
        for node in 0..nodes {
            gaps.note(node, Finding::Lost(1));
        }
        for node in 0..nodes {
            gaps.note(node, Finding::Read(1));
        }
    }

    /// Returns the doubts that findings cause, at the nodes that they name, after all nodes were read at 1.
    fn doubts((n, w, r): (usize, usize, usize), findings: &[(usize, Finding)]) -> Vec<bool> {
        let mut gaps = Gaps::new(n, w, r, 0);
        connect(&mut gaps, n);
        assert!(!gaps.is_open());
        findings.iter().map(|&(node, finding)| gaps.note(node, finding)).collect()
    }

    #[test]
    fn a_gap_at_w_nodes_at_once_is_a_doubt() {
        use Finding::{Lost, Read, Silent};
        let one = (1, 1, 1);
        assert_eq!(doubts(one, &[(0, Read(5)), (0, Lost(7))]), [false, true]);
        assert_eq!(doubts(one, &[(0, Silent(5)), (0, Silent(6)), (0, Read(7))]), [true, false, false]);
        assert_eq!(doubts(one, &[(0, Silent(5)), (0, Lost(7)), (0, Read(8))]), [true, true, false]);
        let three = (3, 2, 2);
        // One node of three is never enough.
        assert_eq!(doubts(three, &[(0, Silent(5)), (0, Lost(7)), (0, Lost(9))]), [false; 3]);
        assert_eq!(doubts(three, &[(0, Lost(7)), (1, Lost(8))]), [false, true]);
        // The others were read past the first gap before the second began.
        assert_eq!(doubts(three, &[(0, Lost(7)), (0, Read(8)), (1, Read(8)), (2, Read(8)), (1, Lost(9))]), [false; 5]);
        assert_eq!(doubts(three, &[(0, Silent(5)), (1, Silent(6)), (2, Silent(7))]), [false, true, false]);
        // Without an overlap of readers and writers one node is enough.
        assert_eq!(doubts((3, 1, 1), &[(2, Lost(7))]), [true]);
        assert_eq!(doubts((2, 2, 1), &[(0, Lost(7)), (1, Lost(9))]), [false, true]);
    }

    #[test]
    fn the_first_connection_doubts_what_was_fetched_before() {
        let mut gaps = Gaps::new(3, 2, 2, 0);
        assert!(gaps.is_open());
        assert!(gaps.note(0, Finding::Lost(5)));
        assert!(!gaps.note(0, Finding::Read(5)) && gaps.is_open());
        assert!(gaps.note(1, Finding::Lost(6)));
        assert!(!gaps.note(1, Finding::Read(7)) && !gaps.is_open());
    }

    /// A world of nodes, one event and one reader, for the search. Time passes with each step.
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct World {
        gaps: Gaps,
        now: Moment,
        /// The nodes that have the event.
        copies: Vec<bool>,
        /// The nodes that lost entries, or their continuity, since they were read.
        lost: Vec<bool>,
        cut: Vec<bool>,
        /// The nodes that have yet to get the event.
        unsent: Vec<bool>,
        is_heard: bool,
        /// W nodes had the event at a time; the moment.
        published: Option<Moment>,
        /// The last moment before which everything is in doubt.
        doubted: Moment,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Send,
        Lose,
        Cut,
        Heal,
        Read,
        NoteSilence,
    }

    const STEPS: [Step; 6] = [Step::Send, Step::Lose, Step::Cut, Step::Heal, Step::Read, Step::NoteSilence];

    impl World {
        fn new((n, w, r): (usize, usize, usize), threshold: Option<usize>) -> World {
            let mut gaps = Gaps::new(n, w, r, 0);
            connect(&mut gaps, n);
            if let Some(threshold) = threshold {
                gaps.threshold = threshold;
            }
            let no = vec![false; n];
            World {
                gaps,
                now: 2,
                copies: no.clone(),
                lost: no.clone(),
                cut: no.clone(),
                unsent: vec![true; n],
                is_heard: false,
                published: None,
                doubted: 0,
            }
        }

        fn step(&self, at: usize, step: Step, w: usize) -> Option<World> {
            let mut next = self.clone();
            next.now += 1;
            let finding = match step {
                Step::Send if self.unsent[at] => {
                    (next.unsent[at], next.copies[at]) = (false, true);
                    let copies = next.copies.iter().filter(|copy| **copy).count();
                    if copies >= w && next.published.is_none() {
                        next.published = Some(next.now);
                    }
                    None
                }
                Step::Lose if !self.lost[at] => {
                    (next.lost[at], next.copies[at]) = (true, false);
                    None
                }
                Step::Cut if !self.cut[at] => {
                    next.cut[at] = true;
                    None
                }
                Step::Heal if self.cut[at] => {
                    next.cut[at] = false;
                    None
                }
                Step::Read if !self.cut[at] => {
                    next.is_heard |= self.copies[at];
                    let was_lost = std::mem::replace(&mut next.lost[at], false);
                    if was_lost && next.gaps.note(at, Finding::Lost(next.now)) {
                        next.doubted = next.now;
                    }
                    Some(Finding::Read(next.now))
                }
                Step::NoteSilence if self.cut[at] && !self.gaps.is_silent(at) => Some(Finding::Silent(next.now)),
                _ => return None,
            };
            if finding.is_some_and(|finding| next.gaps.note(at, finding)) {
                next.doubted = next.now;
            }
            Some(next)
        }

        /// Returns an equal world: only the order of moments counts, and the order of nodes does not.
        fn canonical(mut self) -> World {
            let mut order: Vec<usize> = (0..self.copies.len()).collect();
            order.sort_by_key(|&at| {
                (self.gaps.nodes[at].clone(), self.copies[at], self.lost[at], self.cut[at], self.unsent[at])
            });
            let sorted = |flags: &[bool]| order.iter().map(|&at| flags[at]).collect::<Vec<_>>();
            (self.copies, self.lost) = (sorted(&self.copies), sorted(&self.lost));
            (self.cut, self.unsent) = (sorted(&self.cut), sorted(&self.unsent));
            self.gaps.nodes = order.iter().map(|&at| self.gaps.nodes[at].clone()).collect();
            let mut moments = BTreeSet::new();
            self.each_moment(&mut |moment| {
                moments.insert(*moment);
            });
            // Apart by two, as the machine adds one.
            let ranks: Vec<Moment> = moments.into_iter().collect();
            self.each_moment(&mut |moment| *moment = 2 * ranks.binary_search(moment).unwrap() as Moment);
            self
        }

        fn each_moment(&mut self, visit: &mut dyn FnMut(&mut Moment)) {
            visit(&mut self.now);
            visit(&mut self.doubted);
            self.published.as_mut().map(&mut *visit);
            visit(&mut self.gaps.doubted);
            for node in &mut self.gaps.nodes {
                visit(&mut node.read);
                for (first, last) in &mut node.gaps {
                    visit(first);
                    visit(last);
                }
            }
        }

        /// Returns whether the reader is healed and serves what the event has struck: it has read all nodes since the
        /// event was published, has not heard it, and doubts nothing from before.
        fn is_broken(&self) -> bool {
            let healed =
                |published: Moment| (0..self.lost.len()).all(|at| !self.lost[at] && self.gaps.read(at) > published);
            self.published.is_some_and(|published| !self.is_heard && healed(published) && self.doubted < published)
        }
    }

    /// Searches all schedules up to a length, breadth first. Returns whether one is broken.
    fn search(quorum: (usize, usize, usize), threshold: Option<usize>, steps: usize) -> bool {
        let mut known = BTreeSet::new();
        let mut worlds = vec![World::new(quorum, threshold).canonical()];
        for _ in 0..steps {
            let mut next = Vec::new();
            for world in worlds {
                let all = (0..quorum.0).flat_map(|at| STEPS.iter().map(move |&step| (at, step)));
                for world in all.filter_map(|(at, step)| world.step(at, step, quorum.1)).map(World::canonical) {
                    if world.is_broken() {
                        return true;
                    }
                    if known.insert(world.clone()) {
                        next.push(world);
                    }
                }
            }
            worlds = next;
        }
        false
    }

    #[test]
    fn no_schedule_leaves_a_struck_response_without_doubt() {
        for (quorum, steps) in [((1, 1, 1), 10), ((2, 1, 2), 7), ((2, 2, 1), 7), ((2, 1, 1), 7), ((3, 2, 2), 7)] {
            assert!(!search(quorum, None, steps), "{quorum:?}");
        }
    }

    #[test]
    fn the_search_finds_a_threshold_that_is_too_high() {
        assert!(search((1, 1, 1), Some(2), 10));
        assert!(search((2, 1, 2), Some(2), 7));
        assert!(search((3, 2, 2), Some(3), 8));
    }

    proptest! {
        /// Long schedules at random: as above.
        #[test]
        fn any_schedule_keeps_the_promise(
            picks in proptest::collection::vec((0..3usize, 0..6usize), 1..60), kind in 0..4usize,
        ) {
            let quorum = [(1, 1, 1), (2, 1, 2), (3, 2, 2), (3, 1, 1)][kind];
            let mut world = World::new(quorum, None);
            for (at, step) in picks {
                if let Some(next) = world.step(at % quorum.0, STEPS[step], quorum.1) {
                    world = next;
                }
                prop_assert!(!world.is_broken(), "{quorum:?}");
                prop_assert!(world.gaps.nodes.iter().all(|node| node.gaps.len() <= MAX_GAPS));
            }
        }
    }
}
