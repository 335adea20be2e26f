//! The members of the fleet, by their signs of life: a pure table.

use super::event::{Event, Heartbeat, ProcessId};
use super::gaps::Moment;
use std::collections::BTreeMap;

/// The most members; of more, those that were silent for longest are forgotten.
const MAX_MEMBERS: usize = 4096;
/// The time for which a member that vanished still counts, in milliseconds.
pub(super) const REMEMBERED: Moment = 24 * 3_600_000;
/// The shortest and the longest lease that a heartbeat may name, in milliseconds.
const LEASES: (Moment, Moment) = (300, 3_600_000);

/// The other members of the fleet.
#[derive(Debug, Default)]
pub(super) struct Members {
    table: BTreeMap<ProcessId, Member>,
}

/// A member, as of its last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) beat: Heartbeat,
    /// The moment of its last sign of life, in milliseconds.
    pub(super) heard: Moment,
}

impl Member {
    /// Returns whether its lease is over without a sign of life.
    pub(super) fn is_missed(&self, now: Moment) -> bool {
        now.saturating_sub(self.heard) > Moment::from(self.beat.lease).clamp(LEASES.0, LEASES.1)
    }
}

impl Members {
    /// Notes an event of another process. Returns whether members have come or gone.
    pub(super) fn note(&mut self, from: ProcessId, event: &Event, now: Moment) -> bool {
        match event {
            Event::Heartbeat(beat) => self.add(from, (**beat).clone(), now),
            Event::Leave => self.table.remove(&from).is_some(),
            Event::Forget(gone) => self.table.remove(gone).is_some(),
            _ => {
                if let Some(member) = self.table.get_mut(&from) {
                    member.heard = member.heard.max(now);
                }
                false
            }
        }
    }

    /// Adds a member, or its newer sign of life. Returns whether it is new.
    pub(super) fn add(&mut self, process: ProcessId, beat: Heartbeat, heard: Moment) -> bool {
        if let Some(member) = self.table.get_mut(&process) {
            if heard >= member.heard {
                *member = Member { beat, heard };
            }
            return false;
        }
        if self.table.len() >= MAX_MEMBERS {
            let oldest = self.table.iter().min_by_key(|(_, member)| member.heard).map(|(process, _)| *process);
            oldest.map(|oldest| self.table.remove(&oldest));
        }
        self.table.insert(process, Member { beat, heard });
        true
    }

    /// Forgets members that vanished long ago. Returns them.
    pub(super) fn tend(&mut self, now: Moment) -> Vec<ProcessId> {
        let gone = |member: &Member| now.saturating_sub(member.heard) > REMEMBERED;
        let gone: Vec<ProcessId> =
            self.table.iter().filter(|(_, member)| gone(member)).map(|(process, _)| *process).collect();
        gone.iter().for_each(|process| drop(self.table.remove(process)));
        gone
    }

    /// Returns all members, those that vanished among them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ProcessId, &Member)> {
        self.table.iter().map(|(process, member)| (*process, member))
    }

    pub(super) fn contains(&self, process: ProcessId) -> bool {
        self.table.contains_key(&process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(lease: u32) -> Event {
        Event::Heartbeat(Box::new(Heartbeat { lease, ..Heartbeat::default() }))
    }

    #[test]
    fn a_member_counts_until_it_leaves_is_forgotten_or_a_day_is_over() {
        let (a, b, c) = (ProcessId(1), ProcessId(2), ProcessId(3));
        let mut members = Members::default();
        assert!([a, b, c].iter().all(|&process| members.note(process, &beat(1000), 5)));
        assert!(!members.note(a, &beat(1000), 100));
        let missed = |members: &Members, now| -> Vec<ProcessId> {
            members.iter().filter(|(_, member)| member.is_missed(now)).map(|(process, _)| process).collect()
        };
        assert_eq!(missed(&members, 1005), []);
        assert_eq!(missed(&members, 1006), [b, c]);
        // Any event is a sign of life.
        members.note(b, &Event::Missed, 1000);
        assert_eq!(missed(&members, 1101), [a, c]);
        assert!(members.note(b, &Event::Leave, 1102));
        assert!(members.note(b, &Event::Forget(c), 1102));
        assert_eq!(members.iter().map(|(process, _)| process).collect::<Vec<_>>(), [a]);
        assert_eq!(members.tend(100 + REMEMBERED), []);
        assert_eq!(members.tend(101 + REMEMBERED), [a]);
    }

    #[test]
    fn strangers_do_not_fill_the_table() {
        let mut members = Members::default();
        for process in 0..MAX_MEMBERS as u64 + 9 {
            members.note(ProcessId(process), &beat(u32::MAX), process);
        }
        assert_eq!(members.table.len(), MAX_MEMBERS);
        assert!(!members.contains(ProcessId(8)) && members.contains(ProcessId(9)));
        let member = &members.table[&ProcessId(9)];
        assert!(member.is_missed(9 + LEASES.1 + 1), "a lease is bounded");
    }
}
