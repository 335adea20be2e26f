//! The nodes and numbers by which a configuration verifies strong reads, and its digest.

use super::reach::Reach;
use crate::config::Quorum;
use crate::consistency::quorum::{LookRules, Millis, Need, Needs, NodeSet, Slot, Slots};
use crate::ring::{Member, Ring, Seed};
use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;
use std::time::Duration;

/// The version of the scripts and of what they keep.
const PROTOCOL: u64 = 1;
/// The points of each node on the ring of slots.
const POINTS: u32 = 256;

/// The settings of a configuration for the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuorumSettings {
    /// The name of the fleet, a part of every key.
    pub(crate) fleet: String,
    pub(crate) lease: Duration,
    /// The largest `settle` of the strong routes.
    pub(crate) settle: Duration,
    /// The nodes' identities, those of `former` among them.
    pub(crate) ids: Vec<String>,
    /// Their addresses, and the login.
    pub(crate) reach: Reach,
    /// The nodes in force, and their numbers.
    pub(crate) current: Spread,
    /// Those before a change.
    pub(crate) former: Option<Spread>,
    /// The matching of strong routes, with their templates and `settle`, as text.
    pub(crate) routes: String,
}

/// Some of the nodes, and the numbers of them that a slot needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// By their places in the list of all.
    pub(crate) nodes: Vec<u8>,
    pub(crate) quorum: Quorum,
}

/// The rules of a configuration, ready to be used.
pub(crate) struct QuorumRules {
    pub(crate) settings: QuorumSettings,
    /// Equal on all proxies that mark the same slots on the same nodes.
    pub(crate) digest: u64,
    current: Placement,
    former: Option<Placement>,
}

/// The nodes of each slot.
struct Placement {
    all: NodeSet,
    quorum: Quorum,
    /// `None` where each node holds every slot.
    ring: Option<(Ring, Vec<u8>)>,
}

impl Placement {
    fn new(ids: &[String], spread: &Spread) -> Placement {
        let all = spread.nodes.iter().copied().collect();
        let members: Vec<Member<'_>> =
            spread.nodes.iter().map(|node| Member { id: &ids[usize::from(*node)], weight: 1 }).collect();
        let ring = (spread.nodes.len() > spread.quorum.replicas)
            .then(|| (Ring::build(Seed::new("ringway slots"), POINTS, &members), spread.nodes.clone()));
        Placement { all, quorum: spread.quorum, ring }
    }

    fn nodes(&self, slot: Slot) -> NodeSet {
        let Some((ring, nodes)) = &self.ring else { return self.all };
        let hash = ring.hash_key(&slot.number().to_be_bytes());
        ring.walk(hash).take(self.quorum.replicas).map(|at| nodes[at]).collect()
    }

    /// Returns whether enough nodes have the digest of this process that every R nodes of every slot have one of them: all
    /// but N - W.
    fn is_registered(&self, registered: NodeSet) -> bool {
        let spare = self.quorum.replicas - self.quorum.write;
        registered.and(self.all).len() as usize + spare >= self.all.len() as usize
    }
}

impl QuorumRules {
    pub(crate) fn new(settings: QuorumSettings) -> QuorumRules {
        let current = Placement::new(&settings.ids, &settings.current);
        let former = settings.former.as_ref().map(|spread| Placement::new(&settings.ids, spread));
        let digest = digest(&settings);
        QuorumRules { settings, digest, current, former }
    }

    /// Returns the nodes that hold a slot.
    pub(crate) fn nodes(&self, slot: Slot) -> NodeSet {
        let former = self.former.as_ref().map_or_else(NodeSet::default, |former| former.nodes(slot));
        self.current.nodes(slot).with(former)
    }

    /// Returns W nodes of each slot, by the block in force and by the one before.
    pub(super) fn writes(&self, slots: &[Slot]) -> Needs {
        let places = [Some(&self.current), self.former.as_ref()];
        let need = |place: &Placement, slot| Need { nodes: place.nodes(slot), count: place.quorum.write as u32 };
        places.into_iter().flatten().flat_map(|place| slots.iter().map(move |slot| need(place, *slot))).collect()
    }

    /// Returns the rules of a look at slots.
    pub(super) fn reads(&self, slots: &Slots) -> LookRules {
        let count = self.current.quorum.read as u32;
        LookRules::new(slots, |slot| Need { nodes: self.current.nodes(slot), count })
    }

    /// Returns whether a change of the nodes is under way: reads pass to the nodes of the pool.
    pub(crate) fn is_changing(&self) -> bool {
        self.former.is_some()
    }

