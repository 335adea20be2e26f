//! The writes that the process knows, by group: a stored response that does not include one of them is validated.

use super::group::{GroupId, Groups};
use super::tag::Tag;
use super::vector::{Dot, MAX_CLOCK, Vector};
use bytes::Buf as _;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The most groups that are remembered, over all shards. The writes of a shard that overflows are joined into one
/// vector, which all its groups must cover.
const MAX_GROUPS: usize = 100_000;
const SHARDS: usize = 16;
/// The most writes of a group that are kept apart.
const MAX_WRITES: usize = 8;

/// A write of a causal route that a node has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) dot: Dot,
    /// The clock of its process when it began: the answers that it is later than.
    pub(crate) clock: Arc<Vector>,
    pub(crate) groups: Groups,
}

/// The relation of the known writes of some groups to a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Relation {
    /// The response includes all of them.
    Covered,
    /// A write is later than the response.
    Superseded,
    /// Neither the response nor a write includes the other.
    Concurrent,
}

/// A write that is known of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) dot: Dot,
    pub(crate) clock: Arc<Vector>,
}

/// The known writes.
#[derive(Default)]
pub(crate) struct Writes {
    shards: [Mutex<Shard>; SHARDS],
    /// No write is known: then a look-up takes no lock.
    has_any: AtomicBool,
}

#[derive(Default)]
struct Shard {
    groups: HashMap<GroupId, SmallVec<[Known; 1]>>,
    /// The writes that are no longer kept apart.
    floor: Vector,
}

impl Shard {
    fn note(&mut self, group: GroupId, known: Known) {
        if self.groups.len() >= MAX_GROUPS / SHARDS && !self.groups.contains_key(&group) {
            let dots = self.groups.drain().flat_map(|(_, writes)| writes).map(|known| known.dot);
            for dot in dots.collect::<Vec<_>>() {
                self.floor.join(dot);
            }
        }
        let writes = self.groups.entry(group).or_default();
        // A write that the new one includes says nothing more.
        writes.retain(|other| !known.clock.covers(other.dot) && other.dot != known.dot);
        if writes.len() >= MAX_WRITES {
            self.floor.join(writes.remove(0).dot);
        }
        writes.push(known);
    }

    fn relation(&self, group: GroupId, tag: &Tag) -> Relation {
        let known = self.groups.get(&group).into_iter().flatten();
        let of = |known: &Known| match (tag.covers(known.dot), known.clock.covers(tag.dot)) {
            (true, _) => Relation::Covered,
            (false, true) => Relation::Superseded,
            (false, false) => Relation::Concurrent,
        };
        let floor = match self.floor.iter().all(|dot| tag.covers(dot)) {
            true => Relation::Covered,
            false => Relation::Superseded,
        };
        known.map(of).fold(floor, Relation::max)
    }
}

impl Writes {
    fn shard(&self, group: GroupId) -> &Mutex<Shard> {
        &self.shards[(group >> 32) as usize % SHARDS]
    }

    /// Notes a write of this process or of another one.
    pub(crate) fn note(&self, write: &Write) {
        for group in &write.groups {
            let known = Known { dot: write.dot, clock: Arc::clone(&write.clock) };
            self.shard(*group).lock().note(*group, known);
        }
        if !write.groups.is_empty() {
            self.has_any.store(true, Ordering::Release);
        }
    }

    /// Replaces the dots of a process that is forgotten by one that is taken where there are any.
    pub(super) fn forget(&self, process: u64, next: impl Fn() -> Dot) {
        let mut taken = None;
        for shard in &self.shards {
            let mut shard = shard.lock();
            for known in shard.groups.values_mut().flatten().filter(|known| known.dot.process == process) {
                known.dot = *taken.get_or_insert_with(&next);
            }
            if shard.floor.forget(process) {
                shard.floor.join(*taken.get_or_insert_with(&next));
            }
        }
    }

    /// Returns the relation of the known writes of these groups to a stored response.
    pub(crate) fn relation(&self, groups: &[GroupId], tag: &Tag) -> Relation {
        if !self.has_any.load(Ordering::Acquire) {
            return Relation::Covered;
        }
        let of = |group: &GroupId| self.shard(*group).lock().relation(*group, tag);
        groups.iter().map(of).max().unwrap_or(Relation::Covered)
    }

    /// Returns the known writes of a group, the last one at the end.
    pub(crate) fn of(&self, group: GroupId) -> Vec<Known> {
        self.shard(group).lock().groups.get(&group).map_or_else(Vec::new, |writes| writes.to_vec())
    }

    /// Returns the number of groups with known writes.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().groups.len()).sum()
    }
}

/// The most groups of a write that travel.
const MAX_GROUPS_OF_WRITE: usize = 255;

