//! The election as a pure state machine: one process holds the leader's key, by a lease that it keeps alive.
//!
//! The revision at which the key was created is the term, and the fencing token: etcd carries a publication out only
//! while the key has it. A leader stops acting two thirds of a lease after it *sent* the last acknowledged keep-alive.
//! etcd counts the lease from the arrival of that call, so no other process leads yet, as long as the clock of the
//! leader runs at more than two thirds of the speed of etcd's.

/// A moment, or a length of time, in milliseconds of the machine's time since its boot.
pub(super) type Moment = u64;

/// A lease, as etcd has acknowledged it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) id: u64,
    pub(super) ttl: Moment,
    /// The moment at which the last acknowledged keep-alive was sent.
    pub(super) sent: Moment,
}

impl Lease {
    /// Returns whether two thirds of the lease are not over yet.
    fn is_fresh(&self, now: Moment) -> bool {
        now.saturating_sub(self.sent) < self.ttl * 2 / 3
    }
}

/// The holder of the leader's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    /// The revision at which the key was created.
    pub(super) term: u64,
    pub(super) lease: u64,
}

/// The part that the process plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Role {
    #[default]
    Follower,
    /// A campaign is on its way.
    Candidate,
    Leader {
        term: u64,
    },
}

/// The election, as one process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Election {
    lease: Option<Lease>,
    role: Role,
    /// The process hands over, and does not lead again.
    is_retired: bool,
    /// The highest revision of which the state of the key is known, and its holder then.
    seen: u64,
    holder: Option<Holder>,
}

/// An input of the election: a reply of etcd, a change, or the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A new lease was granted.
    Granted(Lease),
    /// A keep-alive was acknowledged; a time to live of 0 says that the lease is over.
    Renewed(Lease),
    /// The state of the key as of a revision: by a campaign, a read, or the watch.
    Key { holder: Option<Holder>, revision: u64 },
    /// A campaign was not answered.
    Unanswered,
    /// etcd has refused a publication of a term, as the key does not have it any more.
    Refused { term: u64 },
    /// A read of all keys has an older revision than was known: etcd has lost data, and counts anew.
    Lost,
    /// Time has passed.
    Tick,
    /// The process hands over for good.
    Retire,
}

/// An output of the election: a call to etcd, or a change of the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Asks for a lease.
    Grant,
    /// Creates the leader's key with a lease, unless there is one.
    Campaign { lease: u64 },
    /// Removes the key of a term.
    Resign { term: u64 },
}

impl Election {
    /// Returns the next state after an event, and what the process is to do.
    pub(super) fn step(&self, event: Event, now: Moment) -> (Election, Option<Effect>) {
        let mut next = self.clone();
        match event {
            Event::Granted(lease) => {
                next.lease = Some(lease);
                next.role = Role::Follower;
            }
            Event::Renewed(lease) => next.renewed(lease),
            Event::Key { holder, revision } => {
                next.key(holder, revision);
                let own = next.lease.map(|lease| lease.id);
                if let Some(holder) = next.holder.filter(|it| next.is_retired && Some(it.lease) == own) {
                    // A campaign that was on its way has won.
                    return (next, Some(Effect::Resign { term: holder.term }));
                }
            }
            Event::Unanswered => {
                if next.role == Role::Candidate {
                    next.role = Role::Follower;
                }
            }
            Event::Refused { term } => {
                if next.role == (Role::Leader { term }) {
                    next.role = Role::Follower;
                    next.holder = None;
                }
            }
            Event::Lost => (next.seen, next.holder, next.role) = (0, None, Role::Follower),
            Event::Tick => {}
            Event::Retire => {
                next.is_retired = true;
                if let Role::Leader { term } = std::mem::take(&mut next.role) {
                    return (next, Some(Effect::Resign { term }));
                }
            }
        }
        let effect = next.wanted(now);
        if matches!(effect, Some(Effect::Campaign { .. })) {
            next.role = Role::Candidate;
        }
        (next, effect)
    }

    /// Returns the term in which the process may act now; nothing where it must not.
    pub(super) fn acting(&self, now: Moment) -> Option<u64> {
        let Role::Leader { term } = self.role else { return None };
        self.lease.filter(|lease| lease.is_fresh(now)).map(|_| term)
    }

    /// Returns the highest revision of which the state of the key is known.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Returns the lease that is to be kept alive.
    pub(super) fn lease(&self) -> Option<Lease> {
        self.lease
    }