    /// Returns whether the digest of this process is known at so many nodes that it may act.
    pub(super) fn is_registered(&self, registered: NodeSet) -> bool {
        self.current.is_registered(registered)
            && self.former.as_ref().is_none_or(|former| former.is_registered(registered))
    }

    /// Returns the lease in milliseconds.
    pub(super) fn lease(&self) -> Millis {
        millis(self.settings.lease)
    }

    /// Returns the life of a mark, and the age from which the memory of a node counts, in milliseconds: a lease and the
    /// largest `settle`.
    pub(super) fn life(&self) -> Millis {
        millis(self.settings.lease) + millis(self.settings.settle)
    }
}

pub(super) fn millis(time: Duration) -> Millis {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn digest(settings: &QuorumSettings) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u64(PROTOCOL);
    hasher.write_u64(millis(settings.lease));
    hasher.write_u64(millis(settings.settle));
    hasher.write(settings.routes.as_bytes());
    hasher.write_u8(0xff);
    for spread in [Some(&settings.current), settings.former.as_ref()] {
        hasher.write_u8(0xfe);
        let Some(spread) = spread else { continue };
        let mut ids: Vec<&str> = spread.nodes.iter().map(|node| settings.ids[usize::from(*node)].as_str()).collect();
        ids.sort_unstable();
        for id in ids {
            hasher.write(id.as_bytes());
            hasher.write_u8(0xff);
        }
        let Quorum { replicas, write, read } = spread.quorum;
        [replicas, write, read].into_iter().for_each(|number| hasher.write_u64(number as u64));
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::quorum::{ALL, slot_of};

    fn settings(nodes: usize, replicas: usize) -> QuorumSettings {
        QuorumSettings {
            fleet: "f".into(),
            lease: Duration::from_secs(10),
            settle: Duration::from_secs(60),
            ids: (0..nodes).map(|node| format!("r{node}")).collect(),
            reach: Reach::default(),
            current: Spread {
                nodes: (0..nodes as u8).collect(),
                quorum: Quorum { replicas, write: replicas / 2 + 1, read: replicas.div_ceil(2) },
            },
            former: None,
            routes: "a".into(),
        }
    }

    #[test]
    fn a_slot_has_n_of_the_nodes() {
        let rules = QuorumRules::new(settings(5, 3));
        let slots: Vec<Slot> = (0..2000).map(slot_of).chain([ALL]).collect();
        let mut seen = NodeSet::default();
        for slot in &slots {
            assert_eq!(rules.nodes(*slot).len(), 3);
            seen = seen.with(rules.nodes(*slot));
        }
        assert_eq!(seen.len(), 5);
        let all: NodeSet = (0..3).collect();
        assert_eq!(QuorumRules::new(settings(3, 3)).nodes(ALL), all);
    }

    #[test]
    fn a_process_acts_once_all_but_n_minus_w_nodes_know_its_digest() {
        let rules = QuorumRules::new(settings(5, 3));
        assert!(rules.is_registered((0..4).collect()) && !rules.is_registered((0..3).collect()));
        let mut both = settings(4, 3);
        (both.current.nodes, both.former) =
            (vec![0, 1, 2], Some(Spread { nodes: vec![1, 2, 3], ..both.current.clone() }));
        let rules = QuorumRules::new(both);
        assert!(rules.is_registered((1..3).collect()) && !rules.is_registered([0, 1].into_iter().collect()));
        assert!(rules.is_changing());
        let needs = rules.writes(&[ALL]);
        assert!(needs.are_met_by((1..3).collect()) && !needs.are_met_by([0, 1].into_iter().collect()));
    }

    #[test]
    fn the_digest_is_that_of_what_must_agree() {
        let digest = |change: fn(&mut QuorumSettings)| {
            let mut settings = settings(3, 3);
            change(&mut settings);
            QuorumRules::new(settings).digest
        };
        let same = digest(|_| {});
        assert_eq!(digest(|settings| settings.reach = Reach::default()), same);
        assert_ne!(digest(|settings| settings.routes = "b".into()), same);
        assert_ne!(digest(|settings| settings.settle = Duration::from_secs(61)), same);
        assert_ne!(digest(|settings| settings.ids[1] = "other".into()), same);
        assert_ne!(digest(|settings| settings.current.quorum.read = 3), same);
        assert_ne!(digest(|settings| settings.former = Some(settings.current.clone())), same);
    }
}
