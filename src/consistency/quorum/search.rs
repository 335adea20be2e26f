//! The exhaustive search: every interleaving of one write, one fetch whose response is stored, and one read of it, at
//! three nodes, with a writer that crashes or gives up anywhere and a node that restarts empty. The decisions are those of
//! [`Look`] and [`Writer`]; the nodes do what the scripts do.
//!
//! The model has no clock. A mark may end once its write can no longer take effect, and a young node may count once each
//! live write has W marks again: that is what lease and `settle` are for.
//!
//! A read is a violation where it begins after the origin has the new value (another read may have seen it: not
//! linearizable) or after the writer's client has its answer (read after write), and serves the old value.

use super::*;
use foldhash::fast::FixedState;
use smallvec::SmallVec;
use std::collections::{HashSet, VecDeque};
use std::hash::BuildHasher;

const NODES: usize = 3;

/// A rule that is left out, or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ablation {
    None,
    StampOnlyAfter,
    StampOnlyBefore,
    BothStampsNoMark,
    MarkAndStampAtTheEnd,
    TimeoutUnmarks,
    LateRepliesJoin,
    UnnamedCounts,
    MarksBeforeStamp,
    AbsentEqualsAbsent,
    NoQuarantine,
}

#[derive(Clone, Copy)]
struct Variant {
    write: u32,
    read: u32,
    ablation: Ablation,
    restarts: u8,
}

/// The reply of a node to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct View {
    /// 0: absent.
    stamp: u8,
    life: u8,
    is_young: bool,
    is_marked: bool,
}

const BY_CHECK: u8 = 1;
const BY_BEGIN: u8 = 2;
const BY_END: u8 = 3;

