//! A store in memory, for tests, and where records may be lost by a restart.

use super::clock::Clock;
use super::identity::{Id, Subject};
use super::record::{Event, Finish, Holder, Millis, Record, State, Token, Transition, transition};
use super::response::StoredResponse;
use super::store::{
    Authorised, BATCH, ClaimReply, Claimed, Completion, Done, Found, Listed, NewClaim, Release, Store, StoreError,
    Tended, no_sagas,
};
use crate::clock::BootTime;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// New claims are refused beyond this; nothing is forgotten to make room, for that would run requests
/// again.
pub(crate) const MAX_BYTES: usize = 256 << 20;

/// The memory of a record beside its texts and its response.
const OVERHEAD: usize = 512;

/// Records of this process alone.
pub(crate) struct Memory {
    holder: Holder,
    clock: Clock,
    max_bytes: usize,
    records: Mutex<Records>,
}

#[derive(Default)]
struct Records {
    by_id: BTreeMap<Id, Entry>,
    /// The records that have ended, by their expiry.
    ended: BTreeSet<(Millis, Id)>,
    bytes: usize,
    tombstones: u64,
}

struct Entry {
    record: Record,
    subject: Arc<Subject>,
    response: Option<StoredResponse>,
}

impl Entry {
    fn size(&self) -> usize {
        let Subject { namespace, method, authority, path, key } = &*self.subject;
        let texts: usize = [namespace, method, authority, path, key].iter().map(|text| text.len()).sum();
        OVERHEAD + texts + self.response.as_ref().map_or(0, StoredResponse::size)
    }
}

impl Records {
    fn put(&mut self, id: Id, entry: Entry) {
        self.remove(&id);
        self.bytes += entry.size();
        self.tombstones += u64::from(entry.record.state == State::Tombstone);
        if entry.record.state != State::Running {
            self.ended.insert((entry.record.expires, id));
        }
        self.by_id.insert(id, entry);
    }

    fn remove(&mut self, id: &Id) -> Option<Entry> {
        let entry = self.by_id.remove(id)?;
        self.bytes -= entry.size();
        self.tombstones -= u64::from(entry.record.state == State::Tombstone);
        self.ended.remove(&(entry.record.expires, *id));
        Some(entry)
    }

    /// Applies an event to an existing record; returns whether it applied.
    fn apply(&mut self, id: &Id, event: Event, now: Millis, response: Option<StoredResponse>) -> bool {
        let Some(entry) = self.by_id.get(id) else { return false };
        match transition(Some(&entry.record), event, now) {
            Transition::Stays => return false,
            Transition::Goes => drop(self.remove(id)),
            Transition::Becomes(record) => {
                if let Some(entry) = self.remove(id) {
                    self.put(*id, Entry { record, response, ..entry });
                }
            }
        }
        true
    }
}

impl Memory {
    pub(crate) fn new(holder: Holder, clock: Clock, max_bytes: usize) -> Memory {
        Memory { holder, clock, max_bytes, records: Mutex::default() }
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock()
    }
}

impl Store for Memory {
    fn holder(&self) -> Holder {
        self.holder
    }

    fn claim(&self, claim: NewClaim, done: Done<ClaimReply>) {
        if claim.saga.is_some() {
            return done(Err(no_sagas()));
        }
        let (sent, now) = (BootTime::now(), self.clock.now());
        let NewClaim { id, fingerprint, token, retake, ttl, .. } = claim;
        let mut records = self.records();
        let found = records.by_id.get(&id);
        let before = found.map(|entry| entry.record);
        let event = Event::Claim { token, fingerprint, retake, expires: self.clock.expiry(ttl) };
        let claimed = match (transition(before.as_ref(), event, now), found) {
            (Transition::Becomes(record), _) => match records.bytes >= self.max_bytes {
                true => Err(StoreError::Full),
                false => {
                    let claimed = Claimed::over(before.as_ref(), &claim, now);
                    records.put(id, Entry { record, subject: claim.subject, response: None });
                    Ok(claimed)
                }
            },
            (_, Some(entry)) if entry.record.state == State::Tombstone => Err(StoreError::Released),
            (_, Some(entry)) => Ok(Claimed::Found(Found { record: entry.record, response: entry.response.clone() })),
            (_, None) => unreachable!("an absent record can be claimed"),
        };
        drop(records);
        done(claimed.map(|claimed| ClaimReply { claimed, sent, is_resent: false, began: None }));
    }

