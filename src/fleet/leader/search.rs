//! The exhaustive search: two processes and etcd, with every order of calls, replies and passing time. Calls and replies
//! wait for as long as the search likes (slow or lost keep-alives, partitions); a process that does nothing while time
//! passes is a stopped one; the clock of the first process may run slowly. The processes run the same
//! [`Election::step`] as production.

use super::election::{Effect, Election, Event, Holder, Lease, Moment};
use foldhash::fast::FixedState;
use std::collections::HashSet;
use std::hash::BuildHasher;

/// The lease: a process acts before two of its three units have passed.
const TTL: Moment = 3;
/// The units of time that pass.
const END: Moment = 6;

/// A rule that is left out, or an assumption that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ablation {
    None,
    /// Publications do not compare the term.
    NoToken,
    /// Time counts from the arrival of the acknowledgement.
    ByReceipt,
    /// The clock of the first process runs at half speed.
    HalfSpeed,
}

/// A call on its way to etcd, or a reply on its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Grant { sent: Moment },
    Granted { lease: u64, sent: Moment },
    KeepAlive { lease: u64, sent: Moment },
    Renewed { lease: u64, ttl: Moment, sent: Moment },
    Campaign { lease: u64 },
    Key { term: u64, lease: u64, revision: u64 },
    Read,
    Publish { term: u64 },
    Refused { term: u64 },
}

/// The actions that are left to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    keep_alives: u8,
    publications: u8,
    reads: u8,
    grants: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    election: Election,
    clock: Moment,
    budget: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    time: Moment,
    revision: u64,
    /// The id and the end of each lease.
    leases: Vec<(u64, Moment)>,
    /// The leader's key: its term and its lease.
    key: Option<(u64, u64)>,
    /// The term of the last publication that etcd has carried out.
    published: u64,
    processes: [Process; 2],
    /// The messages on their way, with the process that they belong to.
    messages: Vec<(usize, Message)>,
}

/// A promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// A publication of an earlier term was carried out after one of a later term.
    Stale,
    /// A process acts although its lease is over in etcd.
    ActsWithoutLease,
}

impl World {
    fn new() -> World {
        let process = |budget| Process { election: Election::default(), clock: 0, budget };
        World {
            time: 0,
            revision: 1,
            leases: Vec::new(),
            key: None,
            published: 0,
            processes: [
                process(Budget { keep_alives: 1, publications: 1, reads: 1, grants: 1 }),
                process(Budget { keep_alives: 0, publications: 1, reads: 1, grants: 1 }),
            ],
            messages: Vec::new(),
        }
    }

    /// Sends a message; the order of those on their way does not matter.
    fn send(&mut self, process: usize, message: Message) {
        self.messages.push((process, message));
        self.messages.sort_unstable();
    }

    /// Lets a unit of time pass: leases end, and clocks go on.
    fn tick(&self, ablation: Ablation) -> World {
        let mut next = self.clone();
        next.time += 1;
        for (at, process) in next.processes.iter_mut().enumerate() {
            // The slower clock of the search loses one unit of three, which is as slow as may be.
            let stands = match ablation {
                Ablation::HalfSpeed => next.time.is_multiple_of(2),
                _ => next.time.is_multiple_of(3),
            };
            process.clock += u64::from(at == 1 || !stands);
        }
        let ended: Vec<u64> = next.leases.iter().filter(|(_, end)| *end <= next.time).map(|(id, _)| *id).collect();
        next.leases.retain(|(id, _)| !ended.contains(id));
        if next.key.is_some_and(|(_, lease)| ended.contains(&lease)) {
            next.key = None;
            next.revision += 1;
        }
        next
    }

    /// Hands an event to a process, and sends what it wants to do.
    fn step(&mut self, process: usize, event: Event) {
        let Process { election, clock, budget } = &mut self.processes[process];
        let (next, effect) = election.step(event, *clock);
        *election = next;
        let sent = *clock;
        let message = match effect {
            Some(Effect::Grant) if budget.grants > 0 => {
                budget.grants -= 1;
                Some(Message::Grant { sent })
            }
            Some(Effect::Campaign { lease }) => Some(Message::Campaign { lease }),
            _ => None,
        };
        if let Some(message) = message {
            self.send(process, message);
        }
    }