/// A node, and what each party has exchanged with it. The order of nodes is no part of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Node {
    stamp: u8,
    life: u8,
    is_young: bool,
    is_marked: bool,
    has_begun: bool,
    has_ended: bool,
    fetcher: Option<View>,
    tag: Option<View>,
    reader: Option<View>,
    /// Marks that were read before the stamp, with an ablation.
    half: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Beginning,
    Forwarded,
    Ending,
    /// The client has its answer.
    Answered,
    /// The upstream connection was closed without an answer.
    GaveUp,
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Unsent,
    InFlight,
    Applied,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fetch {
    Looking,
    /// The tag is frozen.
    Asking,
    Arriving(bool),
    /// Stored, with the new value or the old one.
    Stored(bool),
    Passed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    nodes: [Node; NODES],
    phase: Phase,
    request: Request,
    fetch: Fetch,
    /// The read has begun; whether the writer's client had its answer then.
    read: Option<bool>,
    restarts: u8,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Broken {
    read_after_write: bool,
    linearizable: bool,
}

impl World {
    fn new(restarts: u8) -> World {
        World {
            nodes: [Node::default(); NODES],
            phase: Phase::Beginning,
            request: Request::Unsent,
            fetch: Fetch::Looking,
            read: None,
            restarts,
        }
    }

    fn has_new_value(&self) -> bool {
        self.request == Request::Applied
    }

    fn count(&self, test: impl Fn(&Node) -> bool) -> u32 {
        self.nodes.iter().filter(|node| test(node)).count() as u32
    }

    /// Returns whether a mark whose renewals have ended may be over: the write can no longer take effect.
    fn may_expire(&self) -> bool {
        matches!(self.phase, Phase::Answered | Phase::GaveUp | Phase::Crashed) && self.request != Request::InFlight
    }
}

struct Search {
    variant: Variant,
    /// The slot of all parties, with R of its nodes.
    rules: LookRules,
    needs: Needs,
}

impl Search {
    fn new(variant: Variant) -> Search {
        let nodes: NodeSet = (0..NODES as u8).collect();
        let slots: Slots = [ALL].into_iter().collect();
        let rules = LookRules::new(&slots, |_| Need { nodes, count: variant.read });
        let needs = [Need { nodes, count: variant.write }].into_iter().collect();
        Search { variant, rules, needs }
    }

    fn is(&self, ablation: Ablation) -> bool {
        self.variant.ablation == ablation
    }

    fn has_marks(&self) -> bool {
        !matches!(
            self.variant.ablation,
            Ablation::StampOnlyAfter | Ablation::StampOnlyBefore | Ablation::BothStampsNoMark
        )
    }

    fn stamps_at_begin(&self) -> bool {
        !matches!(self.variant.ablation, Ablation::StampOnlyAfter | Ablation::MarkAndStampAtTheEnd)
    }

    /// Returns the look of a party, by the production's rules.
    fn look(&self, views: impl Iterator<Item = Option<View>>) -> Look {
        let mut look = Look::new(self.rules.clone());
        for (node, view) in (0u8..).zip(views) {
            let Some(view) = view else { continue };
            let is_absent = view.stamp == 0;
            let equals = is_absent && self.is(Ablation::AbsentEqualsAbsent);
            let life = if equals { 0 } else { u64::from(view.life) + 1 };
            let stamp = (!is_absent || equals).then_some(u64::from(view.stamp));
            let slot = SlotView { stamp, is_marked: view.is_marked };
            look.add(&NodeReply {
                node,
                life: Life { birth: life, run: life },
                is_old: !view.is_young || self.is(Ablation::NoQuarantine),
                has_other_config: false,
                slots: [(ALL, slot)].into_iter().collect(),
            });
        }
        look
    }

    fn writer(&self, world: &World) -> Writer {
        let mut writer = Writer::begin(self.needs.clone(), 9000, 0);
        for (number, node) in (0u8..).zip(&world.nodes) {
            if node.has_begun {
                writer.marked(0, number);
            }
        }
        writer
    }

    /// Runs until every state was seen. Returns what was broken.
    fn run(&self) -> Broken {
        let (mut broken, hasher) = (Broken::default(), FixedState::default());
        let (mut seen, mut todo) = (HashSet::new(), VecDeque::from([World::new(self.variant.restarts)]));
        while let Some(world) = todo.pop_front() {
            let mut next: SmallVec<[World; 32]> = SmallVec::new();
            self.steps(&world, &mut next, &mut broken);
            for mut world in next {
                world.nodes.sort_unstable();
                if seen.insert(hasher.hash_one(world)) {
                    todo.push_back(world);
                }
            }
        }
        broken
    }

    fn steps(&self, world: &World, next: &mut SmallVec<[World; 32]>, broken: &mut Broken) {
        self.write(world, next);
        self.fetch(world, next);
        self.read(world, next, broken);
        for at in 0..NODES {
            self.node(world, at, next);
        }
    }

    fn write(&self, world: &World, next: &mut SmallVec<[World; 32]>) {
        let mut go = |phase, request| next.push(World { phase, request, ..*world });
        match world.phase {
            Phase::Beginning => {
                if self.writer(world).begun(0) == Begun::Marked {
                    go(Phase::Forwarded, Request::InFlight);
                }
                go(Phase::Crashed, world.request);
            }
            Phase::Forwarded => {
                if world.request == Request::Applied {
                    go(Phase::Ending, world.request);
                }
                go(Phase::GaveUp, world.request);
                go(Phase::Crashed, world.request);
            }
            Phase::Ending => {
                let mut writer = self.writer(world);
                writer.finish(Outcome::Answered, 0);
                (0u8..).zip(&world.nodes).filter(|(_, node)| node.has_ended).for_each(|(at, _)| writer.ended(at));
                let may_leave = match writer.farewell(1000) {
                    Farewell::Ended => true,
                    Farewell::Protected => self.has_marks(),
                    Farewell::Wait => false,
                };
                if may_leave {
                    go(Phase::Answered, world.request);
                }
                go(Phase::Crashed, world.request);
            }
            Phase::Answered | Phase::GaveUp | Phase::Crashed => {}
        }
        if world.request == Request::InFlight {
            go(world.phase, Request::Applied);
            go(world.phase, Request::Lost);
        }
    }

    fn fetch(&self, world: &World, next: &mut SmallVec<[World; 32]>) {
        let mut go = |nodes, fetch| next.push(World { nodes, fetch, ..*world });
        match world.fetch {
            Fetch::Looking => {
                let look = self.look(world.nodes.iter().map(|node| node.fetcher));
                match look.standing() {
                    Standing::Usable => {
                        let mut nodes = world.nodes;
                        nodes.iter_mut().for_each(|node| node.tag = node.fetcher);
                        go(nodes, Fetch::Asking);
                    }
                    Standing::Marked => go(world.nodes, Fetch::Passed),
                    _ => {}
                }
            }
            Fetch::Asking => go(world.nodes, Fetch::Arriving(world.has_new_value())),
            Fetch::Arriving(value) => {
                let mut nodes = world.nodes;
                // From here on only the tag counts.
                nodes.iter_mut().for_each(|node| (node.fetcher, node.half) = (None, None));
                go(nodes, Fetch::Stored(value));
            }
            Fetch::Stored(_) | Fetch::Passed => {}
        }
    }

    fn read(&self, world: &World, next: &mut SmallVec<[World; 32]>, broken: &mut Broken) {
        if world.fetch != Fetch::Stored(false) || !world.has_new_value() {
            return;
        }
        let Some(is_after_write) = world.read else {
            next.push(World { read: Some(world.phase == Phase::Answered), ..*world });
            return;
        };
        let unnamed = |node: &Node| if self.is(Ablation::UnnamedCounts) { node.reader } else { None };
        let tag = self.look(world.nodes.iter().map(|node| node.tag.or(unnamed(node)))).freeze();
        let look = self.look(world.nodes.iter().map(|node| node.reader));
        if tag.is_some_and(|tag| look.judge(&tag) == Verdict::Fresh) {
            broken.linearizable = true;
            broken.read_after_write |= is_after_write;
        }
    }

    /// Adds what can happen at a node.
    fn node(&self, world: &World, at: usize, next: &mut SmallVec<[World; 32]>) {
        let node = world.nodes[at];
        if world.restarts > 0 {
            let mut after = *world;
            after.restarts -= 1;
            after.nodes[at] = Node { stamp: 0, life: 1, is_young: true, is_marked: false, ..node };
            next.push(after);
        }
        let mut put = |node: Node| {
            let mut after = *world;
            after.nodes[at] = node;
            next.push(after);
        };
        if !node.has_begun && !node.has_ended {
            let stamp = if self.stamps_at_begin() { BY_BEGIN } else { node.stamp };
            put(Node { stamp, is_marked: self.has_marks(), has_begun: true, ..node });
        }
        let is_alive = matches!(world.phase, Phase::Forwarded | Phase::Beginning);
        let renews = is_alive && self.has_marks();
        if renews && node.life > 0 && !node.is_marked && self.writer(world).begun(0) == Begun::Marked {
            put(Node { is_marked: true, ..node });
        }
        let ends = world.phase == Phase::Ending
            || world.phase == Phase::Answered
            || (world.phase == Phase::GaveUp && self.is(Ablation::TimeoutUnmarks));
        if ends && !node.has_ended {
            let stamp = if self.is(Ablation::StampOnlyBefore) { node.stamp } else { BY_END };
            put(Node { stamp, is_marked: false, has_ended: true, ..node });
        }
        if node.is_marked && world.may_expire() {
            put(Node { is_marked: false, ..node });
        }
        if node.is_young && self.may_age(world) {
            put(Node { is_young: false, ..node });
        }
        self.replies(world, &node, put);
    }

    /// Adds the replies of a node to the fetcher or the reader.
    fn replies(&self, world: &World, node: &Node, mut put: impl FnMut(Node)) {
        let is_late = matches!(world.fetch, Fetch::Asking | Fetch::Arriving(_)) && self.is(Ablation::LateRepliesJoin);
        let of_fetcher = (world.fetch == Fetch::Looking || is_late) && node.fetcher.is_none();
        let of_reader = world.read.is_some() && node.reader.is_none();
        if !of_fetcher && !of_reader {
            return;
        }
        if self.is(Ablation::MarksBeforeStamp) && node.half.is_none() {
            put(Node { half: Some(node.is_marked), ..*node });
            return;
        }
        let creates = node.stamp == 0 && !self.is(Ablation::AbsentEqualsAbsent);
        let stamp = if creates { BY_CHECK } else { node.stamp };
        let is_marked = node.half.unwrap_or(node.is_marked);
        let view = View { stamp, life: node.life, is_young: node.is_young, is_marked };
        let mut after = Node { stamp, half: None, ..*node };
        if of_reader {
            after.reader = Some(view);
        } else {
            after.fetcher = Some(view);
            if is_late && !is_marked {
                after.tag = Some(view);
            }
        }
        put(after);
    }

    /// Returns whether as much time may have passed since a node's restart as it takes to count again: each write that
    /// may still take effect has put its mark on W nodes meanwhile.
    fn may_age(&self, world: &World) -> bool {
        match world.phase {
            Phase::Beginning => world.count(|node| node.has_begun) == 0,
            Phase::Forwarded => world.count(|node| node.is_marked) >= self.variant.write,
            Phase::Ending | Phase::Answered => true,
            Phase::GaveUp | Phase::Crashed => world.request != Request::InFlight,
        }
    }
}

fn search(write: u32, read: u32, ablation: Ablation, restarts: u8) -> Broken {
    Search::new(Variant { write, read, ablation, restarts }).run()
}

const HOLDS: Broken = Broken { read_after_write: false, linearizable: false };
const BROKEN: Broken = Broken { read_after_write: true, linearizable: true };
/// Read after write holds, and the rest does not.
const HALF: Broken = Broken { read_after_write: false, linearizable: true };

#[test]
fn the_design_is_linearizable_wherever_the_writer_crashes() {
    for (write, read) in [(2, 2), (3, 1), (1, 3)] {
        assert_eq!(search(write, read, Ablation::None, 0), HOLDS, "W={write} R={read}");
    }
}

#[test]
fn one_node_may_restart_empty_where_it_counts_only_later() {
    for (write, read) in [(2, 2), (3, 1), (1, 3)] {
        assert_eq!(search(write, read, Ablation::None, 1), HOLDS, "W={write} R={read}");
    }
    assert_eq!(search(2, 2, Ablation::NoQuarantine, 1), BROKEN);
}

#[test]
fn numbers_that_do_not_overlap_are_broken() {
    for (write, read) in [(2, 1), (1, 2), (1, 1)] {
        assert_eq!(search(write, read, Ablation::None, 0), BROKEN, "W={write} R={read}");
    }
}

#[test]
fn both_stamps_and_the_mark_are_needed() {
    for (ablation, expected) in
        [(Ablation::StampOnlyAfter, HALF), (Ablation::StampOnlyBefore, BROKEN), (Ablation::BothStampsNoMark, HALF)]
    {
        assert_eq!(search(2, 2, ablation, 0), expected, "{ablation:?}");
    }
    assert!(search(2, 2, Ablation::MarkAndStampAtTheEnd, 0).linearizable);
}

#[test]
fn a_timeout_must_leave_the_mark() {
    assert_eq!(search(2, 2, Ablation::TimeoutUnmarks, 0), HALF);
}

#[test]
fn tags_are_frozen_and_compared_by_the_nodes_that_they_name() {
    for (ablation, restarts) in [
        (Ablation::LateRepliesJoin, 0),
        (Ablation::UnnamedCounts, 0),
        (Ablation::MarksBeforeStamp, 0),
        (Ablation::AbsentEqualsAbsent, 1),
    ] {
        assert_eq!(search(2, 2, ablation, restarts), BROKEN, "{ablation:?}");
    }
}

#[test]
fn a_search_without_violations_has_seen_the_ends_of_a_write() {
    // Without these the verdict "holds" would say little.
    let search = Search::new(Variant { write: 2, read: 2, ablation: Ablation::None, restarts: 1 });
    let (mut seen, mut todo) = (HashSet::new(), vec![World::new(1)]);
    let (mut hits, mut broken) = ([false; 4], Broken::default());
    while let Some(world) = todo.pop() {
        hits[0] |= world.phase == Phase::Answered && world.read == Some(true);
        hits[1] |= world.phase == Phase::GaveUp && world.read.is_some();
        hits[2] |= world.phase == Phase::Crashed && world.read.is_some();
        hits[3] |= world.nodes.iter().any(|node| node.life == 1 && !node.is_young) && world.read.is_some();
        let mut next = SmallVec::new();
        search.steps(&world, &mut next, &mut broken);
        for mut world in next {
            world.nodes.sort_unstable();
            if seen.insert(world) {
                todo.push(world);
            }
        }
    }
    assert_eq!((hits, broken), ([true; 4], HOLDS));
}