    fn renewed(&mut self, renewed: Lease) {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.id == renewed.id) else { return };
        if renewed.ttl == 0 {
            self.lease = None;
            self.role = Role::Follower;
            return;
        }
        if renewed.sent >= lease.sent {
            *lease = renewed;
        }
    }

    fn key(&mut self, holder: Option<Holder>, revision: u64) {
        // A reply that was overtaken by a later one says nothing new.
        if revision < self.seen {
            if self.role == Role::Candidate {
                self.role = Role::Follower;
            }
            return;
        }
        (self.seen, self.holder) = (revision, holder);
        let own = self.lease.map(|lease| lease.id);
        self.role = match holder {
            Some(holder) if Some(holder.lease) == own && !self.is_retired => Role::Leader { term: holder.term },
            _ => Role::Follower,
        };
    }

    /// Returns what the process wants of etcd.
    fn wanted(&self, now: Moment) -> Option<Effect> {
        match (self.lease, self.role) {
            (None, _) => Some(Effect::Grant),
            (Some(lease), Role::Follower) if self.holder.is_none() && self.seen > 0 && !self.is_retired => {
                lease.is_fresh(now).then_some(Effect::Campaign { lease: lease.id })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: u64, sent: Moment) -> Lease {
        Lease { id, ttl: 3000, sent }
    }

    #[test]
    fn a_process_leads_by_its_lease_alone() {
        let (election, effect) = Election::default().step(Event::Tick, 0);
        assert_eq!(effect, Some(Effect::Grant));
        let (election, effect) = election.step(Event::Granted(lease(7, 10)), 20);
        assert_eq!(effect, None, "the key was not read yet");
        let (election, effect) = election.step(Event::Key { holder: None, revision: 4 }, 30);
        assert_eq!(effect, Some(Effect::Campaign { lease: 7 }));
        let won = Event::Key { holder: Some(Holder { term: 5, lease: 7 }), revision: 5 };
        let (election, effect) = election.step(won, 40);
        assert_eq!((effect, election.acting(40)), (None, Some(5)));
        assert_eq!(election.acting(2009), Some(5));
        assert_eq!(election.acting(2010), None, "two thirds after it was sent");
        let (again, _) = election.step(Event::Renewed(lease(7, 1500)), 2020);
        assert_eq!(again.acting(3499), Some(5), "the key is there as long as its lease");
        // A keep-alive that comes late does not turn time back.
        let (again, _) = again.step(Event::Renewed(lease(7, 900)), 2030);
        assert_eq!(again.acting(3499), Some(5));
        let (over, effect) = again.step(Event::Renewed(Lease { ttl: 0, ..lease(7, 2000) }), 2040);
        assert_eq!((effect, over.acting(2040)), (Some(Effect::Grant), None));
    }

    #[test]
    fn what_the_watch_tells_late_deposes_no_leader() {
        let (election, _) = Election::default().step(Event::Granted(lease(7, 0)), 0);
        let (election, _) = election.step(Event::Key { holder: Some(Holder { term: 9, lease: 7 }), revision: 9 }, 1);
        let (election, _) = election.step(Event::Key { holder: None, revision: 8 }, 2);
        assert_eq!(election.acting(3), Some(9), "the key of the leader before");
        let (deposed, effect) = election.step(Event::Key { holder: None, revision: 10 }, 3);
        assert_eq!((deposed.acting(3), effect), (None, Some(Effect::Campaign { lease: 7 })));
        let (deposed, _) = election.step(Event::Refused { term: 9 }, 3);
        assert_eq!(deposed.acting(3), None);
    }

    /// A cluster that has lost its data counts from 1: its revisions are older than those that were seen, and count.
    #[test]
    fn a_leader_is_elected_in_a_cluster_that_counts_anew() {
        let (election, _) = Election::default().step(Event::Granted(lease(7, 0)), 0);
        let (led, _) = election.step(Event::Key { holder: Some(Holder { term: 900, lease: 7 }), revision: 900 }, 1);
        let (followed, _) =
            election.step(Event::Key { holder: Some(Holder { term: 900, lease: 6 }), revision: 900 }, 1);
        for election in [led, followed] {
            let (election, _) = election.step(Event::Granted(lease(8, 10)), 11);
            let (election, effect) = election.step(Event::Lost, 12);
            assert_eq!((effect, election.acting(12), election.seen()), (None, None, 0), "the key is to be read first");
            let (election, effect) = election.step(Event::Key { holder: None, revision: 3 }, 13);
            assert_eq!(effect, Some(Effect::Campaign { lease: 8 }));
            let won = Event::Key { holder: Some(Holder { term: 4, lease: 8 }), revision: 4 };
            assert_eq!(election.step(won, 14).0.acting(14), Some(4));
        }
    }

    #[test]
    fn a_process_that_retires_resigns_and_stays_a_follower() {
        let (election, _) = Election::default().step(Event::Granted(lease(7, 0)), 0);
        let (election, _) = election.step(Event::Key { holder: Some(Holder { term: 9, lease: 7 }), revision: 9 }, 1);
        let (retired, effect) = election.step(Event::Retire, 2);
        assert_eq!((effect, retired.acting(2)), (Some(Effect::Resign { term: 9 }), None));
        assert_eq!(retired.step(Event::Key { holder: None, revision: 10 }, 3).1, None);
        let late = Event::Key { holder: Some(Holder { term: 11, lease: 7 }), revision: 11 };
        let (retired, effect) = retired.step(late, 4);
        assert_eq!((effect, retired.acting(4)), (Some(Effect::Resign { term: 11 }), None));
    }
}