    /// Has etcd carry a call out, or a process take a reply.
    fn deliver(&self, at: usize, ablation: Ablation) -> Result<World, Broken> {
        let mut next = self.clone();
        let (process, message) = next.messages.remove(at);
        let now = next.processes[process].clock;
        let counted = |sent| if ablation == Ablation::ByReceipt { now } else { sent };
        match message {
            Message::Grant { sent } => {
                let lease = process as u64 + 1;
                next.leases.push((lease, next.time + TTL));
                next.send(process, Message::Granted { lease, sent });
            }
            Message::Granted { lease, sent } => {
                next.step(process, Event::Granted(Lease { id: lease, ttl: TTL, sent: counted(sent) }));
            }
            Message::KeepAlive { lease, sent } => {
                let found = next.leases.iter_mut().find(|(id, _)| *id == lease);
                let ttl = if found.is_some() { TTL } else { 0 };
                if let Some((_, end)) = found {
                    *end = next.time + TTL;
                }
                next.send(process, Message::Renewed { lease, ttl, sent });
            }
            Message::Renewed { lease, ttl, sent } => {
                next.step(process, Event::Renewed(Lease { id: lease, ttl, sent: counted(sent) }));
            }
            Message::Campaign { lease } => {
                let is_alive = next.leases.iter().any(|(id, _)| *id == lease);
                if next.key.is_none() && is_alive {
                    next.revision += 1;
                    next.key = Some((next.revision, lease));
                }
                next.reply_with_key(process);
            }
            Message::Read => next.reply_with_key(process),
            Message::Key { term, lease, revision } => {
                let holder = (term > 0).then_some(Holder { term, lease });
                next.step(process, Event::Key { holder, revision });
            }
            Message::Publish { term } => {
                let is_current = next.key.is_some_and(|(current, _)| current == term);
                if is_current || ablation == Ablation::NoToken {
                    if term < next.published {
                        return Err(Broken::Stale);
                    }
                    next.published = term;
                } else {
                    next.send(process, Message::Refused { term });
                }
            }
            Message::Refused { term } => next.step(process, Event::Refused { term }),
        }
        Ok(next)
    }

    fn reply_with_key(&mut self, process: usize) {
        let (term, lease) = self.key.unwrap_or_default();
        self.send(process, Message::Key { term, lease, revision: self.revision });
    }

    /// Returns what a process can do by itself.
    fn act(&self, at: usize) -> Result<Vec<World>, Broken> {
        let mut worlds = Vec::new();
        let Process { election, clock, budget } = &self.processes[at];
        if election.lease().is_none() && budget.grants > 0 {
            let mut next = self.clone();
            next.step(at, Event::Tick);
            worlds.push(next);
        }
        if let Some(lease) = election.lease() {
            if budget.keep_alives > 0 {
                let mut next = self.clone();
                next.processes[at].budget.keep_alives -= 1;
                next.send(at, Message::KeepAlive { lease: lease.id, sent: *clock });
                worlds.push(next);
            }
            if budget.reads > 0 {
                let mut next = self.clone();
                next.processes[at].budget.reads -= 1;
                next.send(at, Message::Read);
                worlds.push(next);
            }
        }
        if let Some(term) = election.acting(*clock) {
            if !self.leases.iter().any(|(id, _)| *id == at as u64 + 1) {
                return Err(Broken::ActsWithoutLease);
            }
            if budget.publications > 0 {
                let mut next = self.clone();
                next.processes[at].budget.publications -= 1;
                next.send(at, Message::Publish { term });
                worlds.push(next);
            }
        }
        Ok(worlds)
    }

    /// Returns all worlds that can come next.
    fn successors(&self, ablation: Ablation) -> Result<Vec<World>, Broken> {
        let mut worlds = Vec::new();
        if self.time < END {
            worlds.push(self.tick(ablation));
        }
        for at in 0..self.messages.len() {
            worlds.push(self.deliver(at, ablation)?);
        }
        for at in 0..2 {
            worlds.extend(self.act(at)?);
        }
        Ok(worlds)
    }
}

/// Searches all worlds. Returns their number, and all terms in which something was published; or what is broken.
fn search(ablation: Ablation) -> Result<(usize, u64), Broken> {
    let hasher = FixedState::with_seed(0);
    let mut seen: HashSet<u64> = HashSet::new();
    let mut open = vec![World::new()];
    seen.insert(hasher.hash_one(&open[0]));
    let mut newest = 0;
    while let Some(world) = open.pop() {
        newest = newest.max(world.published);
        for next in world.successors(ablation)? {
            if seen.insert(hasher.hash_one(&next)) {
                open.push(next);
            }
        }
    }
    Ok((seen.len(), newest))
}

#[test]
fn no_term_publishes_after_a_later_one_and_none_acts_without_its_lease() {
    let (worlds, newest) = search(Ablation::None).unwrap();
    assert!(worlds > 10_000, "{worlds} worlds");
    assert!(newest > 2, "the second process has led after the first: term {newest}");
}

#[test]
fn without_the_token_a_late_publication_is_carried_out() {
    assert_eq!(search(Ablation::NoToken), Err(Broken::Stale));
}

#[test]
fn counted_from_the_receipt_a_process_acts_too_long() {
    assert_eq!(search(Ablation::ByReceipt), Err(Broken::ActsWithoutLease));
}

#[test]
fn a_clock_of_half_the_speed_is_too_slow() {
    assert_eq!(search(Ablation::HalfSpeed), Err(Broken::ActsWithoutLease));
}