impl Write {
    /// Returns the bytes of a write, for the bus: its dot, its clock and its groups, as numbers of 8 bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |number: u64| bytes.extend_from_slice(&number.to_be_bytes());
        put(self.dot.process);
        put(self.dot.number);
        // A clock with fewer processes says less, and nothing wrong.
        put(self.clock.iter().len().min(MAX_CLOCK) as u64);
        for dot in self.clock.iter().take(MAX_CLOCK) {
            put(dot.process);
            put(dot.number);
        }
        self.groups.iter().take(MAX_GROUPS_OF_WRITE).for_each(|group| put(*group));
        bytes
    }

    /// Reads a write; `None` where the bytes are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Write> {
        if !bytes.len().is_multiple_of(8) {
            return None;
        }
        let mut bytes = bytes;
        let mut numbers = std::iter::from_fn(|| bytes.try_get_u64().ok());
        let dot = Dot { process: numbers.next()?, number: numbers.next()? };
        let processes = usize::try_from(numbers.next()?).ok().filter(|&processes| processes <= MAX_CLOCK)?;
        let clock: Option<Vector> =
            (0..processes).map(|_| Some(Dot { process: numbers.next()?, number: numbers.next()? })).collect();
        let groups: Groups = numbers.collect();
        (groups.len() <= MAX_GROUPS_OF_WRITE).then_some(Write { dot, clock: Arc::new(clock?), groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::Clock;
    use crate::consistency::tag::TagBase;

    fn dot(process: u64, number: u64) -> Dot {
        Dot { process, number }
    }

    fn write(at: Dot, clock: &[Dot], groups: &[GroupId]) -> Write {
        Write { dot: at, clock: Arc::new(clock.iter().copied().collect()), groups: groups.into() }
    }

    #[test]
    fn the_writes_of_a_forgotten_process_do_not_stay_for_ever() {
        let causality = crate::consistency::Causality::new(1);
        let tag_now = || tag(&causality.clock, &[]);
        let gone = write(dot(2, 1), &[], &[7]);
        causality.hear(&gone);
        let included = tag_now();
        assert_eq!(causality.writes.relation(&[7], &included), Relation::Covered);
        (0..MAX_CLOCK as u64).for_each(|number| causality.hear_number(dot(100 + number, 1)));
        assert_ne!(causality.writes.relation(&[7], &included), Relation::Covered, "it is validated once");
        assert_eq!(causality.writes.relation(&[7], &tag_now()), Relation::Covered);
    }

    #[test]
    fn a_clock_of_many_processes_travels_cut() {
        let many: Vec<Dot> = (0..MAX_CLOCK as u64 + 3).map(|process| dot(process + 1, 1)).collect();
        let sent = write(dot(9, 9), &many, &[7]);
        let read = Write::decode(&sent.encode()).unwrap();
        assert_eq!((read.dot, &read.groups, read.clock.iter().len()), (sent.dot, &sent.groups, MAX_CLOCK));
    }

    /// Returns the tag of a response that was fetched by process 1, with these dots of others in hand.
    fn tag(clock: &Clock, seen: &[Dot]) -> Tag {
        TagBase::begin(clock, seen.iter().copied()).tag(clock.next(), 0)
    }

    #[test]
    fn a_write_supersedes_what_it_has_seen_and_is_concurrent_to_what_it_has_not() {
        let (writes, clock) = (Writes::default(), Clock::new(1));
        let old = tag(&clock, &[]);
        assert_eq!(writes.relation(&[7], &old), Relation::Covered);
        writes.note(&write(dot(2, 1), &[old.dot], &[7]));
        assert_eq!(writes.relation(&[7], &old), Relation::Superseded);
        assert_eq!(writes.relation(&[8], &old), Relation::Covered, "another group");
        assert_eq!(writes.relation(&[7], &tag(&clock, &[dot(2, 1)])), Relation::Covered);
        writes.note(&write(dot(3, 1), &[], &[7]));
        assert_eq!(writes.relation(&[7], &old), Relation::Concurrent);
        assert_eq!(writes.relation(&[8, 7], &tag(&clock, &[dot(2, 1)])), Relation::Concurrent);
        assert_eq!(writes.of(7).len(), 2);
        writes.note(&write(dot(3, 2), &[dot(2, 1), dot(3, 1)], &[7]));
        assert_eq!(writes.of(7).len(), 1, "the last one includes both");
    }

    #[test]
    fn writes_beyond_the_bounds_have_everything_validated() {
        let (writes, clock) = (Writes::default(), Clock::new(1));
        let old = tag(&clock, &[]);
        (0..3 * MAX_GROUPS as u64).for_each(|n| writes.note(&write(dot(2, n + 1), &[], &[n << 32])));
        assert!(writes.len() <= MAX_GROUPS, "{}", writes.len());
        assert_ne!(writes.relation(&[0], &old), Relation::Covered, "a write that is forgotten by itself");
        let new = tag(&clock, &[dot(2, 3 * MAX_GROUPS as u64)]);
        assert_eq!(writes.relation(&[0], &new), Relation::Covered);
        let apart = Writes::default();
        (0..100).for_each(|process| apart.note(&write(dot(10 + process, 1), &[], &[5])));
        assert_eq!(apart.of(5).len(), MAX_WRITES);
        let seen: Vec<Dot> = (92..100).map(|process| dot(10 + process, 1)).collect();
        assert_eq!(apart.relation(&[5], &tag(&clock, &seen)), Relation::Superseded);
    }

    #[test]
    fn a_write_travels_as_bytes() {
        let sent = write(dot(2, 9), &[dot(1, 4), dot(2, 8)], &[7, u64::MAX]);
        let bytes = sent.encode();
        assert_eq!(Write::decode(&bytes), Some(sent));
        for length in 0..bytes.len() {
            let cut = Write::decode(&bytes[..length]);
            assert!(cut.is_none_or(|write| write.groups.len() < 2), "cut at {length}");
        }
        let mut endless = bytes.clone();
        endless[16..24].fill(0xff);
        assert_eq!(Write::decode(&endless), None);
    }
}