    fn complete(&self, completion: Completion, done: Done<bool>) {
        let Completion { id, token, finish, response, ttl } = completion;
        // Copied, so that it keeps no larger buffer alive.
        let response = response.filter(|_| finish == Finish::Done).map(|response| response.alone());
        let event = Event::Complete { token, finish, expires: self.clock.expiry(ttl) };
        let completed = self.records().apply(&id, event, self.clock.now(), response);
        done(Ok(completed));
    }

    fn release(&self, release: Release, done: Done<bool>) {
        let Release { id, token, way, ttl, .. } = release;
        let event = Event::Release { token, way, expires: self.clock.expiry(ttl) };
        let mut records = self.records();
        let before = records.by_id.get(&id).map(|entry| entry.record);
        match transition(before.as_ref(), event, self.clock.now()) {
            Transition::Stays => {}
            Transition::Goes => drop(records.remove(&id)),
            Transition::Becomes(record) => {
                let subject = records.by_id.get(&id).map(|entry| Arc::clone(&entry.subject));
                let response = None;
                records.put(id, Entry { record, subject: subject.unwrap_or_default(), response });
            }
        }
        drop(records);
        done(Ok(before.is_some_and(|record| record.is_open_to(token))));
    }

    fn authorise(&self, id: Id, done: Done<Authorised>) {
        let mut records = self.records();
        let authorised = match records.by_id.get(&id).map(|entry| entry.record.state) {
            None | Some(State::Tombstone) => Authorised::Absent,
            Some(_) if records.apply(&id, Event::Authorise, self.clock.now(), None) => Authorised::Released,
            Some(_) => Authorised::Running,
        };
        drop(records);
        done(Ok(authorised));
    }

    fn beat(&self, done: Done<()>) {
        done(Ok(()));
    }

    fn tend(&self, done: Done<Tended>) {
        self.clock.follow();
        let now = self.clock.now();
        let mut records = self.records();
        let gone: Vec<Id> = records
            .ended
            .iter()
            .take_while(|(expires, _)| *expires <= now)
            .take(BATCH as usize)
            .map(|(_, id)| *id)
            .collect();
        for id in &gone {
            records.apply(id, Event::Expire, now, None);
        }
        drop(records);
        done(Ok(Tended { expired: gone.len(), more: gone.len() == BATCH as usize }));
    }

    fn running(&self, done: Done<Vec<(Id, Token)>>) {
        let records = self.records();
        let running = records.by_id.iter().filter(|(_, entry)| entry.record.state == State::Running);
        let running = running.take(BATCH as usize).map(|(id, entry)| (*id, entry.record.token)).collect();
        drop(records);
        done(Ok(running));
    }

    fn look_up(&self, id: Id, done: Done<Option<Found>>) {
        let now = self.clock.now();
        let records = self.records();
        let living = |entry: &&Entry| entry.record.state != State::Tombstone && !entry.record.is_over(now);
        let found = records.by_id.get(&id).filter(living);
        let found = found.map(|entry| Found { record: entry.record, response: entry.response.clone() });
        drop(records);
        done(Ok(found));
    }

    fn find(&self, key: String, done: Done<Vec<Listed>>) {
        let mut first = Id([0; Id::LENGTH]);
        let prefix = Id::prefix(&key);
        first.0[..Id::PREFIX].copy_from_slice(&prefix);
        let now = self.clock.now();
        let records = self.records();
        let listed = records
            .by_id
            .range(first..)
            .take_while(|(id, _)| id.0.starts_with(&prefix))
            .filter(|(_, entry)| entry.subject.key == key && entry.record.state != State::Tombstone)
            .take(BATCH as usize)
            .map(|(id, entry)| {
                let status = entry.response.as_ref().map(|response| response.status);
                Listed::at(now, *id, (*entry.subject).clone(), entry.record, status)
            })
            .collect();
        drop(records);
        done(Ok(listed));
    }

    fn count(&self) -> Option<u64> {
        let records = self.records();
        Some(records.by_id.len() as u64 - records.tombstones)
    }
}
